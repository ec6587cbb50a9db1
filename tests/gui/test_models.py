"""The Models panel: passports, speed, the library, run folders, and what it says of files that are no models."""

import time
from collections.abc import Iterator
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from napari.settings import get_plugin_settings
from qtpy.QtCore import QMimeData, QPointF, Qt, QUrl
from qtpy.QtGui import QDropEvent
from qtpy.QtWidgets import QFileDialog

from napari_rskd import _job, _library
from napari_rskd._passport import passport_words, speed_words
from napari_rskd._session import Model, session_of
from napari_rskd._settings import models_folder
from rskd.errors import FileError
from rskd.jobs import BenchJob, Outcome
from rskd.models.presets import fresh_spec
from rskd.models.segmenter import Segmenter
from rskd.models.weights import save

LONG = 120_000  # milliseconds
SOON = 5_000


@pytest.fixture(scope="module", autouse=True)
def no_engine_left() -> Iterator[None]:
    yield
    _job.shut_down()


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A library folder of the test's own."""
    folder = tmp_path / "library"
    monkeypatch.setattr("napari_rskd.models.models_folder", lambda: folder)
    return folder


@pytest.fixture
def net(tmp_path: Path) -> Path:
    """A small student in the folder of its run."""
    spec = fresh_spec("rskd-nano", in_channels=3, classes=["vessel", "optic disc"])
    spec = spec.model_copy(update={"modality": "colour fundus photograph", "channels": ("red", "green", "blue")})
    run = tmp_path / "monday"
    run.mkdir()
    (run / "job.json").write_text("{}")
    card = {"data": "12 eyes", "validation Dice": "0.81", "recipe": "{…}"}
    save(run / "best.safetensors", Segmenter(spec), card=card)
    return run / "best.safetensors"


def click(qtbot: Any, button: Any) -> None:
    qtbot.mouseClick(button, Qt.MouseButton.LeftButton)


def drop(panel: Any, *paths: Path) -> None:
    mime = QMimeData()
    mime.setUrls([QUrl.fromLocalFile(str(path)) for path in paths])
    buttons, keys = Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier
    panel.dropEvent(QDropEvent(QPointF(5, 5), Qt.DropAction.CopyAction, mime, buttons, keys))


def choose(qtbot: Any, box: Any, words: str) -> None:
    """Open a list and press the key of an entry, as a person does."""
    box.setFocus()
    box.setCurrentIndex(next(i for i in range(box.count()) if box.itemText(i).startswith(words)))
    box.activated.emit(box.currentIndex())


def test_a_run_folder_is_dropped_read_measured_and_kept(qtbot, viewer, open_panel, library, net) -> None:
    panel = open_panel("Models")
    drop(panel, net.parent)
    assert panel.boxes["student"].currentText() == "monday (run) (on this computer)"
    panel.boxes["teacher"].setCurrentIndex(-1)
    click(qtbot, panel.button)
    qtbot.waitUntil(lambda: panel.work is None and bool(panel.passports["student"].text()), timeout=LONG)
    words = panel.passports["student"].text()
    for part in ("optic disc", "colour fundus photograph", "red, green, blue", "12 eyes", "0.81", "⚠</span> UNKNOWN"):
        assert part in words
    assert "{…}" not in words
    assert session_of(viewer).student.path == net

    card = panel.cards["student"]
    assert not card.speed.isVisible()
    click(qtbot, card.measure)
    assert not card.measure.isEnabled()
    qtbot.waitUntil(lambda: panel.work is None, timeout=LONG)
    assert panel.error_label.text() == ""
    assert "256 x 256 pixels, per second" in card.speed.text()
    assert "in torch" in card.speed.text()

    card.keep.trigger()
    kept = library / "monday.safetensors"
    qtbot.waitUntil(lambda: str(kept) in panel.status.text(), timeout=LONG)
    assert kept.read_bytes() == net.read_bytes()
    names = [panel.boxes["teacher"].itemText(i) for i in range(panel.boxes["teacher"].count())]
    assert "monday (on this computer)" in names
    assert panel.boxes["student"].model().path == net  # what was chosen stays chosen


def test_what_is_no_model_is_explained(qtbot, engine, open_panel, library, tmp_path) -> None:
    panel = open_panel("Models")
    before = panel.boxes["student"].model()
    drop(panel, tmp_path / "photo.png")
    assert "photo.png is no weight file: choose one that ends in .safetensors" in panel.error_label.text()
    drop(panel, tmp_path)
    assert "is no run folder" in panel.error_label.text()
    assert panel.boxes["student"].model() == before
    (tmp_path / "early").mkdir()
    (tmp_path / "early" / "job.json").touch()
    with pytest.raises(FileError, match="early has no finished round yet"):
        _library.model_at(tmp_path / "early")


def test_the_folder_of_a_run_is_an_entry_of_the_list(qtbot, engine, open_panel, library, net, monkeypatch) -> None:
    panel = open_panel("Models")
    monkeypatch.setattr(QFileDialog, "getExistingDirectory", lambda *_: str(net.parent))
    choose(qtbot, panel.boxes["teacher"], "Open the folder of a run")
    assert panel.boxes["teacher"].model().path == net
    monkeypatch.setattr(QFileDialog, "getExistingDirectory", lambda *_: "")
    choose(qtbot, panel.boxes["teacher"], "Open the folder of a run")
    assert panel.boxes["teacher"].model().path == net


def test_a_new_student_is_handed_to_the_distillation(qtbot, engine, viewer, open_panel, library) -> None:
    panel, distill = open_panel("Models"), open_panel("Distill")
    choose(qtbot, panel.boxes["student"], "New: rskd-micro")
    assert "It has learned nothing yet" in panel.passports["student"].text()
    assert panel.cards["student"].measure.isVisible()
    assert not panel.cards["student"].more.isVisible()
    assert distill.student.model().source == "rskd-micro"
    panel.boxes["teacher"].setCurrentIndex(-1)
    assert "Choose a teacher as well" in panel.reason_label.text()
    choose(qtbot, panel.boxes["student"], "Retina student")
    assert session_of(viewer).fresh is None
    assert distill.student.model().source == "rskd-micro"


def test_a_measurement_is_the_short_form_of_the_bench(qtbot, engine, open_panel, library) -> None:
    row = {"size": 256, "runtime": "torch", "fps": 3.21}
    engine.will_return(({"rows": [row], "threads": 2, "computer": {"processor": "a chip"}}, {}))
    panel = open_panel("Models")
    choose(qtbot, panel.boxes["student"], "New: rskd-nano")
    click(qtbot, panel.cards["student"].measure)
    qtbot.waitUntil(lambda: panel.work is None, timeout=SOON)
    ((job, _),) = engine.made[0].jobs
    assert isinstance(job, BenchJob)
    assert (job.models, job.sizes, job.memory, job.output) == ((Path("rskd-nano"),), (256,), False, None)
    said = "Pictures of 256 x 256 pixels, per second: 3.2 in torch (2 threads of a chip)."
    assert panel.cards["student"].speed.text() == said
    choose(qtbot, panel.boxes["student"], "Retina student")
    assert panel.cards["student"].speed.text() == ""


def test_a_copy_can_be_saved_anywhere(qtbot, engine, open_panel, library, net, tmp_path, monkeypatch) -> None:
    panel = open_panel("Models")
    panel.boxes["student"].choose_file(net)
    monkeypatch.setattr(QFileDialog, "getSaveFileName", lambda *_: (str(tmp_path / "usb" / "net.safetensors"), ""))
    panel.cards["student"].save.trigger()
    qtbot.waitUntil(lambda: "Saved as" in panel.status.text(), timeout=SOON)
    assert (tmp_path / "usb" / "net.safetensors").read_bytes() == net.read_bytes()
    (tmp_path / "occupied").touch()
    target = tmp_path / "occupied" / "net.safetensors"
    monkeypatch.setattr(QFileDialog, "getSaveFileName", lambda *_: (str(target), ""))
    panel.cards["student"].save.trigger()
    qtbot.waitUntil(lambda: "cannot be written" in panel.error_label.text(), timeout=SOON)


def test_the_library_keeps_descriptions_and_replaces_nothing(tmp_path) -> None:
    source, folder = tmp_path / "net.pt", tmp_path / "library"
    source.write_bytes(b"one")
    source.with_suffix(".json").write_text("{}")
    first = _library.keep(source, folder)
    assert first.with_suffix(".json").read_text() == "{}"
    assert _library.keep(source, folder) == first
    source.write_bytes(b"two")
    assert _library.keep(source, folder).name == "net-2.pt"
    assert first.read_bytes() == b"one"
    assert [model.name for model in _library.library_models(folder)] == ["net", "net-2"]
    assert _library.library_models(tmp_path / "none") == ()
    with pytest.raises(FileError):
        _library.keep(tmp_path / "gone.pt", folder)
    _library.save_copy(source, source)
    assert source.read_bytes() == b"two"


def test_a_file_that_is_gone_is_marked(engine, open_panel, viewer, library) -> None:
    session_of(viewer).learn(Model("Lost", "/nowhere/lost.safetensors"))
    box = open_panel("Models").boxes["teacher"]
    assert "Lost (no longer there)" in [box.itemText(i) for i in range(box.count())]


def test_the_library_folder_is_a_preference(plugin_settings, npe2pm) -> None:
    import npe2

    npe2pm.register(npe2.PluginManifest.from_distribution("napari-rskd"))
    assert models_folder().name == "models"
    get_plugin_settings("napari-rskd").folders.models = "/data/models"
    assert models_folder() == Path("/data/models")


def test_words_of_a_passport_are_no_markup(tmp_path) -> None:
    spec = fresh_spec("rskd-nano", in_channels=1, classes=["<b>x</b>"])
    spec = spec.model_copy(update={"spacing": 0.5, "axis": "z"}).model_dump(mode="json")
    card = {"data": "<img src='http://example.org'>", "licence": "CC BY 4.0"}
    words = passport_words({"spec": spec, "card": card, "parameters": 1, "bytes": 1, "sha256": "0" * 64})
    assert "<img" not in words
    assert "<b>x</b>" not in words
    assert "pixels of 0.5 mm, others are resampled; volumes plane by plane across z" in words
    assert "⚠" not in words


def test_speed_in_words() -> None:
    value = {"rows": [{"size": 64, "runtime": "openvino", "fps": 99.6}], "threads": 1, "computer": {"processor": "x"}}
    assert speed_words(value) == "Pictures of 64 x 64 pixels, per second: 100 in OpenVINO (1 thread of x)."


def test_what_comes_back_belongs_to_the_model_that_was_asked_about(
    qtbot, engine, viewer, open_panel, library, tmp_path
) -> None:
    go_on = Event()

    def script(job: Any, arrays: Any) -> Any:
        while not go_on.is_set():
            yield None
            time.sleep(0.01)
        if isinstance(job, BenchJob):
            row = {"size": 256, "runtime": "torch", "fps": 3.21}
            return Outcome({"rows": [row], "threads": 2, "computer": {"processor": "a chip"}}, {})
        return Outcome(passport | {"sha256": job.model.stem * 16}, {})

    engine.will(script)
    spec = fresh_spec("rskd-nano", in_channels=1, classes=["vessel"]).model_dump(mode="json")
    passport = {"spec": spec, "card": {}, "parameters": 1, "bytes": 1}
    for name in ("one", "two"):
        (tmp_path / f"{name}.safetensors").touch()
    one, other = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    panel = open_panel("Models")
    panel.boxes["teacher"].setCurrentIndex(-1)
    drop(panel, one)
    click(qtbot, panel.button)
    drop(panel, other)
    go_on.set()
    qtbot.waitUntil(lambda: panel.work is None, timeout=SOON)
    assert session_of(viewer).student.path == one
    assert session_of(viewer).student.passport["sha256"].startswith("one")
    assert other not in [model.path for model in session_of(viewer).library]
    assert panel.cards["student"].model.path == other
    assert panel.cards["student"].model.passport is None

    drop(panel, one)
    go_on.clear()
    click(qtbot, panel.cards["student"].measure)
    assert panel.work is not None
    drop(panel, other)
    go_on.set()
    qtbot.waitUntil(lambda: panel.work is None, timeout=SOON)
    assert panel.cards["student"].speed.text() == ""
