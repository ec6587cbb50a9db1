"""What a run will cost: a few steps and one validation, timed."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import psutil
import torch
from lightning_fabric import Fabric

from rskd.config import DistillOptions, TrainOptions
from rskd.data import Batch, Slice, sampler_for
from rskd.distillation.objective import Objective
from rskd.events import drain
from rskd.jobs import PreflightJob
from rskd.models.segmenter import Segmenter
from rskd.training.launch import launch
from rskd.training.learner import Learner
from rskd.training.schedule import learning_rate
from rskd.training.validation import validate

STEPS = 5
"""Steps that are taken; the first one warms up and is not timed."""


@dataclass(frozen=True)
class Cost:
    """What a whole run takes."""

    seconds: tuple[float, float, float]
    """Low, median and high."""
    memory: int
    """Bytes at the peak of a step, beyond what was there before it; the images come on top."""


def probe(
    job: PreflightJob, student: Segmenter, teacher: Segmenter | None, planes: Sequence[Slice], *, planes_to_check: int
) -> Cost:
    """Take a few steps on some planes and segment one; the networks are used up.

    Parameters
    ----------
    job
        Options and device.
    student, teacher
        The pair.
    planes
        To draw patches from.
    planes_to_check
        How many there are to validate with: both networks before the first step, the student after every epoch, and
        both for the report.
    """
    options = job.training
    fabric = launch(job.compute, options)
    if teacher is not None:
        teacher.to(fabric.device)
    with _Peak(fabric.device) as peak:
        learner = Learner(Objective(student, teacher, _terms(job, planes), options.loss), options, fabric)
        sampler = sampler_for(planes, options, image_size=student.spec.image_size)
        drain(learner.rehearse(sampler.batch(0)))
        times = [_step_seconds(learner, sampler.batch(step), step, options) for step in range(STEPS)][1:]
    both = 1 + options.report
    checks = planes_to_check * (options.epochs + both) * _check_seconds(learner.student, planes[0], fabric)
    if teacher is not None:
        checks += planes_to_check * both * _check_seconds(teacher, planes[0], fabric)
    steps = options.epochs * options.steps_per_epoch
    low, median, high = (float(np.quantile(times, share)) * steps + checks for share in (0.1, 0.5, 0.9))
    return Cost((low, median, high), peak.bytes)


class _Peak:
    """The largest memory in use while it is open, beyond that before."""

    def __init__(self, device: torch.device) -> None:
        self.bytes = 0
        self._device = device
        self._over = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> _Peak:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        self._before = _resident()
        self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._watcher.join()
        if self._device.type == "cuda":
            self.bytes = int(torch.cuda.max_memory_allocated(self._device))

    def _watch(self) -> None:
        while not self._over.wait(0.005):
            self.bytes = max(self.bytes, _resident() - self._before)


def _resident() -> int:
    return int(psutil.Process().memory_info().rss)


def _check_seconds(network: Segmenter, plane: Slice, fabric: Fabric) -> float:
    """Return what segmenting a plane takes, once it has been done before."""
    drain(validate(network, [plane], fabric))
    began = time.perf_counter()
    drain(validate(network, [plane], fabric))
    return time.perf_counter() - began


def _terms(job: PreflightJob, planes: Sequence[Slice]) -> DistillOptions:
    """Return the objective; without the task where these planes have no mask, for which the run itself has others."""
    if any((plane.target >= 0).any() for plane in planes):
        return job.distillation
    return job.distillation.model_copy(update={"task": 0.0})


def _step_seconds(learner: Learner, batch: Batch, step: int, options: TrainOptions) -> float:
    steps = options.epochs * options.steps_per_epoch
    rate = learning_rate(step, steps, highest=options.learning_rate, warmup=options.warmup)
    began = time.perf_counter()
    drain(learner.learn(batch, step, rate=rate, ramp=1.0))
    return time.perf_counter() - began
