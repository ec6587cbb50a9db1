"""Run a job in the background of napari: the only module that knows threads.

A worker thread pumps the engine process, so that every job shows in napari's close dialog, and in its activity dock
unless it is over in a moment.
Three properties of Qt worker threads are met here once and for all:

* a `RuntimeError` raised in a generator worker vanishes without a trace, and with PySide6 napari 0.9.2 answers others
  with an error of its own, so errors leave the thread as values, put into words;
* `quit` of a generator worker leaves its generator suspended, so a cancel is an order that the generator reads
  itself, at its next heartbeat, and obeys by closing what it holds: in its own thread, where waiting freezes nobody;
* progress bars are Qt widgets, so they are made and moved in the thread of the window.
"""

from __future__ import annotations

import atexit
import gc
import logging
import threading
import time
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Self, TypeVar

import numpy as np
import psutil
from napari.qt.threading import GeneratorWorker, create_worker
from napari.utils import progress
from numpy.typing import NDArray
from qtpy.QtCore import QObject, QThread, QThreadPool, QTimer, Signal

from rskd.engine.client import Engine, JobCancelled, Pump
from rskd.engine.failures import explain
from rskd.errors import EngineError, RskdError
from rskd.events import Command, Event, Progress, Step
from rskd.jobs import Job, Outcome

T = TypeVar("T")
Order = tuple[Job, Mapping[str, NDArray[np.generic]]]
"""A job and the arrays that go with it."""

BAR_EVERY = 0.5  # seconds
BAR_AFTER = 0.5
"""Seconds after which a job shows in the activity dock: making its bar, and turning a wheel beside it thirty times a
second, as napari does, would take a good part of the time of what is over in a moment."""
POLITE = getattr(psutil, "BELOW_NORMAL_PRIORITY_CLASS", 5)  # a class on Windows, a niceness elsewhere
_LOG = logging.getLogger("napari_rskd")


@dataclass
class Orders:
    """What the window wants from a running worker."""

    stop: threading.Event = field(default_factory=threading.Event)
    cancel: threading.Event = field(default_factory=threading.Event)
    leave: threading.Event = field(default_factory=threading.Event)
    """Let go of the job, which goes on without this napari."""

    @property
    def leaving(self) -> bool:
        """Whether nothing more is wanted from the worker."""
        return self.cancel.is_set() or self.leave.is_set()


class _SharedEngine:
    """The one warm engine of this napari, so that the second click is fast; its jobs take turns."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._engine: Engine | None = None

    def get(self) -> Engine:
        """Return the engine, started."""
        with self._lock:
            self._engine = self._engine or Engine()
            return _started(self._engine)

    def warm_up(self) -> None:
        """Start the engine in the background, before its first job needs it."""
        threading.Thread(target=self._start, name="rskd warm-up", daemon=True).start()

    def shut_down(self) -> None:
        """End the engine; the next job starts a new one."""
        with self._lock:
            engine, self._engine = self._engine, None
        if engine is not None:
            engine.stop()

    def _start(self) -> None:
        try:
            self.get()
        except EngineError:
            _LOG.exception("the engine did not start; the first job will say so")


_ASIDE = ThreadPoolExecutor(max_workers=1, thread_name_prefix="rskd-aside")


def aside(function: Callable[..., T], *arguments: Any) -> Future[T]:
    """Compute something small in a thread of this process, one after the other; for what would jerk the window."""
    return _ASIDE.submit(_uncollected, function, *arguments)


def _uncollected(function: Callable[..., T], *arguments: Any) -> T:
    """Call a function while no cycles are collected.

    Python collects in whatever thread asks for memory; of a closed window that would be pictures, fonts and icons,
    which Qt lets go of in the thread of the window alone.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        return function(*arguments)
    finally:
        if collects:
            gc.enable()


def _started(engine: Engine) -> Engine:
    """Start an engine, if it is not running, behind the window in the queue for the processor; returns it."""
    engine.start()
    if engine.pid is not None:
        with suppress(psutil.Error):
            psutil.Process(engine.pid).nice(POLITE)
    return engine


_SHARED = _SharedEngine()
warm_up = _SHARED.warm_up
shut_down = _SHARED.shut_down
atexit.register(shut_down)

PumpFunction = Callable[[Orders], Generator[Event, None, Outcome | None]]


@dataclass(frozen=True)
class _Failure:
    """How a job ended, as a value; a worker that returned the bare error would raise it."""

    error: RskdError


def _nothing() -> None:
    """Do nothing: there is nothing to release."""


class Background(QObject):
    """Work on its way in another process, as the window sees it.

    Parameters
    ----------
    pump
        Generator function that takes `Orders` and runs in the worker thread: it yields events and returns the outcome
        (None if there is none).
    title
        What is done, for people: it is shown in the activity dock, unless it is over in a moment. Empty = not shown
        there: for what follows a slider, many times a second.
    lasting
        When napari ends, it is not cancelled but left to itself.
    """

    happened = Signal(object)
    """An `Event`."""
    returned = Signal(object)
    """The `Outcome`."""
    failed = Signal(object)
    """The `RskdError`."""
    ended = Signal()
    """Always, and last."""

    def __init__(self, pump: PumpFunction, *, title: str = "", lasting: bool = False) -> None:
        super().__init__()
        self.title = title
        self.running = False
        self.paused = False
        """Whether it was cancelled to go on later."""
        self.history: list[Event] = []
        self.outcome: Outcome | None = None
        self.error: RskdError | None = None
        self.order: Order | None = None  # what is done, where it is done from here
        self._orders = Orders()
        self._pump = pump
        self._lasting = lasting
        self._bar: progress | None = None
        self._share: tuple[int, int] | None = None
        self._drawn = 0.0
        self._bar_due = QTimer(self, singleShot=True, interval=round(1000 * BAR_AFTER))
        self._bar_due.timeout.connect(self._show_bar)

    @property
    def stopping(self) -> bool:
        """Whether a stop or a cancel was asked for."""
        return self._orders.stop.is_set() or self._orders.cancel.is_set()

    @property
    def cancelled(self) -> bool:
        """Whether it was asked to end without a result."""
        return self._orders.cancel.is_set()

    def start(self) -> Self:
        """Begin; returns itself."""
        worker = create_worker(
            self._pump,
            self._orders,
            self._lasting,
            _worker_class=_Worker,
            _ignore_errors=True,
            _start_thread=False,
        )
        worker.yielded.connect(self._happened)
        worker.returned.connect(self._returned)
        worker.finished.connect(self._ended)
        self.running = True
        _ALIVE.add(self)
        pool = QThreadPool.globalInstance()  # a thread per core; what waits for one cannot be cancelled
        pool.setMaxThreadCount(max(pool.maxThreadCount(), len(_ALIVE) + QThread.idealThreadCount()))
        worker.start()
        if self.title:
            self._bar_due.start()
        return self

    def stop(self) -> None:
        """Ask the job to finish cleanly now and to return the best it has."""
        self._orders.stop.set()

    def cancel(self) -> None:
        """Ask the job to end; nothing is returned."""
        self._orders.cancel.set()

    def pause(self) -> None:
        """Ask the job to end, to go on later: whoever shows it then offers that, whoever asked for it."""
        self.paused = True
        self.cancel()

    def _happened(self, event: Event) -> None:
        self.history.append(event)
        self.happened.emit(event)
        share, now = _share_done(event), time.monotonic()
        self._share = share or self._share
        if share is not None and self._bar is not None and now - self._drawn >= BAR_EVERY:
            self._drawn = now
            self._move_bar(self._bar, *share)

    def _show_bar(self) -> None:
        """Show a bar in the activity dock; napari handles other events meanwhile, perhaps the end of the job."""
        bar = progress(total=0, desc=self.title)
        if not self.running:
            bar.close()
            return
        self._bar = bar
        if self._share is not None:
            self._move_bar(bar, *self._share)

    @staticmethod
    def _move_bar(bar: progress, done: int, total: int) -> None:
        """Move a bar in the activity dock: last, and not often, for napari handles other events meanwhile."""
        if bar.total != total:
            bar.total = total
        bar.update(done - bar.n)

    def _returned(self, ending: Outcome | _Failure | None) -> None:
        if isinstance(ending, _Failure):
            self.error = ending.error
            self.failed.emit(ending.error)
        elif ending is not None:
            self.outcome = ending
            self.returned.emit(ending)

    def _ended(self) -> None:
        self.running = False
        self._bar_due.stop()
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        _ALIVE.discard(self)
        self.ended.emit()
        self.order = None  # its arrays may be large


_ALIVE: set[Background] = set()  # a work must outlive the widget that started it


class Work(Background):
    """One job on its way.

    Parameters
    ----------
    prepare
        Returns the job and its arrays; called in the worker thread, so it may write files.
    title
        What is done, for people; empty = not shown in the activity dock.
    private
        Give the job an engine process of its own, which ends with it.
    lasting
        When napari ends, however it ends, the process of a private job goes on to the end of its job.
    release
        Called in the worker thread when the job is over, however it ended; it may remove what `prepare` wrote.
    """

    def __init__(
        self,
        prepare: Callable[[], Order],
        *,
        title: str = "",
        private: bool = False,
        lasting: bool = False,
        release: Callable[[], None] = _nothing,
    ) -> None:
        pump = partial(_pump, prepare=self._prepared, private=private, lasting=lasting, release=release)
        super().__init__(pump, title=title, lasting=lasting)
        self._prepare = prepare

    def _prepared(self) -> Order:
        self.order = self._prepare()
        return self.order


class _Worker(GeneratorWorker):
    """A generator worker whose `quit`, which napari calls when it closes, is our cancel, or a farewell."""

    def __init__(self, pump: PumpFunction, orders: Orders, lasting: bool) -> None:
        super().__init__(_to_the_end, pump, orders)
        self._at_the_end = orders.leave if lasting else orders.cancel

    def quit(self) -> None:
        self._at_the_end.set()


def _share_done(event: Event) -> tuple[int, int] | None:
    """Return (done, total) if the event tells it."""
    match event:
        case Progress(done=done, total=total) | Step(step=done, steps=total):
            return done, total
        case _:
            return None


def _to_the_end(pump: PumpFunction, orders: Orders) -> Generator[Event, None, Outcome | _Failure | None]:
    """Yield the events of a pump; an error is returned, in words."""
    try:
        return (yield from pump(orders))
    except Exception as error:
        return _Failure(_in_words(error))


def _pump(
    orders: Orders, *, prepare: Callable[[], Order], private: bool, lasting: bool, release: Callable[[], None]
) -> Generator[Event, None, Outcome | None]:
    """Yield the events of a job."""
    engine: Engine | None = None
    try:
        # it imports torch while the data are prepared
        engine = _started(Engine(detach=lasting)) if private else _SHARED.get()
        job, arrays = prepare()
        return (yield from converse(engine.run(job, arrays), orders, let_go=engine.release))
    except JobCancelled:
        return None
    except Exception as error:
        if engine is not None and engine.log_path is not None:
            error.add_note(f"The log is in {engine.log_path}")
        raise
    finally:
        if private and engine is not None:
            engine.stop()
        release()


def _in_words(error: Exception) -> RskdError:
    """Return the error as one that a user can read, with its notes; what was not foreseen is logged."""
    told = explain(error)
    if told is not error:
        _LOG.error("a job failed", exc_info=error)
        for note in getattr(error, "__notes__", ()):
            told.add_note(note)
    return told


def converse(
    task: Pump, orders: Orders, *, cancel: Callable[[], object] = _nothing, let_go: Callable[[], None] = _nothing
) -> Generator[Event, None, Outcome | None]:
    """Pass events up and orders down until the job returns; None if it was cancelled, or goes on by itself."""
    command: Command | None = None
    handed_over = False  # whoever leaves before would leave nothing that goes on
    try:
        while not orders.cancel.is_set() and not (handed_over and orders.leave.is_set()):
            event = task.send(command)
            handed_over = True
            if event is not None:
                yield event
            command = Command.STOP if orders.stop.is_set() else None
        (cancel if orders.cancel.is_set() else let_go)()
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]
    finally:
        task.close()
    return None
