"""Segment the validation images with the best network and its teacher, and keep one plane of each to show."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rskd.cases import Case, CaseArrays, case_id, find_cases, read_partners, split_cases
from rskd.compute import choose_device, device_name, use_threads
from rskd.config import ComputeOptions, ScoreOptions, SegmentOptions
from rskd.evaluate import Row, class_names, compare, stacked, table
from rskd.events import Progress, Task, within
from rskd.io import read_scan
from rskd.jobs import DistillJob, TrainJob
from rskd.models import weights
from rskd.models.segmenter import Segmenter
from rskd.runs import RunFolder
from rskd.scan import Scan
from rskd.segment import segment

SCORES = ScoreOptions(surface=True)
LARGEST = 512
"""Longest side of a plane that is kept to be shown, in pixels."""
Labels = NDArray[np.integer]


@dataclass(frozen=True)
class Plane:
    """The plane of a case on which the student is most often wrong."""

    case: str
    number: int
    """From 1."""
    planes: int
    image: NDArray[np.generic]
    """C H W, as stored."""
    truth: Labels
    """H W, class index; K H W where classes may overlap, whether each of them is there."""
    region: NDArray[np.bool_]
    """H W, true where pixels count."""
    labels: Mapping[str, Labels]
    """Like the truth, by role."""


@dataclass(frozen=True)
class Measured:
    """The validation images, segmented by every network of a run."""

    tables: Mapping[str, dict[str, Any]]
    """By role, as `rskd.evaluate.table` gives them."""
    seconds: Mapping[str, float]
    """By role: median time that a plane took; the median passes over what else the computer was busy with."""
    shape: tuple[int, int] | None
    """Height and width of every plane; `None` where they differ."""
    planes: Sequence[Plane]
    colors: Sequence[str]
    """Of the classes, the background first."""
    computer: Mapping[str, Any]
    """On which "device" the networks ran, with how many "threads"."""


def measure(folder: RunFolder, compute: ComputeOptions, known: Sequence[str] | None) -> Task[Measured]:
    """Segment and compare all validation images that have a mask.

    Parameters
    ----------
    folder
        The run.
    compute
        Where to segment.
    known
        Which cases the run has recorded for validation; others are left out. `None` = it has recorded none.

    Yields
    ------
    Progress
        Wherever it may be closed.

    Raises
    ------
    RskdError
        If the data is not there, or a network cannot be used.
    """
    job = folder.job()
    computer, models = _networks(folder, job, compute)
    names = class_names(models["student"].spec)
    options = SegmentOptions(axis=models["student"].spec.axis or "auto")  # the teacher sees the same planes
    _, validation = split_cases(find_cases(job.data), job.data, job.training.seed)
    cases = [case for case in validation if case.mask and (known is None or case_id(case) in known)]
    rows: dict[str, list[Row]] = {role: [] for role in models}
    times: dict[str, list[float]] = {role: [] for role in models}
    planes: list[Plane] = []
    shapes: set[tuple[int, int]] = set()
    for done, case in enumerate(cases):
        scan = read_scan(case.image)
        arrays = read_partners(case, scan, models["student"].spec)
        found = {}
        for role, model in models.items():
            progress = Progress(done, len(cases), "images measured")
            found[role], seconds = yield from _segment(model, scan, options, progress)
            times[role].append(seconds)
            rows[role].append({"case": case_id(case), **compare(found[role], arrays, scan, names, SCORES)})
        planes.append(_worst_plane(case, arrays, found))
        shapes.add(arrays.image.shape[2:])
        yield Progress(done + 1, len(cases), "images measured")
    tables = {role: table(rows[role], names, SCORES) for role in models if rows[role]}
    medians = {role: statistics.median(times[role]) for role in tables}
    colors = [info.color for info in models["student"].spec.classes]
    return Measured(tables, medians, shapes.pop() if len(shapes) == 1 else None, planes, colors, computer)


def _networks(
    folder: RunFolder, job: TrainJob | DistillJob, compute: ComputeOptions
) -> tuple[dict[str, Any], dict[str, Segmenter]]:
    """Return on what the networks run, and the networks by role."""
    threads, device = use_threads(compute), choose_device(compute)
    files = {"teacher": job.teacher} if isinstance(job, DistillJob) else {}
    files["student"] = folder.best
    with torch.random.fork_rng():  # building a network draws its first weights
        models = {role: weights.load(path).to(device) for role, path in files.items()}
    return {"device": device_name(device), "threads": threads}, models


def _segment(model: Segmenter, scan: Scan, options: SegmentOptions, progress: Progress) -> Task[tuple[Labels, float]]:
    """Return the labels of a case, `stacked`, and the seconds that a plane took."""
    busy, began = 0.0, time.perf_counter()
    task, tell = segment(model, scan, options), within(progress)
    while True:
        try:
            event = next(task)
        except StopIteration as end:
            busy += time.perf_counter() - began
            labels = stacked(end.value.labels)
            return labels, busy / len(labels)
        busy += time.perf_counter() - began
        yield tell(event)
        began = time.perf_counter()


def _worst_plane(case: Case, arrays: CaseArrays, found: Mapping[str, Labels]) -> Plane:
    assert arrays.mask is not None  # noqa: S101 - only cases with a mask come here
    shape = arrays.mask.shape[:1] + arrays.mask.shape[-2:]
    region = np.ones(shape, bool) if arrays.region is None else arrays.region
    wrong = (_anywhere(found["student"] != arrays.mask) & region).sum((1, 2))
    # a plane without a mistake says nothing: then the one with most of the foreground
    number = int(np.argmax(wrong if wrong.any() else _anywhere(arrays.mask > 0).sum((1, 2))))
    stride = max(1, math.ceil(max(shape[1:]) / LARGEST))
    thin = (..., slice(None, None, stride), slice(None, None, stride))
    return Plane(
        case=case_id(case),
        number=number + 1,
        planes=len(arrays.mask),
        image=arrays.image[number][thin].copy(),
        truth=arrays.mask[number][thin].astype(np.uint8),
        region=region[number][thin].copy(),
        labels={role: labels[number][thin].astype(np.uint8) for role, labels in found.items()},
    )


def _anywhere(there: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return where anything is there, S H W, in S H W or in the planes of classes that may overlap, S K H W."""
    return np.asarray(there.any(1)) if there.ndim == 4 else there
