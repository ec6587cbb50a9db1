"""Read any supported file through one call."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from rskd.errors import FileError, ParameterError, ResourceError, RskdError
from rskd.io import nifti, numpy_file, raster, tiff
from rskd.scan import Scan

SUFFIXES = (".tif", ".tiff", ".png", ".jpg", ".jpeg", ".bmp", ".gif", ".nii", ".nii.gz", ".npy")
"""Names that image files usually end in; a folder is searched for these. Reading looks at the content instead."""
SUPPORTED = "TIFF, OME-TIFF, PNG, JPEG, BMP, GIF, NIfTI or npy"

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
    ("DICOM", b"DICM", 128),
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
}
_HEAD = 352


def read_scan(path: str | Path, *, axes: str | None = None) -> Scan:
    """Read an image with its axes, spacing and orientation.

    Parameters
    ----------
    path
        TIFF, ImageJ or OME-TIFF (its first image), PNG, JPEG, BMP, GIF, NIfTI (.nii, .nii.gz) or npy.
    axes
        One letter per dimension out of t, c, z, y, x, where the file's own are missing or wrong; ``None`` = as the
        file says, or guessed (`rskd.io.guess_axes`).

    Returns
    -------
    Scan
        NIfTI arrays, stored as (x, y, z), come with the axes ``"zyx"`` and the affine in the same order. A spacing is
        given only where the file states one.

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


def read_labels(path: str | Path, *, axes: str | None = None) -> Scan:
    """Read a mask: as `read_scan`, but a coloured palette gives its indices instead of its colours.

    Parameters
    ----------
    path
        The file.
    axes
        As for `read_scan`.
    """
    palettes = dict.fromkeys(("PNG", "GIF", "BMP"), raster.read_indices)
    return _read(Path(path), {**_READERS, **palettes, "TIFF": tiff.read_indices}, axes)


def _read(path: Path, readers: dict[str, Callable[[Path], Scan]], axes: str | None) -> Scan:
    kind = _kind(path)
    if kind not in readers:
        raise FileError(f"{path.name} is {kind}, which cannot be read: convert it to {SUPPORTED}.")
    try:
        scan = readers[kind](path)
    except RskdError:
        raise
    except MemoryError as error:
        raise ResourceError(f"{path.name} does not fit into memory: crop it or save it in parts.") from error
    except Exception as error:
        raise FileError(
            f"{path.name} begins like a {kind} file but cannot be read ({_reason(error)}): it is damaged or unusual, "
            "save it again from the program that made it."
        ) from error
    scan = replace(scan, source=path)
    return scan if axes is None else _relabel(scan, axes)


def _kind(path: Path) -> str:
    """Return what the file is, by its first bytes."""
    try:
        head = _head(path)
    except OSError as error:
        raise FileError(f"{path.name} cannot be opened: {error.strerror or 'it cannot be read'}.") from error
    if not head:
        raise FileError(f"{path.name} is empty: copy or save it again.")
    for kind, signature, offset in _SIGNATURES:
        if head[offset : offset + len(signature)] == signature:
            return kind
    return "of an unknown kind"


def _head(path: Path) -> bytes:
    with open(path, "rb") as file:
        head = file.read(_HEAD)
    if head.startswith(b"\x1f\x8b"):
        with suppress(EOFError, zlib.error, gzip.BadGzipFile), gzip.open(path) as file:
            return file.read(_HEAD)
    return head


def _reason(error: Exception) -> str:
    words = " ".join(str(error).split()).rstrip(".")
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
    return Scan(scan.data, axes, spacing=spacing, units=scan.units if spacing else None, source=scan.source)
