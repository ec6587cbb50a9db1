"""A job in the background: what it yields, how it ends, and that nothing that goes wrong is lost."""

import gc
import threading
import time
from typing import Any

import pytest
from napari.utils import progress
from qtpy.QtCore import QThread, QThreadPool

from napari_rskd import _job
from napari_rskd._job import Work
from rskd.errors import DataError, EngineError, ResourceError
from rskd.events import Message, Progress
from rskd.jobs import InspectJob, Outcome

JOB = InspectJob(model="model.safetensors")


def work_for(prepare: Any = lambda: (JOB, {}), **options: Any) -> Work:
    return Work(prepare, title="Testing", **options)


def raised_by_workers(monkeypatch: pytest.MonkeyPatch) -> list[Exception]:
    """Return the list of what workers are going to raise: nothing, for napari does not survive it on every Qt."""
    raised: list[Exception] = []
    create = _job.create_worker

    def watched(*arguments: Any, **options: Any) -> Any:
        worker = create(*arguments, **options)
        worker.errored.connect(raised.append)
        return worker

    monkeypatch.setattr(_job, "create_worker", watched)
    return raised


class OutOfMemoryError(RuntimeError):
    """Like torch's, which is a RuntimeError too."""


def test_events_and_outcome_arrive_in_the_thread_of_the_window(qtbot, engine) -> None:
    def script(job: Any, arrays: Any) -> Any:
        yield Message("hello")
        yield Progress(1, 2)
        return "outcome"

    engine.will(script)
    work = work_for()
    seen: list[Any] = []
    threads: list[Any] = []
    work.happened.connect(lambda event: (seen.append(event), threads.append(QThread.currentThread())))
    with qtbot.waitSignals([work.returned, work.ended]):
        work.start()
    assert seen == work.history == [Message("hello"), Progress(1, 2)]
    assert threads == [QThread.currentThread()] * 2
    assert work.outcome == "outcome"
    assert not work.running


@pytest.mark.parametrize(
    ("raised", "kind", "sentence"),
    [
        (DataError("There is no mask for 07.png."), DataError, "There is no mask for 07.png."),
        (RuntimeError("shape mismatch"), EngineError, "RuntimeError while working: shape mismatch."),
        (OutOfMemoryError("CUDA out of memory"), ResourceError, "The GPU ran out of memory while working"),
        (MemoryError(), ResourceError, "The computer ran out of memory while working"),
        (KeyError("labels"), EngineError, "KeyError while working: 'labels'."),
    ],
)
def test_every_error_arrives_as_a_sentence_and_the_job_ends(qtbot, engine, monkeypatch, raised, kind, sentence) -> None:
    engine.will_raise(raised)
    raised_in_qt = raised_by_workers(monkeypatch)
    work = work_for()
    with qtbot.waitSignals([work.failed, work.ended]):
        work.start()
    assert raised_in_qt == []
    assert type(work.error) is kind
    assert sentence in str(work.error)
    assert engine.made[0].closed == 1


def test_an_error_of_the_preparation_arrives_as_well(qtbot, engine) -> None:
    def prepare() -> Any:
        raise RuntimeError("disk full")

    work = work_for(prepare)
    with qtbot.waitSignals([work.failed, work.ended]):
        work.start()
    assert "disk full" in str(work.error)


def test_the_log_is_named_in_the_details(qtbot, engine) -> None:
    engine.will_raise(DataError("No."))
    work = work_for()
    with qtbot.waitSignal(work.ended):
        work.start()
    assert work.error.__notes__ == ["The log is in engine.log"]


def test_cancel_closes_the_task_in_its_own_thread(qtbot, engine) -> None:
    closed_in: list[int] = []

    def script(job: Any, arrays: Any) -> Any:
        try:
            while True:
                yield None
                time.sleep(0.01)
        finally:
            closed_in.append(threading.get_ident())

    engine.will(script)
    work = work_for().start()
    qtbot.wait(50)
    with qtbot.waitSignal(work.ended):
        work.cancel()
    assert work.outcome is None
    assert work.error is None
    assert len(closed_in) == 1
    assert closed_in[0] != threading.get_ident()


def test_a_cancel_arrives_where_all_threads_are_taken(qtbot, engine) -> None:
    go, pool = threading.Event(), QThreadPool.globalInstance()

    def script(job: Any, arrays: Any) -> Any:
        while not go.wait(0.01):
            yield None
        return Outcome({})

    engine.will(script)
    before = pool.maxThreadCount()
    try:
        pool.setMaxThreadCount(1)
        first = work_for(private=True).start()
        qtbot.wait(50)
        second = work_for(private=True).start()
        with qtbot.waitSignal(second.ended):
            second.cancel()
        with qtbot.waitSignal(first.ended):
            go.set()
    finally:
        pool.setMaxThreadCount(before)


def test_who_leaves_at_once_leaves_a_job_that_goes_on(qtbot, engine) -> None:
    ready = threading.Event()

    def prepare() -> Any:
        ready.wait()
        return JOB, {}

    work = work_for(prepare, private=True, lasting=True).start()
    work._orders.leave.set()  # as napari does when it closes
    with qtbot.waitSignal(work.ended):
        ready.set()
    assert [job for job, _ in engine.made[0].jobs] == [JOB]


def test_stop_keeps_what_there_is(qtbot, engine) -> None:
    engine.will_run_until_stopped({"stopped": True})
    work = work_for().start()
    qtbot.wait(50)
    with qtbot.waitSignal(work.returned):
        work.stop()
    assert work.outcome.value == {"stopped": True}


def test_interactive_jobs_share_an_engine_and_a_private_one_ends_with_its_job(qtbot, engine) -> None:
    engine.will_return(({}, {}), ({}, {}), ({}, {}))
    for _ in range(2):
        work = work_for()
        with qtbot.waitSignal(work.ended):
            work.start()
    assert len(engine.made) == 1
    assert not engine.made[0].stopped
    work = work_for(private=True)
    with qtbot.waitSignal(work.ended):
        work.start()
    assert [made.stopped for made in engine.made] == [False, True]
    _job.shut_down()
    assert [made.stopped for made in engine.made] == [True, True]


def test_a_private_engine_ends_when_its_job_is_cancelled(qtbot, engine) -> None:
    engine.will_run_until_stopped({"stopped": True})
    work = work_for(private=True).start()
    qtbot.wait(50)
    with qtbot.waitSignal(work.ended):
        work.cancel()
    assert engine.made[0].stopped


def test_progress_bar_follows_and_goes_away(qtbot, engine) -> None:
    seen = threading.Event()

    def script(job: Any, arrays: Any) -> Any:
        yield Progress(3, 10)
        while not seen.wait(0.01):
            yield None
        return "outcome"

    engine.will(script)
    before = set(progress._all_instances)
    work = work_for().start()
    qtbot.waitUntil(lambda: set(progress._all_instances) != before)
    (bar,) = set(progress._all_instances) - before
    assert str(bar.desc).startswith("Testing")
    qtbot.waitUntil(lambda: (bar.n, bar.total) == (3, 10))
    with qtbot.waitSignal(work.ended):
        seen.set()
    assert set(progress._all_instances) == before


def test_what_is_over_in_a_moment_shows_no_progress_bar(qtbot, engine, monkeypatch) -> None:
    bars: list[str] = []
    monkeypatch.setattr(_job, "progress", lambda **options: bars.append(options["desc"]))
    engine.will_return(({}, {}))
    work = work_for()
    with qtbot.waitSignal(work.ended):
        work.start()
    qtbot.wait(round(1000 * _job.BAR_AFTER) + 100)
    assert bars == []


def test_a_job_that_ends_while_napari_makes_its_progress_bar_leaves_none(qtbot, engine, monkeypatch) -> None:
    seen = threading.Event()

    def script(job: Any, arrays: Any) -> Any:
        while not seen.wait(0.01):
            yield None
        return "outcome"

    def progress_and_other_events(**options: Any) -> Any:
        bar = progress(**options)
        seen.set()
        qtbot.waitUntil(lambda: not work.running)
        return bar

    engine.will(script)
    monkeypatch.setattr(_job, "progress", progress_and_other_events)
    before = set(progress._all_instances)
    work = work_for()
    with qtbot.waitSignal(work.ended):
        work.start()
    qtbot.wait(50)
    assert set(progress._all_instances) == before


def test_napari_knows_the_job_and_its_quit_cancels_it(qtbot, engine, viewer) -> None:
    engine.will_run_until_stopped()
    work = work_for().start()
    qtbot.waitUntil(lambda: bool(engine.made and engine.made[0].jobs))
    tasks = viewer.window._task_status_manager  # what the close dialog asks; napari has no public name for it
    assert tasks.is_busy()
    with qtbot.waitSignal(work.ended):
        tasks.cancel_all()
    assert not tasks.is_busy()
    assert engine.made[0].closed == 1
    assert set() == _job._ALIVE


def test_what_a_closed_window_leaves_is_never_collected_aside() -> None:
    ended: list[str] = []

    class Icon:
        def __init__(self) -> None:
            self.itself = self

        def __del__(self) -> None:
            ended.append(threading.current_thread().name)

    def draw() -> int:
        return len([[n] for n in range(100_000)])  # far more than after which Python collects

    gc.collect()
    Icon()
    assert _job.aside(draw).result() == 100_000
    assert gc.isenabled()
    gc.collect()
    assert ended == [threading.current_thread().name]


def test_an_error_aside_leaves_the_collector_as_it_was() -> None:
    assert isinstance(_job.aside(int, "no number").exception(), ValueError)
    assert gc.isenabled()
