"""An oblique, anisotropic, non-square volume becomes labels in every format; another library says where they lie."""

import locale
from collections.abc import Iterator
from pathlib import Path

import highdicom
import nibabel
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 - the name its own documentation uses
import tifffile
from ome_zarr.format import FormatV04
from ome_zarr.io import parse_url
from ome_zarr.reader import Reader

from rskd.io import read_scan, write_labels
from rskd.scan import Scan

SHAPE = (4, 9, 13)  # z, y, x
LABELS = (np.arange(np.prod(SHAPE)).reshape(SHAPE) * 7 % 11 % 4).astype(np.uint8)
LPS_TO_RAS = np.diag([-1.0, -1, 1, 1])


@pytest.fixture(autouse=True)
def same_locale() -> Iterator[None]:
    """GDCM, which writes the series of these tests, may leave the process with another character set."""
    before = locale.setlocale(locale.LC_ALL)
    yield
    locale.setlocale(locale.LC_ALL, before)


def image() -> sitk.Image:
    """An oblique image as SimpleITK makes it: turned about all three axes, voxels of 0.7 x 1.1 x 3 mm."""
    rotation = sitk.Euler3DTransform((0, 0, 0), 0.3, -0.2, 0.9)
    voxels = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE)
    made = sitk.GetImageFromArray(voxels)
    made.SetSpacing((0.7, 1.1, 3.0))
    made.SetDirection(rotation.GetMatrix())
    made.SetOrigin((-31.5, 12.25, 80.0))
    return made


def points(made: sitk.Image) -> np.ndarray:
    """LPS coordinates of every voxel, z y x 3, one by one as ITK computes them."""
    found = [made.TransformIndexToPhysicalPoint(tuple(map(int, index[::-1]))) for index in np.ndindex(SHAPE)]
    return np.array(found).reshape(*SHAPE, 3)


def dicom_series(folder: Path) -> Path:
    """The same image as a series, written by GDCM through SimpleITK."""
    made = image()
    folder.mkdir()
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    directions = made.GetDirection()
    for number in range(SHAPE[0]):
        plane = made[:, :, number]
        plane.SetMetaData("0008|0060", "CT")
        plane.SetMetaData("0020|000d", "1.2.3")
        plane.SetMetaData("0020|000e", "1.2.3.4")
        plane.SetMetaData("0020|0052", "1.2.3.5")
        plane.SetMetaData("0008|0018", f"1.2.3.4.{number + 1}")
        plane.SetMetaData("0020|0013", str(number))
        plane.SetMetaData("0018|0050", "3")
        plane.SetMetaData("0020|0037", "\\".join(str(directions[i]) for i in (0, 3, 6, 1, 4, 7)))
        origin = made.TransformIndexToPhysicalPoint((0, 0, number))
        plane.SetMetaData("0020|0032", "\\".join(map(str, origin)))
        writer.SetFileName(str(folder / f"{SHAPE[0] - number}.dcm"))
        writer.Execute(plane)
    return folder


def source(folder: Path, kind: str) -> Scan:
    if kind == "dicom":
        return read_scan(dicom_series(folder / "scan"))
    sitk.WriteImage(image(), str(folder / f"scan{kind}"))
    return read_scan(folder / f"scan{kind}")


def in_lps(values: np.ndarray, lps: np.ndarray) -> np.ndarray:
    """Labels and the places (x, y, z) of their voxels, as rows sorted by place and rounded to a hundredth of a mm."""
    rows = np.c_[np.rint(lps.reshape(-1, 3) * 50), values.ravel()].astype(int)
    return rows[np.lexsort(rows.T[::-1])]


def places(affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    index = np.stack(np.indices(shape), -1).reshape(-1, 3)
    return (np.c_[index, np.ones(len(index))] @ np.asarray(affine).T)[:, :3]


KINDS = ("dicom", ".nii.gz", ".nrrd", ".mha")


@pytest.mark.parametrize("kind", KINDS)
def test_every_reader_puts_every_voxel_where_itk_does(tmp_path: Path, kind: str) -> None:
    scan = source(tmp_path, kind)
    np.testing.assert_array_equal(scan.data, np.arange(np.prod(SHAPE)).reshape(SHAPE))
    assert scan.affine is not None
    ours = places(scan.affine, SHAPE)[:, ::-1] * [-1, -1, 1]
    np.testing.assert_allclose(ours, points(image()).reshape(-1, 3), atol=2e-4)
    np.testing.assert_allclose(scan.spacing, (3, 1.1, 0.7), rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("target", [".nii", ".nii.gz", ".nrrd", ".mha"])
def test_labels_lie_on_their_scan_for_itk(tmp_path: Path, kind: str, target: str) -> None:
    scan = source(tmp_path, kind)
    write_labels(tmp_path / f"labels{target}", LABELS, scan)
    read = sitk.ReadImage(str(tmp_path / f"labels{target}"))
    np.testing.assert_array_equal(in_lps(sitk.GetArrayFromImage(read), points(read)), in_lps(LABELS, points(image())))
    if target.startswith(".nii"):
        again = nibabel.load(tmp_path / f"labels{target}")
        lps = places(LPS_TO_RAS @ again.affine, again.shape)
        np.testing.assert_array_equal(in_lps(np.asarray(again.dataobj), lps), in_lps(LABELS, points(image())))


def test_a_dicom_segmentation_lies_on_its_scan_for_highdicom(tmp_path: Path) -> None:
    scan = source(tmp_path, "dicom")
    write_labels(tmp_path / "labels.dcm", LABELS, scan)
    volume = highdicom.seg.segread(tmp_path / "labels.dcm").get_volume(combine_segments=True)
    lps = places(volume.affine, volume.shape)
    np.testing.assert_array_equal(in_lps(np.asarray(volume.array), lps), in_lps(LABELS, points(image())))


def test_formats_without_a_direction_keep_the_grid(tmp_path: Path) -> None:
    scan = source(tmp_path, "dicom")
    write_labels(tmp_path / "labels.zarr", LABELS, scan)
    node = next(iter(Reader(parse_url(tmp_path / "labels.zarr", fmt=FormatV04()))()))
    np.testing.assert_array_equal(node.data[0], LABELS)
    np.testing.assert_allclose(node.metadata["coordinateTransformations"][0][0]["scale"], (3, 1.1, 0.7), rtol=1e-4)
    write_labels(tmp_path / "labels.ome.tif", LABELS, scan)
    with tifffile.TiffFile(tmp_path / "labels.ome.tif") as file:
        np.testing.assert_array_equal(file.asarray(), LABELS)
        pixels = tifffile.xml2dict(file.ome_metadata)["OME"]["Image"]["Pixels"]
    sizes = [pixels[f"PhysicalSize{axis}"] for axis in "ZYX"]
    np.testing.assert_allclose(sizes, (3, 1.1, 0.7), rtol=1e-4)
    assert pixels["PhysicalSizeXUnit"] == "mm"
