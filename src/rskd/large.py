"""Segment images larger than memory: read in parts, written box by box into OME-Zarr, gone on with after a kill."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rskd.backend import backend_of
from rskd.box import Room, count_tiles, run_box
from rskd.config import SegmentOptions
from rskd.events import Message, Task
from rskd.io import read_scan
from rskd.io.state import state_of
from rskd.ledger import Ledger, Place
from rskd.plan import Box, Plan
from rskd.recipe import SegmentRecipe, Setting
from rskd.scan import Scan
from rskd.segment import Segmentation, announce, in_use, recipe_of

if TYPE_CHECKING:
    from rskd.models.segmenter import Segmenter

_DEFAULTS = SegmentOptions()


def segment_into(output: Path, model: Segmenter, scan: Scan, options: SegmentOptions = _DEFAULTS) -> Task[Segmentation]:
    """Segment a scan as `rskd.segment.segment` does, with the result on disk instead of in memory.

    Called again after it was interrupted, in whatever way, it goes on where it stopped; the result is the same.

    Parameters
    ----------
    output
        Name ending in .zarr; or that of labels inside of an OME-Zarr image (``"image.zarr/labels/vessels"``), or of
        the image itself for ``labels/rskd``. It appears when it is whole. With `probabilities`, these lie beside it.
    model, scan, options
        As for `segment`. `options.region` bounds the memory: about 40 bytes per pixel of a region for two classes.

    Returns
    -------
    Segmentation
        Labels and probabilities, lazy, and the recipe, which is written into the attributes of the result too.

    Raises
    ------
    FileError
        If the place cannot be written to; before the work begins.
    ParameterError, ResourceError
        As `segment`.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from rskd.events import drain
    >>> from rskd.models.presets import fresh_spec
    >>> from rskd.models.segmenter import Segmenter
    >>> model = Segmenter(fresh_spec("rskd-nano", in_channels=1, classes=["organ"]))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     result = drain(segment_into(Path(folder) / "labels.zarr", model, Scan(np.eye(300), "yx")))
    ...     result.labels.data.shape, result.recipe.tile
    ((300, 300), 128)
    """
    plan = Plan.of(scan, model.spec, options)
    ledger = Ledger(Place.of(output, scan.source), plan)
    setting = Setting.chosen(options, model.spec, backend_of(model).device)
    with ledger.opened(), in_use(model):
        yield from announce(plan)
        yield from take_up(ledger, model, setting)
        while ledger.left:
            yield from _fill(ledger, model)
        yield Message("Building the smaller versions of the result.")
        recipe = recipe_of(model, plan, ledger.setting)
        ledger.finish({"recipe": recipe.model_dump(mode="json")})
    return result_of(ledger.place, plan, recipe)


def take_up(ledger: Ledger, model: Segmenter, setting: Setting) -> Task[None]:
    """Go on with what is there if it was begun for the same result, or begin anew."""
    identity = identity_of(ledger.plan, model)
    if ledger.resume(identity, device=setting.device):
        yield Message(f"Going on: {len(ledger.done)} of {len(ledger.boxes)} regions are done.")
        return
    if ledger.begun:
        yield Message("What lies there unfinished was made otherwise: everything is begun anew.", warning=True)
    ledger.start(identity, setting)


def identity_of(plan: Plan, model: Segmenter) -> dict[str, Any]:
    """Return all that the result depends on; a lazy image is told by size and time of its files."""
    recipe = recipe_of(model, plan, Setting(0, 0, ""))
    made = recipe.model_dump(mode="json", exclude={"tile", "batch_size", "device", "setbacks"})
    scan = plan.scan
    image = {
        "state": state_of(scan),
        "shape": list(scan.data.shape),
        "axes": scan.axes,
        "dtype": str(scan.data.dtype),
        "pixel": None if scan.spacing is None else list(scan.spacing),
        "units": scan.units,
        "affine": None if scan.affine is None else scan.affine.tolist(),
    }
    return made | image | {name: getattr(plan.options, name) for name in ("tile", "region", "probabilities")}


def _fill(ledger: Ledger, model: Segmenter) -> Task[None]:
    """Do the boxes that are left, until the tile has to change and all are left again."""
    plan, tile = ledger.plan, ledger.setting.tile
    counts = [count_tiles(plan, box, ledger.setting) for box in ledger.boxes]
    before = sum(counts[number] for number in ledger.done)
    for number in ledger.left:
        known = dict(ledger.known)
        room = room_for(plan, ledger.boxes[number])
        place = (ledger.boxes[number], ledger.setting, known, room)
        after = yield from run_box(model, plan, *place, before, sum(counts))
        if after != ledger.setting:
            ledger.change(after)
        if after.tile != tile:
            return
        ledger.know(known)
        ledger.store.write(ledger.boxes[number], room.labels, room.probabilities)
        ledger.check_off(number)
        before += counts[number]


def room_for(plan: Plan, box: Box) -> Room:
    """Return room in memory for the result of a box."""
    shape = [part.stop - part.start for part in box]
    return Room.of(shape, plan.spec, probabilities=plan.options.probabilities)


def result_of(place: Place, plan: Plan, recipe: SegmentRecipe) -> Segmentation:
    """Return a result that is whole, lazy."""
    found = read_scan(place.output)
    labels = replace(plan.scan.like(found.data, found.axes), channels=found.channels)
    if not plan.options.probabilities:
        return Segmentation(labels, None, recipe)
    found = read_scan(place.probabilities)
    return Segmentation(labels, plan.scan.like(found.data, found.axes), recipe)
