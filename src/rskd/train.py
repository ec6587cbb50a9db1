"""Train a network on masks, or distill a student from a teacher: one loop that yields events and can be resumed.

The batch of a step depends on the seed and the step alone, so a run that was killed and resumed ends with the same
weights, bit for bit, as one that was left alone (same machine, CPU, same number of threads).
"""

from __future__ import annotations

import io
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rskd.backend_torch import TorchBackend
from rskd.cases import Case, find_cases, split_cases
from rskd.compute import choose_device, use_threads
from rskd.config import DistillOptions, ModelSpec, SegmentOptions
from rskd.data import PatchSampler, Slice, load_slices
from rskd.distillation.objective import Objective
from rskd.errors import DataError, FileError, RskdError
from rskd.events import Command, Epoch, Event, Message, Progress, Step, Task
from rskd.jobs import DistillJob, Outcome, ResumeJob, TrainJob
from rskd.metrics import dice_per_class
from rskd.models import weights
from rskd.models.presets import PRESETS, weight_file
from rskd.pair import check_patch, networks_for
from rskd.runs import RunFolder, write_atomically
from rskd.tiling import Tiling, predict_tiled

AnyTraining = TypeVar("AnyTraining", TrainJob, DistillJob)
SEGMENT = SegmentOptions()
_CHANGED = {
    "training": "the images to train on have changed",
    "validation": "the images for validation have changed",
    "teacher": "the teacher's file has changed",
}
Array = NDArray[np.generic]
TASK_ONLY = DistillOptions.model_validate({name: {"weight": 0} for name in ("logits", "ranking", "texture", "fusion")})


def train(job: TrainJob) -> Task[Outcome]:
    """Train a network on masks alone; events and result as for `distill`."""
    return (yield from _run(RunFolder.create(_settled(job))))


def distill(job: DistillJob) -> Task[Outcome]:
    """Train a student from a teacher.

    Parameters
    ----------
    job
        Teacher, student, data, run folder and options.

    Yields
    ------
    Event
        `Message` and `Progress` while it prepares and validates, a `Step` per optimiser step, an `Epoch` per
        validation. `Command.STOP` sent at any of them ends the run after the current step, with the best so far.

    Returns
    -------
    Outcome
        ``{"run", "student", "dice", "epochs", "stopped"}``; `student` is the file with the best network.

    Raises
    ------
    RskdError
        One sentence, for whatever the user can mend.
    """
    return (yield from _run(RunFolder.create(_settled(job))))


def resume(job: ResumeJob) -> Task[Outcome]:
    """Go on with an interrupted run from its last checkpoint; events and result as for `distill`."""
    return (yield from _run(RunFolder(job.run)))


def _settled(job: AnyTraining) -> AnyTraining:
    """Return the job with every path made absolute, so that it can be resumed from anywhere."""
    data = {
        name: path.absolute()
        for name in ("images", "masks", "regions")
        if (path := getattr(job.data, name)) is not None
    }
    field = "model" if isinstance(job, TrainJob) else "student"
    network = getattr(job, field)
    changes: dict[str, object] = {"data": job.data.model_copy(update=data), "run": job.run.absolute()}
    if network not in PRESETS:
        changes[field] = str(weight_file(Path(network)).absolute())
    if isinstance(job, DistillJob):
        changes["teacher"] = weight_file(job.teacher).absolute()
    return job.model_copy(update=changes)


def _run(folder: RunFolder) -> Task[Outcome]:
    with folder.locked():
        trainer = yield from _prepare(folder)
        stopped = yield from trainer.fit()
    return Outcome(
        {
            "run": str(folder.path),
            "student": str(folder.best),
            "dice": trainer.best,
            "epochs": trainer.step // trainer.job.training.steps_per_epoch,
            "stopped": stopped,
        }
    )


def _prepare(folder: RunFolder) -> Task[Trainer]:
    job = folder.job()
    threads, device = use_threads(job.compute), choose_device(job.compute)
    training, validation = split_cases(find_cases(job.data), job.data, job.training.seed)
    with torch.random.fork_rng():
        torch.manual_seed(job.training.seed)
        student, teacher = networks_for(job, training[0])
        terms = job.distillation if isinstance(job, DistillJob) else TASK_ONLY
        objective = Objective(student, teacher, terms, job.training.loss)
    check_patch(job.training, student, teacher)
    yield Message(
        f"{len(training)} images to train on, {len(validation)} for validation; on {device} with {threads} threads."
    )
    planes = yield from _load(training, student.spec)
    held_out = yield from _load(validation, student.spec)
    if objective.options.task and not any((plane.target >= 0).any() for plane in planes):
        raise DataError("No training image has a mask: choose a folder of masks, or set the weight of the task to 0.")
    if teacher is not None:
        teacher.to(device)
    origin = {"training": [case.name for case in training], "validation": [case.name for case in validation]}
    if isinstance(job, DistillJob):
        origin["teacher"] = [weights.sha256(job.teacher)]
    trainer = Trainer(folder, objective.to(device), planes, held_out, origin=origin)
    if folder.checkpoint.exists():
        trainer.restore()
        yield Message(f"Going on after step {trainer.step} of {trainer.steps}.")
    folder.rewind(trainer.step, trainer.step // job.training.steps_per_epoch)
    return trainer


def _load(cases: Sequence[Case], spec: ModelSpec) -> Task[list[Slice]]:
    planes: list[Slice] = []
    for done, case in enumerate(cases, 1):
        planes += load_slices(case, spec)
        yield Progress(done, len(cases), "images read")
    return planes


class Trainer:
    """The state of one training and the loop over it.

    Parameters
    ----------
    folder
        Where everything is written.
    objective
        The student with its losses, on the device to train on.
    planes, held_out
        Planes to train on and to validate with.
    origin
        What must be the same when the run is resumed: names of the cases on both sides, hash of the teacher.
    """

    def __init__(
        self,
        folder: RunFolder,
        objective: Objective,
        planes: Sequence[Slice],
        held_out: Sequence[Slice],
        *,
        origin: dict[str, list[str]],
    ) -> None:
        self.folder, self.job, self.objective, self.held_out = folder, folder.job(), objective, held_out
        options = self.job.training
        self.origin = origin
        self.device = next(objective.parameters()).device
        self.sampler = PatchSampler(
            planes,
            patch=options.patch or objective.student.spec.image_size,
            batch_size=options.batch_size,
            augment=options.augment,
            seed=options.seed,
        )
        self.optimizer = torch.optim.AdamW(objective.parameters(), weight_decay=options.weight_decay)
        self.steps = options.epochs * options.steps_per_epoch
        self.step = 0
        self.best = math.nan
        self._sums: dict[str, float] = {}
        self._stopping = False

    def fit(self) -> Task[bool]:
        """Train to the end, or to the first `Command.STOP`; returns whether it was stopped.

        Closed in the middle, it leaves a checkpoint of the last whole step.
        """
        try:
            return (yield from self._fit())
        except GeneratorExit:
            if self.step % self.job.training.steps_per_epoch:  # otherwise a validation is due, which resuming repeats
                self.save()
            raise

    def _fit(self) -> Task[bool]:
        options = self.job.training
        saved = epoch_began = time.monotonic()
        while self.step < self.steps and not self._stopping:
            step = self._update()
            self.folder.append(step)
            yield from self._say(step)
            if self.step % options.steps_per_epoch == 0:
                yield from self._end_epoch(epoch_began)
                saved = epoch_began = time.monotonic()
            elif time.monotonic() - saved >= 60 * options.checkpoint_minutes:
                self.save()
                saved = time.monotonic()
        if self._stopping:
            yield from self._end_early()
        return self.step < self.steps

    def _say(self, event: Event) -> Task[None]:
        if (yield event) is Command.STOP:
            self._stopping = True

    def _update(self) -> Step:
        """Take one optimiser step."""
        began = time.perf_counter()
        batch = self.sampler.batch(self.step)
        rate = self._learning_rate()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        losses = self.objective(batch.images.to(self.device), batch.targets.to(self.device))
        total = self.objective.total(losses, ramp=self._ramp())
        values = {name: loss.item() for name, loss in losses.items()} | {"total": total.item()}
        _check_finite(values, self.step)
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(total)
        torch.nn.utils.clip_grad_norm_(self.objective.parameters(), self.job.training.clip)
        self.optimizer.step()
        self.step += 1
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        return Step(self.step, self.steps, self._epoch(), values, rate, time.perf_counter() - began)

    def _epoch(self) -> int:
        """Return the epoch that the last step belongs to, from 1."""
        return (self.step - 1) // self.job.training.steps_per_epoch + 1

    def _learning_rate(self) -> float:
        """Return the rate of the coming step: linear warm-up, then half a cosine down to zero."""
        options = self.job.training
        warm = round(options.warmup * self.steps)
        if self.step < warm:
            return options.learning_rate * (self.step + 1) / warm
        return options.learning_rate * (1 + math.cos(math.pi * (self.step - warm) / (self.steps - warm))) / 2

    def _ramp(self) -> float:
        length = self.objective.options.ramp * self.steps
        return min(1.0, (self.step + 1) / length) if length else 1.0

    def _end_epoch(self, began: float) -> Task[None]:
        dice = yield from self._validate()
        mean = float(np.nanmean(list(dice.values()))) if not all(map(math.isnan, dice.values())) else math.nan
        best = math.isnan(self.best) or mean > self.best  # without masks to compare with, the latest is the best
        if best:
            self.best = mean
            self._save_best(mean)
        options = self.job.training
        losses = {name: total / options.steps_per_epoch for name, total in self._sums.items()}
        epoch = Epoch(self._epoch(), options.epochs, losses, mean, dice, best, time.monotonic() - began)
        self._sums = {}
        self.folder.append(epoch)  # before the checkpoint: what comes after a checkpoint is forgotten on resume
        self.save()
        yield from self._say(epoch)

    def _end_early(self) -> Task[None]:
        """Keep what there is: the best so far, or the network of this moment if there has been no validation."""
        self.save()
        if not self.folder.best.exists():
            self._save_best(math.nan)
        yield Message(f"Stopped after step {self.step} of {self.steps}.")

    def _validate(self) -> Task[dict[str, float]]:
        """Return the Dice of every class but the background, mean over the held-out cases."""
        student = self.objective.student
        predictions: dict[str, list[tuple[Array, Array]]] = {}
        for done, plane in enumerate(self.held_out, 1):
            predictions.setdefault(plane.case, []).append((self._labels(plane.image), plane.target.numpy()))
            yield from self._say(Progress(done, len(self.held_out), "validation images"))
        scores = [self._case_dice(planes) for planes in predictions.values()]
        names = [info.name for info in student.spec.classes]
        return {
            name: float(np.nanmean(column)) if not np.isnan(column).all() else math.nan
            for name, column in zip(names[1:], np.transpose(scores)[1:] if scores else [], strict=False)
        }

    def _labels(self, image: Tensor) -> Array:
        """Segment a plane (C, H, W) that is ready for the network, with the tiles that `segment` would use."""
        student = self.objective.student.eval()
        height, width = image.shape[1:]
        canvas = torch.zeros(len(student.spec.classes), height, width, device=self.device)
        tiling = Tiling.over(
            (height, width), tile=student.spec.image_size, overlap=SEGMENT.overlap, backend=TorchBackend(self.device)
        )
        for _ in predict_tiled(student, [(image.to(self.device), canvas)], tiling, batch_size=SEGMENT.batch_size):
            pass
        student.train()
        return canvas.argmax(0).cpu().numpy()

    def _case_dice(self, planes: Sequence[tuple[Array, Array]]) -> Array:
        prediction, target = (np.concatenate([plane.ravel() for plane in side]) for side in zip(*planes, strict=True))
        classes = len(self.objective.student.spec.classes)
        return dice_per_class(prediction, np.maximum(target, 0), classes, region=target >= 0)

    def _save_best(self, dice: float) -> None:
        job = self.job
        recipe = job.model_dump(mode="json", include={"training", "distillation"})
        card = {
            "method": "distilled from a teacher" if isinstance(job, DistillJob) else "trained on masks",
            "validation Dice": f"{dice:.4f}",
            "steps": str(self.step),
            "recipe": json.dumps(recipe),
            "use": "for research and demonstration, not for diagnosis",
        }
        if isinstance(job, DistillJob):
            card["teacher sha256"] = self.origin["teacher"][0]
        weights.save(self.folder.best, self.objective.student, card=card)

    def save(self) -> None:
        """Write the checkpoint: whole, or not at all."""
        state = {
            "step": self.step,
            "best": self.best,
            "sums": self._sums,
            "origin": self.origin,
            "objective": self.objective.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_atomically(self.folder.checkpoint, buffer.getvalue())

    def restore(self) -> None:
        """Go back to the last checkpoint."""
        try:
            state = torch.load(self.folder.checkpoint, map_location=self.device, weights_only=True)
            self.objective.load_state_dict(state["objective"])
            self.optimizer.load_state_dict(state["optimizer"])
        except Exception as error:
            raise FileError(f"The checkpoint in {self.folder.path} does not fit its job: {error}.") from error
        for what, names in self.origin.items():
            if names != state["origin"][what]:
                raise DataError(f"This run cannot go on: {_CHANGED[what]} since it began; put back what was there.")
        self.step, self.best, self._sums = state["step"], state["best"], state["sums"]


def _check_finite(values: dict[str, float], step: int) -> None:
    broken = [name for name, value in values.items() if not math.isfinite(value)]
    if broken:
        raise RskdError(
            f"The loss term {broken[0]!r} is not a number at step {step + 1}: resume with a lower learning rate, "
            "or set the weight of the term to 0."
        )
