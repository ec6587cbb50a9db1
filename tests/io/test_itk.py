"""NRRD and MetaImage: files of pynrrd, and files made byte by byte."""

import struct
import zlib
from pathlib import Path

import nrrd
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 - the name its own documentation uses

from rskd.errors import FileError, ParameterError
from rskd.io import read_scan, write_image, write_labels
from rskd.scan import Scan

DATA = np.arange(5 * 6 * 7, dtype=np.int16).reshape(5, 6, 7)
OBLIQUE = np.array([[0.48, -0.36, 0.0], [0.36 * 0.8, 0.48 * 0.8, 0.6], [-0.6 * 0.6, -0.8 * 0.6, 1.6]])
"""Steps along x, y and z in the world (x, y, z): rows are orthogonal up to the stack's own direction."""


@pytest.mark.parametrize("encoding", ["raw", "gzip", "ascii", "bzip2"])
@pytest.mark.parametrize(("space", "signs"), [("RAS", (1, 1, 1)), ("left-posterior-superior", (-1, -1, 1))])
def test_nrrd(tmp_path: Path, encoding: str, space: str, signs: tuple[int, int, int]) -> None:
    header = {"space": space, "space directions": OBLIQUE, "space origin": [10.0, -20.0, 30.0], "encoding": encoding}
    nrrd.write(str(tmp_path / "a.nrrd"), DATA.transpose(), header)
    path = (tmp_path / "a.nrrd").rename(tmp_path / "any.name")
    if encoding == "bzip2":
        with pytest.raises(FileError, match="cannot be read"):
            read_scan(path)
        return
    scan = read_scan(path)
    assert (scan.axes, scan.units, scan.anatomical) == ("zyx", "mm", True)
    np.testing.assert_array_equal(scan.data, DATA)
    assert scan.data.dtype == np.int16
    expected = (np.array([10, -20, 30]) + np.array([6, 5, 4]) @ OBLIQUE) * signs
    assert scan.affine is not None
    np.testing.assert_allclose((scan.affine @ [4, 5, 6, 1])[:3], expected[::-1], atol=1e-6)
    np.testing.assert_allclose(scan.spacing, np.linalg.norm(OBLIQUE, axis=1)[::-1])


def handmade_metaimage(*, packed: bool = False, big_endian: bool = False, fields: str = "") -> bytes:
    voxels = DATA.astype(">i2" if big_endian else "<i2").tobytes()
    body = zlib.compress(voxels) if packed else voxels
    header = (
        "ObjectType = Image\nNDims = 3\nBinaryData = True\n"
        f"BinaryDataByteOrderMSB = {big_endian}\nCompressedData = {packed}\n"
        + (f"CompressedDataSize = {len(body)}\n" if packed else "")
        + "TransformMatrix = 0 1 0 -1 0 0 0 0 1\nOffset = 10 -20 30\nElementSpacing = 0.6 0.8 2.5\n"
        + f"DimSize = 7 6 5\n{fields}ElementType = MET_SHORT\nElementDataFile = LOCAL\n"
    )
    return header.encode() + body


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("big_endian", [False, True])
def test_metaimage_made_byte_by_byte(tmp_path: Path, packed: bool, big_endian: bool) -> None:
    (tmp_path / "any.name").write_bytes(handmade_metaimage(packed=packed, big_endian=big_endian))
    scan = read_scan(tmp_path / "any.name")
    np.testing.assert_array_equal(scan.data, DATA)
    assert (scan.axes, scan.spacing, scan.units) == ("zyx", (2.5, 0.8, 0.6), "mm")
    # x runs along +y, y along -x of a world to the left and the back; a scan's world is the other way round in both
    assert scan.affine is not None
    np.testing.assert_allclose((scan.affine @ [4, 5, 6, 1])[:3], [30 + 4 * 2.5, 20 - 6 * 0.6, -10 + 5 * 0.8])


def test_metaimage_with_its_data_beside(tmp_path: Path) -> None:
    content = handmade_metaimage()
    header, body = content.split(b"LOCAL\n", 1)
    (tmp_path / "a.mhd").write_bytes(header + b"a.raw\n")
    (tmp_path / "a.raw").write_bytes(body)
    np.testing.assert_array_equal(read_scan(tmp_path / "a.mhd").data, DATA)
    (tmp_path / "a.raw").unlink()
    with pytest.raises(FileError, match=r"a\.mhd begins like a MetaImage"):
        read_scan(tmp_path / "a.mhd")


def test_dimensions_and_colours(tmp_path: Path) -> None:
    nrrd.write(str(tmp_path / "t.nrrd"), np.arange(120, dtype=np.uint8).reshape(3, 4, 5, 2))
    scan = read_scan(tmp_path / "t.nrrd")
    assert (scan.axes, scan.data.shape) == ("tzyx", (2, 5, 4, 3))
    np.testing.assert_array_equal(scan.data, np.arange(120).reshape(3, 4, 5, 2).transpose())
    fields = {"kinds": ["RGB-color", "domain", "domain"]}
    nrrd.write(str(tmp_path / "c.nrrd"), np.arange(60, dtype=np.uint8).reshape(3, 4, 5), fields)
    colours = read_scan(tmp_path / "c.nrrd")
    assert (colours.axes, colours.channels) == ("yxc", ("red", "green", "blue"))
    np.testing.assert_array_equal(colours.data, np.arange(60).reshape(3, 4, 5).transpose(2, 1, 0))


def test_more_voxels_than_the_file_can_hold(tmp_path: Path) -> None:
    content = handmade_metaimage().replace(b"DimSize = 7 6 5", b"DimSize = 9000 9000 5000")
    (tmp_path / "a.mha").write_bytes(content)
    with pytest.raises(FileError, match="announces more voxels"):
        read_scan(tmp_path / "a.mha")


def test_nothing_is_read_from_a_cut_off_file(tmp_path: Path) -> None:
    (tmp_path / "a.mha").write_bytes(handmade_metaimage()[:-30])
    with pytest.raises(FileError, match=r"a\.mha begins like a MetaImage"):
        read_scan(tmp_path / "a.mha")


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_what_we_write_is_read_by_others(tmp_path: Path, suffix: str) -> None:
    affine = np.array([[2.5, 0, 0, 30.0], [0, 0, 0.6, -7], [0, 0.8, 0, 5], [0, 0, 0, 1]])
    scan = Scan(DATA, "zyx", spacing=(2.5, 0.8, 0.6), units="mm", affine=affine, anatomical=True)
    labels = DATA % 3
    write_labels(tmp_path / f"a{suffix}", labels, scan)
    if suffix == ".nrrd":
        values, header = nrrd.read(str(tmp_path / "a.nrrd"))
        assert header["space"] == "left-posterior-superior"
        np.testing.assert_array_equal(values, labels.transpose())
        np.testing.assert_allclose(header["space directions"], [[0, -0.6, 0], [-0.8, 0, 0], [0, 0, 2.5]], atol=1e-12)
        np.testing.assert_allclose(header["space origin"], [-5, 7, 30])
    else:
        header_text = (tmp_path / "a.mha").read_bytes().split(b"ElementDataFile")[0].decode()
        spacing = next(line for line in header_text.splitlines() if line.startswith("ElementSpacing"))
        assert [float(word) for word in spacing.split("=")[1].split()] == [0.6, 0.8, 2.5]
        assert "MET_UCHAR" in header_text
    again = read_scan(tmp_path / f"a{suffix}")
    np.testing.assert_array_equal(again.data, labels)
    np.testing.assert_allclose(again.affine, affine, atol=1e-12)


def test_a_tilt_is_refused(tmp_path: Path) -> None:
    affine = np.eye(4)
    affine[1, 0] = 0.3
    scan = Scan(DATA, "zyx", spacing=(1.04, 1, 1), units="mm", affine=affine, anatomical=True)
    with pytest.raises(ParameterError, match=r"cannot say that the planes are tilted: write \.nii\.gz"):
        write_image(tmp_path / "a.nrrd", scan)


def test_warnings_stay_off_the_terminal(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    shown = sitk.ProcessObject.GetGlobalWarningDisplay()
    (tmp_path / "a.mha").write_bytes(handmade_metaimage(fields="Name = Zyxwerth\nModality = Zyxwerth\n"))
    read_scan(tmp_path / "a.mha")
    assert "Zyxwerth" not in "".join(capfd.readouterr())
    assert sitk.ProcessObject.GetGlobalWarningDisplay() == shown


def test_analyze_like_bytes_are_no_metaimage(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(struct.pack("<i", 348) + b"NDims = 3\n")
    with pytest.raises(FileError, match="unknown kind"):
        read_scan(tmp_path / "a")
