import gzip
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nibabel
import nrrd
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813 - the name its own documentation uses
import tifffile
import zarr
from numpy.typing import NDArray
from ome_zarr.format import FormatV04, FormatV05
from ome_zarr.writer import write_image as write_ome_zarr
from PIL import Image
from pydicom.data import get_testdata_file

from rskd.errors import FileError, ParameterError, RskdError
from rskd.io import guess_axes, read_labels, read_scan

PIXELS = np.random.default_rng(0).integers(0, 255, (40, 30, 3), dtype=np.uint8)
SECONDS = 10


def write_samples(folder: Path) -> list[Path]:
    """One small file per format and dialect, none of them by our own writers."""
    image = Image.fromarray(PIXELS)
    for name in ("a.png", "a.jpg", "a.bmp", "a.gif"):
        image.save(folder / name)
    image.quantize(16).save(folder / "palette.png")
    image.save(folder / "lzw.tif", compression="tiff_lzw")
    tifffile.imwrite(folder / "plain.tif", PIXELS[..., 0])
    tifffile.imwrite(folder / "jpeg.tif", PIXELS, compression="jpeg", photometric="rgb", tile=(16, 16))
    tifffile.imwrite(folder / "stack.ome.tif", np.moveaxis(PIXELS, -1, 0), metadata={"axes": "ZYX"})
    tifffile.imwrite(folder / "ij.tif", np.moveaxis(PIXELS, -1, 0).copy(), imagej=True, metadata={"axes": "CYX"})
    nibabel.save(nibabel.Nifti1Image(PIXELS, np.diag([1, 2, 3, 1])), folder / "a.nii")
    nibabel.save(nibabel.Nifti2Image(PIXELS, np.diag([1, 2, 3, 1])), folder / "b.nii.gz")
    np.save(folder / "a.npy", PIXELS)
    write_medical_samples(folder)
    return sorted(path for path in folder.iterdir() if path.is_file())


def write_medical_samples(folder: Path) -> None:
    """DICOM as GDCM packs it and as others did, a segmentation, NRRD, MetaImage, a slide."""
    volume = sitk.GetImageFromArray(PIXELS[None, ..., 0].astype(np.int16))
    for compressor in ("", "JPEG", "JPEG2000"):
        writer = sitk.ImageFileWriter()
        writer.SetFileName(str(folder / f"gdcm{compressor}.dcm"))
        writer.SetUseCompression(bool(compressor))
        writer.SetCompressor(compressor)
        writer.Execute(volume)
    for name in ("a.mha", "b.nrrd"):
        sitk.WriteImage(volume, str(folder / name), useCompression=name == "a.mha")
    nrrd.write(str(folder / "a.nrrd"), PIXELS, {"space": "RAS", "space directions": np.eye(3)})
    for name in ("MR_small_RLE.dcm", "JPEGLSNearLossless_16.dcm", "rtdose_1frame.dcm", "liver_1frame.dcm",
                 "SC_rgb_jpeg_dcmtk.dcm", "rtstruct.dcm", "image_dfl.dcm"):  # fmt: skip
        shutil.copy(get_testdata_file(name, download=False), folder / name)
    about = "Aperio Image Library|MPP = 0.25"
    with tifffile.TiffWriter(folder / "a.svs") as file:
        file.write(PIXELS, tile=(16, 16), photometric="rgb", description=about, metadata=None)
        file.write(PIXELS[::2, ::2], tile=(16, 16), photometric="rgb", description=about, metadata=None)


def write_folders(folder: Path) -> list[Path]:
    """A DICOM series, and OME-Zarr in both of its formats; of these, any one file gets damaged."""
    series = folder / "series"
    series.mkdir()
    for number in range(3):
        dataset = pydicom.dcmread(get_testdata_file("CT_small.dcm", download=False))
        dataset.ImagePositionPatient[2] += 5 * number
        dataset.save_as(series / str(number))
    for version, format_ in (("v04", FormatV04()), ("v05", FormatV05())):
        group = zarr.open_group(folder / version, mode="w", zarr_format=format_.zarr_format)
        write_ome_zarr(PIXELS, group, scale_factors=[2], fmt=format_, axes="zyx", scale={"z": 2, "y": 1, "x": 1})
    return [series, folder / "v04", folder / "v05"]


def damage(content: bytes, rng: np.random.Generator) -> bytes:
    """Cut a file off, or flip bits in it: mostly near its beginning, where the headers are."""
    if rng.random() < 0.3:
        return content[: int(rng.integers(1, len(content)))]
    damaged = bytearray(content)
    for _ in range(int(rng.integers(1, 6))):
        reach = len(damaged) if rng.random() < 0.4 else min(len(damaged), 400)
        damaged[int(rng.integers(reach))] ^= 1 << int(rng.integers(8))
    return bytes(damaged)


@contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise AssertionError(f"longer than {seconds} s")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def outcomes(path: Path) -> tuple[int, int]:
    """Read a damaged file; return how often it could be read after all and how often it was refused."""
    refused = 0
    for read in (read_scan, read_labels):
        try:
            with time_limit(SECONDS):
                np.asarray(read(path).data)  # lazy ones, too
        except RskdError as error:
            refused += 1
            message = str(error)
            assert "\n" not in message
            assert message.endswith(".")
            assert path.name in message
    return 2 - refused, refused


def fuzz(folder: Path, *, count: int, seed: int) -> NDArray[np.int64]:
    """Read damaged files and folders; return how many could be read after all and how many were refused."""
    rng = np.random.default_rng(seed)
    contents = [path.read_bytes() for path in write_samples(folder)]
    folders = write_folders(folder)
    whole = len(contents) + len(folders)
    total = np.zeros(2, int)
    for number in range(count):
        which = number % whole
        if which < len(contents):
            path = folder / f"damaged{number}"
            path.write_bytes(damage(contents[which], rng))
            total += outcomes(path)
            path.unlink()
        else:
            total += outcomes_of_folder(folders[which - len(contents)], rng)
    return total


def outcomes_of_folder(folder: Path, rng: np.random.Generator) -> tuple[int, int]:
    members = sorted(path for path in folder.rglob("*") if path.is_file())
    victim = members[int(rng.integers(len(members)))]
    content = victim.read_bytes()
    victim.write_bytes(damage(content, rng))
    try:
        return outcomes(folder)
    finally:
        victim.write_bytes(content)


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="the time limit of this test needs POSIX signals")
def test_damaged_files_are_read_or_refused_in_one_sentence(tmp_path: Path) -> None:
    read, refused = fuzz(tmp_path, count=330, seed=1)
    assert read > 50
    assert refused > 150


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="the time limit of this test needs POSIX signals")
def test_two_thousand_damaged_files_within_a_gigabyte(tmp_path: Path) -> None:
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    read, refused = fuzz(tmp_path, count=2000, seed=2)
    assert min(read, refused) > 500
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20 < 1  # ru_maxrss counts KiB


def test_the_name_does_not_decide(tmp_path: Path) -> None:
    for path in write_samples(tmp_path):
        if path.name == "rtstruct.dcm":  # needs the images it was drawn on
            continue
        expected = read_scan(path)
        disguised = path.rename(tmp_path / f"{path.name}.scan")
        again = read_scan(disguised)
        assert (again.axes, again.spacing, again.source) == (expected.axes, expected.spacing, disguised)
        np.testing.assert_array_equal(again.data, expected.data)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"hello, world", "unknown kind"),
        (b"\0" * 128 + b"DICM" + b"\0" * 300, "DICOM"),
        (b"PK\x03\x04 a spreadsheet", "zip archive"),
        (gzip.compress(b"text, packed", mtime=0), "unknown kind"),
        (b"\x89PNG\r\n\x1a\n and then nothing", "begins like a PNG file"),
    ],
)
def test_other_files_are_refused_with_the_way_out(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "thing.dat").write_bytes(content)
    with pytest.raises(FileError, match=words) as caught:
        read_scan(tmp_path / "thing.dat")
    assert str(caught.value).startswith("thing.dat ")


def test_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"nowhere\.tif cannot be opened: No such file"):
        read_scan(tmp_path / "nowhere.tif")
    with pytest.raises(FileError, match="cannot be opened"):
        read_scan(tmp_path)


def test_axes_can_be_named(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((2, 5, 6)))
    assert read_scan(tmp_path / "a.npy").axes == "zyx"
    assert read_scan(tmp_path / "a.npy", axes="cyx").axes == "cyx"
    with pytest.raises(ParameterError, match=r"names 2 dimensions, a\.npy has 3"):
        read_scan(tmp_path / "a.npy", axes="yx")


def test_a_spacing_stays_with_its_axes(tmp_path: Path) -> None:
    sizes = {"PhysicalSizeX": 1.0, "PhysicalSizeY": 2.0, "PhysicalSizeZ": 3.0}
    tifffile.imwrite(tmp_path / "a.ome.tif", np.zeros((2, 5, 6), np.uint8), metadata={"axes": "ZYX", **sizes})
    assert read_scan(tmp_path / "a.ome.tif").spacing == (3, 2, 1)
    assert read_scan(tmp_path / "a.ome.tif", axes="tyx").spacing is None


def test_objects_in_npy_are_never_unpickled(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([[print]], dtype=object), allow_pickle=True)
    with pytest.raises(FileError, match="begins like a npy file"):
        read_scan(tmp_path / "a.npy")


@pytest.mark.parametrize("shape", [(5,), (2, 2, 2, 2, 2), (2, 2, 2, 2, 2, 3)])
def test_shapes_that_are_no_image(shape: tuple[int, ...]) -> None:
    with pytest.raises(ParameterError, match="no image"):
        guess_axes(shape)


def test_importing_costs_no_library() -> None:
    libraries = ["torch", "timm", "nibabel", "tifffile", "PIL", "imagecodecs", "skimage", "napari"]
    libraries += ["pydicom", "highdicom", "SimpleITK", "zarr", "dask", "psutil"]
    code = f"import sys, rskd.io, rskd.cases, rskd.metrics; print([m for m in {libraries} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
