"""NRRD and MetaImage, through SimpleITK.

ITK lists axes as x, y, z and measures towards the left, the back and the head, as DICOM does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rskd.errors import FileError, ParameterError
from rskd.io.dicom_geometry import from_lps, spacing_of, to_lps
from rskd.io.libraries import library
from rskd.io.memory import check_size
from rskd.scan import Scan, move_axes

_SINGULAR = 1e-6


def read_nrrd(path: Path) -> Scan:
    """Read an NRRD file, or the header of one (.nhdr) whose data lie beside it."""
    return _read(path, "NrrdImageIO")


def read_metaimage(path: Path) -> Scan:
    """Read a MetaImage file (.mha), or the header of one (.mhd) whose data lie beside it."""
    return _read(path, "MetaImageIO")


def write(path: Path, scan: Scan) -> None:
    """Write .nrrd or .mha, packed."""
    sitk = library("SimpleITK")
    order = [axis for axis in "tzyxc" if axis in scan.axes]
    if "t" in scan.axes:
        raise ParameterError(f"{path.name}: a series of times is written as .nii.gz or .tif.")
    data = move_axes(scan.data, scan.axes, order)
    data = np.ascontiguousarray(data.astype(np.uint8) if data.dtype == bool else data)
    image = sitk.GetImageFromArray(data, isVector="c" in scan.axes)
    size = len(scan.spatial_axes)
    if scan.spatial_axes != "zyx"[3 - size :]:
        raise ParameterError(f"axes={scan.axes!r}: {path.name} needs the spatial axes in the order z, y, x.")
    if scan.affine is not None and size == 3:
        lps = to_lps(scan.affine)[:3][:, [2, 1, 0, 3]]
        spacing = np.linalg.norm(lps[:, :3], axis=0)
        direction = lps[:, :3] / spacing
        _check_square(path, direction)
        image.SetDirection(direction.ravel().tolist())
        image.SetOrigin(lps[:, 3].tolist())
        image.SetSpacing(spacing.tolist())
    elif scan.spacing is not None:
        image.SetSpacing(scan.spacing[::-1])
    with _silent(sitk):
        sitk.WriteImage(image, str(path), useCompression=True)


def _check_square(path: Path, direction: NDArray[np.float64]) -> None:
    if np.abs(direction.T @ direction - np.eye(3)).max() > 1e-4:
        raise ParameterError(f"{path.name}: this format cannot say that the planes are tilted: write .nii.gz.")


@contextmanager
def _silent(sitk: Any) -> Iterator[None]:
    """Keep ITK's warnings, which quote headers, off the terminal."""
    shown = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(shown)


def _read(path: Path, kind: str) -> Scan:
    sitk = library("SimpleITK")
    reader = sitk.ImageFileReader()
    reader.SetImageIO(kind)
    reader.SetFileName(str(path))
    with _silent(sitk):
        reader.ReadImageInformation()
        _check(path, reader, sitk)
        image = reader.Execute()
    data = sitk.GetArrayFromImage(image)
    axes = {2: "yx", 3: "zyx", 4: "tzyx"}[image.GetDimension()]
    axes += "c" if image.GetNumberOfComponentsPerPixel() > 1 else ""
    if axes.startswith("t") and len(data) == 1:
        data, axes = data[0], axes[1:]
    affine, spacing = _geometry(path, image)
    return Scan(
        data,
        axes,
        spacing=spacing,
        units="mm",
        affine=affine,
        anatomical=affine is not None,
        channels={3: ("red", "green", "blue"), 4: ("red", "green", "blue", "alpha")}.get(data.shape[-1], ())
        if axes.endswith("c") and data.dtype == np.uint8
        else (),
    )


def _check(path: Path, reader: Any, sitk: Any) -> None:
    size = reader.GetSize()
    if not 2 <= len(size) <= 4:
        raise FileError(f"{path.name} has {len(size)} dimensions, 2 to 4 can be read: split it.")
    if "complex" in sitk.GetPixelIDValueAsString(reader.GetPixelID()).lower():
        raise FileError(f"{path.name} holds complex voxels, which are no intensities: save real numbers instead.")
    promised = math.prod(size) * reader.GetNumberOfComponents() * _bytes(reader, sitk)
    beside = [file for file in path.parent.glob(f"{path.stem}*") if file.is_file()]
    check_size(path.name, promised, held=sum(file.stat().st_size for file in {path, *beside}))


def _bytes(reader: Any, sitk: Any) -> int:
    name = sitk.GetPixelIDValueAsString(reader.GetPixelID())
    return next((bits // 8 for bits in (8, 16, 32, 64) if str(bits) in name), 8)


def _geometry(path: Path, image: Any) -> tuple[NDArray[np.float64] | None, tuple[float, ...]]:
    """Return the affine of a volume, and the spacing, in the order z, y, x."""
    spacing = np.array(image.GetSpacing()[:3])
    if image.GetDimension() == 2:
        return None, tuple(spacing[::-1].tolist())
    size = image.GetDimension()
    direction = np.array(image.GetDirection()).reshape(size, size)[:3, :3]
    if abs(np.linalg.det(direction)) < _SINGULAR:
        raise FileError(f"{path.name} has an orientation matrix that is not invertible: repair its header.")
    lps = np.eye(4)
    lps[:3, :3] = (direction * spacing)[:, ::-1]
    lps[:3, 3] = image.GetOrigin()[:3]
    affine = from_lps(lps)
    return affine, spacing_of(affine)
