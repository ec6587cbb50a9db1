"""The demo: one command builds the scene, with words for whatever is missing."""

import csv
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from napari._app_model import get_app_model

from napari_rskd._demo import Demo, show_demo, write_scene
from napari_rskd._session import Model, bundled_models, session_of
from napari_rskd.distill import DistillWidget

CLASSES = [{"name": "background", "color": "#000000"}, {"name": "vessel", "color": "#e4572e"}]
SHAPE = (1411, 1411)
LONG = 60_000  # milliseconds
NEEDS_PAIR = pytest.mark.skipif(len(bundled_models()) < 2, reason="the bundled pair is not in this checkout")


def answers() -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Return what the engine says to the demo's three jobs."""
    block = {"grid": [4, 4], "token": [352.75, 352.75], "block": 0, "heads": 0, "windows": False}
    facts = {"definition": "received", "name": "toy", "blocks": [block]}
    maps = {f"{role}_block0": np.ones((1, 4, 4), np.float32) for role in ("teacher", "student")}
    band = {"array": "a", "name": "level 1", "level": 1, "direction": 0, "edge_angle": 45.0, "energy": 1.0}
    band |= {"scale": [2, 2], "translate": [0.5, 0.5]}
    return [
        (
            {"classes": CLASSES, "seconds": 1.0, "device": "cpu", "runtime": "torch"},
            {"labels": np.ones(SHAPE, np.uint8)},
        ),
        ({"teacher": facts, "student": facts}, maps),
        ({"bands": [band], "reconstruction_error": 0.0}, {"a": np.ones((706, 706), np.float32)}),
    ]


@pytest.fixture
def empty(viewer: Any) -> Any:
    viewer.layers.clear()
    session = session_of(viewer)
    for role in ("teacher", "student"):
        setattr(session, role, Model(role, f"/models/{role}.safetensors"))
    return viewer


def test_menu_command_builds_the_scene(qtbot, engine, empty, tmp_path: Path) -> None:
    engine.will_return(*answers())
    demo = get_app_model().commands.execute_command("napari-rskd.demo").result()
    assert isinstance(demo, Demo)
    with qtbot.waitSignal(demo.finished, timeout=LONG) as done:
        pass
    assert done.args == [""]
    names = [layer.name for layer in empty.layers]
    assert names == [
        "Retina (photograph)",
        "Vessel (student)",
        "Token importance (teacher)",
        "Top tokens (teacher)",
        "Token importance (student)",
        "Top tokens (student)",
        "Edges at 45° (level 1)",
    ]
    jobs = [job for job, _ in engine.made[0].jobs]
    assert [job.kind for job in jobs] == ["segment", "survey", "contourlet"]
    assert jobs[2].channel == 1
    docked = [widget for widget in empty.window.dock_widgets.values() if isinstance(widget, DistillWidget)]
    assert len(docked) == 1

    files = write_scene(empty, tmp_path / "out")
    assert {path.suffix for path in files} == {".tif", ".csv", ".png"}
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "out" / "vessel-student.tif"), np.ones(SHAPE))
    table = list(csv.DictReader((tmp_path / "out" / "top-tokens-student.csv").open()))
    assert [row["rank"] for row in table] == ["1", "2", "3", "4"]
    assert (tmp_path / "out" / "screenshot.png").stat().st_size > 10_000


def test_an_error_ends_the_demo_in_a_sentence(qtbot, engine, empty, monkeypatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("napari.utils.notifications.show_error", said.append)
    engine.will_raise(RuntimeError("boom"))
    demo = show_demo(empty)
    with qtbot.waitSignal(demo.finished, timeout=LONG) as done:
        pass
    assert "boom" in done.args[0]
    assert said == done.args


def test_without_models_the_demo_says_so(qtbot, engine, empty, monkeypatch) -> None:
    monkeypatch.setattr("napari.utils.notifications.show_error", lambda words: None)
    session_of(empty).teacher = None
    demo = show_demo(empty)
    with qtbot.waitSignal(demo.finished, timeout=LONG) as done:
        pass
    assert "they are missing here" in done.args[0]


@NEEDS_PAIR
@pytest.mark.slow
def test_demo_program_writes_its_output_and_exits(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "napari_rskd.demo", "--output", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    labels = tifffile.imread(tmp_path / "vessel-student.tif")
    assert 0.03 < labels.mean() < 0.3
    assert (tmp_path / "screenshot.png").exists()
