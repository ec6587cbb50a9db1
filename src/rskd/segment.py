"""Segment a scan of any size in memory; where it is large, box by box (`rskd.box`)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from rskd.backend import Backend, backend_of
from rskd.box import OUT, Room, count_tiles, run_box
from rskd.config import SegmentOptions
from rskd.errors import ResourceError
from rskd.events import Message, Task
from rskd.plan import Box, Known, Plan
from rskd.recipe import SegmentRecipe, Setting, fingerprint, free_memory
from rskd.scan import Scan

if TYPE_CHECKING:  # a network is handed in; importing timm for its type alone would take seconds
    from rskd.models.segmenter import Segmenter

_DEFAULTS = SegmentOptions()


@dataclass(frozen=True)
class Segmentation:
    """Labels of a scan, in its world."""

    labels: Scan
    """Index of the most probable class, over the axes of the scan without c; unsigned integers. Where classes may
    overlap, 1 wherever a class is at least as probable as not, c first: the classes but the background."""
    probabilities: Scan | None
    """Probability of every class that the network has an output for, c first, float32; only if asked for."""
    recipe: SegmentRecipe
    """What they were made with."""


def segment(model: Segmenter, scan: Scan, options: SegmentOptions = _DEFAULTS) -> Task[Segmentation]:
    """Segment every plane of a scan with overlapping tiles whose logits are blended smoothly.

    The task yields its progress after every batch of tiles; closing it cancels. The result does not depend on the
    batch size, on how the scan is stored, or on the regions it is worked on in, beyond the rounding of the network
    itself. When memory runs out it goes on with a smaller batch, then on the CPU, and only then with smaller tiles;
    a message says so, and the recipe of the result records it.

    Parameters
    ----------
    model
        The network, on the device where it shall run.
    scan
        What to segment: any axes, any size from one pixel on, lazy data allowed. Planes are cut along the axis that
        `options` name, by default that of the training, and stacked along every other axis. Where the spec has a
        `frame`, or a `spacing` other than that of the scan, a plane is resampled to it first and the probabilities
        back.
    options
        Tiles, axis, memory.

    Returns
    -------
    Segmentation
        Labels, and probabilities if asked for, with the geometry of `scan` (of the level that `options` name), and the
        recipe.

    Raises
    ------
    ParameterError
        If the channels of scan and network differ, or the tile is no multiple of the patch size.
    ResourceError
        If the memory does not suffice for the smallest tile, or for the result.

    Examples
    --------
    >>> import numpy as np
    >>> from rskd.events import drain
    >>> import torch
    >>> from rskd.config import ModelSpec
    >>> class Bright(torch.nn.Module):
    ...     spec = ModelSpec(name="bright", image_size=32)
    ...     def forward(self, images):
    ...         return torch.cat([-images, images], 1)
    >>> scan = Scan(np.array([[0, 9, 9]]), "yx", spacing=(0.5, 0.5), units="mm")
    >>> result = drain(segment(Bright(), scan))
    >>> result.labels.data, result.labels.spacing, result.recipe.tile
    (array([[0, 1, 1]], dtype=uint8), (0.5, 0.5), 32)
    """
    plan = Plan.of(scan, model.spec, options)
    result = _room_for(plan)
    yield from announce(plan)
    with in_use(model) as backend:
        setting = Setting.chosen(options, model.spec, backend.device)
        setting = yield from _fill_all(model, plan, setting, result)
    return Segmentation(*_in_world(plan, result), recipe_of(model, plan, setting))


def announce(plan: Plan) -> Iterator[Message]:
    """Say what was decided for the user."""
    if plan.options.axis == "auto" and plan.axis != "z":
        why = "as in the training" if plan.spec.axis else "where the pixels of a plane are most nearly square"
        yield Message(f"The volume is cut along {plan.axis}, {why}.")
    view = plan.views[0]
    if view.spacing is not None:
        shape, seen = (" x ".join(map(str, size)) for size in (view.slices.plane_shape, view.seen))
        yield Message(f"Planes are resampled from {shape} to {seen} pixels of {view.spacing:g} mm, as in the training.")


@contextmanager
def in_use(model: Segmenter) -> Iterator[Backend]:
    """Keep a network in evaluation mode; afterwards it is as it was, and where it was."""
    modes = {module: module.training for module in model.modules()}
    backend = backend_of(model)
    model.eval()
    try:
        yield backend
    finally:
        for module, training in modes.items():
            module.training = training
        if backend_of(model).device != backend.device:
            model.to(backend.device)


def recipe_of(model: Segmenter, plan: Plan, setting: Setting) -> SegmentRecipe:
    """Return what a result was made with."""
    options = plan.options
    return SegmentRecipe(
        network=model.spec.name,
        weights=fingerprint(model),
        version=version("napari-rskd"),
        axis=plan.axis,
        spacing=plan.views[0].spacing,
        tile=setting.tile,
        batch_size=setting.batch_size,
        device=setting.device,
        setbacks=setting.setbacks,
        **options.model_dump(include={"level", "overlap", "skip_flat", "skip_dark"}),
    )


# -------------------------------------------------------------------------------------------------------- in memory


def _room_for(plan: Plan) -> Room:
    needed = math.prod(plan.shape) * plan.bytes_per_voxel
    free = free_memory("cpu")
    if needed > free:
        raise ResourceError(f"The result takes {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB of memory are free: {OUT}.")
    return Room.of(plan.shape, plan.spec, probabilities=plan.options.probabilities)


def _fill_all(model: Segmenter, plan: Plan, setting: Setting, result: Room) -> Task[Setting]:
    """Segment everything, in one go where an image and its map take no more than a quarter of the memory."""
    limit = min(free_memory(place) for place in {"cpu", setting.device}) // 4
    largest = max(math.prod(view.slices.plane_shape) for view in plan.views) * plan.bytes_per_pixel
    steps = plan.steps(memory=limit, tile=setting.tile) if largest > limit else None
    boxes = [plan.whole] if steps is None else list(plan.boxes(steps))
    known: Known = {}
    left: list[Box] = []
    while True:
        if not left:
            left, done = boxes.copy(), 0
            total = sum(count_tiles(plan, box, setting) for box in boxes)
        box = left.pop(0)
        after = yield from run_box(model, plan, box, setting, known, result.part(box), done, total)
        done += count_tiles(plan, box, setting)
        if after.tile != setting.tile:
            left = []  # with other tiles everything begins anew
        elif not left:
            return after
        setting = after


def _in_world(plan: Plan, result: Room) -> tuple[Scan, Scan | None]:
    """Return everything with the axes and the geometry of the scan."""
    axes = plan.scan.axes.replace("c", "")
    order = [plan.axes.index(axis) for axis in axes]

    def placed(values: NDArray[Any]) -> Scan:
        if values.ndim == len(axes):
            return plan.scan.like(values.transpose(order), axes)
        return plan.scan.like(values.transpose(0, *(place + 1 for place in order)), "c" + axes)

    labels = placed(result.labels)
    if plan.spec.overlapping:
        labels = replace(labels, channels=tuple(info.name for info in plan.spec.outputs))
    return labels, None if result.probabilities is None else placed(result.probabilities)
