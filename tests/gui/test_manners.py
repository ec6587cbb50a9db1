"""First steps, preferences, help, several viewers, small screens: what holds for every panel."""

import json
import threading
from pathlib import Path
from typing import Any

import npe2
import numpy as np
import pytest
from napari.settings import get_plugin_settings, get_settings
from qtpy.QtCore import QPoint, QPointF, Qt
from qtpy.QtGui import QWheelEvent
from qtpy.QtWidgets import (
    QAbstractSlider,
    QAbstractSpinBox,
    QApplication,
    QComboBox,
    QFileDialog,
    QLineEdit,
    QScrollArea,
)

from napari_rskd import _diagnose
from napari_rskd._readers import layer_of
from napari_rskd._recipe_menu import RecipeMenu
from napari_rskd._session import session_of
from napari_rskd._settings import as_set, compute_options, models_folder
from napari_rskd._source import add_layer, slice_source
from napari_rskd._writers import scan_of_labels
from rskd.config import InferenceOptions
from rskd.errors import DataError
from rskd.jobs import DistillJob, Outcome
from rskd.scan import Scan
from tests.gui.conftest import open_sections

SOON = 60_000  # milliseconds
PANELS = ["Models", "Distill", "Segment", "Token ranking", "Contourlet"]


def click(qtbot: Any, button: Any) -> None:
    qtbot.mouseClick(button, Qt.MouseButton.LeftButton)


# ------------------------------------------------------------------------------------------------------ first steps


@pytest.mark.parametrize("name", ["Segment", "Token ranking", "Contourlet"])
def test_without_an_image_a_button_opens_one(qtbot, engine, viewer, open_panel, name: str) -> None:
    viewer.layers.clear()
    panel = open_panel(name)
    assert panel.first_step.isVisible()
    assert panel.first_step.text() == "Open the retina photograph"
    click(qtbot, panel.first_step)
    assert "Retina (photograph)" in viewer.layers
    assert not panel.first_step.isVisible()
    assert panel.button.isEnabled()


@pytest.mark.parametrize("name", ["Segment", "Token ranking"])
def test_without_a_network_it_is_said_where_to_get_one(engine, viewer, open_panel, name: str) -> None:
    session = session_of(viewer)
    session.teacher = session.student = None  # none came along
    panel = open_panel(name)
    assert panel.reason_label.text() == "Load a student or a teacher first, in the Models panel."
    assert not panel.first_step.isVisible()
    assert not panel.button.isEnabled()


# ------------------------------------------------------------------------------------------------------ preferences


def test_the_first_settings_are_read_without_looking_for_plugins_again(plugin_settings, npe2pm, monkeypatch) -> None:
    npe2pm.register(npe2.PluginManifest.from_distribution("napari-rskd"))
    looked: list[bool] = []
    monkeypatch.setattr(type(npe2pm), "discover", lambda *_, **__: looked.append(True))
    assert compute_options() == InferenceOptions()
    assert looked == []
    npe2pm.discover()
    assert looked == [True]


def test_settings_are_there_where_napari_has_not_looked_for_plugins_yet(plugin_settings, npe2pm, monkeypatch) -> None:
    ours = npe2.PluginManifest.from_distribution("napari-rskd")
    monkeypatch.setattr(type(npe2pm), "discover", lambda manager, *_, **__: manager.register(ours))
    assert compute_options() == InferenceOptions()


def test_what_is_set_is_used_and_told_without_a_name(tmp_path: Path) -> None:
    settings = get_plugin_settings("napari-rskd")
    assert not compute_options().offline
    settings.compute.offline = True
    settings.folders.models = str(tmp_path)
    try:
        assert models_folder() == tmp_path
        assert compute_options().offline
        told = as_set()
    finally:
        settings.compute.offline = False
        settings.folders.models = ""
    assert told["offline"] is True
    assert told["models folder"] is True
    assert str(tmp_path) not in json.dumps(told)


def test_offline_means_that_nothing_is_fetched() -> None:
    job = {"teacher": "retina-teacher", "student": "rskd-nano", "data": {"images": "a"}, "run": "b"}
    DistillJob.model_validate({**job, "pretrained": "download"})
    DistillJob.model_validate({**job, "pretrained": "file.pth", "compute": {"offline": True}})
    with pytest.raises(ValueError, match="needs the network, and offline is set: name a file instead"):
        DistillJob.model_validate({**job, "pretrained": "download", "compute": {"offline": True}})


# ------------------------------------------------------------------------------------------------------------- help


def save_diagnosis(qtbot: Any, panel: Any, monkeypatch: Any, path: Path) -> str:
    monkeypatch.setattr(QFileDialog, "getSaveFileName", lambda *_: (str(path), ""))
    menu = panel.findChild(RecipeMenu)
    menu.diagnose.trigger()
    qtbot.waitUntil(lambda: not menu.diagnosis.running, timeout=2 * SOON)
    return str(panel.status.text())


def test_the_diagnostic_file_comes_on_a_click_and_names_nobody(
    qtbot, engine, viewer, open_panel, tmp_path, monkeypatch
) -> None:
    folder = tmp_path / "Jane Doe"
    folder.mkdir()
    np.save(folder / "Doe 4711.npy", np.zeros((8, 8)))
    viewer.add_image(np.load(folder / "Doe 4711.npy"), name="Doe 4711")
    panel = open_panel("Contourlet")
    said = save_diagnosis(qtbot, panel, monkeypatch, tmp_path / "out.txt")
    assert said.startswith("Saved out.txt")
    text = (tmp_path / "out.txt").read_text()
    assert not [name for name in ("Jane", "Doe", "4711", str(tmp_path)) if name in text]
    for part in ("ok    version: napari-rskd", "ok    engine", "setting  device=auto", "setting  runs folder=False"):
        assert part in text


def test_a_doctor_that_fails_says_so(qtbot, engine, viewer, open_panel, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(_diagnose, "find_python", lambda: "/bin/false")
    panel = open_panel("Contourlet")
    said = save_diagnosis(qtbot, panel, monkeypatch, tmp_path / "out.txt")
    assert said == "The diagnostic file was not written: exit status 1"


# ----------------------------------------------------------------------------------------- the wheel, and two viewers


def test_ctrl_enter_starts_and_never_cancels(qtbot, engine, open_panel) -> None:
    go = threading.Event()

    def held(job: Any, arrays: Any) -> Any:
        yield None
        go.wait()
        raise DataError("too small")

    engine.will(held)
    panel = open_panel("Contourlet")
    box = panel.findChild(QComboBox)
    qtbot.waitUntil(lambda: panel.work is None and panel.button.isEnabled(), timeout=SOON)
    qtbot.keyClick(box, Qt.Key.Key_Return, Qt.KeyboardModifier.ControlModifier)
    assert panel.work is not None
    qtbot.keyClick(box, Qt.Key.Key_Return, Qt.KeyboardModifier.ControlModifier)
    assert not panel.work.cancelled
    go.set()
    qtbot.waitUntil(lambda: panel.work is None, timeout=SOON)
    assert len(engine.made[0].jobs) == 1


@pytest.mark.parametrize("name", PANELS)
def test_a_passing_wheel_changes_no_field(qtbot, engine, viewer, open_panel, name: str) -> None:
    panel = open_panel(name)
    open_sections(panel)
    panel.button.setFocus()
    fields = [panel.findChildren(kind) for kind in (QComboBox, QAbstractSpinBox, QAbstractSlider)]
    fields = [field for kind in fields for field in kind if "scroll" not in type(field).__name__.lower()]
    fields = [field for field in fields if not field.objectName().startswith("qt_")]
    assert len(fields) >= 2

    def value(field: Any) -> Any:
        return field.currentIndex() if isinstance(field, QComboBox) else field.value()

    before = [value(field) for field in fields]
    for field in fields:
        for turn in (120, -120):
            middle = QPointF(field.rect().center())
            event = QWheelEvent(
                middle, QPointF(field.mapToGlobal(QPoint())), QPoint(), QPoint(0, turn), Qt.MouseButton.NoButton,
                Qt.KeyboardModifier.NoModifier, Qt.ScrollPhase.NoScrollPhase, False,
            )  # fmt: skip
            QApplication.sendEvent(field, event)
    assert [value(field) for field in fields] == before


def test_what_cannot_be_read_in_a_form_is_told_by_every_button(qtbot, engine, open_panel) -> None:
    panel = open_panel("Contourlet")
    panel.options.findChild(QLineEdit, "levels").setText("3, x")
    for start in (panel.button, panel.split_map):
        panel.error_label.hide()
        start.setEnabled(True)
        click(qtbot, start)
        assert panel.error_label.isVisible()
        assert panel.error_label.text().startswith("Levels: a whole number is needed")


@pytest.mark.parametrize("button", ["denoise", "button"])
def test_a_picture_made_of_a_scan_lies_in_the_patient_as_the_scan_does(
    qtbot, engine, viewer, open_panel, button: str
) -> None:
    affine = np.array([[3.0, 0, 0, 7], [0, 2, 0, 8], [0, 0, 1.5, 9], [0, 0, 0, 1]])
    scan = Scan(np.zeros((3, 16, 20), np.float32), "zyx", (3, 2, 1.5), "mm", affine, anatomical=True)
    viewer.layers.clear()
    add_layer(viewer, layer_of(scan))
    panel, plane = open_panel("Contourlet"), np.zeros((16, 20))
    source = slice_source(viewer.layers[0], viewer.dims)
    if button == "denoise":
        panel._show_denoised(Outcome({}, {"denoised": plane}), source)
    else:
        panel._source = source
        panel._show_reconstruction(Outcome({}, {"reconstruction": plane}))
        qtbot.waitUntil(lambda: not panel._rebuilt.busy, timeout=SOON)
    found = scan_of_labels(viewer.layers[-1])
    assert found.anatomical
    np.testing.assert_allclose(found.affine[:, :3], affine[:, :3])


def test_two_viewers_know_nothing_of_each_other(qtbot, engine, make_napari_viewer) -> None:
    one, other = make_napari_viewer(show=True), make_napari_viewer(show=True)
    opened = [viewer.window.add_plugin_dock_widget("napari-rskd", "Contourlet")[1] for viewer in (one, other)]
    one.add_image(np.zeros((32, 32)), name="mine")
    assert [panel.button.isEnabled() for panel in opened] == [True, False]
    engine.will_return(({}, {"denoised": np.zeros((32, 32))}))
    click(qtbot, opened[0].denoise)
    qtbot.waitUntil(lambda: opened[0].work is None, timeout=SOON)
    assert "mine (denoised)" in one.layers
    assert len(other.layers) == 0
    assert session_of(one) is not session_of(other)


# ------------------------------------------------------------------------------------------------------ small screens


@pytest.mark.parametrize("name", PANELS)
def test_at_150_percent_nothing_is_out_of_reach(qtbot, engine, viewer, open_panel, name: str) -> None:
    panel = open_panel(name)
    appearance = get_settings().appearance
    usual = appearance.font_size
    height = panel.button.sizeHint().height()
    appearance.font_size = round(1.5 * usual)
    try:
        qtbot.waitUntil(lambda: panel.button.sizeHint().height() > height)
        assert panel.minimumSizeHint().width() <= 300
        area, content = panel.findChild(QScrollArea), panel.column.parentWidget()
        assert area.horizontalScrollBarPolicy() == Qt.ScrollBarPolicy.ScrollBarAsNeeded
        reached = area.horizontalScrollBar().maximum() + area.viewport().width()
        assert reached >= content.minimumSizeHint().width()  # what does not fit can be scrolled to
    finally:
        appearance.font_size = usual


def test_closing_a_panel_takes_back_what_it_tied_to_the_viewer(engine, viewer, open_panel, close_panel) -> None:
    before = len(viewer.mouse_drag_callbacks), set(viewer.keymap)
    panel = open_panel("Token ranking")
    assert len(viewer.mouse_drag_callbacks) == before[0] + 1
    close_panel(panel)
    assert (len(viewer.mouse_drag_callbacks), set(viewer.keymap)) == before
