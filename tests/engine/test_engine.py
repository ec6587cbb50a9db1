"""The engine with a stand-in for the work: a child script whose jobs are named by `InspectJob.model`."""

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest

from rskd.engine.client import Engine, JobCancelled
from rskd.errors import DataError, EngineError, ModelError, ParameterError, ResourceError
from rskd.events import Command, Epoch, Message, Progress, Step
from rskd.jobs import InspectJob, Outcome

CHILD = '''
import os, signal, subprocess, sys, time
import numpy as np
from rskd.engine.server import main
from rskd.errors import DataError, ParameterError
from rskd.events import Command, Epoch, Message, Progress, Step
from rskd.jobs import Outcome

class OutOfMemoryError(RuntimeError):
    """Named and derived like torch's."""

class MyDataError(DataError):
    """Not known to the parent."""

def events(arrays):
    yield Message("hello", warning=True)
    yield Step(1, 2, 1, {"total": 0.5}, 1e-3, 0.1)
    yield Epoch(1, 2, {"total": 0.5}, float("nan"), {"vessel": 0.75}, best=True)
    return Outcome({"answer": 42})

def echo(arrays):
    yield Progress(1, 1)
    return Outcome({"names": sorted(arrays)}, arrays)

def noise(arrays):
    print("no newline", end="", flush=True)
    sys.stdout.write("{}\\n"); sys.stdout.flush()
    os.write(1, b"from C")
    os.system("echo from a shell")
    yield Progress(1, 2)
    return Outcome({"stdin": sys.stdin.read()})

def steps(arrays):
    """Listens to STOP."""
    marker = os.environ["RSKD_TEST_MARKER"]
    try:
        for step in range(1, 1001):
            time.sleep(0.01)
            if (yield Progress(step, 1000)) is Command.STOP:
                return Outcome({"stopped_at": step})
    finally:
        open(marker, "w").write("closed")

def finish(arrays):
    for step in range(20):
        time.sleep(0.05)
        yield Progress(step + 1, 20)
    open(os.environ["RSKD_TEST_MARKER"], "w").write("finished")
    return Outcome({})

def stuck(arrays):
    subprocess.Popen(["sleep", "600"])
    pid = os.fork()
    if pid == 0:
        time.sleep(600)
        os._exit(0)
    yield Message(f"grandchild {pid}")
    open(os.environ["RSKD_TEST_MARKER"], "w").write("stuck")
    while True:
        time.sleep(1)

def crash(arrays):
    yield Progress(1, 2)
    os.kill(os.getpid(), signal.SIGKILL)

def oom_gpu(arrays):
    yield Progress(1, 2)
    raise OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 8 GiB")

def oom_cpu(arrays):
    yield Progress(1, 2)
    raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: you tried")

def memory(arrays):
    yield Progress(1, 2)
    raise MemoryError

def runtime(arrays):
    yield Progress(1, 2)
    raise RuntimeError("mat1 and mat2 shapes cannot be multiplied\\nsecond line")

def garbage(arrays):
    from rskd.engine import server
    server.protocol.encode = lambda message: b"no JSON\\n"
    yield Progress(1, 2)
    time.sleep(60)

def data(arrays):
    yield Progress(1, 2)
    raise MyDataError("No masks.")

def parameter(arrays):
    yield Progress(1, 2)
    raise ParameterError("levels=6 is too many: use 5.")

def product(arrays):
    yield Progress(1, 2)
    numbers = np.ones(1 << 20)
    total = numbers @ numbers
    began = time.process_time()
    time.sleep(0.1)
    return Outcome({"total": total, "idle": time.process_time() - began})

def unserialisable(arrays):
    yield Progress(1, 2)
    return Outcome({"x": object()})

def run(job, arrays):
    return globals()[str(job.model)](arrays)

if __name__ == "__main__":
    main(run)
'''


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "fake_engine.py"
    path.write_text(CHILD)
    return path


@pytest.fixture
def make(tmp_path, script, monkeypatch):
    """A factory of engines; afterwards no process and no file may be left."""
    monkeypatch.setenv("RSKD_TEST_MARKER", str(tmp_path / "marker"))
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    engines = []

    def make(**options):
        options = {"scratch": scratch, "logs": tmp_path / "logs", **options}
        engines.append(Engine(command=[sys.executable, str(script)], **options))
        return engines[-1]

    yield make
    for engine in engines:
        engine.stop(grace=2)
    assert list(scratch.iterdir()) == []
    assert processes(script) == []


def processes(script):
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if str(script) in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def job(name):
    return InspectJob(model=Path(name))


def collect(task):
    """Run a task; return its events (without heartbeats) and its outcome."""
    events = []
    while True:
        try:
            event = next(task)
        except StopIteration as end:
            return events, end.value
        if event is not None:
            events.append(event)


def finish(task, command):
    """Send `command` and return the outcome."""
    try:
        task.send(command)
        return collect(task)[1]
    except StopIteration as end:
        return end.value


def first_event(task):
    while (event := next(task)) is None:
        pass
    return event


def get_stuck(task, tmp_path):
    """Start the job `stuck`; return its forked process once it is beyond its last yield."""
    forked = int(first_event(task).text.split()[1])
    assert wait_until((tmp_path / "marker").exists, 5)
    return forked


def wait_until(condition, seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return bool(condition())


def gone(pid):
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_events_and_value(make):
    events, outcome = collect(make().run(job("events")))
    assert events[:2] == [Message("hello", warning=True), Step(1, 2, 1, {"total": 0.5}, 1e-3, 0.1)]
    assert isinstance(events[2], Epoch)
    assert np.isnan(events[2].dice)
    assert events[2].dice_per_class == {"vessel": 0.75}
    assert outcome == Outcome({"answer": 42})


ARRAYS = {
    "bool": np.array([[True, False], [False, True]]),
    "half": np.linspace(-1, 1, 7, dtype=np.float16),
    "empty": np.zeros((0, 3), np.uint8),
    "scalar": np.array(2.5),
    "transposed": np.arange(24, dtype=np.int64).reshape(2, 3, 4).T,
    "big endian": np.arange(5, dtype=">i2"),
    "a/b ü": np.arange(3, dtype=np.uint64),
    "large": np.random.default_rng(0).integers(0, 255, (1024, 2049), np.uint8),
}


def test_arrays_come_back_as_they_were(make):
    _, outcome = collect(make().run(job("echo"), ARRAYS))
    assert outcome.value == {"names": sorted(ARRAYS)}
    assert list(outcome.arrays) == list(ARRAYS)
    for name, array in ARRAYS.items():
        back = outcome.arrays[name]
        assert (back.dtype, back.shape) == (array.dtype, array.shape), name
        np.testing.assert_array_equal(back, array)
        back[...] = 0  # writable, as a labels layer has to be


def test_large_arrays_are_mapped_and_outlive_engine_and_files(make, tmp_path):
    engine = make()
    _, outcome = collect(engine.run(job("echo"), {"large": ARRAYS["large"]}))
    assert isinstance(outcome.arrays["large"].base, np.memmap)
    assert [path for path in (tmp_path / "scratch").rglob("*") if path.is_file()] == []
    engine.stop()
    np.testing.assert_array_equal(outcome.arrays["large"], ARRAYS["large"])


def test_objects_are_refused(make):
    engine = make()
    with pytest.raises(ParameterError, match="'image' holds Python objects"):
        collect(engine.run(job("echo"), {"image": np.array([object()])}))
    assert collect(engine.run(job("events")))[1].value == {"answer": 42}


def test_heartbeats_ten_times_per_second(make):
    engine = make()
    task = engine.run(job("stuck"))
    first_event(task)
    start = time.monotonic()
    assert [next(task) for _ in range(3)] == [None] * 3
    assert time.monotonic() - start < 1.0
    engine.stop(grace=0)


def test_stop_returns_what_there_is_and_the_process_stays(make):
    engine = make()
    task = engine.run(job("steps"))
    first_event(task)
    pid = engine.pid
    assert 1 <= finish(task, Command.STOP).value["stopped_at"] < 500
    assert engine.pid == pid


def test_cancel_closes_the_job_and_keeps_the_process_warm(make, tmp_path):
    engine = make()
    task = engine.run(job("steps"))
    first_event(task)
    pid = engine.pid
    threading.Timer(0.2, engine.cancel).start()
    with pytest.raises(JobCancelled):
        collect(task)
    assert (tmp_path / "marker").read_text() == "closed"
    assert collect(engine.run(job("events")))[1].value == {"answer": 42}
    assert engine.pid == pid


def test_closing_the_generator_cancels_at_once_and_the_next_job_runs(make, tmp_path):
    engine = make()
    task = engine.run(job("steps"), {"image": ARRAYS["large"]})
    first_event(task)
    pid = engine.pid
    start = time.monotonic()
    task.close()
    assert time.monotonic() - start < 0.2
    assert collect(engine.run(job("events")))[1].value == {"answer": 42}
    assert engine.pid == pid
    assert (tmp_path / "marker").read_text() == "closed"
    assert [path for path in (tmp_path / "scratch").rglob("*") if path.is_file()] == []


def test_cancel_kills_what_does_not_close_with_all_it_started(make, tmp_path):
    engine = make(patience=0.5)
    task = engine.run(job("stuck"))
    forked = get_stuck(task, tmp_path)
    pid = engine.pid
    family = [process.pid for process in psutil.Process(pid).children()]
    assert forked in family
    assert len(family) == 2
    engine.cancel()
    with pytest.raises(JobCancelled):
        collect(task)
    assert wait_until(lambda: all(gone(one) for one in [pid, *family]), 2)
    assert collect(engine.run(job("events")))[1].value == {"answer": 42}


def test_a_closed_job_that_hangs_does_not_hold_up_the_next_for_long(make, tmp_path):
    engine = make(patience=0.5)
    task = engine.run(job("stuck"))
    get_stuck(task, tmp_path)
    task.close()
    assert collect(engine.run(job("events")))[1].value == {"answer": 42}


def test_kill_of_the_child_is_a_sentence_and_the_next_job_restarts_it(make, tmp_path):
    engine = make()
    task = engine.run(job("stuck"))
    forked = get_stuck(task, tmp_path)
    pid = engine.pid
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(EngineError, match=r"ended unexpectedly .*SIGKILL") as caught:
        collect(task)
    assert str(engine.log_path) in str(caught.value)
    assert wait_until(lambda: gone(forked), 2)
    assert not engine.alive
    assert collect(engine.run(job("events")))[1].value == {"answer": 42}
    assert engine.pid != pid


def test_crash_between_jobs_goes_unnoticed(make):
    engine = make()
    collect(engine.run(job("events")))
    os.kill(engine.pid, signal.SIGKILL)
    assert wait_until(lambda: not engine.alive, 2)
    assert collect(engine.run(job("events")))[1].value == {"answer": 42}


def test_lines_that_are_none_of_ours_end_the_engine_with_a_sentence(make):
    engine = make()
    with pytest.raises(EngineError, match="messages could not be understood"):
        collect(engine.run(job("garbage")))
    assert "JSONDecodeError" in engine.log_path.read_text()
    assert collect(engine.run(job("events")))[1].value == {"answer": 42}


def test_crash_inside_a_job(make):
    with pytest.raises(EngineError, match="SIGKILL"):
        collect(make().run(job("crash")))


@pytest.mark.parametrize(
    ("name", "kind", "sentence"),
    [
        ("oom_gpu", ResourceError, "The GPU ran out of memory while reading the weights"),
        ("oom_cpu", ResourceError, "The computer ran out of memory while reading the weights: close other images"),
        ("memory", ResourceError, "The computer ran out of memory"),
        ("data", DataError, r"^No masks\.$"),
        ("parameter", ParameterError, r"^levels=6 is too many: use 5\.$"),
        ("runtime", EngineError, "RuntimeError while reading the weights: mat1 and mat2 shapes cannot be multiplied"),
        ("unserialisable", EngineError, "TypeError"),
    ],
)
def test_errors_arrive_by_class_as_one_sentence(make, name, kind, sentence):
    engine = make()
    with pytest.raises(kind, match=sentence) as caught:
        collect(engine.run(job(name)))
    assert type(caught.value) is kind
    assert not isinstance(caught.value, RuntimeError)
    assert "\n" not in str(caught.value)
    assert "Traceback" in engine.log_path.read_text()
    assert collect(engine.run(job("events")))[1].value == {"answer": 42}


def test_prints_go_to_the_log_and_standard_input_is_empty(make):
    engine = make()
    events, outcome = collect(engine.run(job("noise")))
    assert events == [Progress(1, 2)]
    assert outcome.value == {"stdin": ""}
    log = engine.log_path.read_text()
    for text in ("no newline", "{}", "from C", "from a shell"):
        assert text in log


def test_a_tidied_up_folder_for_arrays_is_made_again(make, tmp_path):
    engine = make()
    collect(engine.run(job("echo"), {"image": np.ones(3)}))
    (own,) = (tmp_path / "scratch").iterdir()
    shutil.rmtree(own)
    outcome = collect(engine.run(job("echo"), {"image": np.ones(3)}))[1]
    assert outcome.arrays["image"].tolist() == [1, 1, 1]


def test_no_thread_of_numpy_spins_on_a_core_of_torch(make, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    value = collect(make().run(job("product")))[1].value
    assert value["total"] == 1 << 20
    assert value["idle"] < 0.03, "seconds of CPU time in 0.1 s of sleep after a product"


def test_a_child_that_cannot_start_says_why(make, script):
    script.write_text("import a_library_that_is_missing")
    with pytest.raises(EngineError, match=r"could not start .*No module named 'a_library_that_is_missing'"):
        collect(make().run(job("events")))


def test_a_program_that_does_not_exist(tmp_path):
    engine = Engine(command=["/no/such/python"], scratch=tmp_path, logs=tmp_path)
    with pytest.raises(EngineError, match="could not be started with /no/such/python"):
        engine.start()
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == []


def test_stop_asks_first(make, tmp_path):
    engine = make()
    task = engine.run(job("steps"))
    first_event(task)
    results = []
    pump = threading.Thread(target=lambda: results.append(collect(task)[1]))
    pump.start()
    time.sleep(0.1)
    engine.stop(grace=5)
    pump.join(5)
    assert 1 <= results[0].value["stopped_at"] < 500
    assert (tmp_path / "marker").read_text() == "closed"


def test_stop_kills_after_the_grace_time(make, tmp_path):
    engine = make()
    task = engine.run(job("stuck"))
    forked = get_stuck(task, tmp_path)
    pid = engine.pid
    start = time.monotonic()
    engine.stop(grace=0.3)
    assert time.monotonic() - start < 2
    assert wait_until(lambda: gone(pid) and gone(forked), 2)
    with pytest.raises(JobCancelled, match="stopped"):
        collect(task)


def test_stop_of_an_idle_engine_is_quick_and_can_be_repeated(make):
    engine = make()
    collect(engine.run(job("events")))
    start = time.monotonic()
    engine.stop()
    engine.stop()
    assert time.monotonic() - start < 2
    assert not engine.alive
    assert collect(engine.run(job("events")))[1].value == {"answer": 42}


def test_jobs_of_one_engine_take_turns(make):
    engine = make()
    first, second = engine.run(job("steps")), engine.run(job("events"))
    first_event(first)
    assert next(second) is None
    first.close()
    assert collect(second)[1].value == {"answer": 42}


def test_a_stop_while_waiting_for_its_turn_is_not_lost(make):
    engine = make()
    first, second = engine.run(job("steps")), engine.run(job("steps"))
    first_event(first)
    assert next(second) is None
    assert second.send(Command.STOP) is None
    first.close()
    assert collect(second)[1].value["stopped_at"] < 500


def test_two_engines_at_once(make):
    one, two = make(), make()
    task = one.run(job("steps"))
    first_event(task)
    assert collect(two.run(job("echo"), {"a": ARRAYS["half"]}))[1].value == {"names": ["a"]}
    assert one.pid != two.pid
    two.stop()
    assert isinstance(first_event(task), Progress)


def test_scratch_is_private(make, tmp_path):
    make().start()
    (private,) = (tmp_path / "scratch").iterdir()
    assert private.stat().st_mode & 0o777 == 0o700


PARENT = """
import json, os, sys
from pathlib import Path
from rskd.engine.client import Engine
from rskd.jobs import InspectJob
here = Path(sys.argv[1])
engine = Engine(command=[sys.executable, str(here / "fake_engine.py")], scratch=here / "scratch", logs=here / "logs",
                detach=sys.argv[3] == "detach")
task = engine.run(InspectJob(model=Path(sys.argv[2])))
while next(task) is None:
    pass
print(json.dumps(engine.pid), flush=True)
if sys.argv[3] == "forked" and os.fork() == 0:
    import time
    time.sleep(4)  # holds both pipes open
    os._exit(0)
for _ in task:
    pass
"""


def start_parent(tmp_path, name, mode="attached"):
    (tmp_path / "scratch").mkdir()
    environment = {**os.environ, "RSKD_TEST_MARKER": str(tmp_path / "marker")}
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PARENT), str(tmp_path), name, mode],
        stdout=subprocess.PIPE,
        env=environment,
    )
    return parent, json.loads(parent.stdout.readline())


@pytest.mark.parametrize("name", ["steps", "stuck"])
def test_kill_of_the_parent_ends_the_child_within_two_seconds(tmp_path, script, name):
    parent, pid = start_parent(tmp_path, name)
    family = [pid, *(process.pid for process in psutil.Process(pid).children())]
    parent.kill()
    parent.wait()
    assert wait_until(lambda: all(gone(one) for one in family), 2)
    assert list((tmp_path / "scratch").iterdir()) == []
    parent.stdout.close()


@pytest.mark.parametrize("name", ["steps", "stuck"])
def test_a_process_forked_from_the_parent_does_not_hide_its_end(tmp_path, script, name):
    parent, pid = start_parent(tmp_path, name, "forked")
    parent.kill()
    parent.wait()
    assert wait_until(lambda: gone(pid), 2)
    assert list((tmp_path / "scratch").iterdir()) == []
    parent.stdout.close()


def test_a_detached_job_outlives_its_parent_and_then_ends(tmp_path, script):
    parent, pid = start_parent(tmp_path, "finish", "detach")
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert not gone(pid)
    assert wait_until(lambda: gone(pid), 10)
    assert (tmp_path / "marker").read_text() == "finished"
    assert list((tmp_path / "scratch").iterdir()) == []


def test_release_of_a_detached_engine_lets_it_finish(make, tmp_path):
    engine = make(detach=True)
    task = engine.run(job("finish"))
    first_event(task)
    pid = engine.pid
    engine.release()
    assert not engine.alive
    task.close()
    assert wait_until(lambda: gone(pid), 10)
    assert (tmp_path / "marker").read_text() == "finished"


def test_an_unknown_error_class_is_an_engine_error():
    from rskd.engine.protocol import error_from_json, error_to_json

    assert type(error_from_json({"error": "FutureError", "message": "x"})) is EngineError
    assert error_to_json(ModelError("bad")) == {"error": "ModelError", "message": "bad"}
