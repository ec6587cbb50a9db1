"""The run folder: everything a training writes, readable without torch while it runs and afterwards."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatch
from pathlib import Path

from rskd.config import TrainOptions
from rskd.errors import FileError, ParameterError
from rskd.events import Epoch, Event, Message, Step, from_json, to_json
from rskd.io.files import PARTIAL, locked, write_atomically
from rskd.jobs import JOB, DistillJob, TrainJob

REPORT = "report.html"
"""File of a run with everything about it, for people."""
COMPARISON = "comparison.json"
"""File of a run with how its student compares with its teacher: `paragraphs` of HTML."""
PREVIEWS = "preview"
"""Folder of a run with pictures of what the student makes of some validation images."""
STOPPED = "Stopped after"
"""How the message begins with which a run says that it was ended on purpose."""
_EPOCH = json.dumps("epoch") + ","  # in the line of an epoch, as its kind; other lines that have it do no harm
_TAIL = 50
"""Lines at the end of the log among which the last step is."""
SET_ASIDE = "set-aside"
"""A file that says that nobody wants to go on with a run."""
_ORDER = "order"
"""A file that says what the process at work on a run is to do."""
_BEFORE_THE_FIRST_CHECKPOINT = {"data", "job.json", "events.jsonl", "lock", _ORDER}


class Order(StrEnum):
    """What the process that works on a run can be asked for, from anywhere that sees its folder."""

    STOP = "stop"
    """Finish this step, and keep the best student so far."""
    PAUSE = "pause"
    """Write down where it is, and leave off."""


@dataclass(frozen=True)
class Standing:
    """Where a run stands."""

    step: int
    """Steps taken."""
    steps: int
    """How many there were to be."""
    dice: float | None
    """Of the best round so far."""
    finished: bool
    """Whether nothing is left to do."""
    stopped: bool
    """Whether it was ended on purpose, with the best kept."""


def has_ended(options: TrainOptions, epochs: Sequence[Epoch]) -> bool:
    """Return whether a run has come to its end: all rounds, or no better one for as long as it had patience.

    Examples
    --------
    >>> rounds = [Epoch(1, 9, {}, 0.5, best=True), Epoch(2, 9, {}, 0.4), Epoch(3, 9, {}, 0.4)]
    >>> has_ended(TrainOptions(epochs=9, patience=2), rounds), has_ended(TrainOptions(epochs=9), rounds)
    (True, False)
    """
    best = max((epoch.epoch for epoch in epochs if epoch.best), default=0)
    impatient = options.patience is not None and len(epochs) - best >= options.patience
    return len(epochs) >= options.epochs or impatient


class RunFolder:
    """The files of one training.

    ``job.json`` what was asked for · ``events.jsonl`` one event per line, as the chart shows them ·
    ``last.ckpt`` where to go on · ``best.safetensors`` the best network so far, with its card · ``lock`` held while a
    process works on it.

    Parameters
    ----------
    path
        An existing run folder; `create` makes a new one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not self._job_file.is_file():
            raise FileError(f"{path} is no run folder: it has no {self._job_file.name}.")

    @classmethod
    def create(cls, job: TrainJob | DistillJob) -> RunFolder:
        """Make the folder that `job` names and record the job in it.

        A folder in which no checkpoint was written yet is begun anew.

        Raises
        ------
        ParameterError
            If there is a run in it, or something else.
        FileError
            If it cannot be made, or written to.
        """
        path = job.run
        try:
            path.mkdir(parents=True, exist_ok=True)
            if any(not _replaceable(entry.name) for entry in path.iterdir()):
                raise ParameterError(f"{path} is not empty: choose a new folder, or go on with `rskd resume {path}`.")
        except OSError as error:
            raise FileError(f"The run folder {path} cannot be made: {error}.") from error
        with _held(path):
            write_atomically(path / "job.json", job.model_dump_json(indent=1).encode())
        return cls(path)

    @property
    def _job_file(self) -> Path:
        return self.path / "job.json"

    @property
    def checkpoint(self) -> Path:
        """Where to go on after an interruption."""
        return self.path / "last.ckpt"

    @property
    def best(self) -> Path:
        """The best network so far."""
        return self.path / "best.safetensors"

    @property
    def cache(self) -> Path:
        """Folder of the teacher's answers, while the run is not finished."""
        return self.path / "teacher-cache"

    @property
    def previews(self) -> Path:
        """Folder with pictures of what the student makes of some validation images."""
        return self.path / PREVIEWS

    @property
    def log(self) -> Path:
        """One event per line, as JSON."""
        return self.path / "events.jsonl"

    @property
    def set_aside(self) -> bool:
        """Whether nobody wants to go on with it."""
        return (self.path / SET_ASIDE).exists()

    def leave(self) -> None:
        """Note that nobody wants to go on with it; it still can be resumed by name."""
        (self.path / SET_ASIDE).touch()

    def locked(self) -> AbstractContextManager[None]:
        """Keep every other process out of this run; the system opens the lock when this process ends, however it ends.

        Raises
        ------
        ParameterError
            If another process has the run.
        """
        return _held(self.path)

    @property
    def busy(self) -> bool:
        """Whether a process is at work on it."""
        try:
            with self.locked():
                return False
        except ParameterError:
            return True

    def order(self, order: Order) -> None:
        """Ask the process at work on it for something.

        Raises
        ------
        FileError
            If the folder cannot be written to.
        """
        write_atomically(self.path / _ORDER, order.encode())

    def take_order(self) -> Order | None:
        """Return what was asked for since the last time."""
        try:
            order = Order((self.path / _ORDER).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        with suppress(OSError):  # one that cannot be taken away is heard again, which does no harm
            (self.path / _ORDER).unlink()
        return order

    def tidy(self) -> None:
        """Remove what a killed process left half-written, and the events of a run that came to no checkpoint."""
        for leftover in self.path.glob(PARTIAL):
            leftover.unlink(missing_ok=True)
        if self.checkpoint.exists():
            self._rewrite(self.events())  # without a line that was cut off
        else:
            self.log.unlink(missing_ok=True)

    def job(self) -> TrainJob | DistillJob:
        """Return what was asked for, with the folder where it lies now."""
        job = JOB.validate_json(self._job_file.read_bytes())
        if not isinstance(job, TrainJob | DistillJob):
            raise FileError(f"{self._job_file} describes a {job.kind}, not a training.")
        return _moved(job, self.path)

    def append(self, event: Event) -> None:
        """Add an event to the log."""
        try:
            with self.log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(to_json(event)) + "\n")
        except OSError as error:
            raise FileError(f"{self.log} cannot be written: {error.strerror}.") from error

    def events(self) -> Iterator[Event]:
        """Yield the events so far; a last line that was cut off by a crash is left out."""
        if self.log.exists():
            yield from parsed(self.log.read_text(encoding="utf-8").splitlines())

    def standing(self) -> Standing:
        """Return where the run stands; of the log only the rounds and its end are read, for it may be long."""
        lines = self.log.read_text(encoding="utf-8").splitlines() if self.log.exists() else []
        epochs = [event for event in parsed(line for line in lines if _EPOCH in line) if isinstance(event, Epoch)]
        last = list(parsed(lines[-_TAIL:]))
        step = max((event.step for event in last if isinstance(event, Step)), default=0)
        options = self.job().training
        return Standing(
            step=step,
            steps=options.epochs * options.steps_per_epoch,
            dice=max((epoch.dice for epoch in epochs if epoch.best), default=None),
            finished=has_ended(options, epochs),
            stopped=bool(last) and isinstance(last[-1], Message) and last[-1].text.startswith(STOPPED),
        )

    def rewind(self, step: int, epoch: int) -> None:
        """Forget the events after `step` and `epoch`: they will happen again."""
        self._rewrite(event for event in self.events() if not _later(event, step, epoch))

    def _rewrite(self, events: Iterable[Event]) -> None:
        write_atomically(self.log, "".join(json.dumps(to_json(event)) + "\n" for event in events).encode())


def _held(folder: Path) -> AbstractContextManager[None]:
    return locked(
        folder / "lock", f"The run {folder} is being worked on by another process: wait for it, or stop it first."
    )


def _replaceable(name: str) -> bool:
    return name in _BEFORE_THE_FIRST_CHECKPOINT or fnmatch(name, PARTIAL)


def _moved(job: TrainJob | DistillJob, folder: Path) -> TrainJob | DistillJob:
    """Return the job of a run that lies in `folder` now, with what it named inside of its old folder."""
    paths = {name: getattr(job.data, name) for name in ("images", "masks", "regions")}
    inside = {name: path for name, path in paths.items() if path is not None and path.is_relative_to(job.run)}
    data = {name: folder / path.relative_to(job.run) for name, path in inside.items()}
    return job.model_copy(update={"run": folder, "data": job.data.model_copy(update=data)})


def parsed(lines: Iterable[str]) -> Iterator[Event]:
    """Yield the events that lines of a log tell, up to one that was cut off."""
    for line in lines:
        try:
            yield from_json(json.loads(line))
        except (json.JSONDecodeError, TypeError, KeyError):
            return


def _later(event: Event, step: int, epoch: int) -> bool:
    if isinstance(event, Step):
        return event.step > step
    return getattr(event, "epoch", 0) > epoch
