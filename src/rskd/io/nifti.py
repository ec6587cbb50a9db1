"""NIfTI: volumes with their orientation in the scanner.

A NIfTI array is stored as (x, y, z, t, c) in a world of (x, y, z). A `Scan` lists its axes the other way round, so
array and affine are reversed on reading and reversed back on writing: exact both ways.
"""

from __future__ import annotations

import gzip
import math
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from rskd.errors import FileError, ParameterError
from rskd.scan import Scan, move_axes

_STORED = "xyztc"
_UNITS = {"mm": "mm", "meter": "m", "micron": "um"}
_GEOMETRY = (
    "pixdim", "xyzt_units", "qform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z",
    "sform_code", "srow_x", "srow_y", "srow_z",
)  # fmt: skip
_DEFLATE_LIMIT = 1040
"""No gzip stream grows by more than this factor when it is unpacked."""
_CHUNK = 2**24


def read(path: Path) -> Scan:
    """Read a NIfTI-1 or -2 file, packed or not; integers stay integers unless the header scales them."""
    with _open(path) as file:
        header = _read_header(file)
        _check_size(path, header)
        file.seek(header.get_data_offset())
        voxels = _read_voxels(path, file, header)
    axes, shape = _name_axes(path, header.get_data_shape())
    if voxels.dtype.names:  # red, green, blue
        voxels, axes, shape = voxels[..., None].view(np.uint8), axes + "c", (*shape, voxels.dtype.itemsize)
    affine, spacing, units = _geometry(path, header)
    anatomical = affine is not None
    return Scan(voxels.reshape(shape), axes, spacing=spacing, units=units, affine=affine, anatomical=anatomical)


def write(path: Path, scan: Scan) -> None:
    """Write a scan; where its source is the NIfTI file it was made from, with that file's own geometry fields."""
    order = [a for a in _STORED if a in scan.axes or a == "z" or (a == "t" and "c" in scan.axes)]
    stored = move_axes(scan.data, scan.axes, order)
    stored = stored.astype(np.uint8) if stored.dtype == bool else stored
    header = _source_header(scan)
    if header is None:
        header = _fresh_header(scan)
    if max(stored.shape) > np.iinfo(np.int16).max:
        header = _nibabel().Nifti2Header.from_header(header)
    header.set_data_dtype(stored.dtype)
    kind = _nibabel().Nifti2Image if isinstance(header, _nibabel().Nifti2Header) else _nibabel().Nifti1Image
    kind(stored, None, header).to_filename(path)


def _nibabel() -> Any:
    """Import the library late, and as `Any`: its calls carry no types."""
    import nibabel

    return nibabel


def _open(path: Path) -> IO[bytes]:
    with open(path, "rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    return gzip.open(path) if packed else open(path, "rb")  # type: ignore[return-value]


def _read_header(file: IO[bytes]) -> Any:
    size = file.read(4)
    second = 540 in (int.from_bytes(size, "little"), int.from_bytes(size, "big"))  # NIfTI-1 says 348
    kind = _nibabel().Nifti2Header if second else _nibabel().Nifti1Header
    return kind.from_fileobj(BytesIO(size + file.read((540 if second else 348) - 4)))


def _check_size(path: Path, header: Any) -> None:
    """Refuse a header that promises more than the file can hold, before memory is taken for it."""
    shape = header.get_data_shape()
    promised = math.prod(map(int, shape)) * header.get_data_dtype().itemsize
    with open(path, "rb") as file:
        held = path.stat().st_size * (_DEFLATE_LIMIT if file.read(2) == b"\x1f\x8b" else 1)
    if not 2 <= len(shape) <= 7 or min(shape) < 1 or promised > held:
        raise FileError(f"{path.name} announces {shape} voxels and does not hold them: it is cut off, copy it again.")


def _read_voxels(path: Path, file: IO[bytes], header: Any) -> NDArray[Any]:
    """Return the voxels as … z y x, in the machine's byte order, with the header's scaling applied."""
    dtype = header.get_data_dtype()
    if not (dtype.kind in "iuf" and dtype.itemsize <= 8) and dtype.names not in (tuple("RGB"), tuple("RGBA")):
        raise FileError(f"{path.name} holds {dtype} voxels, which are no intensities: save real numbers instead.")
    voxels = np.empty(header.get_data_shape()[::-1], dtype)
    _fill(path, file, voxels.reshape(-1).view(np.uint8))
    slope, intercept = header.get_slope_inter()
    if dtype.names or slope is None or (slope, intercept) == (1, 0):
        return voxels.astype(dtype.newbyteorder("="), copy=False)
    scaled: NDArray[Any] = voxels.astype(np.float32 if dtype.itemsize <= 2 else np.float64)
    np.multiply(scaled, slope, out=scaled)
    np.add(scaled, intercept, out=scaled)
    return scaled


def _fill(path: Path, file: IO[bytes], buffer: NDArray[np.uint8]) -> None:
    for start in range(0, len(buffer), _CHUNK):
        wanted = buffer[start : start + _CHUNK]
        chunk = file.read(len(wanted))
        if len(chunk) < len(wanted):
            raise FileError(f"{path.name} ends before its last voxel: it is cut off, copy it again.")
        wanted[:] = np.frombuffer(chunk, np.uint8)


def _name_axes(path: Path, stored: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
    """Return axes and shape, in the order of a `Scan`, without the dimensions of length one beyond z."""
    sizes = dict(enumerate((*stored, 1, 1)[: max(3, len(stored))]))
    kept = [place for place, size in sizes.items() if place < 3 or size > 1]
    if kept[-1] >= len(_STORED):
        raise FileError(f"{path.name} has the dimensions {stored}, at most x, y, z, t and c can be read: split it.")
    return "".join(_STORED[place] for place in kept[::-1]), tuple(sizes[place] for place in kept[::-1])


def _geometry(path: Path, header: Any) -> tuple[NDArray[np.float64] | None, tuple[float, ...] | None, str | None]:
    """Return affine, spacing (both in the order z, y, x) and unit, each only if the header states it."""
    units = _UNITS.get(header.get_xyzt_units()[0])
    if header["sform_code"] > 0 or header["qform_code"] > 0:
        affine = np.asarray(header.get_best_affine(), np.float64)
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3] / np.maximum(spacing, 1e-30))) < 1e-6:
            raise FileError(f"{path.name} has an orientation matrix that is not invertible: repair its header.")
        return _reverse(affine), tuple(map(float, spacing[::-1])), units
    zooms = [abs(float(size)) for size in header["pixdim"][1:4]]
    stated = units is not None and min(zooms) > 0 and np.isfinite(zooms).all()
    return None, tuple(zooms[::-1]) if stated else None, units if stated else None


def _reverse(affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """Exchange x, y, z and z, y, x on both sides of a 4 × 4 matrix; its own inverse."""
    order = [2, 1, 0, 3]
    return affine[np.ix_(order, order)]


def _source_header(scan: Scan) -> Any:
    """Return a header with nothing but the geometry of the scan's source, or None where that is another geometry."""
    if scan.source is None:
        return None
    try:
        with _open(scan.source) as file:
            source = _read_header(file)
        affine, spacing, units = _geometry(scan.source, source)
    except Exception:  # gone since, or of another kind: any failure means that it is no help
        return None
    size = (*source.get_data_shape(), 1, 1)[2::-1]
    if size[-len(scan.spatial_shape) :] != scan.spatial_shape or not _equal(affine, scan.affine):
        return None
    if (spacing, units) != (scan.spacing, scan.units):
        return None
    header = type(source)()
    for name in _GEOMETRY:
        header[name] = source[name]
    return header


def _equal(first: NDArray[np.float64] | None, second: NDArray[np.float64] | None) -> bool:
    return first is second if first is None or second is None else np.array_equal(first, second)


def _fresh_header(scan: Scan) -> Any:
    header = _nibabel().Nifti1Header()
    zyx = dict(zip(scan.spatial_axes, scan.spacing or (), strict=False))
    header["pixdim"][1:4] = [zyx.get(axis, 1.0) for axis in "xyz"]
    header.set_xyzt_units({unit: name for name, unit in _UNITS.items()}.get(scan.units or "", "unknown"))
    if scan.affine is not None:
        if scan.spatial_axes not in ("zyx", "yx"):
            raise ParameterError(
                f"axes={scan.axes!r}: a NIfTI file with an orientation needs them in the order z, y, x."
            )
        affine = np.eye(4)
        used = [*(2, 1, 0)[3 - len(scan.spatial_axes) :], 3]
        affine[np.ix_(used, used)] = scan.affine
        header.set_sform(affine, code="aligned")
        turn = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
        if np.allclose(turn.T @ turn, np.eye(3), atol=1e-6):  # not tilted: a quaternion can say it as well
            header.set_qform(affine, code="aligned")
    return header
