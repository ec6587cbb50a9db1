"""Measure labels: volume or area, place, extent and intensity of every class."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from rskd.errors import DataError
from rskd.io.files import replacing
from rskd.scan import SPATIAL, Scan, move_axes
from rskd.voxels import Grid, components

Columns = dict[str, list[Any]]
INDEX = "voxels"
"""Unit of places in the world of a scan that states no unit: indices of voxels."""


@dataclass(frozen=True, slots=True)
class Intensity:
    """The values of one channel inside of a label; NaN and infinity are left out."""

    channel: str
    mean: float
    sd: float
    """Standard deviation, with the number of voxels as divisor."""
    minimum: float
    maximum: float


@dataclass(frozen=True, slots=True)
class Measurement:
    """One class at one time, as a whole or in one slice."""

    label: int
    name: str
    time: int | None
    """Index along t; None = there is no time."""
    plane: int | None
    """Index along z of a slice; None = the whole volume or picture."""
    voxels: int
    size: float
    """Volume; of a slice or a picture its area."""
    unit: str
    """Unit of `size`: ml or mm2, um3 or um2, and voxels or pixels where the size of a voxel is unknown."""
    components: int
    """Number of connected components, over faces, edges and corners."""
    axes: str = ""
    """The letters of the places below, in their order."""
    place_unit: str = INDEX
    centroid: tuple[float, ...] = ()
    """Mean place in the world of `Scan.affine`; empty where the class is absent, as all that follows."""
    lower: tuple[float, ...] = ()
    """Lower corner of the upright box of the world around its voxels, as far as their outer corners reach."""
    upper: tuple[float, ...] = ()
    intensities: tuple[Intensity, ...] = ()


def measure(
    labels: Scan, image: Scan | None = None, *, names: Sequence[str] = (), slices: bool = False
) -> tuple[Measurement, ...]:
    """Measure every class but the background, at every time, and on request in every slice.

    Parameters
    ----------
    labels
        Class indices over any axes without c; or with c, a plane for each of the classes 1, 2 …
    image
        What was segmented; ``None`` = no intensities.
    names
        Names of the labels 1, 2 …; further labels are called "label 3" ….
    slices
        Measure the slices along z as well: areas, with a row for every class that a slice has.

    Returns
    -------
    tuple of Measurement
        A row for every class and time, also of classes that are absent, then those of its slices.

    Raises
    ------
    DataError
        If labels and image have different shapes.

    Examples
    --------
    >>> labels = Scan(np.array([[[0, 1], [1, 1]]]), "zyx", spacing=(10.0, 10.0, 10.0), units="mm")
    >>> image = labels.like(np.array([[[9, 1], [2, 3]]]), "zyx")
    >>> (liver,) = measure(labels, image, names=["liver"])
    >>> round(liver.size, 9), liver.unit, liver.upper, liver.intensities[0].mean
    (3.0, 'ml', (5.0, 15.0, 15.0), 2.0)
    """
    if "c" in labels.axes:
        return _measure_planes(labels, image, names, slices=slices)
    _check(labels, image)
    spatial = "".join(axis for axis in SPATIAL if axis in labels.axes)
    stacked = move_axes(labels.data, labels.axes, ["t", *spatial])
    pixels = None if image is None else move_axes(image.data, image.axes, ["t", "c", *spatial])
    last = max(len(names), int(stacked.max(initial=0)))
    titles = [*names, *(f"label {label}" for label in range(len(names) + 1, last + 1))]
    channels, grid = _channel_names(image), Grid.of(labels)
    rows: list[Measurement] = []
    for time, volume in enumerate(stacked):
        boxes = ndimage.find_objects(volume.astype(np.int64, copy=False), last)
        for label, (title, box) in enumerate(zip(titles, boxes, strict=True), 1):
            blank = Measurement(label, title, time if "t" in labels.axes else None, None, 0, 0.0, "", 0)
            inside = box or (slice(0, 0),) * volume.ndim
            values = None if pixels is None else pixels[(time, slice(None), *inside)]
            start = np.array([part.start for part in inside])
            region = _Region(volume[inside] == label, start, values, channels, grid)
            rows.append(region.measured(blank, spatial))
            if slices and "z" in spatial:
                rows += [part.measured(replace(blank, plane=plane), "yx") for plane, part in region.planes()]
    return tuple(rows)


def _measure_planes(labels: Scan, image: Scan | None, names: Sequence[str], *, slices: bool) -> tuple[Measurement, ...]:
    axes, planes = labels.axes.replace("c", ""), np.moveaxis(np.asarray(labels.data), labels.axes.index("c"), 0)
    titles = [*names, *(f"label {label}" for label in range(len(names) + 1, len(planes) + 1))]
    return tuple(
        replace(row, label=label)
        for label, (title, plane) in enumerate(zip(titles, planes, strict=True), 1)
        for row in measure(labels.like(plane, axes), image, names=[title], slices=slices)
    )


def columns(rows: Sequence[Measurement]) -> Columns:
    """Return measurements as columns of equal length; ``None`` where there is nothing to say.

    Examples
    --------
    >>> columns(measure(Scan(np.array([[0, 1]]), "yx"), names=["cell"]))["class"]
    ['cell']
    """
    records = [dict(_record(row)) for row in rows]
    keys = dict.fromkeys(key for record in records for key in record)
    return {key: [record.get(key) for record in records] for key in keys}


def joined(title: str, tables: Iterable[tuple[str, Mapping[str, Sequence[Any]]]]) -> Columns:
    """Return several tables under each other, and before them a column that says which of them a row is from.

    Parameters
    ----------
    title
        Of that column.
    tables
        What each is called, and its columns; where one lacks a column, its cells are ``None``.

    Examples
    --------
    >>> joined("image", [("CT", {"class": ["liver"], "size": [2]}), ("MR", {"class": ["spleen"]})])
    {'image': ['CT', 'MR'], 'class': ['liver', 'spleen'], 'size': [2, None]}
    """
    whole: Columns = {title: []}
    for name, table in tables:
        before, count = len(whole[title]), len(next(iter(table.values()), ()))
        for key, values in {title: [name] * count, **table}.items():
            column = whole.setdefault(key, [])
            column += [None] * (before - len(column)) + list(values)
    rows = len(whole[title])
    return {key: values + [None] * (rows - len(values)) for key, values in whole.items()}


def features(rows: Sequence[Measurement], names: Sequence[str]) -> Columns:
    """Return what a Labels layer of napari shows of a label: a row per label, the background first.

    Parameters
    ----------
    rows
        From `measure`; slices are passed over. Of several times, only the sizes are shown, a column each.
    names
        Names of the labels 0, 1, 2 …

    Examples
    --------
    >>> features(measure(Scan(np.array([[0, 1]]), "yx"), names=["cell"]), ["background", "cell"])["pixels"]
    [None, 1]
    """
    table: Columns = {"index": list(range(len(names))), "class": list(names)}
    for row in rows:
        if row.plane is not None or row.label >= len(names):
            continue
        size: Any = row.voxels if row.unit in ("voxels", "pixels") else row.size
        at = "" if row.time is None else f" at t={row.time}"
        shown = {row.unit + at: size}
        if row.time is None:
            left_out = ("class", "label", "size", "unit", "place_unit")
            shown |= {key: value for key, value in _record(row) if key not in left_out}
        for key, value in shown.items():
            table.setdefault(key, [None] * len(names))[row.label] = value
    return table


def write_table(path: Path, table: Mapping[str, Sequence[Any]]) -> None:
    """Write columns as CSV, whole or not at all; an empty cell where there is nothing to say."""
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table)
    writer.writerows(zip(*table.values(), strict=True))
    with replacing(path) as partial:
        partial.write_text(text.getvalue(), encoding="utf-8")


@dataclass(frozen=True)
class _Region:
    """The voxels of one label at one time, inside of a box; axes in the order z y x."""

    mask: NDArray[np.bool_]
    start: NDArray[np.int64]
    """Index of the box's first voxel."""
    values: NDArray[Any] | None
    """The image in the box, c first."""
    channels: Sequence[str]
    grid: Grid

    def planes(self) -> Iterator[tuple[int, _Region]]:
        """Yield the slices along z that have some of it, with their index."""
        for depth in np.flatnonzero(self.mask.any((1, 2))):
            here = slice(depth, depth + 1)
            values = None if self.values is None else self.values[:, here]
            plane = replace(self, mask=self.mask[here], start=self.start + np.array([depth, 0, 0]), values=values)
            yield int(self.start[0] + depth), plane

    def measured(self, blank: Measurement, axes: str) -> Measurement:
        """Fill in a row; `axes` are those over which its size is measured."""
        voxel, unit = self.grid.size(axes)
        indices = np.argwhere(self.mask) + self.start
        if not len(indices):
            return replace(blank, unit=unit)
        standard = [axis for axis in SPATIAL if axis in self.grid.axes]
        indices = indices[:, [standard.index(axis) for axis in self.grid.axes]]
        lower, upper = self.grid.box(indices)
        return replace(
            blank,
            voxels=len(indices),
            size=len(indices) * voxel,
            unit=unit,
            components=components(self.mask)[1],
            axes=self.grid.axes,
            place_unit=self.grid.unit or INDEX,
            centroid=tuple(self.grid.world(indices.mean(0)).tolist()),
            lower=tuple(lower.tolist()),
            upper=tuple(upper.tolist()),
            intensities=tuple(self._intensities()),
        )

    def _intensities(self) -> Iterator[Intensity]:
        for name, channel in zip(self.channels, () if self.values is None else self.values, strict=True):
            inside = channel[self.mask].astype(np.float64)
            inside = inside[np.isfinite(inside)]
            if inside.size:
                figures = (inside.mean(), inside.std(), inside.min(), inside.max())
                yield Intensity(name, *map(float, figures))


def _check(labels: Scan, image: Scan | None) -> None:
    if image is None:
        return
    wanted = {axis: n for axis, n in zip(image.axes, image.data.shape, strict=True) if axis != "c"}
    if dict(zip(labels.axes, labels.data.shape, strict=True)) != wanted:
        raise DataError(
            f"The labels have the shape {labels.data.shape} over {labels.axes!r}, the image {image.data.shape} over "
            f"{image.axes!r}: measure labels on their own image."
        )


def _channel_names(image: Scan | None) -> tuple[str, ...]:
    if image is None or image.channels:
        return () if image is None else image.channels
    return ("intensity",) if image.channel_count == 1 else tuple(map(str, range(image.channel_count)))


def _record(row: Measurement) -> Iterator[tuple[str, Any]]:
    """Yield the cells of a row, by column."""
    yield from {
        "class": row.name,
        "label": row.label,
        "time": row.time,
        "slice": row.plane,
        "size": row.size,
        "unit": row.unit,
        "voxels": row.voxels,
        "components": row.components,
    }.items()
    for name in ("centroid", "lower", "upper"):
        found = dict(zip(row.axes, getattr(row, name), strict=True))
        yield from ((f"{name}_{axis}", found.get(axis)) for axis in "xyz")
    yield "place_unit", row.place_unit if row.axes else None
    for values in row.intensities:
        for name in ("mean", "sd", "minimum", "maximum"):
            yield f"{name}_{values.channel}", getattr(values, name)
