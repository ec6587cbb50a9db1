"""Compare the segmentations of a network with masks."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from functools import reduce
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rskd.cases import Case, CaseArrays, case_id, find_cases, read_partners
from rskd.config import ModelSpec, ScoreOptions, SegmentOptions, TileOptions
from rskd.errors import DataError
from rskd.events import Progress, Task, retold, within
from rskd.io import read_scan
from rskd.io.files import replacing
from rskd.jobs import EvaluateJob, Outcome
from rskd.metrics import VoxelSize, confusion_matrix, dice, iou, surface_scores
from rskd.networks import open_network, place
from rskd.scan import Scan, move_axes
from rskd.segment import segment

if TYPE_CHECKING:
    from rskd.models.segmenter import Segmenter

Row = dict[str, Any]  # scores of one case, ready for JSON: by measure, then by class


def evaluate(job: EvaluateJob) -> Task[Outcome]:
    """Segment every image of a data set and measure the result per case and class.

    Parameters
    ----------
    job
        Weight file, images, masks and optional regions, inside which alone pixels count.

    Yields
    ------
    Progress
        How many images are done, after every batch of tiles.

    Returns
    -------
    Outcome
        `value` is the `table` of all cases; a case is called by `rskd.cases.case_id`.

    Raises
    ------
    DataError
        If there are no masks, or images and masks do not fit.
    FileError, ModelError, ResourceError
        If a file cannot be used or there is no such device.
    """
    if job.data.masks is None:
        raise DataError("There is nothing to compare with: name a folder of masks.")
    model = place(open_network(job.model, job.compute.runtime, tile=job.options.tile), job.compute)
    cases = find_cases(job.data)
    rows: list[Row] = []
    for done, case in enumerate(cases):
        rows.append((yield from _measure(model, case, job, Progress(done, len(cases), "images"))))
        yield Progress(done + 1, len(cases), "images")
    value = table(rows, class_names(model.spec), job.scores)
    if job.output is not None:
        _write_table(job.output, value)
    return Outcome(value)


def _measure(model: Segmenter, case: Case, job: EvaluateJob, progress: Progress) -> Task[Row]:
    """Return the scores of a case over all of its planes; yields `progress` wherever it may be closed."""
    scan = read_scan(case.image)
    arrays = read_partners(case, scan, model.spec)
    if arrays.mask is None:
        raise DataError(f"{case.name} has no mask to compare with: add one.")
    options = SegmentOptions.model_validate(job.options.model_dump(include=set(TileOptions.model_fields)))
    found = yield from retold(segment(model, scan, options), within(progress))
    scores = compare(stacked(found.labels), arrays, scan, class_names(model.spec), job.scores)
    return {"case": case_id(case), **scores}


def stacked(labels: Scan) -> NDArray[np.integer]:
    """Return the planes of labels, S H W or with a plane per class S K H W, in the order in which a case is read.

    Examples
    --------
    >>> stacked(Scan(np.zeros((6, 5, 4), np.uint8), "xyz")).shape
    (4, 5, 6)
    """
    stack = "".join(axis for axis in labels.axes if axis not in "cyx")
    kept = "cyx" if "c" in labels.axes else "yx"
    planes = move_axes(labels.data, labels.axes, stack + kept)
    return planes.reshape(-1, *planes.shape[-len(kept) :])


def class_names(spec: ModelSpec) -> list[str]:
    """Return the names of all classes but the background."""
    return [info.name for info in spec.classes[1:]]


def compare(
    labels: NDArray[np.integer], arrays: CaseArrays, scan: Scan, names: Sequence[str], options: ScoreOptions
) -> Row:
    """Measure the segmentation of one case.

    Parameters
    ----------
    labels
        Class indices, S H W; or with a plane per class S K H W, each of which is then measured by itself.
    arrays
        The case, with its mask.
    scan
        Its image, for the size of a voxel and for which planes make up a volume.
    names
        Classes without the background.
    options
        What is measured.

    Returns
    -------
    dict
        ``{"dice": {name: score}, "iou": {name: score}}``, ready for JSON, with `None` for a class that is neither in
        the mask nor in the segmentation. With `options.surface` also "hd95", which is `None` for a class that is in one
        of both alone as well, "surface_dice", and their "unit". A series in time is measured volume by volume; its
        measures of borders are means over these.
    """
    assert arrays.mask is not None  # noqa: S101 - callers have looked
    if labels.ndim == 4:
        sides = [(labels[:, k], arrays._replace(mask=arrays.mask[:, k])) for k in range(len(names))]
        rows = (compare(*side, scan, [name], options) for side, name in zip(sides, names, strict=True))
        return reduce(_together, rows)
    classes = len(names) + 1
    confusion = confusion_matrix(labels, arrays.mask, classes, region=arrays.region)
    row: Row = {"dice": _named(names, dice(confusion)[1:]), "iou": _named(names, iou(confusion)[1:])}
    if not options.surface:
        return row
    size = VoxelSize.of(scan)
    region = np.ones(arrays.mask.shape, bool) if arrays.region is None else arrays.region
    volumes = zip(*(_volumes(planes, scan) for planes in (labels, arrays.mask, region)), strict=True)
    scores = [
        surface_scores(
            found, true, classes, spacing=size.spacing[-found.ndim :], tolerance=options.tolerance, region=counts
        )
        for found, true, counts in volumes
    ]
    row["hd95"] = _named(names, _mean_over_time([score.hd95 for score in scores]))
    row["surface_dice"] = _named(names, _mean_over_time([score.surface_dice for score in scores]))
    row["unit"] = size.unit
    return row


def _together(first: Row, second: Row) -> Row:
    """Return the scores of other classes in one row."""
    return {
        measure: scores | second[measure] if isinstance(scores, dict) else scores for measure, scores in first.items()
    }


def _volumes(planes: NDArray[Any], scan: Scan) -> NDArray[Any]:
    """Return planes (S, H, W) as the images or volumes of all time points, T [Z] H W.

    A single slice that is stored as a volume is an image: as a volume every voxel of it would be border.
    """
    sizes = {axis: scan.data.shape[scan.axes.index(axis)] for axis in scan.axes if axis not in "cyx"}
    stacked = planes.reshape(*sizes.values(), *planes.shape[1:])
    stacked = np.moveaxis(stacked, [*sizes].index("t"), 0) if "t" in sizes else stacked[None]
    return stacked.squeeze(1) if sizes.get("z") == 1 else stacked


def _mean_over_time(scores: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Return the mean of every class over the time points at which it has a value."""
    values = np.stack(scores)
    there = ~np.isnan(values)
    total = np.where(there, values, 0).sum(0)
    mean: NDArray[np.float64] = np.divide(total, there.sum(0), out=np.full(len(total), np.nan), where=there.any(0))
    return mean


def table(rows: Sequence[Row], names: Sequence[str], options: ScoreOptions) -> dict[str, Any]:
    """Return the scores of all cases with their means.

    Parameters
    ----------
    rows
        From `compare`, each with the name of its "case".
    names
        Classes without the background.
    options
        What was measured.

    Returns
    -------
    dict
        ``{"classes": names, "cases": rows, "dice": {name: mean over cases}, "iou": {name: mean over cases}}``. A case
        without a score does not count. With `options.surface` also the means "hd95" and "surface_dice", which are
        `None` where units differ between cases, the "unit" and the "tolerance", and for every class the number of
        cases, "missed", whose distance is infinite because the class is in the mask or in the segmentation alone.
    """
    value: dict[str, Any] = {"classes": list(names), "cases": list(rows)}
    value |= {measure: _mean(rows, measure, names) for measure in ("dice", "iou")}
    if options.surface:
        units = {row["unit"] for row in rows}
        for measure in ("hd95", "surface_dice"):
            value[measure] = _mean(rows, measure, names) if len(units) == 1 else dict.fromkeys(names)
        value["unit"] = units.pop() if len(units) == 1 else None
        value["tolerance"] = options.tolerance
        value["missed"] = {name: sum(_is_missed(row, name) for row in rows) for name in names}
    return value


def _is_missed(row: Row, name: str) -> bool:
    return row["hd95"][name] is None and row["dice"][name] is not None


def _named(names: Sequence[str], scores: NDArray[np.float64]) -> dict[str, float | None]:
    """Return scores by the name of their class, ready for JSON."""
    return {name: float(score) if math.isfinite(score) else None for name, score in zip(names, scores, strict=True)}


def _mean(rows: Sequence[Row], measure: str, names: Sequence[str]) -> dict[str, float | None]:
    """Return the mean of a measure over the cases that have it, per class."""
    means: dict[str, float | None] = {}
    for name in names:
        scores = [row[measure][name] for row in rows if row[measure][name] is not None]
        means[name] = sum(scores) / len(scores) if scores else None
    return means


def _write_table(path: Path, value: Mapping[str, Any]) -> None:
    """Write a row per case and class, then the means."""
    measures = [measure for measure in ("dice", "iou", "hd95", "surface_dice") if measure in value]
    unit = ["unit"] if "unit" in value else []
    text = StringIO()
    sheet = csv.writer(text, lineterminator="\n")
    sheet.writerow(["case", "class", *measures, *unit])
    for row in [*value["cases"], {**value, "case": "mean"}]:
        for name in value["classes"]:
            scores = [row[measure][name] for measure in measures]
            numbers = ["" if score is None else f"{score:.6f}" for score in scores]
            sheet.writerow([row["case"], name, *numbers, *(row[column] for column in unit)])
    with replacing(path) as partial:
        partial.write_text(text.getvalue(), encoding="utf-8")
