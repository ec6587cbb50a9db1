"""The whole story in a real window with the real engine: load, distill, stop, segment, look; and what goes wrong."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
from napari.layers import Image, Labels
from qtpy.QtCore import QObject, Qt, QTimer
from qtpy.QtWidgets import QSpinBox

from napari_rskd import _job
from napari_rskd._session import Model, session_of
from rskd.engine.client import Engine
from rskd.events import Step
from rskd.following import pause
from rskd.phantom import vessel_phantom, write_phantoms
from rskd.runs import RunFolder
from tests.gui.conftest import open_sections, results_on_their_way

LONG = 240_000  # milliseconds; the engine imports torch and timm, on a machine that may be busy
SIZE = 64
MAKE_PAIR = """
import sys
from pathlib import Path
import torch
from rskd.config import ModelSpec
from rskd.models import weights
from rskd.models.presets import fresh_spec
from rskd.models.segmenter import Segmenter
torch.manual_seed(0)
for role, name in (("teacher", "rskd-micro"), ("student", "rskd-nano")):
    spec = fresh_spec(name, in_channels=3, classes=["vessel"])
    spec = ModelSpec.model_validate({**spec.model_dump(), "image_size": 64, "name": f"toy {role}"})
    weights.save(Path(sys.argv[1]) / f"{role}.safetensors", Segmenter(spec), card={"licence": "CC0"})
"""


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Make a teacher and a student with random weights."""
    folder = tmp_path_factory.mktemp("pair")
    subprocess.run([sys.executable, "-c", MAKE_PAIR, str(folder)], check=True)
    return SimpleNamespace(teacher=folder / "teacher.safetensors", student=folder / "student.safetensors")


@pytest.fixture(scope="module", autouse=True)
def no_engine_left() -> Iterator[None]:
    yield
    _job.shut_down()


@pytest.fixture
def picture(viewer: Any) -> Any:
    """A colour picture of vessels, in a world of its own."""
    viewer.layers.clear()
    image, _ = vessel_phantom(np.random.default_rng(3), SIZE)
    return viewer.add_image(
        image, name="eye", scale=(0.5, 0.25), translate=(3, -2), rotate=20, units=("mm", "mm"), axis_labels=("y", "x")
    )


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[Path]:
    """A folder for runs; none of them outlives the test."""
    yield tmp_path / "runs"
    for run in (tmp_path / "runs").glob("*"):
        if RunFolder(run).busy:
            pause(RunFolder(run))


class Pulse(QObject):
    """Beats every 20 ms and remembers the longest time between two beats, and the most CPU the window used in one."""

    def __init__(self) -> None:
        super().__init__()
        self.lap()
        self._timer = QTimer(self, interval=20, timerType=Qt.TimerType.PreciseTimer)
        self._timer.timeout.connect(self._beat)
        self._timer.start()

    def _beat(self) -> None:
        now, used = time.perf_counter(), time.thread_time()
        self.longest, self._last = max(self.longest, now - self._last - 0.02), now
        self.busiest, self._used = max(self.busiest, used - self._used), used

    def lap(self) -> str:
        """Return what was seen since the last lap."""
        seen = f"{1000 * getattr(self, 'longest', 0):.0f} ms ({1000 * getattr(self, 'busiest', 0):.0f} ms CPU)"
        self.longest = self.busiest = 0.0
        self._last, self._used = time.perf_counter(), time.thread_time()
        return seen


def click(qtbot: Any, button: Any) -> None:
    qtbot.mouseClick(button, Qt.MouseButton.LeftButton)


def finish(qtbot: Any, panel: Any) -> None:
    qtbot.waitUntil(lambda: panel.work is None and not results_on_their_way(panel), timeout=LONG)


def run_panel(qtbot: Any, panel: Any) -> None:
    """Press the button, wait, and expect no error."""
    click(qtbot, panel.button)
    finish(qtbot, panel)
    assert panel.error_label.text() == ""


def corners(layer: Any, shape: tuple[int, int]) -> np.ndarray:
    return np.array([layer.data_to_world((y - 0.5, x - 0.5)) for y in (0, shape[0]) for x in (0, shape[1])])


def test_load_distill_stop_segment_and_look(qtbot, capsys, viewer, picture, open_panel, pair, tmp_path, runs) -> None:
    session = session_of(viewer)
    models = open_panel("Models")
    for role in ("teacher", "student"):
        models.boxes[role].choose_file(getattr(pair, role))
    click(qtbot, models.button)
    qtbot.waitUntil(lambda: bool(models.passports["student"].text()), timeout=LONG)
    finish(qtbot, models)
    assert session.teacher.passport["spec"]["name"] == "toy teacher"
    assert "CC0" in models.passports["student"].text()

    distill = open_panel("Distill")
    write_phantoms(tmp_path / "data", count=5, size=SIZE)
    distill.data.kind.setCurrentIndex(1)
    distill.data.folders.images.set_path(tmp_path / "data" / "images")
    distill.data.folders.masks.set_path(tmp_path / "data" / "masks")
    distill.run.set_path(runs)
    open_sections(distill)
    for name, value in {"epochs": 1000, "steps_per_epoch": 10, "batch_size": 2}.items():
        distill.training.findChild(QSpinBox, name).setValue(value)
    distill.student.setCurrentIndex(distill.student.findText("New: rskd-nano"))
    pulse = Pulse()
    qtbot.wait(2000)
    idle = pulse.lap()
    click(qtbot, distill.button)
    qtbot.waitUntil(lambda: bool(distill.chart.losses), timeout=LONG)
    starting = pulse.lap()
    qtbot.waitUntil(lambda: len(distill.chart.losses["total"]) >= 20 and bool(distill.chart.dice), timeout=LONG)
    training = pulse.lap()
    click(qtbot, distill.stop)
    finish(qtbot, distill)
    with capsys.disabled():
        print(f"\nlongest stall of the window: {idle} idle, {starting} while starting, {training} while training")
    assert distill.error_label.text() == ""
    assert distill.status.text().startswith("Stopped after")
    assert {"task", "logits", "ranking", "texture", "fusion", "total"} <= set(distill.chart.losses)
    click(qtbot, distill.use)
    (best,) = runs.glob("*/best.safetensors")
    assert session.student.path == best

    segment = open_panel("Segment")
    run_panel(qtbot, segment)
    labels = viewer.layers["Vessel (student)"]
    assert isinstance(labels, Labels)
    assert labels.data.shape == (SIZE, SIZE)
    assert set(np.unique(labels.data)) <= {0, 1}
    np.testing.assert_allclose(corners(labels, (SIZE, SIZE)), corners(picture, (SIZE, SIZE)))
    assert labels.units == picture.units

    tokens = open_panel("Token ranking")
    run_panel(qtbot, tokens)
    qtbot.waitUntil(lambda: not tokens._live.busy, timeout=LONG)
    for role in ("teacher", "student"):
        grid = viewer.layers[f"Token importance ({role})"]
        assert grid.data.sum() == pytest.approx(1, abs=1e-3)
        np.testing.assert_allclose(corners(grid, grid.data.shape), corners(picture, (SIZE, SIZE)), atol=1e-9)
    qtbot.waitUntil(lambda: "Agreement" in tokens.agreement.text(), timeout=LONG)

    contourlet = open_panel("Contourlet")
    before = len(viewer.layers)
    run_panel(qtbot, contourlet)
    qtbot.waitUntil(lambda: not contourlet._subbands.busy, timeout=LONG)
    bands = viewer.layers[before:]
    assert len(bands) == 8 + 8 + 4 + 1
    assert all(isinstance(band, Image) and not band.rgb for band in bands)
    assert "differ from the image by at most" in contourlet.status.text()


def broken_engine(monkeypatch: pytest.MonkeyPatch, statement: str) -> None:
    """Let the engine's process run this statement instead of any job."""
    code = f"from rskd.engine.server import main\ndef run(job, arrays):\n    yield from ()\n    {statement}\nmain(run)"
    monkeypatch.setattr(_job, "Engine", lambda: Engine(command=[sys.executable, "-c", code]))
    _job.shut_down()


@pytest.fixture
def with_pair(viewer: Any, pair: Any) -> Any:
    session = session_of(viewer)
    for role in ("teacher", "student"):
        setattr(session, role, session.learn(Model(f"toy {role}", str(getattr(pair, role)))))
    return session


@pytest.mark.parametrize(
    ("statement", "sentence"),
    [
        ("raise RuntimeError('mat1 and mat2 shapes cannot be multiplied')", "mat1 and mat2 shapes cannot be"),
        ("raise RuntimeError('CUDA out of memory. Tried to allocate 2 GiB')", "The GPU ran out of memory"),
        ("class OutOfMemoryError(RuntimeError): pass\n    raise OutOfMemoryError('x')", "ran out of memory"),
    ],
)
def test_an_error_in_the_engine_is_a_sentence_and_the_button_comes_back(
    qtbot, monkeypatch, picture, open_panel, with_pair, statement: str, sentence: str
) -> None:
    broken_engine(monkeypatch, statement)
    panel = open_panel("Segment")
    click(qtbot, panel.button)
    finish(qtbot, panel)
    assert sentence in panel.error_label.text()
    assert panel.error_label.isVisible()
    assert panel.button.text() == "Segment"
    assert panel.button.isEnabled()
    _job.shut_down()


def test_killing_the_engine_leaves_napari_alive_with_a_sentence(
    qtbot, monkeypatch, picture, open_panel, with_pair
) -> None:
    broken_engine(monkeypatch, "import time; time.sleep(600)")
    panel = open_panel("Segment")
    click(qtbot, panel.button)
    qtbot.waitUntil(lambda: _job._SHARED.get().pid is not None, timeout=LONG)
    qtbot.wait(500)
    os.kill(_job._SHARED.get().pid, signal.SIGKILL)
    finish(qtbot, panel)
    assert "ended unexpectedly" in panel.error_label.text() or "could not start" in panel.error_label.text()
    assert panel.button.isEnabled()
    monkeypatch.setattr(_job, "Engine", Engine)
    _job.shut_down()
    run_panel(qtbot, panel)  # and the next click works again


CLOSE_NAPARI = """
import sys
from pathlib import Path
import numpy as np, napari, psutil
from qtpy.QtCore import QTimer
from napari_rskd import _job
from napari_rskd._session import Model, session_of
viewer = napari.Viewer()
viewer.add_image(np.zeros((64, 64, 3), np.uint8), name="eye")
session_of(viewer).student = Model("toy", sys.argv[1])
_, panel = viewer.window.add_plugin_dock_widget("napari-rskd", "Segment")

def look():
    if panel.error_label.text():
        print("ERROR", panel.error_label.text(), flush=True)
        viewer.close()
    elif "Vessel (student)" in viewer.layers:
        print("PIDS", *[child.pid for child in psutil.Process().children(recursive=True)], flush=True)
        viewer.close()

timer = QTimer(interval=100)
timer.timeout.connect(look)
timer.start()
panel.button.click()
napari.run()
"""


def test_closing_napari_leaves_no_process(pair, tmp_path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CLOSE_NAPARI, str(pair.student)], capture_output=True, text=True, timeout=LONG / 1000
    )
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("PIDS")]
    pids = [int(pid) for pid in line.split()[1:]]
    assert pids, "the engine should have been there while napari was open"
    deadline = time.monotonic() + 10
    while any(psutil.pid_exists(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not [pid for pid in pids if psutil.pid_exists(pid)]


DISTILL = """
import sys
from pathlib import Path
import napari
from qtpy.QtCore import QTimer
from qtpy.QtWidgets import QSpinBox
from napari_rskd._session import Model, session_of
viewer = napari.Viewer()
session = session_of(viewer)
session.teacher = session.learn(Model("toy", sys.argv[1]))
_, panel = viewer.window.add_plugin_dock_widget("napari-rskd", "Distill")
panel.run.set_path(Path(sys.argv[2]))
panel.training.unfold()
for name, value in {"epochs": 1000, "steps_per_epoch": 10, "batch_size": 2}.items():
    panel.training.findChild(QSpinBox, name).setValue(value)

def look():
    if panel.error_label.text():
        print("ERROR", panel.error_label.text(), flush=True)
        viewer.close()
    elif len(panel.chart.losses.get("total", ())) > 12:
        print("LEARNING", flush=True)
        timer.stop()
        if sys.argv[3] == "close":
            viewer.close()

timer = QTimer(interval=100)
timer.timeout.connect(look)
timer.start()
panel.button.click()
napari.run()
"""


@pytest.mark.parametrize("end", ["kill", pytest.param("close", marks=pytest.mark.slow)])
def test_a_distillation_outlives_napari_and_is_taken_up_by_the_next_one(
    qtbot, viewer, open_panel, pair, runs, end: str
) -> None:
    command = [sys.executable, "-c", DISTILL, str(pair.teacher), str(runs), end]
    lost = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert lost.stdout is not None
    said = iter(lost.stdout.readline, "")
    assert any(line == "LEARNING\n" for line in said), "it never learned anything"
    if end == "kill":
        lost.kill()
    lost.communicate(timeout=LONG / 1000)

    panel = open_panel("Distill")
    panel.run.set_path(runs)
    assert "is on its way, at step" in panel.offer.words.text()
    click(qtbot, panel.offer.go_on)
    qtbot.waitUntil(lambda: len(panel.chart.losses.get("total", ())) > 30, timeout=LONG)
    click(qtbot, panel.stop)
    finish(qtbot, panel)
    assert panel.error_label.text() == ""
    assert panel.status.text().startswith("Stopped after")
    assert panel.use.isVisible()
    (run,) = runs.iterdir()
    steps = [event.step for event in RunFolder(run).events() if isinstance(event, Step)]
    assert steps == list(range(1, steps[-1] + 1)), "a step was lost, or taken twice"
    assert [step for step, _ in panel.chart.losses["total"]] == steps
    qtbot.waitUntil(lambda: not RunFolder(run).busy, timeout=LONG)


NO_TORCH = """
import sys
import numpy as np, napari
import napari_rskd
viewer = napari.Viewer()
viewer.open_sample("napari-rskd", "retina")
viewer.open_sample("napari-rskd", "vessels")
for name in ("Models", "Distill", "Segment", "Token ranking", "Contourlet"):
    viewer.window.add_plugin_dock_widget("napari-rskd", name)
from qtpy.QtWidgets import QApplication
QApplication.processEvents()
print("LOADED", sorted({"torch", "timm"} & set(sys.modules)))
viewer.close()
"""


def test_no_torch_in_the_process_of_the_window() -> None:
    done = subprocess.run([sys.executable, "-c", NO_TORCH], capture_output=True, text=True, timeout=LONG / 1000)
    assert done.returncode == 0, done.stderr
    assert "LOADED []" in done.stdout
