"""OME-Zarr: images of the ome-zarr library, and groups made file by file."""

import json
from pathlib import Path

import numpy as np
import pytest
import zarr
from ome_zarr.format import FormatV04, FormatV05
from ome_zarr.io import parse_url
from ome_zarr.reader import Reader
from ome_zarr.writer import write_image as write_with_ome_zarr
from ome_zarr.writer import write_labels as labels_with_ome_zarr

from rskd.errors import FileError, ParameterError
from rskd.io import ome_zarr, read_scan, write_image, write_labels
from rskd.io.lazy import LazyArray
from rskd.scan import Scan

DATA = np.arange(2 * 3 * 40 * 30, dtype=np.uint16).reshape(2, 3, 40, 30)
SCALE = {"z": 2.0, "y": 0.5, "x": 0.25}


def foreign(folder: Path, format_: object) -> Path:
    """An image with two levels, its channels named, as the ome-zarr library writes it."""
    group = zarr.open_group(folder, mode="w", zarr_format=format_.zarr_format)  # type: ignore[attr-defined]
    units = dict.fromkeys("zyx", "micrometer")
    write_with_ome_zarr(DATA, group, scale_factors=[2], fmt=format_, axes="czyx", scale=SCALE, axes_units=units)
    return folder


@pytest.mark.parametrize("format_", [FormatV04(), FormatV05()], ids=["0.4", "0.5"])
def test_images_of_the_ome_zarr_library(tmp_path: Path, format_: object) -> None:
    scan = read_scan(foreign(tmp_path / "a.zarr", format_))
    assert (scan.axes, scan.spacing, scan.units, scan.anatomical) == ("czyx", (2.0, 0.5, 0.25), "um", False)
    assert isinstance(scan.data, LazyArray)
    np.testing.assert_array_equal(scan.data, DATA)
    np.testing.assert_array_equal(scan.data[1, 2, 3:5], DATA[1, 2, 3:5])
    assert [level.shape[-2:] for level in scan.pyramid] == [(20, 15)]


def by_hand(folder: Path, attributes: dict) -> Path:
    """A zarr v2 group from its specification: JSON files and one uncompressed chunk per plane."""
    folder.mkdir()
    (folder / ".zgroup").write_text('{"zarr_format": 2}')
    (folder / ".zattrs").write_text(json.dumps(attributes))
    array = {"zarr_format": 2, "shape": [3, 4, 5], "chunks": [1, 4, 5], "dtype": ">i2", "compressor": None}
    array |= {"fill_value": 0, "order": "C", "filters": None, "dimension_separator": "/"}
    (folder / "full").mkdir()
    (folder / "full" / ".zarray").write_text(json.dumps(array))
    for plane in range(3):
        chunk = folder / "full" / str(plane) / "0" / "0"
        chunk.parent.mkdir(parents=True)
        chunk.write_bytes((np.arange(20) + 100 * plane).astype(">i2").tobytes())
    return folder


HAND = np.arange(20).reshape(4, 5) + 100 * np.arange(3)[:, None, None]


def multiscales(**fields: object) -> dict:
    level = {"path": "full", "coordinateTransformations": [{"type": "scale", "scale": [3, 2, 1]}]}
    axes = [{"name": name, "type": "space", "unit": "millimeter"} for name in "zyx"]
    return {"multiscales": [{"version": "0.4", "axes": axes, "datasets": [level], **fields}]}


def test_made_file_by_file(tmp_path: Path) -> None:
    attributes = multiscales(coordinateTransformations=[{"type": "scale", "scale": [1, 10, 10]}])
    window = {"start": -5, "end": 200}
    attributes["omero"] = {"channels": [{"label": "CT", "window": window}]}
    scan = read_scan(by_hand(tmp_path / "a", attributes))
    assert (scan.axes, scan.spacing, scan.units, scan.window) == ("zyx", (3, 20, 10), "mm", (-5, 200))
    np.testing.assert_array_equal(scan.data, HAND)
    assert scan.data[0].dtype.isnative


def test_a_translation_is_an_affine(tmp_path: Path) -> None:
    steps = [{"type": "scale", "scale": [3, 2, 1]}, {"type": "translation", "translation": [10, 20, 30]}]
    level = {"path": "full", "coordinateTransformations": steps}
    scan = read_scan(by_hand(tmp_path / "a", multiscales(datasets=[level])))
    assert scan.affine is not None
    np.testing.assert_array_equal((scan.affine @ [1, 1, 1, 1])[:3], [13, 22, 31])


def test_a_level_lies_where_its_own_transformations_say(tmp_path: Path) -> None:
    def level(scale: list[float], translation: list[float]) -> dict:
        steps = [{"type": "scale", "scale": scale}, {"type": "translation", "translation": translation}]
        return {"path": "full", "coordinateTransformations": steps}

    datasets = [level([3, 2, 1], [10, 20, 30]), level([6, 4, 1], [11.5, 22, 30])]  # of the same shape: cropped
    whole = [{"type": "scale", "scale": [1, 10, 10]}]
    attributes = multiscales(datasets=datasets, coordinateTransformations=whole)
    low = read_scan(by_hand(tmp_path / "a", attributes)).at_level(1)
    assert low.spacing == (6, 40, 10)
    assert low.affine is not None
    np.testing.assert_allclose((low.affine @ [0, 0, 0, 1])[:3], [11.5, 220, 300])  # by hand
    np.testing.assert_allclose((low.affine @ [1, 1, 1, 1])[:3], [17.5, 260, 310])
    del datasets[1]["coordinateTransformations"]
    unsaid = read_scan(by_hand(tmp_path / "b", multiscales(datasets=datasets))).at_level(1)
    assert unsaid.spacing == (3, 2, 1)


def test_a_level_that_we_wrote_lies_on_the_pixels_it_was_taken_from(tmp_path: Path) -> None:
    scan = Scan(np.arange(600 * 500).reshape(600, 500), "yx", spacing=(0.5, 2), units="um", affine=np.diag([0.5, 2, 1]))
    write_image(tmp_path / "a.zarr", scan)
    low = read_scan(tmp_path / "a.zarr").at_level(1)
    assert (low.affine @ [3, 5, 1]).tolist() == (scan.affine @ [6, 10, 1]).tolist()  # type: ignore[operator]
    assert low.data[3, 5] == scan.data[6, 10]


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        ({}, "no OME-Zarr image"),
        ({"plate": {}}, "plate of many images"),
        (multiscales(axes=[{"name": n} for n in "qyx"]), "only t, c, z, y and x"),
        (multiscales(datasets=[{"path": "gone"}]), r"begins like a OME-Zarr file but cannot be read \(KeyError\)"),
        (multiscales(datasets=[{"path": "../../secret"}]), "cannot be read"),
    ],
)
def test_other_groups_are_refused(tmp_path: Path, attributes: dict, words: str) -> None:
    with pytest.raises(FileError, match=words):
        read_scan(by_hand(tmp_path / "a", attributes))


def test_a_damaged_chunk_is_one_sentence(tmp_path: Path) -> None:
    scan = read_scan(by_hand(tmp_path / "a", multiscales()))
    (tmp_path / "a" / "full" / "1" / "0" / "0").write_bytes(b"\0")
    np.testing.assert_array_equal(scan.data[0], HAND[0])
    with pytest.raises(FileError, match=r"a cannot be read to its end \(ValueError\): it is damaged"):
        np.asarray(scan.data)


def test_labels_that_cannot_be_written_leave_the_old_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_image(tmp_path / "a.zarr", Scan(np.zeros((8, 8), np.uint8), "yx"))
    target, scan = tmp_path / "a.zarr" / "labels" / "vessels", read_scan(tmp_path / "a.zarr")
    old = np.eye(8, dtype=np.uint8)
    write_labels(target, old, scan)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ome_zarr, "_create", full)
    with pytest.raises(FileError, match="No space left on device"):
        write_labels(target, np.zeros_like(old), scan)
    np.testing.assert_array_equal(read_scan(target).data, old)
    assert [path.name for path in target.parent.iterdir() if path.is_dir()] == ["vessels"]


@pytest.mark.parametrize("format_", [FormatV04(), FormatV05()], ids=["0.4", "0.5"])
@pytest.mark.parametrize("target", ["a.zarr", "a.zarr/labels/vessels"])
def test_labels_join_their_image(tmp_path: Path, format_: object, target: str) -> None:
    image = foreign(tmp_path / "a.zarr", format_)
    scan = read_scan(image)
    labels = DATA[0] % 5
    write_labels(tmp_path / target, np.zeros_like(labels), scan)
    write_labels(tmp_path / target, labels, scan)  # replaces them
    name = "rskd" if target == "a.zarr" else "vessels"
    nodes = list(Reader(parse_url(image, fmt=format_))())
    np.testing.assert_array_equal(nodes[0].data[0], DATA)
    found = next(node for node in nodes if name in str(node.zarr))
    np.testing.assert_array_equal(np.squeeze(found.data[0]), labels)
    scale = found.metadata["coordinateTransformations"][0][0]["scale"]
    assert scale == [2.0, 0.5, 0.25]
    ours = read_scan(tmp_path / "a.zarr" / "labels" / name)
    assert (ours.axes, ours.spacing, ours.units, ours.meaning) == ("zyx", (2.0, 0.5, 0.25), "um", "labels")


def test_labels_of_others_stay(tmp_path: Path) -> None:
    image = foreign(tmp_path / "a.zarr", FormatV04())
    labels_with_ome_zarr(DATA % 3, zarr.open_group(image, mode="r+"), name="theirs", fmt=FormatV04(), axes="czyx")
    write_labels(image / "labels" / "ours", DATA[0] % 5, read_scan(image))
    assert json.loads((image / "labels" / ".zattrs").read_text())["labels"] == ["theirs", "ours"]
    np.testing.assert_array_equal(read_scan(image / "labels" / "theirs").data, DATA % 3)


def test_what_we_write_is_read_by_the_ome_zarr_library(tmp_path: Path) -> None:
    data = np.arange(2 * 700 * 600, dtype=np.uint32).reshape(2, 700, 600)
    affine = np.diag([3.0, 0.5, 0.25, 1])
    affine[:3, 3] = [7, 8, 9]
    write_image(tmp_path / "a.zarr", Scan(data, "zyx", spacing=(3, 0.5, 0.25), units="mm", affine=affine))
    node = next(iter(Reader(parse_url(tmp_path / "a.zarr", fmt=FormatV04()))()))
    assert [level.shape for level in node.data] == [(2, 700, 600), (2, 350, 300), (2, 175, 150)]
    np.testing.assert_array_equal(node.data[0], data)
    np.testing.assert_array_equal(node.data[2], data[:, ::4, ::4])
    first, last = (node.metadata["coordinateTransformations"][level] for level in (0, 2))
    assert [first[0]["scale"], first[1]["translation"]] == [[3, 0.5, 0.25], [7, 8, 9]]
    assert [last[0]["scale"], last[1]["translation"]] == [[3, 2, 1], [7, 8, 9]]
    assert [axis["unit"] for axis in node.metadata["axes"]] == ["millimeter"] * 3


def test_a_turned_volume_keeps_its_orientation(tmp_path: Path) -> None:
    affine = np.array([[2.4, -0.1, 0, 5], [0.3, 0, 0.6, -7], [0, 0.8, 0, 9], [0, 0, 0, 1]])
    scan = Scan(HAND, "zyx", spacing=(2.5, 0.8, 0.6), units="mm", affine=affine, anatomical=True)
    write_labels(tmp_path / "a.zarr", HAND, scan)
    again = read_scan(tmp_path / "a.zarr")
    np.testing.assert_array_equal(again.affine, affine)
    assert again.anatomical


def test_an_image_is_replaced_but_no_other_folder(tmp_path: Path) -> None:
    scan = Scan(HAND.astype(np.uint8), "zyx")
    write_image(tmp_path / "a.zarr", scan)
    write_image(tmp_path / "a.zarr", Scan(HAND[:1].astype(np.uint8), "zyx"))
    assert read_scan(tmp_path / "a.zarr").data.shape == (1, 4, 5)
    (tmp_path / "b.zarr").mkdir()
    (tmp_path / "b.zarr" / "thesis.txt").touch()
    with pytest.raises(FileError, match="folder of something else"):
        write_image(tmp_path / "b.zarr", scan)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zarr", "b.zarr"]


def test_axes_in_another_order_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="in the order z, y, x"):
        write_image(tmp_path / "a.zarr", Scan(HAND, "xyz", spacing=(1, 2, 3), units="mm"))
