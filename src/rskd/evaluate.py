"""Compare the segmentations of a network with masks."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rskd.cases import Case, case_id, find_cases, read_case
from rskd.compute import choose_device, use_threads
from rskd.config import SegmentOptions
from rskd.errors import DataError
from rskd.events import Progress, Task
from rskd.io.files import replacing
from rskd.jobs import EvaluateJob, Outcome
from rskd.metrics import confusion_matrix, dice, iou
from rskd.models import weights
from rskd.models.segmenter import Segmenter
from rskd.scan import Scan
from rskd.segment import segment


def evaluate(job: EvaluateJob) -> Task[Outcome]:
    """Segment every image of a data set and measure Dice and IoU per case and class.

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
        `value` is ``{"classes": [name …], "cases": [{"case", "dice": {name: score}, "iou": {name: score}} …],
        "dice": {name: mean over cases}, "iou": {name: mean over cases}}``. The background is left out; a class that is
        neither in the mask nor in the segmentation of a case has no score there (``None``) and does not count. A case
        is called by `rskd.cases.case_id`.

    Raises
    ------
    DataError
        If there are no masks, or images and masks do not fit.
    FileError, ModelError, ResourceError
        If a file cannot be used or there is no such device.
    """
    if job.data.masks is None:
        raise DataError("There is nothing to compare with: name a folder of masks.")
    use_threads(job.compute)
    model = weights.load(job.model).to(choose_device(job.compute))
    cases = find_cases(job.data)
    names = [info.name for info in model.spec.classes]
    rows: list[dict[str, Any]] = []
    for done, case in enumerate(cases):
        confusion = yield from _compare(model, case, job.options, Progress(done, len(cases), "images"))
        rows.append(
            {"case": case_id(case), "dice": _named(names, dice(confusion)), "iou": _named(names, iou(confusion))}
        )
        yield Progress(done + 1, len(cases), "images")
    value = {"classes": names[1:], "cases": rows, "dice": _mean(rows, "dice"), "iou": _mean(rows, "iou")}
    if job.output is not None:
        _write_table(job.output, value)
    return Outcome(value)


def _compare(model: Segmenter, case: Case, options: SegmentOptions, progress: Progress) -> Task[NDArray[np.int64]]:
    """Return the confusion matrix of a case over all of its planes; yields `progress` wherever it may be closed."""
    arrays = read_case(case, model.spec)
    if arrays.mask is None:
        raise DataError(f"{case.name} has no mask to compare with: add one.")
    task = segment(model, Scan(arrays.image, "zcyx"), options.model_copy(update={"probabilities": False}))
    while True:
        try:
            next(task)
        except StopIteration as end:
            labels = end.value.labels.data
            return confusion_matrix(labels, arrays.mask, len(model.spec.classes), region=arrays.region)
        yield progress


def _named(names: Sequence[str], scores: NDArray[np.float64]) -> dict[str, float | None]:
    """Return the scores of all classes but the background, ready for JSON."""
    return {
        name: None if math.isnan(score) else float(score) for name, score in zip(names[1:], scores[1:], strict=True)
    }


def _mean(rows: Sequence[Mapping[str, Any]], measure: str) -> dict[str, float | None]:
    """Return the mean of a measure over the cases that have it, per class."""
    means: dict[str, float | None] = {}
    for name in rows[0][measure]:
        scores = [row[measure][name] for row in rows if row[measure][name] is not None]
        means[name] = sum(scores) / len(scores) if scores else None
    return means


def _write_table(path: Path, value: Mapping[str, Any]) -> None:
    """Write a row per case and class, then the means."""
    text = StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["case", "class", "dice", "iou"])
    for row in [*value["cases"], {"case": "mean", "dice": value["dice"], "iou": value["iou"]}]:
        for name in value["classes"]:
            scores = (row["dice"][name], row["iou"][name])
            table.writerow([row["case"], name, *("" if score is None else f"{score:.6f}" for score in scores)])
    with replacing(path) as partial:
        partial.write_text(text.getvalue(), encoding="utf-8")
