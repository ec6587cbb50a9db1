"""The engine with the real work inside: `python -m rskd.engine`."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from rskd.config import ContourletOptions
from rskd.engine.child import PYTHON_VARIABLE, find_python
from rskd.engine.client import Engine
from rskd.errors import EngineError, FileError, ParameterError
from rskd.events import Command, Progress, Step
from rskd.jobs import ContourletJob, InspectJob, TrainJob
from rskd.phantom import write_phantoms


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("engine")
    with Engine(scratch=folder, logs=folder / "logs") as engine:
        yield engine
    assert [path.name for path in folder.iterdir()] == ["logs"]


def collect(task, command=None, after=None):
    """Run a task; send `command` from the first event of the class `after` on; return events and outcome."""
    events, answer = [], None
    while True:
        try:
            event = task.send(answer)
        except StopIteration as end:
            return events, end.value
        events += [event] if event is not None else []
        answer = command if after is not None and any(isinstance(event, after) for event in events) else None


def test_sub_bands_through_the_engine(engine):
    image = np.random.default_rng(0).random((64, 48))
    job = ContourletJob(options=ContourletOptions(levels=(2,)))
    events, outcome = collect(engine.run(job, {"image": image}))
    assert events == [Progress(1, 2, "transforms"), Progress(2, 2, "transforms")]
    np.testing.assert_allclose(outcome.arrays["reconstruction"], image, atol=1e-6)
    assert len(outcome.value["bands"]) == 5


def test_the_second_job_is_fast(engine):
    job = ContourletJob(options=ContourletOptions(levels=(2,)))
    collect(engine.run(job, {"image": np.eye(64)}))
    began = time.monotonic()
    collect(engine.run(job, {"image": np.eye(64)}))
    assert time.monotonic() - began < 1


def test_errors_of_the_library_arrive_by_class(engine):
    with pytest.raises(FileError, match="There is no weight file"):
        collect(engine.run(InspectJob(model=Path("missing.safetensors"))))
    with pytest.raises(ParameterError, match="levels"):
        collect(engine.run(ContourletJob(options=ContourletOptions(levels=(2, 2, 2))), {"image": np.eye(4)}))


def test_a_training_stops_and_keeps_the_best(engine, tmp_path):
    write_phantoms(tmp_path, count=4, size=64)
    job = TrainJob(
        model="rskd-nano",
        run=tmp_path / "run",
        data={"images": tmp_path / "images", "masks": tmp_path / "masks"},
        training={"epochs": 1000, "steps_per_epoch": 2, "batch_size": 1, "patch": 64},
        compute={"threads": 1, "device": "cpu"},
    )
    events, outcome = collect(engine.run(job), Command.STOP, after=Step)
    assert outcome.value["stopped"] is True
    assert Path(outcome.value["student"]).is_file()
    assert sum(isinstance(event, Step) for event in events) < 100
    assert engine.alive


def test_the_engine_opens_no_port(engine):
    engine.start()
    assert psutil.Process(engine.pid).net_connections(kind="inet") == []


@pytest.mark.slow  # imports torch in a process of its own
def test_a_module_in_the_current_folder_shadows_nothing(tmp_path):
    (tmp_path / "json.py").write_text("raise SystemExit('shadowed')")
    code = (
        "from rskd.engine.client import Engine\n"
        "from rskd.jobs import InspectJob\n"
        "with Engine() as engine:\n"
        "    try: list(engine.run(InspectJob(model='missing.safetensors')))\n"
        "    except Exception as error: print(type(error).__name__)\n"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "FileError\n"


def test_which_python(monkeypatch, tmp_path):
    monkeypatch.delenv(PYTHON_VARIABLE, raising=False)
    assert find_python() == sys.executable
    monkeypatch.setattr(sys, "executable", "/Applications/napari.app/Contents/MacOS/napari")
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    with pytest.raises(EngineError, match=PYTHON_VARIABLE):
        find_python()
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python3").write_text("")
    assert find_python() == str(tmp_path / "bin" / "python3")
    monkeypatch.setenv(PYTHON_VARIABLE, "/opt/python")
    assert find_python() == "/opt/python"
