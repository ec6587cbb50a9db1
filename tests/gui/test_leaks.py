"""Panels and jobs leave nothing behind: no widgets, threads, processes, shared memory or files."""

import gc
import os
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from qtpy.QtCore import QCoreApplication, QEvent, Qt
from qtpy.QtWidgets import QApplication

from napari_rskd import _job
from napari_rskd._panel import Panel
from napari_rskd._results import warm_up_drawing, warm_up_labels

PANELS = ["Models", "Distill", "Segment", "Legend", "Token ranking", "Contourlet"]
LONG, SOON = 120_000, 20_000  # milliseconds
SHARED = "/dev/shm/"  # noqa: S108 - it is only looked for


@pytest.fixture(autouse=True)
def of_our_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Give these tests an engine and a folder for temporary files that nobody else uses."""
    _job.shut_down()
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    yield
    _job.shut_down()


def settle(qtbot: Any) -> None:
    """Let Qt delete what it is about to delete, and Python as well."""
    for _ in range(3):
        qtbot.wait(20)
        QCoreApplication.sendPostedEvents(None, QEvent.Type.DeferredDelete)
        gc.collect()


def widgets() -> Counter[str]:
    return Counter(type(widget).__name__ for widget in QApplication.allWidgets())


def panels() -> int:
    return sum(issubclass(type(thing), Panel) for thing in gc.get_objects())


def holdings() -> dict[str, Any]:
    """Return what this process holds of the system."""
    process = psutil.Process()
    temporary = sorted(path.name for path in Path(tempfile.gettempdir()).iterdir())
    family = (process, *process.children(recursive=True))
    mapped = (place.path for each in family for place in each.memory_maps())
    return {
        "threads": sorted(thread.name for thread in threading.enumerate() if thread.name.startswith("rskd")),
        "processes": sorted(child.name() for child in process.children(recursive=True)),
        "files": process.num_fds() if os.name == "posix" else process.num_handles(),
        "temporary": temporary,
        "shared memory": sorted(path for path in mapped if path.startswith(SHARED)),
    }


def open_and_close(qtbot: Any, viewer: Any, name: str) -> None:
    """Open a panel and close it with the x of its dock."""
    dock, panel = viewer.window.add_plugin_dock_widget("napari-rskd", name)
    qtbot.waitUntil(panel.isVisible)
    press(qtbot, dock.title.close_button)


def press(qtbot: Any, button: Any) -> None:
    qtbot.mouseClick(button, Qt.MouseButton.LeftButton)


def run_and_cancel(qtbot: Any, panel: Any) -> None:
    press(qtbot, panel.button)
    assert panel.button.text() == "Cancel"
    press(qtbot, panel.button)
    qtbot.waitUntil(lambda: panel.work is None, timeout=LONG)
    assert panel.status.text() == "Cancelled."


def held_after_a_job(qtbot: Any, panel: Any) -> dict[str, Any]:
    """Run a small job to its end, so that there is an engine that has nothing to do, and return what is held."""
    qtbot.mouseClick(panel.denoise, Qt.MouseButton.LeftButton)
    qtbot.waitUntil(lambda: panel.work is None, timeout=LONG)
    assert panel.error_label.text() == ""
    qtbot.waitUntil(lambda: "rskd-cancel" not in holdings()["threads"], timeout=LONG)
    settle(qtbot)
    return holdings()


def expect(qtbot: Any, held: dict[str, Any]) -> None:
    """Wait a moment for threads that are about to end, and expect what was held before, or less."""

    def grown() -> dict[str, Any]:
        now = holdings()
        more = {name: now[name] for name in held if name != "files" and Counter(now[name]) - Counter(held[name])}
        return more | ({"files": now["files"]} if now["files"] > held["files"] else {})

    def nothing_grown() -> None:
        assert grown() == {}

    qtbot.waitUntil(nothing_grown, timeout=SOON)


def check_panels(qtbot: Any, viewer: Any, times: int) -> None:
    for name in PANELS:
        open_and_close(qtbot, viewer, name)
    qtbot.waitUntil(lambda: _job._SHARED.get().alive, timeout=LONG)
    warm_up_drawing()
    warm_up_labels()  # what napari loads for labels stays, once
    _job.aside(int).result()
    settle(qtbot)
    before, alive, held = widgets(), panels(), holdings()  # other tests may have left something
    for _ in range(times):
        for name in PANELS:
            open_and_close(qtbot, viewer, name)
    settle(qtbot)
    assert widgets() - before == Counter()
    assert panels() <= alive
    expect(qtbot, held)


def check_jobs(qtbot: Any, viewer: Any, open_panel: Any, times: int) -> None:
    viewer.add_image(np.random.default_rng(0).random((512, 512, 3)), name="large", rgb=True)
    panel = open_panel("Segment")
    panel.target.image.choose(viewer.layers["large"])
    quick = open_panel("Contourlet")
    run_and_cancel(qtbot, panel)
    held = held_after_a_job(qtbot, quick)
    for _ in range(times):
        run_and_cancel(qtbot, panel)
    held_after_a_job(qtbot, quick)
    expect(qtbot, held)
    assert set() == _job._ALIVE
    scratch = _job._SHARED.get()._child.scratch
    assert list(scratch.iterdir()) == []  # of every job, its folder is gone
    _job.shut_down()
    settle(qtbot)
    ended = holdings()
    assert ended["processes"] == []
    assert ended["threads"] == [name for name in ended["threads"] if name.startswith("rskd-aside")]
    assert scratch.name not in ended["temporary"]


def test_panels_leave_nothing(qtbot, viewer) -> None:
    check_panels(qtbot, viewer, times=3)


def test_cancelled_jobs_leave_nothing(qtbot, viewer, open_panel) -> None:
    check_jobs(qtbot, viewer, open_panel, times=3)


@pytest.mark.slow
def test_every_panel_thirty_times_and_ten_jobs(qtbot, viewer, open_panel) -> None:
    check_panels(qtbot, viewer, times=30)
    check_jobs(qtbot, viewer, open_panel, times=10)
