"""Hand a network on as ONNX: written, checked on real images, its Dice measured before and after."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rskd.cases import find_cases
from rskd.config import CaseOptions, ModelSpec, SegmentOptions, TileOptions
from rskd.errors import ParameterError
from rskd.evaluate import evaluate
from rskd.events import Message, Task
from rskd.io import read_scan
from rskd.jobs import EvaluateJob, ExportJob, Outcome
from rskd.models.exported import SUFFIX
from rskd.models.normalise import normalise
from rskd.onnx_export import TOLERANCE, Check, at_size, export_onnx
from rskd.plan import View
from rskd.scan import Scan
from rskd.tiling import NUMPY, Tiling, cut

CHECKED = 8
"""Tiles of an image that the exported network is checked on, at most."""
CALIBRATED = 64
"""Tiles that the ranges of int8 are measured on, at most."""
DICE_LOST = 0.005
"""Dice that an exported network may lose without a warning."""

Array = NDArray[np.float32]


def export(job: ExportJob) -> Task[Outcome]:
    """Write the network in a weight file as ONNX, check it on tiles of an image, and measure its Dice where masks are.

    Parameters
    ----------
    job
        Weight file, file to write, size of the tiles, precision, and the images to calibrate, check and test with.

    Yields
    ------
    Message
        What it is checked on; a warning if Dice is lost.
    Progress
        While Dice is measured.

    Returns
    -------
    Outcome
        ``{"output", "size", "precision", "tiles", "difference", "allowed", "agreement", "bytes"}``: `difference` is the
        largest one of a logit, in units of the largest logit or of 1, and `allowed` is None where labels alone are
        judged; `agreement` is the share of the pixels with the same label. With a test also ``"dice": {"original",
        "exported", "lost"}``, means over images and classes.

    Raises
    ------
    ParameterError
        If the file to write is none of ONNX, the size does not suit the network, or the images do not.
    ModelError, FileError, ResourceError
        As `rskd.onnx_export.export_onnx`.
    """
    from rskd.models import weights  # it imports torch
    from rskd.models.foreign import refuse_foreign

    if job.output.suffix.lower() != SUFFIX:
        raise ParameterError(f"{job.output.name} is to be an ONNX file: let its name end in {SUFFIX}.")
    model, card = weights.load(job.model), weights.inspect(job.model).card
    refuse_foreign(model, job.model)
    spec = at_size(model, job.size).spec
    images, calibration = _images(job, spec), _calibration(job, spec)
    what = "drawn vessels and noise" if images is None else f"{len(images)} tiles of an image"
    yield Message(f"Exporting {spec.name} for tiles of {spec.image_size} pixels, and checking it on {what}.")
    how: dict[str, Any] = {"precision": job.precision, "calibration": calibration}
    check = export_onnx(model, job.output, card=card, size=job.size, images=images, **how)
    value = _facts(job, spec, check, tiles=2 if images is None else len(images))
    if job.test_images is not None:
        value["dice"] = yield from _dice(job, job.test_images, spec)
    return Outcome(value)


def _facts(job: ExportJob, spec: ModelSpec, check: Check, *, tiles: int) -> dict[str, Any]:
    allowed = TOLERANCE[job.precision]
    return {
        "output": str(job.output),
        "size": spec.image_size,
        "precision": job.precision,
        "tiles": tiles,
        "difference": check.difference,
        "allowed": allowed if np.isfinite(allowed) else None,
        "agreement": check.agreement,
        "bytes": job.output.stat().st_size,
    }


def _dice(job: ExportJob, images: Path, spec: ModelSpec) -> Task[dict[str, float]]:
    """Measure both networks on the test images; a loss is warned of."""
    data = CaseOptions(images=images, masks=job.test_masks, regions=job.test_regions)
    options = TileOptions(tile=spec.image_size)
    means = []
    for model in (job.model, job.output):
        outcome = yield from evaluate(EvaluateJob(model=model, data=data, options=options))
        means.append(float(np.mean([score for score in outcome.value["dice"].values() if score is not None])))
    original, exported = means
    if not original - exported <= DICE_LOST:
        yield Message(
            f"The exported network loses {original - exported:.4f} Dice on the test images (more than {DICE_LOST}): "
            "calibrate with more images, or use fp16.",
            warning=True,
        )
    return {"original": original, "exported": exported, "lost": original - exported}


def _images(job: ExportJob, spec: ModelSpec) -> Array | None:
    """Return what the exported network is checked on."""
    if job.image is not None:
        return tiles_of(read_scan(job.image, axes=job.axes), spec)
    folder = job.test_images or job.calibration
    return None if folder is None else tiles_of(next(_scans(folder, job.axes, count=1)), spec)


def _calibration(job: ExportJob, spec: ModelSpec) -> Array | None:
    """Return tiles of images spread evenly over those to calibrate with."""
    if job.precision != "int8" or job.calibration is None:
        return None
    scans = _scans(job.calibration, job.axes, count=CALIBRATED // CHECKED)
    return np.concatenate([tiles_of(scan, spec) for scan in scans])


def _scans(images: Path, axes: str | None, *, count: int) -> Iterator[Scan]:
    files = [case.image for case in find_cases(CaseOptions(images=images))]
    for place in _spread(files, count):
        yield read_scan(files[place], axes=axes)


def _spread(things: Sequence[object], count: int) -> NDArray[np.int_]:
    """Return at most `count` places, evenly over a sequence.

    Examples
    --------
    >>> _spread("abcdefg", 3).tolist()
    [0, 3, 6]
    """
    return np.unique(np.linspace(0, len(things) - 1, count).round().astype(int))


def tiles_of(scan: Scan, spec: ModelSpec) -> Array:
    """Return tiles (B, C, side, side) of the middle plane of a scan as the network sees them, spread evenly over it.

    Examples
    --------
    >>> tiles_of(Scan(np.eye(100), "yx"), ModelSpec(name="any", image_size=64)).shape
    (4, 1, 64, 64)
    """
    view = View.along("z", scan, spec, SegmentOptions())
    plane = normalise(view.slices[len(view.slices) // 2], spec)
    height, width = view.seen
    image = view.there.apply(plane, slice(0, height), slice(0, width), NUMPY)
    places = list(Tiling.over(view.seen, tile=spec.image_size, overlap=0.0).grid)
    chosen = (places[place] for place in _spread(places, CHECKED))
    return np.stack([cut(image, row, column, spec.image_size) for row, column in chosen])
