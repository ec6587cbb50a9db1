import gzip
import struct
from pathlib import Path

import nibabel
import numpy as np
import pytest

from rskd.errors import FileError
from rskd.io import read_scan, write_image, write_labels
from rskd.scan import Scan

SHAPE = (5, 7, 3)  # x, y, z: all different


def oblique() -> np.ndarray:
    """Voxels of 0.8 x 1.3 x 4 mm, turned about two axes, mirrored, moved; as a float32 header can hold it."""
    a, b = 0.3, -0.7
    turn_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    turn_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    affine = np.eye(4)
    affine[:3, :3] = turn_z @ turn_x @ np.diag([-0.8, 1.3, 4.0])
    affine[:3, 3] = [12.5, -30.25, 101.0]
    return affine.astype(np.float32).astype(np.float64)


def volume(dtype: str = "<i2") -> np.ndarray:
    return np.arange(np.prod(SHAPE)).reshape(SHAPE).astype(dtype)


def handmade(*, byte_order: str = "<", qform: int = 0, sform: int = 1, units: int = 2, slope: float = 0) -> bytes:
    """A NIfTI-1 file from its specification, without any library."""
    header = bytearray(348)
    struct.pack_into(byte_order + "i", header, 0, 348)
    struct.pack_into(byte_order + "8h", header, 40, 3, *SHAPE, 1, 1, 1, 1)
    struct.pack_into(byte_order + "2h", header, 70, 4, 16)  # int16
    struct.pack_into(byte_order + "8f", header, 76, 1, 0.5, 0.75, 2, 0, 0, 0, 0)
    struct.pack_into(byte_order + "3f", header, 108, 352, slope, -1000 if slope else 0)
    struct.pack_into(byte_order + "B", header, 123, units)
    struct.pack_into(byte_order + "2h", header, 252, qform, sform)
    rows = ((0, 0.75, 0, 1), (-0.5, 0, 0, 2), (0, 0, 2, 3))  # x runs along -y of the world
    struct.pack_into(byte_order + "12f", header, 280, *(number for row in rows for number in row))
    header[344:348] = b"n+1\0"
    return bytes(header) + b"\0" * 4 + volume(byte_order + "i2").tobytes("F")


@pytest.mark.parametrize("byte_order", ["<", ">"])
@pytest.mark.parametrize("packed", [False, True])
def test_reads_a_file_made_byte_by_byte(tmp_path: Path, byte_order: str, packed: bool) -> None:
    content = handmade(byte_order=byte_order)
    path = tmp_path / "any.name"  # the content decides
    path.write_bytes(gzip.compress(content) if packed else content)
    scan = read_scan(path)
    assert scan.axes == "zyx"
    assert scan.data.dtype == np.dtype("int16")
    np.testing.assert_array_equal(scan.data, volume().transpose())
    assert (scan.spacing, scan.units) == ((2.0, 0.75, 0.5), "mm")
    assert scan.affine is not None
    # voxel (x=4, y=6, z=2) lies at x = 0.75·6 + 1, y = -0.5·4 + 2, z = 2·2 + 3; both written as z, y, x
    np.testing.assert_allclose(scan.affine @ [2, 6, 4, 1], [7, 0, 5.5, 1])


def test_scaled_integers_become_physical_values(tmp_path: Path) -> None:
    (tmp_path / "ct.nii").write_bytes(handmade(slope=2))
    scan = read_scan(tmp_path / "ct.nii")
    assert scan.data.dtype == np.float32
    np.testing.assert_array_equal(scan.data, volume().transpose() * 2.0 - 1000)


@pytest.mark.parametrize(
    ("units", "spacing", "unit"), [(0, None, None), (2, (2.0, 0.75, 0.5), "mm"), (3, (2.0, 0.75, 0.5), "um")]
)
def test_without_orientation_codes_only_a_stated_unit_gives_a_spacing(
    tmp_path: Path, units: int, spacing: tuple[float, ...] | None, unit: str | None
) -> None:
    (tmp_path / "a.nii").write_bytes(handmade(sform=0, units=units))
    scan = read_scan(tmp_path / "a.nii")
    assert scan.affine is None
    assert (scan.spacing, scan.units) == (spacing, unit)


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("codes", [(1, 0), (0, 1), (2, 1)], ids=["sform", "qform", "both"])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_labels_return_with_the_source_geometry(
    tmp_path: Path, kind: type, codes: tuple[int, int], suffix: str
) -> None:
    image = kind(volume(), None)
    image.set_sform(oblique(), code=codes[0])
    image.set_qform(oblique(), code=codes[1])
    image.header.set_xyzt_units("mm", "sec")
    image.header["descrip"] = b"Name of the patient"
    nibabel.save(image, tmp_path / f"scan{suffix}")
    scan = read_scan(tmp_path / f"scan{suffix}")
    labels = (scan.data % 3).astype(np.int64)

    write_labels(tmp_path / f"labels{suffix}", labels, scan)

    source, written = (nibabel.load(tmp_path / f"{name}{suffix}") for name in ("scan", "labels"))
    assert type(written) is type(source)
    np.testing.assert_array_equal(np.asarray(written.dataobj), volume() % 3)
    assert written.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(written.affine, source.affine)
    for field in ("pixdim", "sform_code", "qform_code", "srow_x", "quatern_b", "qoffset_z", "xyzt_units"):
        np.testing.assert_array_equal(written.header[field], source.header[field], err_msg=field)
    assert b"patient" not in written.header.binaryblock


def test_orientation_survives_without_the_source_file(tmp_path: Path) -> None:
    zyx = oblique()[np.ix_([2, 1, 0, 3], [2, 1, 0, 3])]
    scan = Scan(volume().transpose(), "zyx", spacing=(4.0, 1.3, 0.8), units="mm", affine=zyx)
    write_labels(tmp_path / "labels.nii.gz", scan.data, scan)
    np.testing.assert_array_equal(nibabel.load(tmp_path / "labels.nii.gz").affine, oblique())
    again = read_scan(tmp_path / "labels.nii.gz")
    np.testing.assert_array_equal(again.affine, zyx)
    np.testing.assert_array_equal(again.data, scan.data)
    assert again.units == "mm"


def test_a_resampled_scan_does_not_get_the_geometry_of_its_source(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(volume(), oblique())
    nibabel.save(image, tmp_path / "scan.nii")
    scan = read_scan(tmp_path / "scan.nii")
    assert scan.affine is not None
    moved = scan.affine.copy()
    moved[0, 3] += 8
    shifted = Scan(scan.data, "zyx", spacing=scan.spacing, affine=moved, source=scan.source)
    write_labels(tmp_path / "labels.nii", scan.data, shifted)
    expected = image.affine.copy()
    expected[2, 3] += 8
    np.testing.assert_array_equal(nibabel.load(tmp_path / "labels.nii").affine, expected.astype(np.float32))


@pytest.mark.parametrize(
    ("shape", "axes", "read_shape"),
    [
        ((5, 7), "zyx", (1, 7, 5)),
        ((5, 7, 3, 2), "tzyx", (2, 3, 7, 5)),
        ((5, 7, 3, 2, 4), "ctzyx", (4, 2, 3, 7, 5)),
        ((5, 7, 3, 1, 4), "czyx", (4, 3, 7, 5)),
        ((5, 7, 3, 1, 1), "zyx", (3, 7, 5)),
    ],
)
def test_dimensions(tmp_path: Path, shape: tuple[int, ...], axes: str, read_shape: tuple[int, ...]) -> None:
    data = np.arange(np.prod(shape), dtype=np.uint16).reshape(shape)
    nibabel.save(nibabel.Nifti1Image(data, np.eye(4)), tmp_path / "a.nii")
    scan = read_scan(tmp_path / "a.nii")
    assert (scan.axes, scan.data.shape) == (axes, read_shape)
    np.testing.assert_array_equal(scan.data, data.transpose().reshape(read_shape))
    write_image(tmp_path / "b.nii", scan)
    again = read_scan(tmp_path / "b.nii")
    assert again.axes == axes
    np.testing.assert_array_equal(again.data, scan.data)


def test_colour_voxels(tmp_path: Path) -> None:
    data = np.zeros(SHAPE, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    data["R"], data["B"] = volume("u1"), 7
    nibabel.save(nibabel.Nifti1Image(data, np.eye(4)), tmp_path / "a.nii")
    scan = read_scan(tmp_path / "a.nii")
    assert scan.axes == "zyxc"
    np.testing.assert_array_equal(scan.data[..., 0], volume("u1").transpose())
    assert set(scan.data[..., 1].ravel()) == {0}
    assert set(scan.data[..., 2].ravel()) == {7}


def test_complex_voxels_are_refused(tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(volume("c8"), np.eye(4)), tmp_path / "a.nii")
    with pytest.raises(FileError, match=r"complex64 voxels, which are no intensities"):
        read_scan(tmp_path / "a.nii")


def test_a_cut_off_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.nii").write_bytes(handmade()[:-1])
    with pytest.raises(FileError, match="cut off"):
        read_scan(tmp_path / "a.nii")
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(handmade())[:-20])
    with pytest.raises(FileError, match="damaged"):
        read_scan(tmp_path / "b.nii.gz")


def test_a_flat_orientation_is_refused(tmp_path: Path) -> None:
    content = bytearray(handmade())
    content[280:296] = content[296:312]  # two equal rows
    (tmp_path / "a.nii").write_bytes(content)
    with pytest.raises(FileError, match="not invertible"):
        read_scan(tmp_path / "a.nii")
