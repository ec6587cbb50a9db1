"""A viewer, and an engine that does what a test tells it."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QWidget

from napari_rskd import _job
from napari_rskd._form import Section
from rskd.events import Command
from rskd.jobs import Outcome


def open_sections(panel: QWidget) -> None:
    """Open all sections of a panel, and those inside of them: fields are made when they are to be seen."""
    while closed := [section for section in panel.findChildren(Section) if not section.toggle.isChecked()]:
        for section in closed:
            section.toggle.setChecked(True)


def results_on_their_way(panel: Any) -> bool:
    """Tell whether a panel still has labels to put into the viewer."""
    return hasattr(panel, "_results") and panel._results.busy


class ScriptedEngine:
    """Stands in for `rskd.engine.client.Engine`: it plays the script that the test has set, for every job."""

    script: ClassVar[Callable[[Any, Any], Any]]
    made: ClassVar[list["ScriptedEngine"]]

    def __init__(self, *, detach: bool = False) -> None:
        self.detach = detach
        self.released = False
        self.log_path = Path("engine.log")
        self.jobs: list[tuple[Any, Any]] = []
        self.closed = 0
        self.stopped = False
        self.made.append(self)

    @classmethod
    def will(cls, script: Callable[[Any, Any], Any]) -> None:
        cls.script = staticmethod(script)

    @classmethod
    def will_return(cls, *answers: tuple[dict[str, Any], dict[str, Any]]) -> None:
        """Answer the jobs to come, one after the other, with (value, arrays)."""
        left = list(answers)

        def script(job: Any, arrays: Any) -> Any:
            yield None
            return Outcome(*left.pop(0))

        cls.will(script)

    @classmethod
    def will_raise(cls, error: BaseException) -> None:
        def script(job: Any, arrays: Any) -> Any:
            yield None
            raise error

        cls.will(script)

    @classmethod
    def will_run_until_stopped(cls, value: dict[str, Any] | None = None) -> None:
        def script(job: Any, arrays: Any) -> Any:
            while (yield None) is not Command.STOP:
                time.sleep(0.01)
            return Outcome(value or {})

        cls.will(script)

    pid = None

    def start(self) -> None:
        pass

    def run(self, job: Any, arrays: Any = None) -> Any:
        self.jobs.append((job, arrays))
        try:
            return (yield from self.script(job, arrays))
        finally:
            self.closed += 1

    def stop(self) -> None:
        self.stopped = True

    def release(self) -> None:
        self.released = True


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[ScriptedEngine]]:
    """Replace every engine by a scripted one."""
    _job.shut_down()
    scripted = type("Scripted", (ScriptedEngine,), {"made": []})
    monkeypatch.setattr(_job, "Engine", scripted)
    yield scripted
    _job.shut_down()


@pytest.fixture
def viewer(make_napari_viewer: Any) -> Any:
    """A napari window with a small picture in it."""
    viewer = make_napari_viewer(show=True)
    picture = np.random.default_rng(0).random((48, 64)).astype(np.float32)
    viewer.add_image(picture, name="picture", scale=(0.5, 0.25), units=("mm", "mm"))
    return viewer


@pytest.fixture
def open_panel(qtbot: Any, viewer: Any) -> Callable[[str], Any]:
    """Open a panel as the menu does; returns its widget."""

    def open_(name: str) -> Any:
        _, panel = viewer.window.add_plugin_dock_widget("napari-rskd", name)
        qtbot.waitUntil(panel.isVisible)
        return panel

    return open_


@pytest.fixture
def close_panel(qtbot: Any) -> Callable[[Any], None]:
    """Close a panel as a person does: with the x of its dock."""

    def close(panel: Any) -> None:
        x = panel.parent().title.close_button
        with qtbot.waitSignal(panel.destroyed):
            qtbot.mouseClick(x, Qt.MouseButton.LeftButton)

    return close
