"""Watch a run that another process works on, as if it ran here. Free of torch."""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from rskd.errors import LeftOffError
from rskd.events import Command, Event
from rskd.jobs import Outcome
from rskd.runs import Order, RunFolder, parsed

HEARTBEAT = 0.1
"""Seconds between two looks at the log."""
LOOK = 0.5
"""Seconds between two looks at whether the run is still being worked on."""
PATIENCE = 10.0
"""Seconds that are waited for a run to pause."""


@dataclass
class Tail:
    """What is new in a log; after the log was rewritten, all of it.

    Parameters
    ----------
    path
        The log; it need not be there yet.
    """

    path: Path
    _file: tuple[int, int] = (0, 0)
    _at: int = field(default=0)

    def events(self) -> Iterator[Event]:
        """Yield the events since the last time; a line that is not finished comes next time."""
        try:
            with self.path.open("rb") as file:
                about = os.fstat(file.fileno())
                if (about.st_dev, about.st_ino) != self._file or about.st_size < self._at:
                    self._file, self._at = (about.st_dev, about.st_ino), 0
                file.seek(self._at)
                text, newline, _ = file.read().rpartition(b"\n")
        except OSError:  # not there yet, or being replaced at this moment
            return
        self._at += len(text + newline)
        yield from parsed(text.decode("utf-8").splitlines())


def follow(folder: RunFolder) -> Generator[Event | None, Command | None, Outcome]:
    """Yield what happened in a run and what happens there, until nobody works on it any more.

    `Command.STOP` sent at a yield asks the process at work to finish with the best so far. Closing the generator only
    ends the watching; see `pause`.

    Parameters
    ----------
    folder
        The run.

    Yields
    ------
    Event or None
        None at least every 0.1 s where nothing happened.

    Returns
    -------
    Outcome
        As `rskd.train.distill`, once the run is finished or was stopped.

    Raises
    ------
    LeftOffError
        If it was paused, or its process ended; the run can go on.

    Examples
    --------
    A run that is finished tells its whole story at once::

        outcome = drain(follow(RunFolder(Path("runs/first"))))
    """
    tail = Tail(folder.log)
    busy, looked = True, 0.0
    while busy:
        if time.monotonic() - looked >= LOOK:
            busy, looked = folder.busy, time.monotonic()
        for event in tail.events():  # after the look: what was written before the end is not missed
            _pass_on((yield event), folder)
        _pass_on((yield None), folder)
        time.sleep(HEARTBEAT)
    return _outcome(folder)


def pause(folder: RunFolder, *, patience: float = PATIENCE) -> bool:
    """Ask for a run to be left off, and wait; returns whether it was."""
    folder.order(Order.PAUSE)
    until = time.monotonic() + patience
    while (busy := folder.busy) and time.monotonic() < until:
        time.sleep(HEARTBEAT)
    return not busy


def _pass_on(command: Command | None, folder: RunFolder) -> None:
    if command is Command.STOP:
        folder.order(Order.STOP)


def _outcome(folder: RunFolder) -> Outcome:
    now, training = folder.standing(), folder.job().training
    if not (now.finished or now.stopped):
        raise LeftOffError(
            f"The run “{folder.path.name}” was left off after step {now.step} of {now.steps}: it can go on from there."
        )
    return Outcome(
        {
            "run": str(folder.path),
            "student": str(folder.best),
            "dice": float("nan") if now.dice is None else now.dice,
            "epochs": now.step // training.steps_per_epoch,
            "stopped": now.stopped,
        }
    )
