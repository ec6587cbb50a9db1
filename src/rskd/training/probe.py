"""What a run will cost: a few steps and one validation, timed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import psutil
import torch

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
    """Bytes of networks, gradients and features; the images come on top."""


def probe(
    job: PreflightJob, student: Segmenter, teacher: Segmenter | None, planes: Sequence[Slice], *, planes_to_check: int
) -> Cost:
    """Take a few steps on some planes and segment one, on copies of nothing: the networks are used up.

    Parameters
    ----------
    job
        Options and device.
    student, teacher
        The pair.
    planes
        To draw patches from.
    planes_to_check
        How many there are to validate with, every epoch.
    """
    options = job.training
    before = psutil.Process().memory_info().rss
    fabric = launch(job.compute, options)
    if teacher is not None:
        teacher.to(fabric.device)
    learner = Learner(Objective(student, teacher, _terms(job, planes), options.loss), options, fabric)
    sampler = sampler_for(planes, options, image_size=student.spec.image_size)
    drain(learner.rehearse(sampler.batch(0)))
    times = [_seconds(learner, sampler.batch(step), step, options) for step in range(STEPS)][1:]
    memory = _memory(fabric.device, before)
    began = time.perf_counter()
    drain(validate(learner.student, planes[:1], fabric))
    checking = (time.perf_counter() - began) * planes_to_check * options.epochs
    steps = options.epochs * options.steps_per_epoch
    low, median, high = (float(np.quantile(times, share)) * steps + checking for share in (0.1, 0.5, 0.9))
    return Cost((low, median, high), memory)


def _terms(job: PreflightJob, planes: Sequence[Slice]) -> DistillOptions:
    """Return the objective; without the task where these planes have no mask, for which the run itself has others."""
    if any((plane.target >= 0).any() for plane in planes):
        return job.distillation
    return job.distillation.model_copy(update={"task": 0.0})


def _seconds(learner: Learner, batch: Batch, step: int, options: TrainOptions) -> float:
    steps = options.epochs * options.steps_per_epoch
    rate = learning_rate(step, steps, highest=options.learning_rate, warmup=options.warmup)
    began = time.perf_counter()
    drain(learner.learn(batch, step, rate=rate, ramp=1.0))
    return time.perf_counter() - began


def _memory(device: torch.device, before: int) -> int:
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return max(0, int(psutil.Process().memory_info().rss) - before)
