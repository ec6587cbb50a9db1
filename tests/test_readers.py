"""What napari gets to see of a file, and what it writes back, through its own plugin machinery."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import highdicom
import nibabel
import npe2
import numpy as np
import pytest
import tifffile
from napari.layers import Image, Labels, Layer
from PIL import Image as Picture

from napari_rskd._readers import SCAN, get_reader, name_of
from napari_rskd._writers import scan_for
from rskd.errors import ParameterError
from rskd.io import read_scan, write_image, write_labels
from rskd.scan import Scan

_spec = importlib.util.spec_from_file_location("_dicom_files", Path(__file__).parent / "io" / "test_dicom.py")
assert _spec
assert _spec.loader
files: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(files)

PLUGIN = "napari-rskd"
PIXELS = np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8)


@pytest.fixture(autouse=True)
def manager() -> npe2.PluginManager:
    """The installed plugins, as napari finds them."""
    found = npe2.PluginManager.instance()
    found.discover(include_npe1=False)
    return found


def opened(*paths: Path, plugin: str | None = PLUGIN) -> list[Layer]:
    data = npe2.read([str(path) for path in paths], stack=len(paths) > 1, plugin_name=plugin)
    return [layer for entry in data for layer in made(entry)]


def made(entry: tuple) -> list[Layer]:
    """Layers as the viewer makes them of what a reader returns."""
    from napari.components import ViewerModel

    viewer = ViewerModel()
    return list(viewer._add_layer_from_data(*entry))


def world(layer: Layer, index: tuple[int, ...]) -> np.ndarray:
    return np.asarray(layer.data_to_world(index))


def test_a_series_lies_where_the_scanner_says(tmp_path: Path) -> None:
    (layer,) = opened(files.series(tmp_path / "Doe Jane"))
    assert isinstance(layer, Image)
    assert not layer.rgb
    np.testing.assert_array_equal(layer.data, files.voxels().astype(int) - 1024)
    directions = files.turned()
    corner = [-40, 12.5, 100] + 4 * 2.5 * directions[2] + 5 * 0.8 * directions[1] + 6 * 0.6 * directions[0]
    np.testing.assert_allclose(world(layer, (4, 5, 6)), corner[::-1], atol=1e-6)  # DICOM's own millimetres, z y x
    np.testing.assert_allclose(layer.scale, files.SPACING, rtol=1e-6)
    assert ([str(unit) for unit in layer.units], layer.axis_labels) == (["millimeter"] * 3, ("z", "y", "x"))
    assert layer.name.startswith("CT ")
    assert "Doe" not in layer.name


def test_the_files_of_a_series_are_one_layer(tmp_path: Path) -> None:
    series = files.series(tmp_path / "a")
    (layer,) = opened(*series.iterdir())
    np.testing.assert_array_equal(layer.data, files.voxels().astype(int) - 1024)


def test_contrast_comes_from_the_file(tmp_path: Path) -> None:
    def window(dataset: Any, _: int) -> None:
        dataset.WindowCenter, dataset.WindowWidth = [40, 300], [400, 1500]

    (layer,) = opened(files.series(tmp_path / "a", change=window))
    assert layer.contrast_limits == [-160, 240]


@pytest.mark.parametrize("shape", [(40, 50, 3), (3, 40, 50), (40, 50, 4)])
def test_the_file_decides_on_colours(tmp_path: Path, shape: tuple[int, ...]) -> None:
    nibabel.save(nibabel.Nifti1Image(np.zeros(shape, np.uint8).T, np.eye(4)), tmp_path / "a.nii")
    (layer,) = opened(tmp_path / "a.nii")
    assert not layer.rgb
    assert layer.ndim == 3
    tifffile.imwrite(tmp_path / "a.ome.tif", PIXELS, photometric="rgb", metadata={"axes": "YXS"})
    (layer,) = opened(tmp_path / "a.ome.tif")
    assert layer.rgb
    np.testing.assert_array_equal(layer.data, PIXELS)


def test_channels_become_layers_with_their_names(tmp_path: Path) -> None:
    data = np.moveaxis(PIXELS, -1, 0)[:2]
    sizes = {"PhysicalSizeX": 0.25, "PhysicalSizeY": 0.5}
    names = {"Channel": {"Name": ["DAPI", "actin"]}}
    tifffile.imwrite(tmp_path / "a.ome.tif", data, photometric="minisblack", metadata={"axes": "CYX", **sizes, **names})
    first, second = opened(tmp_path / "a.ome.tif")
    assert [first.name, second.name] == ["a DAPI", "a actin"]
    np.testing.assert_array_equal(second.data, data[1])
    np.testing.assert_allclose(world(second, (10, 20)), (5, 5))
    assert str(first.units[0]) == "micrometer"


def test_a_pyramid_is_lazy_and_multiscale(tmp_path: Path) -> None:
    data = np.random.default_rng(0).integers(0, 9, (2, 600, 700), dtype=np.uint8)
    write_image(tmp_path / "a.zarr", Scan(data, "zyx", spacing=(3, 0.5, 0.25), units="um"))
    (layer,) = opened(tmp_path / "a.zarr")
    assert layer.multiscale
    assert [level.shape for level in layer.data] == [(2, 600, 700), (2, 300, 350), (2, 150, 175)]
    assert type(layer.data[0]).__module__.startswith("dask")
    np.testing.assert_array_equal(layer.data[0], data)
    np.testing.assert_allclose(layer.scale, (3, 0.5, 0.25))


def test_a_segmentation_becomes_labels(tmp_path: Path) -> None:
    scan = read_scan(files.series(tmp_path / "a"))
    write_labels(tmp_path / "labels.dcm", files.voxels() % 3, scan)
    (image,), (labels,) = opened(tmp_path / "a"), opened(tmp_path / "labels.dcm")
    assert isinstance(labels, Labels)
    np.testing.assert_allclose(world(labels, (1, 2, 3)), world(image, (1, 2, 3)), atol=1e-5)


def test_what_is_no_scan_is_left_to_others(tmp_path: Path) -> None:
    (tmp_path / "a.dcm").write_text("hello")
    (tmp_path / "b").mkdir()
    assert get_reader(str(tmp_path / "a.dcm")) is None
    assert get_reader(str(tmp_path / "b")) is None
    assert get_reader([]) is None


# ------------------------------------------------------------------------------------------------ writing


def labels_on(image: Layer, values: np.ndarray) -> Labels:
    """A labels layer on an image, as RSKD's results and napari's own button make it."""
    kept = ("scale", "translate", "rotate", "shear", "units", "axis_labels")
    place = {name: getattr(image, name) for name in kept}
    return Labels(values, affine=image.affine.affine_matrix, metadata=dict(image.metadata), **place)


def saved(layer: Labels, path: Path) -> Path:
    paths, writer = npe2.io_utils._write(
        str(path), layer_data=[layer.as_layer_data_tuple()], plugin_name=PLUGIN, return_writer=True
    )
    assert writer.command == "napari-rskd.write_labels"
    assert paths == [str(path)]
    return path


@pytest.mark.parametrize("ending", ["nii", "nii.gz", "dcm", "ome.tif", "zarr"])
def test_labels_are_written_onto_their_scan(tmp_path: Path, ending: str) -> None:
    (image,) = opened(files.series(tmp_path / "scan"))
    values = (files.voxels() % 4).astype(np.uint8)
    path = saved(labels_on(image, values), tmp_path / f"labels.{ending}")
    read, scan = read_scan(path), read_scan(tmp_path / "scan")
    np.testing.assert_array_equal(read.data, values)
    np.testing.assert_allclose(read.spacing, scan.spacing, rtol=1e-6)
    if ending != "ome.tif":  # which has no place for it
        np.testing.assert_allclose(read.affine, scan.affine, atol=1e-4)


def test_the_classes_are_named_in_a_segmentation(tmp_path: Path) -> None:
    (image,) = opened(files.series(tmp_path / "scan"))
    labels = labels_on(image, (files.voxels() % 3).astype(np.uint8))
    labels.features = {"index": [0, 1, 2], "class": ["background", "liver", "tumour"]}
    written = highdicom.seg.segread(saved(labels, tmp_path / "labels.dcm"))
    assert [written.get_segment_description(n).SegmentLabel for n in (1, 2)] == ["liver", "tumour"]


def test_labels_that_were_moved_are_written_where_they_are(tmp_path: Path) -> None:
    (image,) = opened(files.series(tmp_path / "scan"))
    labels = labels_on(image, np.ones(files.SHAPE, np.uint8))
    labels.translate = (2.5, 0, 0)  # one plane up
    scan = read_scan(tmp_path / "scan")
    written = read_scan(saved(labels, tmp_path / "labels.nii"))
    assert scan.affine is not None
    assert written.affine is not None
    np.testing.assert_allclose(written.affine @ [0, 0, 0, 1], scan.affine @ [1, 0, 0, 1], atol=1e-4)


def test_a_part_of_a_scan_is_written_where_it_is(tmp_path: Path) -> None:
    (image,) = opened(files.series(tmp_path / "scan"))
    labels = labels_on(image, np.ones((2, 6, 7), np.uint8))
    written = read_scan(saved(labels, tmp_path / "labels.nii"))
    np.testing.assert_allclose(written.affine, read_scan(tmp_path / "scan").affine, atol=1e-4)


def write_foreign(folder: Path) -> list[Path]:
    Picture.fromarray(PIXELS).save(folder / "colour.png")
    Picture.fromarray(PIXELS[..., 0]).save(folder / "grey.png")
    tifffile.imwrite(folder / "stack.tif", np.moveaxis(PIXELS, -1, 0), photometric="minisblack")
    tifffile.imwrite(folder / "colour.tif", PIXELS, photometric="rgb")
    return sorted(folder.iterdir())


def test_napari_and_we_open_the_same_and_write_the_same(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for path in write_foreign(tmp_path / "in"):
        (theirs,) = opened(path, plugin="napari")
        reader = get_reader(str(path))
        assert reader is not None
        (ours,) = made(reader(str(path))[0])
        np.testing.assert_array_equal(np.asarray(theirs.data), np.asarray(ours.data))
        assert theirs.rgb == ours.rgb
        values = np.indices(np.asarray(ours.data).shape[: ours.ndim]).sum(0) % 5
        written = [
            read_scan(saved(labels_on(layer, values), tmp_path / f"{path.name}{n}.nii"))
            for n, layer in enumerate((theirs, ours))
        ]
        np.testing.assert_array_equal(written[0].data, written[1].data)
        assert (written[0].spacing, written[0].affine) == (written[1].spacing, written[1].affine)


def test_a_layer_of_another_plugin_keeps_its_place(tmp_path: Path) -> None:
    foreign = Labels(np.ones((3, 4, 5), np.uint8), scale=(3, 2, 1), translate=(10, 20, 30), units=("mm",) * 3)
    written = nibabel.load(saved(foreign, tmp_path / "labels.nii"))
    np.testing.assert_allclose(written.affine, [[1, 0, 0, 30], [0, 2, 0, 20], [0, 0, 3, 10], [0, 0, 0, 1]])
    assert written.header.get_xyzt_units()[0] == "mm"


def test_too_many_axes_are_refused() -> None:
    with pytest.raises(ParameterError, match="5 axes cannot be written"):
        scan_for((1,) * 5, Labels(np.zeros((1,) * 5, int)).as_layer_data_tuple()[1])


def test_what_a_layer_remembers_takes_no_memory(tmp_path: Path) -> None:
    (layer,) = opened(files.series(tmp_path / "scan"))
    kept = layer.metadata[SCAN]
    assert kept.data.strides == (0, 0, 0)
    assert kept.data.shape == files.SHAPE
    assert name_of(kept) == layer.name


def test_reading_needs_no_torch(tmp_path: Path) -> None:
    path = files.series(tmp_path / "scan")
    code = (
        "import sys, json; from napari_rskd._readers import get_reader; import napari_rskd._writers\n"
        f"get_reader({str(path)!r})({str(path)!r})\n"
        "print(json.dumps(sorted({'torch', 'timm', 'skimage'} & set(sys.modules))))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert json.loads(done.stdout.splitlines()[-1]) == []


def test_masks_of_classes_that_overlap_are_labels_of_each(tmp_path: Path) -> None:
    planes = np.random.default_rng(0).integers(0, 2, (2, 3, 6, 8)).astype(np.uint8)
    write_labels(tmp_path / "mask.zarr", planes, Scan(np.zeros((3, 6, 8)), "zyx"), names=("liver", "tumour"))
    reader = get_reader(str(tmp_path / "mask.zarr"))
    assert reader is not None
    layers = [Layer.create(*data) for data in reader(str(tmp_path / "mask.zarr"))]
    assert [(type(layer), layer.name) for layer in layers] == [(Labels, "mask liver"), (Labels, "mask tumour")]
    for layer, plane in zip(layers, planes, strict=True):
        np.testing.assert_array_equal(layer.data, plane)
