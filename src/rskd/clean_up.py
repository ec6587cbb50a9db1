"""Clean up labels: remove islands, keep the largest component, fill holes.

Voxels go from a class to the background (islands, smaller components) and from the background to a class (holes).
None goes straight from one foreground class to another: an island that was removed is background, and becomes part of
the class around it where the holes of that class are filled. Cleaning up twice is the same as once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from rskd.config import CleanUpOptions
from rskd.config_results import ALL
from rskd.errors import ParameterError
from rskd.scan import SPATIAL, Scan, move_axes
from rskd.voxels import Grid, components

Labels = NDArray[np.integer]


def clean_up(labels: Scan, options: CleanUpOptions, names: Sequence[str]) -> Scan:
    """Return labels that are cleaned up; every point of time on its own.

    Components are voxels that share a face, an edge or a corner, in a volume across its slices. A hole is a region of
    background (connected over faces) that touches a class and is enclosed by it; a region that two classes
    enclose and touch goes to the first of them.

    Parameters
    ----------
    labels
        Class indices over any axes without c; or with c, a plane for each of the classes 1, 2 …, of which each is then
        cleaned up by itself.
    options
        What to do to which class.
    names
        Names of the classes 1, 2 …

    Raises
    ------
    ParameterError
        If there is no such class, or sizes in ml are asked for in a picture.

    Examples
    --------
    >>> ring = np.array([[1, 1, 1, 0, 0], [1, 0, 1, 0, 1], [1, 1, 1, 0, 0]])
    >>> options = CleanUpOptions(keep_largest=("vessel",), fill_holes=("vessel",))
    >>> clean_up(Scan(ring, "yx"), options, ["vessel"]).data
    array([[1, 1, 1, 0, 0],
           [1, 1, 1, 0, 0],
           [1, 1, 1, 0, 0]])
    """
    if "c" in labels.axes:
        return _clean_up_planes(labels, options, names)
    spatial = [axis for axis in SPATIAL if axis in labels.axes]
    stacked = move_axes(labels.data, labels.axes, ["t", *spatial]).copy()  # t, then z y x
    sizes = {label: size for name, size in options.sizes.items() for label in _labels_of([name], names)}
    for label, least in _voxel_counts(sizes, options, Grid.of(labels)).items():
        for volume in stacked:
            _within(volume, label, partial(_without_islands, least=least))
    for label in _labels_of(options.keep_largest, names):
        for volume in stacked:
            _within(volume, label, _largest)
    flat = options.holes_in == "slices"
    for label in _labels_of(options.fill_holes, names):
        for volume in stacked.reshape(-1, *stacked.shape[-2:]) if flat else stacked:
            _fill_holes(volume, label)
    order = (["t"] if "t" in labels.axes else []) + spatial
    cleaned = stacked.reshape([n for n, axis in zip(stacked.shape, ["t", *spatial], strict=True) if axis in order])
    return labels.like(cleaned.transpose([order.index(axis) for axis in labels.axes]), labels.axes)


def _clean_up_planes(labels: Scan, options: CleanUpOptions, names: Sequence[str]) -> Scan:
    at = labels.axes.index("c")
    axes, planes = labels.axes.replace("c", ""), np.moveaxis(np.asarray(labels.data), at, 0)
    planes = planes.astype(np.min_scalar_type(len(planes)))
    numbered = (plane * label for label, plane in enumerate(planes, 1))
    cleaned = [clean_up(labels.like(plane, axes), options, names).data > 0 for plane in numbered]
    return replace(labels, data=np.stack(cleaned, axis=at).astype(labels.data.dtype))


def check_names(options: CleanUpOptions, names: Sequence[str]) -> None:
    """Raise `ParameterError` if a class is named that is not among `names`, before anything is segmented for it."""
    for chosen in (options.sizes, options.keep_largest, options.fill_holes):
        _labels_of([*chosen], names)


def counts_voxels(labels: Scan, options: CleanUpOptions) -> bool:
    """Tell whether sizes in a unit of length are asked for that this scan does not state, so that voxels are counted.

    Examples
    --------
    >>> counts_voxels(Scan(np.zeros((2, 2)), "yx"), CleanUpOptions(min_size=("all=2",)))
    True
    """
    return bool(options.min_size) and options.size_unit != "voxels" and Grid.of(labels).unit is None


def _labels_of(chosen: Sequence[str], names: Sequence[str]) -> list[int]:
    """Return the labels of named classes, lowest first."""
    unknown = [name for name in chosen if name != ALL and name not in names]
    if unknown:
        raise ParameterError(f"There is no class {unknown[0]!r} to clean up: choose from {', '.join(names)}, or {ALL}.")
    return [label for label, name in enumerate(names, 1) if ALL in chosen or name in chosen]


def _voxel_counts(sizes: dict[int, float], options: CleanUpOptions, grid: Grid) -> dict[int, float]:
    """Return the smallest number of voxels (a real number) that stays, by label."""
    if options.size_unit == "ml" and len(grid.axes) < 3 and sizes:
        raise ParameterError("size_unit='ml' measures volumes, this image is a picture: use 'mm' for areas in mm².")
    if options.size_unit == "voxels" or grid.unit is None:
        return sizes
    voxel = grid.size_in("cm" if options.size_unit == "ml" else options.size_unit, grid.axes)  # 1 ml is 1 cm³
    return {label: size / voxel for label, size in sizes.items()}


def _within(volume: Labels, label: int, keep: Callable[[NDArray[np.bool_]], NDArray[np.bool_]]) -> None:
    """Give to the background, in place, what `keep` leaves out of a class; looks at its bounding box alone."""
    for box in ndimage.find_objects((volume == label).view(np.uint8)):
        part = volume[box]
        mask = part == label
        part[mask & ~keep(mask)] = 0


def _without_islands(mask: NDArray[np.bool_], *, least: float) -> NDArray[np.bool_]:
    """Return the components of at least `least` voxels."""
    numbered, _ = components(mask)
    large = np.bincount(numbered.ravel()) >= least * (1 - 1e-9)  # a size that is met but for rounding stays
    return mask & large[numbered]


def _largest(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the largest component; of equal ones, the first."""
    numbered, count = components(mask)
    if count < 2:
        return mask
    return np.asarray(numbered == 1 + np.bincount(numbered.ravel())[1:].argmax())


def _fill_holes(volume: Labels, label: int) -> None:
    """Give the holes of a class to it, in place."""
    for box in ndimage.find_objects((volume == label).view(np.uint8)):
        part = volume[box]
        mask = part == label
        regions, _ = ndimage.label(ndimage.binary_fill_holes(mask) & (part == 0))
        touching = np.unique(regions[ndimage.binary_dilation(mask)])
        part[np.isin(regions, touching[touching > 0])] = label
