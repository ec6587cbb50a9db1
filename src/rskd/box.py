"""Segment one box of a scan, view by view, plane by plane and tile by tile, with less where memory runs out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rskd.backend import Array, Backend, backend_of
from rskd.config import ModelSpec, SegmentOptions
from rskd.errors import ResourceError, is_out_of_memory
from rskd.events import Message, Progress, Task
from rskd.models.normalise import Range, measure, scaled
from rskd.plan import Box, Known, Part, Plan, View
from rskd.recipe import Setting
from rskd.tiling import NUMPY, Tiling, Work, predict_tiled

if TYPE_CHECKING:  # a network is handed in; importing timm for its type alone would take seconds
    from rskd.models.segmenter import Segmenter

_ROWS = 64
"""Rows that are turned into labels at a time: few, so that no second map of the whole plane is needed."""
PRESENT = 0.5
"""Probability from which on a class that may overlap others is there."""
OUT = (
    "have the labels written to an OME-Zarr (a name that ends in .zarr) and nothing done that needs them as a whole: "
    "clean-up, measurements, maps"
)
"""The way out where a result is too large for the memory."""


@dataclass(frozen=True)
class Room:
    """Where the result of a box goes."""

    labels: NDArray[Any]
    """Over the axes of the plan; where classes may overlap, the classes first."""
    probabilities: NDArray[np.float32] | None
    """The same with the classes first."""

    @classmethod
    def of(cls, shape: Sequence[int], spec: ModelSpec, *, probabilities: bool) -> Room:
        """Return room in memory.

        Raises
        ------
        ResourceError
            If there is not so much.
        """
        whole = (len(spec.outputs), *shape)
        labels, dtype = (whole, np.uint8) if spec.overlapping else (shape, np.min_scalar_type(whole[0] - 1))
        try:
            return cls(np.empty(labels, dtype), np.empty(whole, np.float32) if probabilities else None)
        except MemoryError as error:
            raise ResourceError(
                f"The memory does not hold the result of {' x '.join(map(str, shape))} voxels: close other programs, "
                f"make --region smaller, or {OUT}."
            ) from error

    def part(self, box: Box) -> Room:
        """Return the room for a box of it."""
        place: Any = (..., *box)
        return Room(self.labels[place], None if self.probabilities is None else self.probabilities[place])


def count_tiles(plan: Plan, box: Box, setting: Setting) -> int:
    """Return how many tiles a box is blended from."""
    parts = [view.part(box, plan.axes) for view in plan.views]
    return sum(len(part.indices) * len(part.tiles(_tiling(part.view, plan, setting))[0]) for part in parts)


def run_box(
    model: Segmenter, plan: Plan, box: Box, setting: Setting, known: Known, room: Room, before: int, total: int
) -> Task[Setting]:
    """Segment a box, with less where memory runs out.

    Parameters
    ----------
    model
        The network; it is moved to the CPU if the memory of its device does not suffice.
    plan, box
        What to segment.
    setting
        How to begin.
    known
        Ranges of intensities; what is measured is added.
    room
        Is filled.
    before, total
        Tiles done before this box, and in all.

    Returns
    -------
    Setting
        How it ended. If its tile is another one, the box is not done: then everything has to begin anew.
    """
    while True:
        done = before
        try:
            for ran in _fill(model, plan, box, setting, known, room):
                done += ran
                yield Progress(done, total, "tiles")
            return setting
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            tile = setting.tile
            setting = setting.less(patch=model.spec.patch_size, fixed=getattr(model, "fixed", False))
        yield Message(setting.setbacks[-1], warning=True)
        if setting.tile != tile:
            return setting
        if backend_of(model).device != setting.device:
            model.to(setting.device)


def _fill(model: Segmenter, plan: Plan, box: Box, setting: Setting, known: Known, room: Room) -> Iterator[int]:
    """Segment a box; yields the number of tiles after every batch."""
    if len(plan.views) == 1:
        yield from _fill_view(model, plan, plan.views[0].part(box, plan.axes), setting, known, room)
        return
    mean = room
    if room.probabilities is None:
        mean = Room.of(room.labels.shape[-len(box) :], plan.spec, probabilities=True)
    total: NDArray[Any] = np.asarray(mean.probabilities)
    total[...] = 0
    for view in plan.views:
        yield from _fill_view(model, plan, view.part(box, plan.axes), setting, known, mean)
    total /= len(plan.views)
    if plan.spec.overlapping:
        np.greater_equal(total, PRESENT, out=room.labels)
        return
    for target, values in zip(room.labels, np.moveaxis(total, 1, 0), strict=True):
        target[...] = NUMPY.strongest(values)


def _fill_view(model: Segmenter, plan: Plan, part: Part, setting: Setting, known: Known, room: Room) -> Iterator[int]:
    backend = backend_of(model)
    tiling, rows, columns = part.tiles(_tiling(part.view, plan, setting, backend))
    there = part.view.there
    results = _Results(plan, part, (rows, columns), backend, room)

    def work() -> Iterator[Work]:
        planes = part.view.slices.windows(part.indices, *there.under(rows, columns))
        for number, (index, plane) in enumerate(zip(part.indices, planes, strict=True)):
            ranges = _ranges(plan, part.view, index, plane, known)
            image = there.apply(backend.put(scaled(plane, ranges)), rows, columns, backend)
            is_empty = _emptiness(plan.options, ranges)
            yield Work(image, results.canvas(number), is_empty, background=0 if plan.spec.overlapping else 1)

    stored = 0
    for ran, finished in predict_tiled(model, work(), tiling, batch_size=setting.batch_size):
        for values in finished:
            results.store(stored, values)
            stored += 1
        yield ran


def _tiling(view: View, plan: Plan, setting: Setting, backend: Backend = NUMPY) -> Tiling:
    return Tiling.over(view.seen, tile=setting.tile, overlap=plan.options.overlap, backend=backend)


def _ranges(plan: Plan, view: View, index: int, window: NDArray[Any], known: Known) -> tuple[Range, ...]:
    """Return the range of every channel of a whole plane, of which a window was read."""
    key = (view.axis, index)
    if key not in known:
        whole = window.shape[1:] == view.slices.plane_shape
        known[key] = measure(lambda: [window] if whole else view.slices.blocks(index), plan.spec)
    return known[key]


def _emptiness(options: SegmentOptions, ranges: Sequence[Range]) -> Callable[[Array], bool] | None:
    """Return what tells of a tile that is ready for the network whether the image has nothing there."""
    if options.skip_flat is None and options.skip_dark is None:
        return None

    def is_empty(tile: Array) -> bool:
        lowest, highest = ([float(getattr(channel, end)()) for channel in tile] for end in ("min", "max"))
        flat = all((b - a) * width <= flat_limit for a, b, (_, width) in zip(lowest, highest, ranges, strict=True))
        dark = all(b * width + centre <= dark_limit for b, (centre, width) in zip(highest, ranges, strict=True))
        return flat or dark

    flat_limit = -1.0 if options.skip_flat is None else options.skip_flat
    dark_limit = -math.inf if options.skip_dark is None else options.skip_dark
    return is_empty


class _Results:
    """The labels and probabilities of the planes of a part, filled plane by plane."""

    def __init__(self, plan: Plan, part: Part, block: Sequence[slice], backend: Backend, room: Room) -> None:
        self._part, self._backend, self._classes = part, backend, len(plan.spec.outputs)
        self._overlapping = plan.spec.overlapping
        self._block = block
        self._adds = len(plan.views) > 1
        behind = (0, *(place + 1 for place in part.order))  # classes, stack, then h w
        self._labels = room.labels.transpose(behind if self._overlapping else part.order)
        self._probabilities: NDArray[Any] | None = None
        if room.probabilities is not None:
            self._probabilities = room.probabilities.transpose(behind)

    def _place(self, number: int) -> tuple[Any, ...]:
        """Return the index of a plane in the stack."""
        shape = self._part.stack_shape
        return tuple(map(int, np.unravel_index(number, shape))) if shape else ()

    @property
    def _in_place(self) -> bool:
        """Whether the maps of the network are the probabilities' own memory."""
        everything = [self._part.rows, self._part.columns] == [*self._block] and not self._part.view.back.changes
        return self._probabilities is not None and everything and self._backend.device == "cpu" and not self._adds

    def canvas(self, number: int) -> Array:
        """Return zeros (K, H, W) to blend into: the final place of the probabilities, where that is possible."""
        if self._probabilities is not None and self._in_place:
            place = self._backend.put(self._probabilities[(slice(None), *self._place(number))])
            place[...] = 0
            return place
        return self._backend.zeros(self._classes, *(part.stop - part.start for part in self._block))

    def store(self, number: int, values: Array) -> None:
        """Turn the logits (K, H, W) of a block into probabilities, in place, and these into labels."""
        backend, part, place = self._backend, self._part, self._place(number)
        back = part.view.back
        rows, columns = (
            slice(used.start - under.start, used.stop - under.start)
            for used, under in zip(back.under(part.rows, part.columns), self._block, strict=True)
        )
        values = values[:, rows, columns]
        if back.changes or self._probabilities is not None or self._overlapping:
            turn = backend.sigmoid if self._overlapping else backend.softmax
            for start in range(0, values.shape[1], _ROWS):
                turn(values[:, start : start + _ROWS])
        values = back.apply(values, part.rows, part.columns, backend)
        if self._probabilities is not None and not self._in_place:
            target = self._probabilities[(slice(None), *place)]
            target[...] = backend.get(values) + (target if self._adds else 0)
        for start in range(0, values.shape[1], _ROWS):
            some = values[:, start : start + _ROWS]
            labels = some >= PRESENT if self._overlapping else backend.strongest(some)
            self._labels[(..., *place, slice(start, start + _ROWS), slice(None))] = backend.get(labels)
