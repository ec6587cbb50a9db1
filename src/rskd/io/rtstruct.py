"""Contours of radiotherapy (DICOM RTSTRUCT), drawn as labels onto the images they belong to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rskd.errors import FileError
from rskd.io import dicom
from rskd.io.dicom_geometry import to_lps
from rskd.io.libraries import library
from rskd.scan import Scan

_OFF_PLANE = 0.1
"""Distance of a contour from a plane, in planes, up to which it belongs to it."""
_ROUNDING = 1e-6


def read(path: Path) -> Scan:
    """Draw the contours onto the image series they were drawn on, which must lie in the same folder or beside it."""
    structures = dicom.header(path)
    image = _find_image(path, structures)
    return draw(structures, image, name=path.name)


def draw(structures: Any, image: Scan, *, name: str) -> Scan:
    """Return labels on the grid of `image`: 1, 2 … in the order of the structures.

    A voxel belongs to a structure if its centre lies inside of the contour; contours of one structure inside of each
    other cut holes. Where structures overlap, the later one is seen and a note says so.

    Parameters
    ----------
    structures
        pydicom dataset of an RTSTRUCT.
    image
        With its affine.
    name
        Of the file, for messages.

    Raises
    ------
    FileError
        If a contour is no closed plane one, or lies between the planes.
    """
    if image.affine is None or "t" in image.axes:
        raise FileError(f"{name} needs images of one volume with a stated position: open another series.")
    to_index = np.asarray(np.linalg.inv(to_lps(image.affine)), np.float64)
    order = [int(roi.ROINumber) for roi in structures.get("StructureSetROISequence") or []]
    labels = np.zeros(image.spatial_shape, np.min_scalar_type(len(order)))
    overlap = False
    for roi in structures.get("ROIContourSequence") or []:
        inside = np.zeros(labels.shape, bool)
        for contour in roi.get("ContourSequence") or []:
            _add(inside, contour, to_index, name)
        overlap = overlap or bool((labels[inside] != 0).any())
        labels[inside] = order.index(int(roi.ReferencedROINumber)) + 1
    notes = ("Some structures overlap; where they do, the later one is seen.",) if overlap else ()
    return Scan(
        labels,
        image.spatial_axes,
        spacing=image.spacing,
        units=image.units,
        affine=image.affine,
        files=image.files,
        modality="RTSTRUCT",
        meaning="labels",
        anatomical=True,
        notes=notes,
    )


def _add(inside: NDArray[np.bool_], contour: Any, to_index: NDArray[np.float64], name: str) -> None:
    kind = str(contour.get("ContourGeometricType", ""))
    if kind == "POINT":
        return
    if not kind.startswith("CLOSED"):
        raise FileError(f"{name} has contours that are not closed: close them in the program that drew them.")
    points = np.array(contour.ContourData, np.float64).reshape(-1, 3)
    indices = np.c_[points, np.ones(len(points))] @ to_index.T
    place = round(float(indices[:, 0].mean()))
    if np.abs(indices[:, 0] - place).max() > _OFF_PLANE or not 0 <= place < len(inside):
        raise FileError(f"{name} has a contour that lies on no plane of the images: open the series it was drawn on.")
    inside[place] ^= _filled(indices[:, 1:3], inside.shape[1:])


def _filled(corners: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Return which pixel centres lie inside of a polygon, by the even-odd rule, row by row."""
    mask = np.zeros(shape, bool)
    ends = np.roll(corners, -1, axis=0)
    lowest = max(0, int(np.ceil(corners[:, 0].min() - _ROUNDING)))
    highest = min(shape[0] - 1, int(np.floor(corners[:, 0].max() + _ROUNDING)))
    for row in range(lowest, highest + 1):
        crossed = (corners[:, 0] <= row) != (ends[:, 0] <= row)
        (y0, x0), (y1, x1) = corners[crossed].T, ends[crossed].T
        columns = np.sort(x0 + (row - y0) / (y1 - y0) * (x1 - x0))
        for left, right in columns.reshape(-1, 2):
            mask[row, max(0, int(np.ceil(left))) : max(0, int(np.ceil(right)))] = True
    return mask


def _find_image(path: Path, structures: Any) -> Scan:
    wanted = {
        str(series.SeriesInstanceUID)
        for frame in structures.get("ReferencedFrameOfReferenceSequence") or []
        for study in frame.get("RTReferencedStudySequence") or []
        for series in study.get("RTReferencedSeriesSequence") or []
    }
    for folder, depth in ((path.parent, 0), (path.parent, 1), (path.parent.parent, 1)):
        files = [file for file in dicom.files_in(folder, depth=depth) if _series(file) in wanted]
        for _, scan in dicom.series_in(folder, files):
            return scan
    raise FileError(f"{path.name} is a set of contours: put the images they were drawn on into the same folder.")


def _series(path: Path) -> str:
    head = library("pydicom").dcmread(path, specific_tags=["SeriesInstanceUID"], stop_before_pixels=True, force=True)
    return str(head.get("SeriesInstanceUID")) if "SeriesInstanceUID" in head else ""
