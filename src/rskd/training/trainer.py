"""The loop: steps, validations and checkpoints, and what it does when something goes wrong."""

from __future__ import annotations

import io
import json
import math
import shutil
import time
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from lightning_fabric import Fabric

from rskd.config import TrainOptions
from rskd.data import Batch, Slice, sampler_for
from rskd.distillation.objective import Objective
from rskd.errors import DataError, FileError, ResourceError, RskdError
from rskd.events import Command, Epoch, Event, Message, Progress, Reference, Step, Task
from rskd.io.files import write_atomically
from rskd.jobs import DistillJob, TrainJob
from rskd.models import weights
from rskd.models.segmenter import Segmenter
from rskd.records import METRICS, append_lines, case_scores, rewind_scores
from rskd.runs import STOPPED, RunFolder
from rskd.training.answers import keep_answers
from rskd.training.guards import BAD_STEPS, SETBACKS, named_cases
from rskd.training.launch import any_process
from rskd.training.learner import Learner, Losses
from rskd.training.schedule import learning_rate, ramp
from rskd.training.statistics import recent
from rskd.training.validation import Scores, mean_scores, validate

T = TypeVar("T")
_CHANGED = {
    "training": "the images to train on have changed",
    "validation": "the images for validation have changed",
    "teacher": "the teacher's file has changed",
}


class Trainer:
    """The state of one training and the loop over it; `begin` it, then `fit`.

    Parameters
    ----------
    folder
        Where everything is written, by the first process.
    objective
        The student with its losses.
    planes, held_out
        Planes to train on and to validate with.
    origin
        What must be the same when the run is resumed: hashes of the names of the cases on both sides and of the
        teacher.
    case_ids
        What a record calls each case that is validated with, by its name.
    fabric
        Device, precision and the other processes.
    """

    def __init__(
        self,
        folder: RunFolder,
        objective: Objective,
        planes: Sequence[Slice],
        held_out: Sequence[Slice],
        *,
        origin: dict[str, list[str]],
        case_ids: Mapping[str, str],
        fabric: Fabric,
    ) -> None:
        self.folder, self.held_out, self.origin, self.fabric = folder, held_out, origin, fabric
        self.job = _as_it_runs(folder.job(), objective)
        """What was asked for, with the terms that are used."""
        self._case_ids = case_ids
        options = self.options
        self.learner = Learner(objective, options, fabric)
        self.sampler = sampler_for(planes, options, image_size=objective.student.spec.image_size)
        self.steps = options.epochs * options.steps_per_epoch
        self.step = 0
        self.best = math.nan
        self.stale = 0
        """Validations since the best one."""
        self.setbacks = 0
        """How often the run went back; the learning rate is halved every time."""
        self._bad = 0  # steps in a row that could not be taken
        self._sums: dict[str, float] = {}
        self._counted = 0
        self._stopping = False

    @property
    def options(self) -> TrainOptions:
        """The options of the loop."""
        return self.job.training

    # ------------------------------------------------------------------------------------------------------ beginning

    def begin(self, teacher: Segmenter | None) -> Task[None]:
        """Rehearse the first step, then go back to the last checkpoint, or look where student and teacher stand."""
        yield from self._watch(self.learner.rehearse(self.sampler.batch(0)))
        if self.folder.checkpoint.exists():
            self._restore()
            self._rewind()
            yield from self._say(Message(f"Going on after step {self.step} of {self.steps}."))
        else:
            if teacher is not None:
                yield from self._compare(teacher)
            self.save()
        if isinstance(self.job, DistillJob) and not self.finished:
            run = (self.learner.objective, self.sampler, self.job, self.folder, self.fabric)
            yield from self._watch(keep_answers(*run, teacher=self.origin["teacher"][0]))

    def _compare(self, teacher: Segmenter) -> Task[None]:
        """Measure teacher and student before the first step."""
        found = []
        for name, network in (("teacher", teacher), ("student", self.learner.student)):
            dice, dice_per_class = self._means((yield from self._validate(network)))
            found.append(dice)
            if not math.isnan(dice):
                yield from self._say(Reference(name, dice, dice_per_class))
        if found[0] < found[1]:
            yield from self._say(
                Message(
                    f"The teacher is worse than the student on the validation images (Dice {found[0]:.3f} and "
                    f"{found[1]:.3f}): there is little to learn from it, choose another one.",
                    warning=True,
                )
            )

    # ------------------------------------------------------------------------------------------------------- the loop

    def fit(self) -> Task[bool]:
        """Train to the end, or to the first `Command.STOP`; returns whether it was stopped.

        Closed in the middle, it leaves a checkpoint of the last whole step.
        """
        try:
            return (yield from self._fit())
        except GeneratorExit:
            if self.step % self.options.steps_per_epoch:  # otherwise a validation is due, which resuming repeats
                self.save()
            raise

    def _fit(self) -> Task[bool]:
        saved = epoch_began = time.monotonic()
        while not self.finished and not any_process(self.fabric, self._stopping):
            advanced = yield from self._advance()
            if advanced and self.step % self.options.steps_per_epoch == 0:
                yield from self._end_epoch(epoch_began)
                saved = epoch_began = time.monotonic()
            elif time.monotonic() - saved >= 60 * self.options.checkpoint_minutes and not self._bad:
                self.save()
                saved = time.monotonic()
        if self.finished:
            self._forget_answers()
            return False
        self._keep()
        yield from self._say(Message(f"{STOPPED} step {self.step} of {self.steps}: resume the run to go on."))
        return True

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do: all steps taken, or no better validation for as long as there was patience."""
        return self.step >= self.steps or (self.options.patience is not None and self.stale >= self.options.patience)

    def _advance(self) -> Task[bool]:
        """Take one step, leave it out, or go back to the last checkpoint; returns whether it went forward."""
        began = time.perf_counter()
        batch = self.sampler.batch(self.step)
        rate = self._learning_rate()
        rising = ramp(self.step, self.steps, share=self.learner.objective.options.ramp)
        losses, bad = yield from self._learn(batch, rate, rising)
        if bad is not None:
            return (yield from self._leave_out(batch, bad))
        self._bad = 0
        self.step += 1
        self._counted += 1
        for name, value in losses.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        seconds = time.perf_counter() - began
        yield from self._say(Step(self.step, self.steps, self._epoch(), losses, rate, seconds))
        return True

    def _learn(self, batch: Batch, rate: float, rising: float) -> Task[tuple[Losses, str | None]]:
        try:
            return (yield from self._watch(self.learner.learn(batch, self.step, rate=rate, ramp=rising)))
        except ResourceError:
            if self.fabric.world_size > 1:
                self._leave_word()
            raise

    def _learning_rate(self) -> float:
        options = self.options
        highest = options.learning_rate / 2**self.setbacks
        return learning_rate(self.step, self.steps, highest=highest, warmup=options.warmup)

    def _epoch(self) -> int:
        """Return the epoch that the last step belongs to, from 1."""
        return (self.step - 1) // self.options.steps_per_epoch + 1

    # ------------------------------------------------------------------------------------------------ what goes wrong

    def _leave_out(self, batch: Batch, bad: str) -> Task[bool]:
        """Go on with the next batch, or, after several bad ones in a row, from an earlier state."""
        what = "The gradient" if bad == "gradient" else f"The loss term {bad!r}"
        text = f"{what} is not a number at step {self.step + 1}: the step is left out."
        yield from self._say(Message(text, warning=True), shown=f"{text} Its images: {named_cases(batch)}.")
        self._bad += 1
        self.step += 1
        if self._bad < BAD_STEPS:
            return True
        yield from self._set_back(what)
        return False

    def _set_back(self, what: str) -> Task[None]:
        """Go back to the last checkpoint, later to the best network, and on from there with half the learning rate."""
        setbacks = self.setbacks + 1
        if setbacks > SETBACKS:
            raise RskdError(
                f"{what} is not a number again and again, though the run went back {SETBACKS} times and lowered the "
                "learning rate: start anew with a lower one, or set the weight of the term to 0; the best network so "
                f"far is in {self.folder.path}."
            )
        self.fabric.barrier()
        self._restore()
        self._rewind()
        where = f"step {self.step}"
        if setbacks > 1 and self.folder.best.exists():
            self.learner.restart(weights.load(self.folder.best).state_dict())
            where += " with the best network so far"
        self.setbacks = setbacks
        self.save()
        yield from self._say(
            Message(
                f"{BAD_STEPS} steps in a row could not be taken: going back to {where}, with half the learning rate.",
                warning=True,
            )
        )

    # ------------------------------------------------------------------------------------------------------ validation

    def _end_epoch(self, began: float) -> Task[None]:
        self._settle()
        scores = yield from self._validate(self.learner.student)
        dice, dice_per_class = self._means(scores)
        best = math.isnan(self.best) or dice > self.best  # without masks to compare with, the latest is the best
        self.stale = 0 if best else self.stale + 1
        if best:
            self.best = dice
            self._save_best(dice)
        losses = {name: total / self._counted for name, total in self._sums.items()}
        seconds = time.monotonic() - began
        epoch = Epoch(self._epoch(), self.options.epochs, losses, dice, dice_per_class, best, seconds)
        self._sums, self._counted = {}, 0
        self._log(epoch)  # before the checkpoint: what comes after a checkpoint is forgotten on resume
        self._log_scores(scores)
        self.save()
        yield from self._show(epoch)
        yield from self._doubt_answers()
        if self.finished and self.step < self.steps:
            yield from self._say(Message(f"Ended: no better validation for {self.stale} rounds."))

    def _settle(self) -> None:
        """Make the student ready to be validated and kept: its statistics are those of its present weights."""
        batches = recent(self.step, self.options.batch_size)
        self.learner.settle(self.sampler.batch(number) for number in batches)

    def _validate(self, network: Segmenter) -> Task[Scores]:
        return (yield from self._watch(validate(network, self.held_out, self.fabric)))

    def _means(self, scores: Scores) -> tuple[float, dict[str, float]]:
        """Return the mean Dice over the classes but the background, and that of each, over the held-out cases."""
        return mean_scores(scores, self._classes)

    @property
    def _classes(self) -> list[str]:
        return [info.name for info in self.learner.student.spec.classes]

    # -------------------------------------------------------------------------------------------- the teacher's answers

    def _doubt_answers(self) -> Task[None]:
        """Go on without the cache of the teacher's answers if the disk refuses it."""
        trouble = getattr(self.learner.objective.cache, "trouble", None)
        if trouble is not None:
            yield from self._say(Message(f"{trouble} The teacher is asked in every step.", warning=True))
            self._delete_answers()

    def _forget_answers(self) -> None:
        """Delete what the teacher said: the run is finished, in this life or in an earlier one."""
        self.fabric.barrier()
        self._delete_answers()

    def _delete_answers(self) -> None:
        self.learner.objective.cache = None  # an open map cannot be deleted on Windows
        if self.fabric.is_global_zero:
            shutil.rmtree(self.folder.cache, ignore_errors=True)

    # ---------------------------------------------------------------------------------------------------- telling it

    def _watch(self, work: Task[T]) -> Task[T]:
        """Do a part of the work; what it says is told, and what it is told is heard here."""
        while True:
            try:
                event = next(work)
            except StopIteration as end:
                result: T = end.value
                return result
            yield from self._say(event)

    def _say(self, event: Event, *, shown: str | None = None) -> Task[None]:
        """Log an event and show it; `shown` = what a message says on the screen, with names that no log may hold."""
        self._log(event)
        yield from self._show(event if shown is None else Message(shown, warning=True))

    def _show(self, event: Event) -> Task[None]:
        if (yield event) is Command.STOP:
            self._stopping = True

    def _log(self, event: Event) -> None:
        if self.fabric.is_global_zero and not isinstance(event, Progress):
            self.folder.append(event)

    def _log_scores(self, scores: Scores) -> None:
        if self.fabric.is_global_zero:
            named = {self._case_ids[name]: dice for name, dice in scores.items()}
            append_lines(
                self.folder.path / METRICS, case_scores(named, self._classes, epoch=self._epoch(), step=self.step)
            )

    # --------------------------------------------------------------------------------------------------- checkpointing

    def save(self) -> None:
        """Write the checkpoint: whole, or not at all.

        Raises
        ------
        FileError
            If the disk is full or gone; the checkpoint before is then as it was.
        """
        if not self.fabric.is_global_zero:
            return
        self._write({name: getattr(self, name) for name in _STATE} | self.learner.state())

    def _write(self, state: Mapping[str, Any]) -> None:
        buffer = io.BytesIO()
        torch.save(state, buffer)
        try:
            write_atomically(self.folder.checkpoint, buffer.getvalue())
        except FileError as error:
            raise FileError(
                f"{str(error).rstrip('.')}: the checkpoint before is whole; make room, then go on with "
                f"`rskd resume {self.folder.path}`."
            ) from error

    def _leave_word(self) -> None:
        """Add to the last checkpoint how much fits into the memory, for the run cannot go on in this process."""
        state = torch.load(self.folder.checkpoint, map_location="cpu", weights_only=True)
        self._write(state | {"fits": self.learner.fits})

    def _restore(self) -> None:
        """Go back to the last checkpoint, of whatever number of processes."""
        try:
            state: Mapping[str, Any] = torch.load(
                self.folder.checkpoint, map_location=self.fabric.device, weights_only=True
            )
            self.learner.load(state)
            found = {name: state[name] for name in _STATE}
        except Exception as error:
            raise FileError(f"The checkpoint in {self.folder.path} does not fit its job: {error}.") from error
        for what, hashes in self.origin.items():
            if hashes != found["origin"][what]:
                raise DataError(f"This run cannot go on: {_CHANGED[what]} since it began; put back what was there.")
        for name, value in found.items():
            setattr(self, name, value)

    def _rewind(self) -> None:
        if self.fabric.is_global_zero:
            epoch = self.step // self.options.steps_per_epoch
            self.folder.rewind(self.step, epoch)
            rewind_scores(self.folder.path, epoch)

    def _keep(self) -> None:
        """Keep what there is: the best so far, or the network of this moment if there has been no validation."""
        self.save()
        if not self.folder.best.exists():
            self._settle()
            self._save_best(math.nan)

    def _save_best(self, dice: float) -> None:
        if not self.fabric.is_global_zero:
            return
        recipe = self.job.model_dump(mode="json", include={"training", "distillation"})
        card = {
            "method": "distilled from a teacher" if isinstance(self.job, DistillJob) else "trained on masks",
            "validation Dice": f"{dice:.4f}",
            "steps": str(self.step),
            "recipe": json.dumps(recipe),
            "use": "for research and demonstration, not for diagnosis",
        }
        if isinstance(self.job, DistillJob):
            card["teacher sha256"] = self.origin["teacher"][0]
        weights.save(self.folder.best, self.learner.student, card=card)


def _as_it_runs(job: TrainJob | DistillJob, objective: Objective) -> TrainJob | DistillJob:
    """Return the job with the terms that are used: a teacher may have to do without some."""
    return job.model_copy(update={"distillation": objective.options}) if isinstance(job, DistillJob) else job


_STATE = ("step", "best", "stale", "setbacks", "origin", "_bad", "_sums", "_counted")
"""What a checkpoint holds beside the networks and the optimiser."""
