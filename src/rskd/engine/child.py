"""One child process as the parent sees it: start, talk, end, and leave nothing behind."""

from __future__ import annotations

import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from numpy.typing import NDArray

from rskd.engine import protocol
from rskd.engine.failures import explain
from rskd.engine.logs import new_log
from rskd.errors import EngineError, RskdError
from rskd.events import Event, from_json
from rskd.jobs import Job, Outcome

PYTHON_VARIABLE = "RSKD_PYTHON"
IDLE_GRACE = 0.5
"""Seconds that a process without a job has to end: it has nothing to save."""


@dataclass(frozen=True)
class Ended:
    """The last word on a job: what it returned, why it failed, or neither where it was cancelled."""

    outcome: Outcome | None = None
    error: RskdError | None = None


class Gone:
    """Nothing more will come from this child."""


@dataclass
class _Ticket:
    """A job that was handed over and has not ended."""

    abandoned: bool = False
    ended: threading.Event = field(default_factory=threading.Event)


Answer = Event | Ended | Gone
_ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1"}
"""NumPy multiplies little here, and each thread that it woke for that would spin on a core of torch, or of the window,
for 0.1 s afterwards."""
_OWN_GROUP: dict[str, Any] = (
    {"start_new_session": True}  # so that Ctrl-C in a terminal is the parent's, and the whole group can be killed
    if os.name == "posix"
    else {
        "creationflags": getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0) | getattr(subprocess, "CREATE_NO_WINDOW", 0)
    }
)


def find_python() -> str:
    """Return the Python interpreter to start the engine with.

    It is named by the environment variable ``RSKD_PYTHON``; else it is `sys.executable`; where that is an application
    of its own (a bundled napari), the interpreter is looked for in `sys.prefix`.

    Raises
    ------
    EngineError
        If none is found.
    """
    if named := os.environ.get(PYTHON_VARIABLE):
        return named
    if sys.executable and Path(sys.executable).name.lower().startswith("python"):
        return sys.executable
    for name in ("bin/python3", "bin/python", "python.exe", "Scripts/python.exe"):
        if (candidate := Path(sys.prefix) / name).is_file():
            return str(candidate)
    raise EngineError(f"No Python was found in {sys.prefix}: set the environment variable {PYTHON_VARIABLE} to one.")


def kill_tree(pid: int) -> None:
    """Kill a process that leads its own group, and everything it has started."""
    with suppress(psutil.Error):
        root = psutil.Process(pid)
        for process in (*root.children(recursive=True), root):
            with suppress(psutil.Error):
                process.kill()
    _kill_group(pid)


def _kill_group(pid: int) -> None:
    """Kill what is left of the group that `pid` led; its processes are no longer its children once it is dead."""
    if os.name == "posix":
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)


class Child:
    """A running engine process.

    Parameters
    ----------
    command
        Program and arguments; None = ``python -P -m rskd.engine`` (-P: files in the current folder shadow no library).
    scratch
        Folder in which the private folder for arrays is made; None = the one for temporary files.
    logs
        Folder for the log; None = the user's.
    detach
        The running job goes on when the parent is gone.

    Raises
    ------
    EngineError
        If the program cannot be started.
    """

    def __init__(
        self, command: Sequence[str] | None = None, *, scratch: Path | None, logs: Path | None, detach: bool
    ) -> None:
        self.log_path = new_log("engine", folder=logs)
        self.ready = False
        self.released = False
        self.dismissed = False
        self.garbled = False
        self._answers: queue.SimpleQueue[tuple[int, Answer]] = queue.SimpleQueue()
        self._tickets: dict[int, _Ticket] = {}
        self._writing = threading.Lock()
        argv = list(command or (find_python(), "-P", "-m", "rskd.engine"))
        self.scratch = Path(tempfile.mkdtemp(prefix="rskd-", dir=scratch))  # made with mode 0700
        argv += ["--scratch", str(self.scratch), *(["--detach"] if detach else [])]
        try:
            with self.log_path.open("ab") as log:
                self._process = subprocess.Popen(  # noqa: S603  the program is this interpreter or the user's choice
                    argv,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    env={**_ONE_THREAD, **os.environ},
                    **_OWN_GROUP,
                )
        except OSError as error:
            shutil.rmtree(self.scratch, ignore_errors=True)
            raise EngineError(f"The engine could not be started with {argv[0]}: {error.strerror or error}.") from error
        self._reader = threading.Thread(target=self._read, name="rskd-read", daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the process runs and still listens to this parent."""
        return not self.released and self._process.poll() is None

    @property
    def busy(self) -> bool:
        """Whether a job that was handed over has not ended yet."""
        return bool(self._tickets)

    def submit(self, id_: int, job: Job, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Hand over a job.

        Raises
        ------
        ResourceError, ParameterError
            If the arrays cannot be written.
        """
        folder = self.scratch / str(id_)
        try:
            self.scratch.mkdir(mode=0o700, exist_ok=True)  # whoever tidies up temporary files may have taken it away
            folder.mkdir()
            names = protocol.save_arrays(folder, arrays, prefix="in")
        except Exception as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise explain(error, kind=job.kind) from error
        self._tickets[id_] = _Ticket()
        self.send({"type": "run", "id": id_, "job": job.model_dump(mode="json"), "arrays": names})

    def receive(self, id_: int, *, timeout: float) -> Answer | None:
        """Return the next answer to job `id_`, or None if there was none for `timeout` seconds."""
        try:
            answer_to, answer = self._answers.get(timeout=timeout)
        except queue.Empty:
            if self._process.poll() is not None and self._reader.is_alive():
                kill_tree(self.pid)  # what was forked from it holds the pipe open
            return None
        return answer if answer_to == id_ or isinstance(answer, Gone) else None

    def send(self, message: protocol.Line) -> None:
        """Write one message; where nobody listens any more, `receive` will tell."""
        with self._writing, suppress(OSError, ValueError):
            self._process.stdin.write(protocol.encode(message))  # type: ignore[union-attr]
            self._process.stdin.flush()  # type: ignore[union-attr]

    def cancel(self, id_: int, *, grace: float) -> None:
        """Ask to close a job; kill the process if that has not happened after `grace` seconds."""
        ticket = self._tickets.get(id_)
        if ticket is None or ticket.abandoned or self.released:
            return
        ticket.abandoned = True
        self.send({"type": "cancel", "id": id_})
        threading.Thread(target=self._kill_unless_ended, args=(ticket, grace), name="rskd-cancel", daemon=True).start()

    def _kill_unless_ended(self, ticket: _Ticket, grace: float) -> None:
        if not ticket.ended.wait(grace):
            kill_tree(self.pid)

    def stop(self, *, grace: float) -> None:
        """Let the process finish; kill it with all it has started after `grace` seconds; remove its folder."""
        self.dismissed = True
        self.send({"type": "exit"})
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(grace if self.busy else min(grace, IDLE_GRACE))
        self._reader.join(timeout=IDLE_GRACE if self._process.poll() is not None else 0)
        if self._reader.is_alive():  # else all is gone, and the process id may soon be somebody else's
            kill_tree(self.pid)
            self._reader.join(timeout=5)
        self._process.wait()
        with suppress(OSError):
            self._process.stdin.close()  # type: ignore[union-attr]
        shutil.rmtree(self.scratch, ignore_errors=True)

    def release(self) -> None:
        """Close the line to the process without stopping it."""
        self.released = True
        with self._writing, suppress(OSError):
            self._process.stdin.close()  # type: ignore[union-attr]

    def obituary(self) -> str:
        """Return in words how the process ended, with the last line of its log."""
        status = self._process.poll()
        if self.garbled:
            return "its messages could not be understood"
        how = f"exit status {status}"
        if status is not None and status < 0:
            with suppress(ValueError):
                how = f"signal {signal.Signals(-status).name}"
            if -status == signal.SIGKILL:
                how += ", often a sign that the memory ran out"
        with suppress(OSError):
            lines = self.log_path.read_text("utf-8", errors="replace").strip().splitlines()
            if lines and not self.ready:
                how += f"; {lines[-1].strip()[:200]}"
        return how

    # ------------------------------------------------------------------------------------------- the reading thread

    def _read(self) -> None:
        """Turn lines into answers until the process has closed its end."""
        try:
            for line in self._process.stdout or ():
                self._take(protocol.decode(line))
        except Exception:  # a line that is none of ours: nothing after it can be trusted
            self.garbled = True
            with self.log_path.open("a") as log:
                traceback.print_exc(file=log)
            kill_tree(self.pid)
        self._process.wait()
        _kill_group(self.pid)
        for id_, ticket in list(self._tickets.items()):
            self._close(id_)
            if ticket.abandoned:
                self._answers.put((id_, Ended()))
        self._answers.put((0, Gone()))

    def _take(self, message: protocol.Line) -> None:
        kind = message["type"]
        if kind == "ready":
            self.ready = True
        elif kind == "event":
            self._answers.put((message["id"], from_json(message["event"])))
        elif kind in protocol.LAST_WORDS:
            last_word = self._last_word(message)
            self._close(message["id"])
            self._answers.put((message["id"], last_word))

    def _last_word(self, message: protocol.Line) -> Ended:
        if message["type"] == "error":
            return Ended(error=protocol.error_from_json(message))
        ticket = self._tickets.get(message["id"])
        if message["type"] == "cancelled" or (ticket is not None and ticket.abandoned):
            return Ended()
        try:
            arrays = protocol.load_arrays(self.scratch / str(message["id"]), message["arrays"])
        except (OSError, ValueError, MemoryError) as error:
            return Ended(error=explain(error))
        return Ended(outcome=Outcome(message["value"], arrays))

    def _close(self, id_: int) -> None:
        """Forget a job that has ended, with its files; arrays that are mapped outlive them."""
        shutil.rmtree(self.scratch / str(id_), ignore_errors=True)
        if ticket := self._tickets.pop(id_, None):
            ticket.ended.set()
