"""The child's side: take a job, run it, send its events and its outcome, and end when the parent is gone."""

from __future__ import annotations

import argparse
import faulthandler
import gc
import os
import queue
import shutil
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import psutil
from numpy.typing import NDArray

from rskd.engine import protocol
from rskd.engine.failures import explain
from rskd.engine.logs import shorten
from rskd.events import Command, Task, to_json
from rskd.jobs import JOB, Job, Outcome

Run = Callable[[Job, Mapping[str, NDArray[Any]]], Task[Outcome]]
ORPHAN_GRACE = 1.0
"""Seconds an interrupted job has to close itself when the parent is gone."""
WATCH = 0.5
"""Seconds between two looks at whether the parent is still there."""


class _CancelledError(Exception):
    pass


def main(run: Run, *, prepare: Callable[[], None] | None = None, arguments: Sequence[str] | None = None) -> None:
    """Serve jobs over this process's standard input and output until told to exit or the parent is gone.

    Parameters
    ----------
    run
        Does a job.
    prepare
        Called once while no job waits: imports what the first job will need.
    arguments
        Command line; None = that of this process.
    """
    parser = argparse.ArgumentParser(prog="rskd.engine", description="Engine of RSKD; started by the program itself.")
    parser.add_argument("--scratch", type=Path, required=True, help="private folder for arrays")
    parser.add_argument("--detach", action="store_true", help="finish the running job when the parent is gone")
    options = parser.parse_args(arguments)
    faulthandler.enable()
    commands, answers = _take_pipes()
    Server(run, commands=commands, answers=answers, scratch=options.scratch, detach=options.detach).serve(prepare)


def _take_pipes() -> tuple[BinaryIO, int]:
    """Return the two pipes and leave standard input empty and standard output on the log, for any library to use.

    An empty standard input also keeps libraries that look at it while they load (numpy #24290, on Windows) from waiting
    for the thread that reads the real one.
    """
    commands, answers = os.dup(0), os.dup(1)  # not inherited by the processes that a job may start
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    os.close(empty)
    os.dup2(2, 1)
    return os.fdopen(commands, "rb"), answers


class Server:
    """Runs one job after the other; a second thread listens for stop, cancel and the end of the parent."""

    def __init__(self, run: Run, *, commands: BinaryIO, answers: int, scratch: Path, detach: bool) -> None:
        self._run = run
        self._commands = commands
        self._answers = answers
        self._scratch = scratch
        self._detach = detach
        self._jobs: queue.SimpleQueue[protocol.Line | None] = queue.SimpleQueue()
        self._stopped: set[int] = set()
        self._cancelled: set[int] = set()
        self._parent = os.getppid()
        self._exiting = threading.Event()
        self._orphaned = threading.Event()

    def serve(self, prepare: Callable[[], None] | None = None) -> None:
        """Answer jobs until told to exit."""
        self._send({"type": "ready"})
        for duty in (self._listen, self._watch):
            threading.Thread(target=duty, name=f"rskd{duty.__name__}", daemon=True).start()
        if prepare is not None:
            try:
                prepare()
            except Exception:  # the job that needs it will say so
                traceback.print_exc()
        while (message := self._jobs.get()) is not None:
            self._send(self._answer(message))
            shorten(2)
        if self._orphaned.is_set():
            self._clean_up()

    def _answer(self, message: protocol.Line) -> protocol.Line:
        """Do the job and return the last word on it."""
        id_: int = message["id"]
        kind = message["job"]["kind"]
        try:
            folder = self._scratch / str(id_)
            job = JOB.validate_python(message["job"])
            outcome = self._pump(id_, self._run(job, protocol.load_arrays(folder, message["arrays"])))
            names = protocol.save_arrays(folder, outcome.arrays, prefix="out")
            answer = {"type": "result", "id": id_, "value": outcome.value, "arrays": names}
            protocol.encode(answer)  # a value that does not fit into JSON is an error of the job
            return answer
        except _CancelledError:
            return {"type": "cancelled", "id": id_}
        except Exception as error:
            traceback.print_exc()
            answer = {"type": "error", "id": id_, **protocol.error_to_json(explain(error, kind=kind))}
        gc.collect()  # the frames of the traceback may hold gigabytes
        return answer

    def _pump(self, id_: int, task: Task[Outcome]) -> Outcome:
        """Run the task, send its events, and hand it the commands that arrived meanwhile."""
        command: Command | None = None
        while True:
            if id_ in self._cancelled or (self._orphaned.is_set() and not self._detach):
                task.close()
                raise _CancelledError
            try:
                event = task.send(command)
            except StopIteration as end:
                outcome: Outcome = end.value
                return outcome
            self._send({"type": "event", "id": id_, "event": to_json(event)})
            # Said again at every yield: a task may pass the first one on to a part of itself that does not listen.
            command = Command.STOP if id_ in self._stopped or self._exiting.is_set() else None

    def _listen(self) -> None:
        """Take messages from the parent until it is gone."""
        with suppress(OSError):
            for line in self._commands:
                self._take(protocol.decode(line))
        self._orphan()

    def _watch(self) -> None:
        """Notice the end of the parent even if a process that was forked from it holds the pipe open."""
        if os.name != "posix":
            return  # a dead parent keeps its number there; nothing can be forked either
        while os.getppid() == self._parent:
            time.sleep(WATCH)
        self._orphan()

    def _orphan(self) -> None:
        """Finish the running job, or close it, and end."""
        if self._orphaned.is_set():
            return
        self._orphaned.set()
        if not self._detach:
            alarm = threading.Timer(ORPHAN_GRACE, self._abort)
            alarm.daemon = True
            alarm.start()
        self._jobs.put(None)

    def _take(self, message: protocol.Line) -> None:
        match message["type"]:
            case "run":
                self._jobs.put(message)
            case "stop":
                self._stopped.add(message["id"])
            case "cancel":
                self._cancelled.add(message["id"])
            case "exit":
                self._exiting.set()
                self._jobs.put(None)

    def _abort(self) -> None:
        """End now, whatever the job is doing."""
        self._clean_up()
        os._exit(1)

    def _clean_up(self) -> None:
        """Leave no process that was started from here and no file behind; else the parent does that."""
        with suppress(psutil.Error):
            for process in psutil.Process().children(recursive=True):
                with suppress(psutil.Error):
                    process.kill()
        shutil.rmtree(self._scratch, ignore_errors=True)

    def _send(self, message: protocol.Line) -> None:
        """Write one line; nobody listens when the parent is gone."""
        if self._orphaned.is_set():
            return
        rest = memoryview(protocol.encode(message))
        with suppress(OSError):
            while rest:
                rest = rest[os.write(self._answers, rest) :]
