"""Where the planes of a DICOM image lie, and how they make a volume.

DICOM measures in millimetres towards the left, the back and the head of the patient (LPS). The world of a `Scan`
runs towards the right, the front and the head (RAS), with its axes in the order z, y, x.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rskd.errors import FileError

_TILT_LIMIT = 0.5
"""Degrees from which on a tilt of the gantry is mentioned."""
_UNEVEN = 0.02
"""Largest distance of a plane from its place in an even stack, as a part of the distance between planes."""
_ROUNDING = 0.011
"""Millimetres by which a header's rounding may move a plane."""
_PARALLEL = 1e-3

LPS_TO_ZYX = np.array([[0, 0, 1, 0], [0, -1, 0, 0], [-1, 0, 0, 0], [0, 0, 0, 1]], np.float64)
"""World (x, y, z, 1) of DICOM to world (z, y, x, 1) of a `Scan`."""


@dataclass(frozen=True)
class Plane:
    """One plane of an image: a file, or one frame of a file."""

    path: Path
    frame: int
    position: NDArray[np.float64] | None
    """Centre of its first pixel, x, y, z in LPS."""
    directions: NDArray[np.float64] | None
    """Unit vectors along increasing x (first row) and increasing y (second row)."""
    spacing: tuple[float, float] | None
    """Distance between pixels along y and x."""
    thickness: float | None
    time: tuple[float, ...]
    """What tells planes at the same place apart."""


@dataclass(frozen=True)
class Stack:
    """Planes in order: T times × Z places."""

    planes: tuple[Plane, ...]
    times: int
    affine: NDArray[np.float64] | None
    """Index (z, y, x) to world (z, y, x)."""
    notes: tuple[str, ...] = ()


def arrange(planes: Sequence[Plane], name: str) -> Stack:
    """Sort planes by where they lie, from the feet to the head for axial ones; the order of the files says nothing.

    Parameters
    ----------
    planes
        In any order.
    name
        Of the file or folder, for messages.

    Raises
    ------
    FileError
        If they are no even stack: not parallel, some missing, some twice.
    """
    if any(plane.position is None or plane.directions is None or plane.spacing is None for plane in planes):
        return Stack(tuple(sorted(planes, key=lambda plane: (plane.time, plane.frame))), len(planes), None)
    directions, spacing = _common(planes, name)
    normal = np.cross(*directions)
    positions = np.array([plane.position for plane in planes])
    depth = positions @ normal
    order = sorted(range(len(planes)), key=lambda i: (depth[i], planes[i].time, planes[i].frame))
    places = _group_places(depth[order])
    times = len(places[0])
    if any(len(place) != times for place in places):
        raise FileError(
            f"{name} has {len(planes)} planes at {len(places)} places, not equally many at each: keep one acquisition."
        )
    first = positions[[order[place[0]] for place in places]]
    step, notes = _step(first, normal, planes[0].thickness, name)
    affine = _affine(first[0], step, directions, spacing)
    ordered = tuple(planes[order[place[time]]] for time in range(times) for place in places)
    return Stack(ordered, times, affine, notes)


def to_lps(affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return index (z, y, x) to LPS (x, y, z) for a scan's affine.

    Examples
    --------
    >>> to_lps(np.diag([3.0, 2.0, 1.0, 1.0])) @ [1, 1, 1, 1]
    array([-1., -2.,  3.,  1.])
    """
    return np.linalg.inv(LPS_TO_ZYX) @ affine


def from_lps(affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a scan's affine for index (z, y, x) to LPS (x, y, z)."""
    turned = LPS_TO_ZYX @ affine
    return np.asarray(turned + 0.0, np.float64)  # no negative zeros


def spacing_of(affine: NDArray[np.float64]) -> tuple[float, ...]:
    """Return the distance between voxels along every axis of an affine."""
    return tuple(map(float, np.linalg.norm(affine[:-1, :-1], axis=0)))


def _common(planes: Sequence[Plane], name: str) -> tuple[NDArray[np.float64], tuple[float, float]]:
    directions = np.array([plane.directions for plane in planes])
    spacings = np.array([plane.spacing for plane in planes])
    if np.abs(directions - directions[0]).max() > _PARALLEL:
        raise FileError(f"{name} has planes in different directions, such as a localiser's: keep the parallel ones.")
    if not np.allclose(spacings, spacings[0], rtol=1e-4):
        raise FileError(f"{name} has planes with different pixel sizes: keep the ones of one size.")
    first = directions[0]
    lengths = np.linalg.norm(first, axis=1)
    if not np.isfinite(first).all() or np.abs(lengths - 1).max() > 0.01 or abs(first[0] @ first[1]) > 0.01:
        raise FileError(f"{name} has an image orientation that is none: repair its header.")
    if not (np.isfinite(spacings[0]).all() and spacings[0].min() > 0):
        raise FileError(f"{name} has pixels of no size: repair its header.")
    return first, (float(spacings[0][0]), float(spacings[0][1]))


def _group_places(depth: NDArray[np.float64]) -> list[list[int]]:
    """Return the indices of sorted planes that lie at the same place together."""
    groups = [[0]]
    for index in range(1, len(depth)):
        if depth[index] - depth[index - 1] > _ROUNDING:
            groups.append([])
        groups[-1].append(index)
    return groups


def _step(
    positions: NDArray[np.float64], normal: NDArray[np.float64], thickness: float | None, name: str
) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    """Return the vector from one plane to the next, and what is unusual about it."""
    if len(positions) == 1:
        notes = () if thickness else ("The thickness of this single plane is not stated, 1 mm is assumed.",)
        return normal * (thickness or 1.0), notes
    _refuse_gaps(np.diff(positions, axis=0) @ normal, name)
    step = (positions[-1] - positions[0]) / (len(positions) - 1)
    even = positions[0] + np.arange(len(positions))[:, None] * step
    length = float(np.linalg.norm(step))
    if np.linalg.norm(positions - even, axis=1).max() > max(_UNEVEN * length, _ROUNDING):
        raise FileError(f"{name} has planes that do not lie on a straight line: it is no even volume, resample it.")
    tilt = float(np.degrees(np.arccos(np.clip(step @ normal / length, -1, 1))))
    if tilt > _TILT_LIMIT:
        return step, (f"The planes are tilted by {tilt:.1f}° against their stack; the orientation says so exactly.",)
    return step, ()


def _refuse_gaps(distances: NDArray[np.float64], name: str) -> None:
    usual = float(np.median(distances))
    gaps = np.flatnonzero(np.abs(distances - usual) > max(_UNEVEN * usual, _ROUNDING))
    if not len(gaps):
        return
    place = int(gaps[0])
    ratio = distances[place] / usual
    if ratio > 1.5 and abs(ratio - round(ratio)) < 0.1:
        missing = round(ratio) - 1
        raise FileError(
            f"{name} lacks {missing} plane{'s' * (missing > 1)} after the {place + 1}. of {len(distances) + 1}: "
            "a result would lie in the wrong place; copy the whole series."
        )
    raise FileError(
        f"{name} has planes at uneven distances, {distances.min():.4g} to {distances.max():.4g} mm: "
        "resample it onto an even grid."
    )


def _affine(
    origin: NDArray[np.float64],
    step: NDArray[np.float64],
    directions: NDArray[np.float64],
    spacing: tuple[float, float],
) -> NDArray[np.float64]:
    lps = np.eye(4)
    lps[:3, 0], lps[:3, 1], lps[:3, 2], lps[:3, 3] = (
        step,
        directions[1] * spacing[0],
        directions[0] * spacing[1],
        origin,
    )
    if not np.isfinite(lps).all():
        raise FileError("The image position is no number: repair the header.")
    return from_lps(lps)


def number(value: Any) -> float:
    """Return a header's number, or 0 where it is missing or none."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return 0.0
