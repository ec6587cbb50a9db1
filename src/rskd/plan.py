"""What a scan is cut into to be segmented: planes along one axis or three, and boxes that are done one by one."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from rskd.config import ModelSpec, SegmentOptions
from rskd.errors import ParameterError
from rskd.io.slices import PLANES, Slices, across, frame_shape, millimetres
from rskd.models.normalise import Range
from rskd.resampling import PlaneGrid
from rskd.scan import SPATIAL, Scan
from rskd.tiling import Tiling

Box = tuple[slice, ...]
"""A part of the result, one slice per axis of `Plan.axes`."""
Known = dict[tuple[str, int], tuple[Range, ...]]
"""Range of intensities of every channel, by the axis of a view and the number of a plane."""
_AXES = "t" + SPATIAL
SAME_SIZE = 0.01
"""Share by which pixels may differ from those of training without being resampled."""
_TILES = 4
"""Tiles along the side of a box below which blocks of the file are read again sooner than boxes are made smaller."""
_FARTHEST = 16.0
"""Factor between pixel sizes beyond which no resampling makes sense of an image."""


@dataclass(frozen=True)
class View:
    """A scan as planes along one axis, and the size at which the network sees them."""

    axis: str
    slices: Slices
    there: PlaneGrid
    """From the pixels of a plane to those that the network sees."""
    back: PlaneGrid
    spacing: float | None
    """Side in mm of the pixels that the network sees, if they were resampled for it."""

    @classmethod
    def along(cls, axis: str, scan: Scan, spec: ModelSpec, options: SegmentOptions) -> View:
        """Cut a scan along an axis.

        Raises
        ------
        ParameterError
            If its channels do not fit the network, or its pixels are of another order of magnitude.
        """
        slices = Slices(scan, spec, plane=PLANES[axis])
        size = slices.plane_shape
        sizes = millimetres(scan)
        seen, spacing = frame_shape(size, spec.frame), None
        if spec.spacing is not None and spec.frame is None and options.resample and sizes:
            factors = [sizes[letter] / spec.spacing for letter in slices.plane]
            if max(abs(factor - 1) for factor in factors) > SAME_SIZE:
                _check_factors(factors, spec)
                rows, columns = (max(1, round(n * factor)) for n, factor in zip(size, factors, strict=True))
                seen, spacing = (rows, columns), spec.spacing
        return cls(axis, slices, PlaneGrid.between(size, seen), PlaneGrid.between(seen, size), spacing)

    @property
    def seen(self) -> tuple[int, int]:
        """Height and width at which the network sees a plane."""
        return self.there.rows.target, self.there.columns.target

    def part(self, box: Box, axes: str) -> Part:
        """Return the planes, and the window of each, that a box is made of."""
        places = dict(zip(axes, box, strict=True))
        stack = [places[axis] for axis in self.slices.stack_axes]
        order = [axes.index(axis) for axis in self.slices.stack_axes + self.slices.plane]
        indices = [
            int(np.ravel_multi_index(place, self.slices.stack_shape)) if place else 0
            for place in product(*(range(part.start, part.stop) for part in stack))
        ]
        rows, columns = (places[axis] for axis in self.slices.plane)
        return Part(self, indices, rows, columns, tuple(part.stop - part.start for part in stack), order)


@dataclass(frozen=True)
class Part:
    """What a box is in a view: the same window of several planes."""

    view: View
    indices: Sequence[int]
    """Numbers of the planes."""
    rows: slice
    columns: slice
    """The window, in pixels of the scan."""
    stack_shape: tuple[int, ...]
    """How the planes are stacked."""
    order: Sequence[int]
    """Brings the axes of the box into the order: stack, rows, columns."""

    def tiles(self, tiling: Tiling) -> tuple[Tiling, slice, slice]:
        """Return the tiles of every plane, and the block of the plane, at the size seen, that lies under them."""
        return tiling.touching(*self.view.back.under(self.rows, self.columns))


@dataclass(frozen=True)
class Plan:
    """A scan and everything that follows from its shape, the network's description and the options."""

    scan: Scan
    spec: ModelSpec
    options: SegmentOptions
    axes: str
    """Axes of the result: those of the scan without c, in the order t, z, y, x."""
    shape: tuple[int, ...]
    """Shape of the result."""
    views: tuple[View, ...]

    @classmethod
    def of(cls, scan: Scan, spec: ModelSpec, options: SegmentOptions) -> Plan:
        """Make the plan.

        Raises
        ------
        ParameterError
            If scan, network and options do not fit together.
        """
        scan = scan.at_level(options.level)
        if "z" not in scan.axes and options.axis not in ("auto", "z"):
            raise ParameterError(
                f"axis={options.axis!r} needs a volume, the image has the axes {scan.axes!r}: leave it."
            )
        axis = _auto(scan, spec) if options.axis == "auto" else options.axis
        views = tuple(View.along(letter, scan, spec, options) for letter in (PLANES if axis == "all" else axis))
        sizes = dict(zip(scan.axes, scan.data.shape, strict=True))
        axes = "".join(letter for letter in _AXES if letter in scan.axes)
        return cls(scan, spec, options, axes, tuple(int(sizes[letter]) for letter in axes), views)

    @property
    def axis(self) -> str:
        """Axis along which the scan is cut, or "all"."""
        return self.views[0].axis if len(self.views) == 1 else "all"

    @property
    def whole(self) -> Box:
        """The box of everything."""
        return tuple(slice(0, n) for n in self.shape)

    @property
    def bytes_per_pixel(self) -> int:
        """What a pixel of a plane takes while it is worked on: as read, as the network sees it, and its classes."""
        itemsize = int(np.dtype(self.scan.data.dtype).itemsize)
        scale = max(1.0, *(math.prod(view.seen) / math.prod(view.slices.plane_shape) for view in self.views))
        work = scale * self.spec.in_channels * (itemsize + 4) + 4 * len(self.spec.outputs) * (1 + scale)
        return math.ceil(work)

    @property
    def bytes_per_voxel(self) -> int:
        """What a voxel of a box takes as long as the box is worked on: its labels, and its probabilities if kept."""
        classes = len(self.spec.outputs)
        labels = classes if self.spec.overlapping else int(np.min_scalar_type(classes - 1).itemsize)
        kept = self.options.probabilities or len(self.views) > 1
        return labels + (4 * classes if kept else 0)

    def boxes(self, steps: Mapping[str, int]) -> Iterator[Box]:
        """Yield boxes that together are everything, at most so long along each axis."""
        starts = (range(0, n, min(n, steps[axis])) for axis, n in zip(self.axes, self.shape, strict=True))
        for corner in product(*starts):
            yield tuple(
                slice(first, min(first + steps[axis], n))
                for first, axis, n in zip(corner, self.axes, self.shape, strict=True)
            )

    def steps(self, *, memory: int, tile: int, multiple: Mapping[str, int] | None = None) -> dict[str, int]:
        """Return how long boxes may be along each axis, so that plane and result fit into so much memory each.

        Parameters
        ----------
        memory
            Bytes that the work on a plane may take, and the labels and probabilities of a box.
        tile
            Side of a tile: that much of the surroundings is needed on either side.
        multiple
            Length of which each is a multiple, unless the axis is shorter; None = any.
        """
        multiple = multiple or dict.fromkeys(self.axes, 1)
        sizes = dict(zip(self.axes, self.shape, strict=True))
        cut = "".join(dict.fromkeys(letter for view in self.views for letter in view.slices.plane))
        least = {axis: multiple[axis] for axis in self.axes if axis not in cut}
        stack, depth = self.views[0].slices.stack_axes, self.views[0].slices.depth
        work = math.isqrt(memory // self.bytes_per_pixel) - 2 * tile

        def side_with(least: Mapping[str, int]) -> int:
            planes = math.prod(min(n, sizes[axis]) for axis, n in least.items())
            room = int((memory / self.bytes_per_voxel / planes) ** (1 / len(cut)) + 1e-9)
            return min(self.options.region, max(tile // 2, min(work, room)))

        if len(self.views) == 1 and stack:  # whole blocks of the file, unless boxes became so small that tiles suffer
            whole = {**least, stack[-1]: math.lcm(multiple[stack[-1]], depth)}
            least = whole if side_with(whole) >= min(_TILES * tile, side_with(least)) else least
        side = side_with(least)
        steps = {axis: max(1, side // multiple[axis]) * multiple[axis] for axis in cut}
        pixels = math.prod(min(steps[axis], sizes[axis]) for axis in cut)
        for axis in reversed(stack) if len(self.views) == 1 else least:  # as many planes as fill a region
            steps[axis] = max(1, side**2 // max(1, pixels) // least[axis]) * least[axis]
            pixels *= min(steps[axis], sizes[axis])
        return steps


def _auto(scan: Scan, spec: ModelSpec) -> str:
    """Return the axis of the training, or the best one where the network does not tell."""
    return spec.axis if spec.axis is not None and "z" in scan.axes else across(scan)


def _check_factors(factors: Sequence[float], spec: ModelSpec) -> None:
    farthest = max(factors, key=lambda factor: abs(math.log(factor)))
    if not 1 / _FARTHEST <= farthest <= _FARTHEST:
        raise ParameterError(
            f"A pixel of the image is {farthest * (spec.spacing or 1):g} mm wide, {spec.name} was trained at "
            f"{spec.spacing:g} mm: load another model, correct the spacing of the image, or leave resampling out."
        )
