"""The parent's side: run jobs in a child process. Free of torch and Qt; a thread of the caller drives it."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from numpy.typing import NDArray

from rskd.engine.child import Child, Ended, Gone
from rskd.errors import EngineError, RskdError
from rskd.events import Command, Event
from rskd.jobs import Job, Outcome

HEARTBEAT = 0.1
"""Seconds after which `Engine.run` yields None if there was no event."""

Pump = Generator[Event | None, Command | None, Outcome]


class JobCancelled(RskdError):  # noqa: N818  named like `concurrent.futures.CancelledError`: it is not a failure
    """The job was cancelled, or the engine stopped, before there was a result."""


class Engine:
    """A child process that runs one job at a time and stays warm between them.

    The process starts with `start`, or with the first job, and again after a crash. It ends with `stop`, or by itself
    when this process is gone. All methods may be called from any thread.

    Parameters
    ----------
    scratch
        Folder in which the private folder for arrays is made; None = the one for temporary files.
    detach
        A job that runs when this process ends, or lets go with `release`, goes on to its end instead of being closed.
    logs
        Folder for the log files; None = the user's.
    command
        Program and arguments that start the child; None = the interpreter of `rskd.engine.child.find_python`.
    patience
        Seconds a cancelled job has to close itself before the process is killed.

    Examples
    --------
    >>> import numpy as np
    >>> from rskd.config import ContourletOptions
    >>> from rskd.events import drain
    >>> from rskd.jobs import ContourletJob
    >>> with Engine() as engine:
    ...     job = ContourletJob(options=ContourletOptions(levels=(2,)))
    ...     outcome = drain(engine.run(job, {"image": np.zeros((64, 64))}))
    >>> outcome.arrays["lowpass"].shape
    (32, 32)
    """

    def __init__(
        self,
        *,
        scratch: Path | None = None,
        detach: bool = False,
        logs: Path | None = None,
        command: Sequence[str] | None = None,
        patience: float = 5.0,
    ) -> None:
        self._scratch = scratch
        self._detach = detach
        self._logs = logs
        self._command = command
        self._patience = patience
        self._child: Child | None = None
        self._log_path: Path | None = None
        self._ids = itertools.count(1)
        self._current: tuple[Child, int] | None = None
        self._state = threading.Lock()
        self._turn = threading.Lock()  # held by the job that runs; not an RLock: a job may be closed by another thread

    @property
    def alive(self) -> bool:
        """Whether the process is running."""
        child = self._child
        return child is not None and child.alive

    @property
    def pid(self) -> int | None:
        """Process id; None = not started."""
        child = self._child
        return child.pid if child is not None and child.alive else None

    @property
    def log_path(self) -> Path | None:
        """Log file of the present or last process; None = never started."""
        return self._log_path

    def start(self) -> None:
        """Start the process if it is not running, without waiting for it; it imports torch while it is idle.

        Raises
        ------
        EngineError
            If it cannot be started.
        """
        self._running()

    def run(self, job: Job, arrays: Mapping[str, NDArray[Any]] | None = None) -> Pump:
        """Run a job as a generator: yields its events, or None at least every 0.1 s, and returns its outcome.

        Sending `Command.STOP` asks the job to finish cleanly with what it has; closing the generator cancels it. While
        another job of this engine runs, this one waits.

        Parameters
        ----------
        job
            What to do.
        arrays
            Open images by name, for jobs without a file.

        Raises
        ------
        RskdError
            Whatever the job raised, by class.
        EngineError
            If the process crashed, or the job failed without explaining itself; the log has the details.
        JobCancelled
            If `cancel` or `stop` was called meanwhile.
        """
        stopped = False
        while not self._turn.acquire(timeout=HEARTBEAT):
            stopped = (yield None) is Command.STOP or stopped
        try:
            child = self._running()
            while child.busy:  # a cancelled job is closing, or is killed soon
                child.receive(0, timeout=HEARTBEAT)
                stopped = (yield None) is Command.STOP or stopped
                child = self._running()
            return (yield from self._pump(child, job, arrays or {}, stopped=stopped))
        finally:
            self._current = None
            self._turn.release()

    def cancel(self) -> None:
        """Ask the running job to close; the engine stays warm, or is killed if the job does not close in time."""
        current = self._current
        if current is not None:
            child, id_ = current
            child.cancel(id_, grace=self._patience)

    def stop(self, *, grace: float = 5.0) -> None:
        """End the process: a running job is asked to finish cleanly, and all is killed after `grace` seconds."""
        with self._state:
            child, self._child = self._child, None
        if child is not None and not child.released:
            child.stop(grace=grace)

    def release(self) -> None:
        """Let go of the process without stopping it; with ``detach=True`` its job runs to the end, then it exits."""
        with self._state:
            child, self._child = self._child, None
        if child is not None:
            child.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def _running(self) -> Child:
        """Return the living child; start one if there is none."""
        with self._state:
            if self._child is None or not self._child.alive:
                if self._child is not None:
                    self._child.stop(grace=0)  # tidies up after the one that crashed
                self._child = Child(self._command, scratch=self._scratch, logs=self._logs, detach=self._detach)
                self._log_path = self._child.log_path
            return self._child

    def _pump(self, child: Child, job: Job, arrays: Mapping[str, NDArray[Any]], *, stopped: bool) -> Pump:
        """Hand the job over and pass on what comes back."""
        id_ = next(self._ids)
        child.submit(id_, job, arrays)
        self._current = (child, id_)
        try:
            while True:
                if stopped:
                    child.send({"type": "stop", "id": id_})
                answer = child.receive(id_, timeout=HEARTBEAT)
                if isinstance(answer, Ended):
                    return self._outcome(child, answer)
                if isinstance(answer, Gone):
                    raise self._crash(child, job)
                stopped = (yield answer) is Command.STOP
        finally:
            child.cancel(id_, grace=self._patience)  # does nothing if the job has ended

    def _outcome(self, child: Child, ended: Ended) -> Outcome:
        if isinstance(ended.error, EngineError):
            raise EngineError(f"{ended.error} Details are in {child.log_path}.")
        if ended.error is not None:
            raise ended.error
        if ended.outcome is None:
            raise JobCancelled("The job was cancelled.")
        return ended.outcome

    def _crash(self, child: Child, job: Job) -> RskdError:
        if child is not self._child or child.dismissed:
            return JobCancelled("The engine was stopped, or let go, before the job had finished.")
        how = f"({child.obituary()}). Details are in {child.log_path}."
        if not child.ready:
            return EngineError(f"The engine could not start {how}")
        return EngineError(f"The engine ended unexpectedly during the job {job.kind!r}; it can be run again {how}")
