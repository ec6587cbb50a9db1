"""Read any supported file through one call."""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from rskd.errors import FileError, ParameterError, ResourceError, RskdError
from rskd.io import dicom, dicom_seg, itk, nifti, numpy_file, ome_zarr, raster, rtstruct, tiff
from rskd.io.libraries import quiet
from rskd.scan import Scan

SUFFIXES = (
    ".tif", ".tiff", ".svs", ".png", ".jpg", ".jpeg", ".bmp", ".gif", ".nii", ".nii.gz", ".npy", ".dcm", ".nrrd",
    ".nhdr", ".mha", ".mhd", ".zarr",
)  # fmt: skip
"""Names that image files usually end in; a folder is searched for these. Reading looks at the content instead."""
SUPPORTED = "TIFF, OME-TIFF, OME-Zarr, PNG, JPEG, BMP, GIF, DICOM, NIfTI, NRRD, MetaImage or npy"

_SIGNATURES: tuple[tuple[str, bytes, int], ...] = (
    ("TIFF", b"II*\0", 0),
    ("TIFF", b"MM\0*", 0),
    ("TIFF", b"II+\0", 0),
    ("TIFF", b"MM\0+", 0),
    ("PNG", b"\x89PNG\r\n\x1a\n", 0),
    ("JPEG", b"\xff\xd8\xff", 0),
    ("GIF", b"GIF8", 0),
    ("npy", b"\x93NUMPY", 0),
    ("NIfTI", b"n+1\0", 344),
    ("NIfTI", b"n+2\0", 4),
    ("two-file NIfTI", b"ni1\0", 344),
    ("two-file NIfTI", b"ni2\0", 4),
    ("NRRD", b"NRRD0", 0),
    ("HDF5", b"\x89HDF\r\n\x1a\n", 0),
    ("zip archive", b"PK\x03\x04", 0),
    ("PDF", b"%PDF", 0),
    ("WebP", b"WEBP", 8),
    ("JPEG 2000", b"\0\0\0\x0cjP  ", 0),
    ("BMP", b"BM", 0),
)
_READERS: dict[str, Callable[[Path], Scan]] = {
    "TIFF": tiff.read,
    "PNG": raster.read,
    "JPEG": raster.read,
    "GIF": raster.read,
    "BMP": raster.read,
    "NIfTI": nifti.read,
    "npy": numpy_file.read,
    "NRRD": itk.read_nrrd,
    "MetaImage": itk.read_metaimage,
    "DICOM": dicom.read,
    "DICOM SEG": dicom_seg.read,
    "RTSTRUCT": rtstruct.read,
    "OME-Zarr": ome_zarr.read,
}
_SERIES = "DICOM series"
_HEADERLESS = ("PNG", "JPEG", "GIF", "BMP", "npy")
"""Kinds of which a library's complaint can quote nothing about a person."""
_METAIMAGE = re.compile(rb"(?:[A-Za-z]+ *=[^\n]*\n)*NDims *= *\d")
_HEAD = 352
_Read = TypeVar("_Read")


def read_scan(path: str | Path, *, axes: str | None = None) -> Scan:
    """Read an image with its axes, spacing and orientation.

    Parameters
    ----------
    path
        A file: TIFF, ImageJ, OME-TIFF or SVS (its first image), PNG, JPEG, BMP, GIF, NIfTI, NRRD, MetaImage, DICOM
        (images, SEG, RTSTRUCT) or npy. Or a folder: OME-Zarr, or one DICOM series.
    axes
        One letter per dimension out of t, c, z, y, x, where the file's own are missing or wrong; ``None`` = as the
        file says, or guessed (`rskd.io.guess_axes`).

    Returns
    -------
    Scan
        Volumes, also those stored as (x, y, z), come with the axes ``"zyx"`` and the affine in the same order. A
        spacing is given only where the file states one. The data of OME-Zarr and of large pyramids are lazy.

    Raises
    ------
    FileError
        If the file is missing, damaged or of a kind that is not supported.
    ResourceError
        If it does not fit into memory.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from rskd.io import write_image
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "picture.png"
    ...     write_image(path, Scan(np.zeros((4, 6), np.uint8), "yx"))
    ...     scan = read_scan(path)
    >>> scan.axes, scan.data.shape
    ('yx', (4, 6))
    """
    return _read(Path(path), _READERS, axes)


def read_scans(*paths: str | Path) -> list[Scan]:
    """Read every image there is: all series of DICOM files or folders, the longest first; of the others, one each.

    Parameters
    ----------
    paths
        Files and folders, as for `read_scan`. DICOM images among several files are put together to series.
    """
    found = [Path(path) for path in paths]
    together = [path for path in found if len(found) > 1 and _kind(path) == "DICOM"]
    scans = _guarded("DICOM", together[0].parent, lambda folder: _series_of(folder, together)) if together else []
    for path in found:
        if path in together:
            continue
        if _kind(path) == _SERIES:
            scans += [replace(scan, source=path) for scan in _guarded(_SERIES, path, dicom.read_folder)]
        else:
            scans.append(read_scan(path))
    return scans


def can_read(path: str | Path) -> bool:
    """Tell by its content whether a file or folder is of a kind that `read_scans` reads."""
    try:
        return _kind(Path(path)) in _READERS
    except FileError:
        return False


def read_labels(path: str | Path, *, axes: str | None = None, grid: Scan | None = None) -> Scan:
    """Read a mask: as `read_scan`, but a coloured palette gives its indices instead of its colours.

    Parameters
    ----------
    path
        The file.
    axes
        As for `read_scan`.
    grid
        Images to draw the contours of an RTSTRUCT onto; ``None`` = those it names, which must lie beside it.
    """
    palettes = dict.fromkeys(("PNG", "GIF", "BMP"), raster.read_indices)
    readers = {**_READERS, **palettes, "TIFF": tiff.read_indices}
    if grid is not None:
        readers["RTSTRUCT"] = lambda file: rtstruct.draw(dicom.header(file), grid, name=file.name)
    return _read(Path(path), readers, axes)


def _read(path: Path, readers: Mapping[str, Callable[[Path], Scan]], axes: str | None) -> Scan:
    kind = _kind(path)
    if kind not in readers:
        raise FileError(f"{path.name} is {kind}, which cannot be read: convert it to {SUPPORTED}.")
    scan = replace(_guarded(kind, path, readers[kind]), source=path)
    return scan if axes is None else _relabel(scan, axes)


def _guarded(kind: str, path: Path, read: Callable[[Path], _Read]) -> _Read:
    """Read with the library of a format, which stays silent; whatever it raises becomes one sentence."""
    try:
        with quiet():
            return read(path)
    except RskdError:
        raise
    except MemoryError:
        raise ResourceError(f"{path.name} does not fit into memory: crop it or save it in parts.") from None
    except Exception as error:  # its own words, and its traceback, may quote a header that names a patient
        raise FileError(
            f"{path.name} begins like a {kind} file but cannot be read ({_reason(kind, error)}): it is damaged or "
            "unusual, save it again from the program that made it."
        ) from None


def _series_of(folder: Path, files: list[Path]) -> list[Scan]:
    return [scan for _, scan in dicom.series_in(folder, files)]


def _only_series(folder: Path) -> Scan:
    found = dicom.read_folder(folder)
    if len(found) != 1:
        sizes = ", ".join(f"{len(scan.files)} file{'s' * (len(scan.files) > 1)}" for scan in found[:5])
        raise FileError(
            f"{folder.name} holds {len(found)} image series{f' ({sizes})' * bool(found)}: "
            "put the one you want into a folder of its own."
        )
    return found[0]


_READERS[_SERIES] = _only_series


def _kind(path: Path) -> str:
    """Return what the file or folder is, by its first bytes."""
    try:
        if path.is_dir():
            return _kind_of_folder(path)
        head = _head(path)
    except OSError as error:
        raise FileError(f"{path.name} cannot be opened: {error.strerror or 'it cannot be read'}.") from None
    if not head:
        raise FileError(f"{path.name} is empty: copy or save it again.")
    if dicom.is_dicom(head):  # first: its preamble may be that of a TIFF
        return _guarded("DICOM", path, _kind_of_dicom)
    for kind, signature, offset in _SIGNATURES:
        if head[offset : offset + len(signature)] == signature:
            return kind
    return "MetaImage" if _METAIMAGE.match(head) else "of an unknown kind"


def _kind_of_folder(path: Path) -> str:
    if ome_zarr.is_ome_zarr(path):
        return "OME-Zarr"
    if not dicom.files_in(path):
        raise FileError(f"{path.name} cannot be opened: the folder holds neither OME-Zarr nor DICOM, choose a file.")
    return _SERIES


def _kind_of_dicom(path: Path) -> str:
    kind = str(dicom.header(path).get("SOPClassUID"))
    if kind in dicom.SEGMENTATIONS:
        return "DICOM SEG"
    return "RTSTRUCT" if kind == dicom.CONTOURS else "DICOM"


def _head(path: Path) -> bytes:
    with open(path, "rb") as file:
        head = file.read(_HEAD)
    if head.startswith(b"\x1f\x8b"):
        with suppress(EOFError, zlib.error, gzip.BadGzipFile), gzip.open(path) as file:
            return file.read(_HEAD)
    return head


def _reason(kind: str, error: Exception) -> str:
    words = " ".join(str(error).split()).rstrip(".") if kind in _HEADERLESS else ""
    return words[:120] or type(error).__name__


def _relabel(scan: Scan, axes: str) -> Scan:
    """Give the dimensions other names; what is known about the spacing stays only where it still fits."""
    if axes == scan.axes:
        return scan
    if len(axes) != len(scan.axes):
        raise ParameterError(
            f"axes={axes!r} names {len(axes)} dimensions, {scan.source.name if scan.source else 'the image'} has "
            f"{len(scan.axes)}: shape {tuple(scan.data.shape)}."
        )
    same_places = [a in "zyx" for a in axes] == [a in "zyx" for a in scan.axes]
    spacing = scan.spacing if same_places else None
    units = scan.units if spacing else None
    return replace(scan, axes=axes, spacing=spacing, units=units, affine=None, anatomical=False, channels=())
