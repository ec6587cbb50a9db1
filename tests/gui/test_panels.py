"""The five panels, driven as a person drives them, over a scripted engine."""

import itertools
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import npe2
import numpy as np
import pytest
from napari.layers import Image, Labels, Points
from napari.settings import get_plugin_settings
from PIL import Image as Picture
from qtpy.QtCore import QMimeData, QPoint, QPointF, Qt, QUrl
from qtpy.QtGui import QDropEvent
from qtpy.QtWidgets import QCheckBox, QLabel, QSpinBox

from napari_rskd import _job
from napari_rskd._session import Model, session_of
from napari_rskd._settings import compute_options, runs_folder
from napari_rskd.distill import DistillWidget
from rskd.config import DataOptions, InferenceOptions, TrainOptions
from rskd.errors import DataError
from rskd.events import Epoch, Message, Progress, Step
from rskd.jobs import DistillJob, Outcome, PreflightJob, ResumeJob
from rskd.records import write_json
from rskd.runs import COMPARISON, Order, RunFolder
from tests.gui.conftest import open_sections, results_on_their_way

SOON = 60_000  # milliseconds, on a machine that is busy with other things
PANELS = ["Models", "Distill", "Segment", "Token ranking", "Contourlet"]
CLASSES = [{"name": "background", "color": "#000000"}, {"name": "vessel", "color": "#e4572e"}]
SPEC = {"name": "toy", "encoder": "vit", "patch_size": 16, "image_size": 64, "in_channels": 1, "channels": []}
SPEC |= {"modality": "toy pictures", "classes": CLASSES, "overlapping": False, "decoder": "upsample"}
SPEC |= {"frame": None, "spacing": None, "axis": None}
PASSPORT = {"spec": SPEC, "card": {}, "parameters": 1_500_000, "bytes": 3_000_000, "sha256": "ab" * 32}
SEGMENTED = (
    {
        "classes": CLASSES,
        "overlapping": False,
        "seconds": 0.4,
        "device": "cpu",
        "runtime": "onnx",
        "measurements": {},
        "features": {"index": [0, 1], "class": ["background", "vessel"]},
    },
    {"labels": np.ones((48, 64), np.uint8)},
)


def click(qtbot: Any, button: Any) -> None:
    """Press a button in its middle, or a check box on its box."""
    at = QPoint(8, button.height() // 2) if isinstance(button, QCheckBox) else QPoint()
    qtbot.mouseClick(button, Qt.MouseButton.LeftButton, pos=at)


def finish(qtbot: Any, panel: Any) -> None:
    """Wait until the panel's job is over and its labels are there."""
    qtbot.waitUntil(lambda: panel.work is None and not results_on_their_way(panel), timeout=SOON)


@pytest.fixture
def models(viewer: Any) -> Any:
    """Put a teacher and a student into the session."""
    session = session_of(viewer)
    session.teacher = session.learn(Model("Teacher A", "/models/a.safetensors"))
    session.student = session.learn(Model("Student B", "/models/b.safetensors"))
    return session


@pytest.mark.parametrize("name", PANELS)
def test_panel_fits_300_pixels_and_says_what_it_is_not_for(engine, open_panel, name: str) -> None:
    panel = open_panel(name)
    assert max(panel.minimumSizeHint().width(), panel.minimumWidth()) <= 300
    content = panel.column.parentWidget()
    assert content.minimumSizeHint().width() <= 300
    assert "Not for diagnosis" in panel.findChild(QLabel, "note").text()


@pytest.mark.parametrize("name", ["Segment", "Token ranking", "Contourlet"])
def test_without_an_image_the_button_is_off_and_says_why(engine, viewer, open_panel, models, name: str) -> None:
    viewer.layers.clear()
    panel = open_panel(name)
    assert not panel.button.isEnabled()
    assert "Open an image first" in panel.reason_label.text()
    assert panel.reason_label.isVisible()
    viewer.add_image(np.zeros((8, 8)))
    assert panel.button.isEnabled()
    assert not panel.reason_label.isVisible()


def test_without_models_segment_says_where_to_load_them(engine, viewer, open_panel) -> None:
    session = session_of(viewer)
    session.teacher = session.student = None
    panel = open_panel("Segment")
    assert "in the Models panel" in panel.reason_label.text()
    session.student = Model("late", "/models/late.safetensors")
    assert panel.button.isEnabled()


def test_segment_adds_labels_in_place(qtbot, engine, viewer, open_panel, models) -> None:
    engine.will_return(SEGMENTED)
    panel = open_panel("Segment")
    click(qtbot, panel.button)
    finish(qtbot, panel)
    labels = viewer.layers["Vessel (student)"]
    assert isinstance(labels, Labels)
    np.testing.assert_allclose(labels.scale, viewer.layers["picture"].scale)
    assert labels.units == viewer.layers["picture"].units
    ((job, arrays),) = engine.made[0].jobs
    assert (job.model, job.axes) == (Path("/models/b.safetensors"), "yx")
    np.testing.assert_array_equal(arrays["image"], viewer.layers["picture"].data)
    assert panel.status.text() == "Done in 0.4 s on cpu with ONNX Runtime."


def test_segment_shows_classes_that_overlap_one_by_one(qtbot, engine, viewer, open_panel, models) -> None:
    classes = [*CLASSES, {"name": "tumour", "color": "#0000ff"}]
    planes = np.random.default_rng(0).integers(0, 2, (2, 48, 64)).astype(np.uint8)
    features = {"index": [0, 1, 2], "class": [info["name"] for info in classes]}
    value = {**SEGMENTED[0], "classes": classes, "overlapping": True, "features": features}
    engine.will_return((value, {"labels": planes}))
    panel = open_panel("Segment")
    click(qtbot, panel.button)
    finish(qtbot, panel)
    qtbot.waitUntil(lambda: "Tumour (student)" in viewer.layers, timeout=SOON)
    for name, plane in zip(("Vessel (student)", "Tumour (student)"), planes, strict=True):
        assert isinstance(viewer.layers[name], Labels)
        np.testing.assert_array_equal(viewer.layers[name].data, plane)


def test_segment_with_the_teacher_and_other_tiles(qtbot, engine, viewer, open_panel, models) -> None:
    engine.will_return(SEGMENTED)
    panel = open_panel("Segment")
    panel.network.setCurrentIndex(1)
    open_sections(panel)
    panel.options.findChild(QSpinBox, "batch_size").setValue(2)
    panel.extras.probabilities.setChecked(True)
    click(qtbot, panel.button)
    finish(qtbot, panel)
    job, _ = engine.made[0].jobs[0]
    assert job.model == Path("/models/a.safetensors")
    assert (job.options.batch_size, job.options.probabilities) == (2, True)
    assert "Vessel (teacher)" in viewer.layers


def test_the_button_is_its_own_cancel(qtbot, engine, open_panel, models) -> None:
    engine.will_run_until_stopped()
    panel = open_panel("Segment")
    click(qtbot, panel.button)
    assert panel.button.text() == "Cancel"
    assert panel.bar.isVisible()
    click(qtbot, panel.button)
    assert panel.button.text() == "Cancelling…"
    finish(qtbot, panel)
    assert panel.button.text() == "Segment"
    assert panel.button.isEnabled()
    assert panel.status.text() == "Cancelled."
    assert not panel.bar.isVisible()


def test_progress_is_shown_in_words_and_as_a_bar(qtbot, engine, open_panel, models) -> None:
    def script(job: Any, arrays: Any) -> Any:
        yield Message("Warming up")
        yield Progress(3, 10, "tiles")
        while True:
            yield None
            time.sleep(0.01)

    engine.will(script)
    panel = open_panel("Segment")
    click(qtbot, panel.button)
    qtbot.waitUntil(lambda: panel.status.text() == "3 of 10 tiles")
    assert (panel.bar.value(), panel.bar.maximum()) == (3, 10)
    click(qtbot, panel.button)
    finish(qtbot, panel)


@pytest.mark.parametrize("error", [DataError("The image is grey, the network wants colour."), RuntimeError("boom")])
def test_an_error_is_a_sentence_and_the_button_comes_back(qtbot, engine, open_panel, models, error) -> None:
    engine.will_raise(error)
    panel = open_panel("Segment")
    click(qtbot, panel.button)
    finish(qtbot, panel)
    assert str(error) in panel.error_label.text()
    assert panel.error_label.isVisible()
    assert "engine.log" in panel.error_label.toolTip()
    assert panel.button.text() == "Segment"
    assert panel.button.isEnabled()
    engine.will_return(SEGMENTED)
    click(qtbot, panel.button)
    finish(qtbot, panel)
    assert not panel.error_label.isVisible()


def test_closing_a_panel_cancels_its_job(qtbot, engine, viewer, open_panel, close_panel, models) -> None:
    engine.will_run_until_stopped()
    panel = open_panel("Segment")
    click(qtbot, panel.button)
    qtbot.waitUntil(lambda: bool(engine.made and engine.made[0].jobs))
    work = panel.work
    with qtbot.waitSignal(work.ended):
        close_panel(panel)
    assert engine.made[0].closed == 1


def test_models_are_read_one_after_the_other(qtbot, engine, viewer, open_panel, tmp_path) -> None:
    engine.will_return((PASSPORT, {}), ({**PASSPORT, "card": {"licence": "CC0"}}, {}))
    panel = open_panel("Models")
    for role in ("teacher", "student"):
        panel.boxes[role].choose_file(tmp_path / f"{role}.safetensors")
    click(qtbot, panel.button)
    qtbot.waitUntil(lambda: panel.work is None and len(engine.made[0].jobs) == 2, timeout=SOON)
    session = session_of(viewer)
    assert session.teacher.path == tmp_path / "teacher.safetensors"
    assert session.student.path == tmp_path / "student.safetensors"
    teacher, student = (panel.passports[role].text() for role in ("teacher", "student"))
    for words in ("vessel", "toy pictures", "1.50 million parameters, 3.0 MB", "abababababababab"):
        assert words in teacher
    assert "UNKNOWN" in teacher
    assert "CC0" in student


def test_a_bad_model_leaves_the_session_as_it_was(qtbot, engine, viewer, open_panel, models, tmp_path) -> None:
    engine.will_raise(DataError("This is no weight file."))
    panel = open_panel("Models")
    panel.boxes["teacher"].choose_file(tmp_path / "virus.safetensors")
    click(qtbot, panel.button)
    finish(qtbot, panel)
    assert panel.error_label.text() == "This is no weight file."
    assert models.teacher.name == "Teacher A"
    assert panel.button.isEnabled()


def test_weight_files_can_be_dropped(engine, open_panel, tmp_path) -> None:
    panel = open_panel("Models")
    mime = QMimeData()
    mime.setUrls([QUrl.fromLocalFile(str(tmp_path / name)) for name in ("my_teacher.safetensors", "b.safetensors")])
    panel.dropEvent(
        QDropEvent(QPointF(5, 5), Qt.DropAction.CopyAction, mime, Qt.MouseButton.LeftButton,
                   Qt.KeyboardModifier.NoModifier)
    )  # fmt: skip
    assert panel.boxes["teacher"].model().path.name == "my_teacher.safetensors"
    assert panel.boxes["student"].model().path.name == "b.safetensors"


def ranking() -> tuple[dict[str, Any], dict[str, Any]]:
    block = {"block": 0, "heads": 0, "grid": [3, 4], "token": [16.0, 16.0], "windows": False}
    facts = {"name": "toy", "definition": "received", "blocks": [block]}
    maps = np.arange(12, dtype=np.float32).reshape(1, 3, 4)
    return {"teacher": facts, "student": facts}, {"teacher_block0": maps, "student_block0": maps}


AGREED = ({"spearman": 0.25}, {"overlap": np.full(12, 0.5), "ndcg": np.ones(12)})


def test_token_ranking_shows_both_networks_and_their_agreement(qtbot, engine, viewer, open_panel, models) -> None:
    engine.will_return(ranking(), AGREED)
    panel = open_panel("Token ranking")
    click(qtbot, panel.button)
    finish(qtbot, panel)
    qtbot.waitUntil(lambda: bool(panel.agreement.text()) and len(viewer.layers) == 1 + 6, timeout=SOON)
    for role in ("teacher", "student"):
        image = viewer.layers[f"Token importance ({role})"]
        assert isinstance(image, Image)
        np.testing.assert_allclose(image.scale, (16 * 0.5, 16 * 0.25))
        np.testing.assert_allclose(image.translate, (7.5 * 0.5, 7.5 * 0.25))
        assert isinstance(viewer.layers[f"Top tokens ({role})"], Points)
    assert "Rank correlation (Spearman): 0.25" in panel.agreement.text()


def test_token_ranking_of_one_network(qtbot, engine, open_panel, models) -> None:
    value, arrays = ranking()
    engine.will_return(({"student": value["student"]}, arrays))
    panel = open_panel("Token ranking")
    click(qtbot, panel.findChild(QCheckBox, "teacher"))
    click(qtbot, panel.button)
    finish(qtbot, panel)
    job, _ = engine.made[0].jobs[0]
    assert job.teacher is None
    assert job.student == Path("/models/b.safetensors")
    click(qtbot, panel.findChild(QCheckBox, "student"))
    assert panel.reason_label.text() == "Tick the teacher, the student, or both."


def test_contourlet_of_the_green_channel(qtbot, engine, viewer, open_panel) -> None:
    band = {"array": "level1_band0", "name": "level 1, edges at 45°", "level": 1, "direction": 0, "edge_angle": 45.0}
    band |= {"scale": [2, 4], "translate": [0.5, 1.5], "energy": 1.0, "wedge": [112.5, 157.5]}
    engine.will_return(
        ({"bands": [band], "reconstruction_error": 2e-7}, {"level1_band0": np.ones((24, 16), np.float32)})
    )
    viewer.layers.clear()
    viewer.add_image(np.zeros((48, 64, 3), np.uint8), name="photo")
    panel = open_panel("Contourlet")
    assert panel.channel.currentText() == "Green"
    click(qtbot, panel.button)
    finish(qtbot, panel)
    job, arrays = engine.made[0].jobs[0]
    assert (job.channel, job.axes, arrays["image"].shape) == (1, "yxc", (48, 64, 3))
    qtbot.waitUntil(lambda: "Edges at 45° (level 1)" in viewer.layers)
    np.testing.assert_allclose(viewer.layers["Edges at 45° (level 1)"].scale, (2, 4))
    assert "differ from the image by at most 2e-07" in panel.status.text()


# ------------------------------------------------------------------------------------------------------------- distill

STEPS = [Step(n, 20, 1 + n // 11, {"task": 1 / n, "logits": 2 / n, "total": 3 / n}, 1e-3, 0.01) for n in range(1, 21)]
DONE = {"run": "/runs/one", "student": "/runs/one/best.safetensors", "dice": 0.81, "epochs": 2, "stopped": False}


def distilling(job: Any, arrays: Any) -> Any:
    for step in STEPS:
        yield step
        time.sleep(0.02)
    yield Epoch(2, 2, {"task": 0.1}, 0.81, {"vessel": 0.81}, best=True)
    return Outcome(DONE)


@pytest.fixture
def cockpit(engine, open_panel, models, tmp_path) -> Any:
    panel = open_panel("Distill")
    panel.run.set_path(tmp_path / "runs")
    return panel


def test_distill_is_ready_with_generated_examples(qtbot, engine, cockpit, tmp_path, monkeypatch) -> None:
    engine.will(distilling)
    said, say = [], cockpit.say
    monkeypatch.setattr(cockpit, "say", lambda words: (said.append(words), say(words)))
    assert cockpit.button.isEnabled()
    click(qtbot, cockpit.button)
    assert cockpit.stop.isVisible()
    finish(qtbot, cockpit)
    assert any("left" in words for words in said)
    ((job, _),) = engine.made[0].jobs
    assert job.teacher == Path("/models/a.safetensors")
    assert job.student == "rskd-micro"
    assert job.run.parent == tmp_path / "runs"
    assert job.data.images == job.run / "data" / "images"
    assert len(list(job.data.images.iterdir())) == len(list(job.data.masks.iterdir())) > 10
    assert cockpit.chart.losses["total"] == [(step.step, step.losses["total"]) for step in STEPS]
    assert cockpit.chart.best == (20, 0.81)
    assert "Dice of 0.810" in cockpit.status.text()
    assert engine.made[0].stopped
    assert not cockpit.stop.isVisible()


def test_use_this_student(qtbot, engine, viewer, cockpit) -> None:
    engine.will(distilling)
    click(qtbot, cockpit.button)
    finish(qtbot, cockpit)
    click(qtbot, cockpit.use)
    assert session_of(viewer).student.source == DONE["student"]
    assert not cockpit.use.isEnabled()


def test_stop_and_keep_best(qtbot, engine, cockpit) -> None:
    engine.will_run_until_stopped({**DONE, "stopped": True, "epochs": 1})
    click(qtbot, cockpit.button)
    qtbot.waitUntil(lambda: bool(engine.made and engine.made[0].jobs), timeout=SOON)
    click(qtbot, cockpit.stop)
    assert "keeping the best" in cockpit.status.text()
    finish(qtbot, cockpit)
    assert cockpit.status.text().startswith("Stopped after 1 round")
    assert cockpit.use.isVisible()


def test_a_run_outlives_its_panel_and_is_taken_up_again(qtbot, engine, open_panel, close_panel, cockpit) -> None:
    reopened = threading.Event()

    def held(job: Any, arrays: Any) -> Any:
        yield from STEPS[:5]
        while not reopened.is_set():
            yield None
            time.sleep(0.01)
        yield from STEPS[5:]
        return Outcome(DONE)

    engine.will(held)
    click(qtbot, cockpit.button)
    qtbot.waitUntil(lambda: len(cockpit.chart.losses.get("total", [])) > 2, timeout=SOON)
    close_panel(cockpit)
    qtbot.wait(50)
    again = open_panel("Distill")
    assert again.button.text() == "Cancel"
    reopened.set()
    finish(qtbot, again)
    assert len(again.chart.losses["total"]) == len(STEPS)
    assert again.use.isVisible()


def test_pictures_of_the_run_are_leafed_through_and_shown_large(qtbot, engine, viewer, cockpit) -> None:
    def drawing(job: Any, arrays: Any) -> Any:
        folder = RunFolder.create(job)
        folder.previews.mkdir()
        for number, shade in enumerate((60, 200), 1):
            Picture.new("RGB", (90, 80), (shade, 0, 0)).save(folder.previews / f"{number:02}.png")
        yield from distilling(job, arrays)
        Picture.new("RGB", (90, 80), (200, 9, 0)).save(folder.previews / "02.png")
        write_json(folder.path / COMPARISON, {"paragraphs": ["The student has <b>2</b> parameters."]})
        yield STEPS[-1]
        yield Epoch(2, 2, {}, 0.5)
        return Outcome({"run": str(folder.path), "student": "s", "dice": 0.5, "epochs": 2, "stopped": False})

    engine.will(drawing)
    assert not cockpit.preview.isVisible()
    click(qtbot, cockpit.button)
    qtbot.waitUntil(lambda: cockpit.preview.isVisible(), timeout=SOON)
    click(qtbot, cockpit.preview.in_viewer)
    click(qtbot, cockpit.preview.next)
    finish(qtbot, cockpit)
    assert cockpit.preview.title.text() == "Image 2 of 2"
    layer = viewer.layers["Preview: teacher, student, mask, mistakes"]
    assert layer.rgb
    np.testing.assert_array_equal(layer.data, np.broadcast_to((200, 9, 0), (80, 90, 3)))
    for button in (cockpit.preview.next, cockpit.preview.back, cockpit.preview.back):
        click(qtbot, button)
    assert layer.data[0, 0, 0] == 60
    assert cockpit.comparison.text() == "<p>The student has <b>2</b> parameters.</p>"
    assert "Dice" not in cockpit.status.text(), "the comparison says it, in pixels that may be other ones"


def test_what_the_cockpit_says_at_the_end_is_seen_whole_in_a_narrow_dock(qtbot, engine, cockpit) -> None:
    engine.will_return(({"run": "r", "student": "s", "dice": 0.5, "epochs": 2, "stopped": True}, {}))
    click(qtbot, cockpit.button)
    finish(qtbot, cockpit)
    cockpit.report.show()
    cockpit.say("The best student has a Dice of 0.5 on the validation images; " * 3)
    qtbot.wait(100)
    assert cockpit.minimumSizeHint().width() <= 300
    assert cockpit.status.height() >= cockpit.status.heightForWidth(cockpit.status.width())


def test_a_picture_of_the_run_keeps_its_height_in_a_full_panel(qtbot, engine, viewer, cockpit, tmp_path) -> None:
    viewer.window.resize(900, 600)
    cockpit.data.kind.setCurrentIndex(1)  # without a text that wraps, Qt gives every widget its least height
    Picture.new("RGB", (90, 400), (60, 0, 0)).save(tmp_path / "01.png")
    cockpit.preview.look(tmp_path)
    cockpit.chart.add(STEPS[0])
    qtbot.waitUntil(cockpit.preview.picture.isVisible)
    qtbot.wait(100)
    picture = cockpit.preview.picture
    shown = picture.pixmap().height() / picture.devicePixelRatioF()
    assert shown > 300
    assert picture.height() >= shown - 1


def interrupted_run(runs: Path, *, step: int = 7, name: str = "2026-01-02 rskd-nano") -> RunFolder:
    """A run folder as a process that was killed leaves it."""
    data = DataOptions(images=runs / "images")
    folder = RunFolder.create(
        DistillJob(
            teacher=Path("t.safetensors"),
            student="rskd-nano",
            data=data,
            run=runs / name,
            training=TrainOptions(epochs=2, steps_per_epoch=10),
        )
    )
    for event in STEPS[:step]:
        folder.append(event)
    folder.append(Epoch(1, 2, {"task": 0.1}, 0.625, {"vessel": 0.625}, best=True))
    folder.checkpoint.write_bytes(b"state")
    return folder


def test_an_interrupted_run_is_offered_and_goes_on(qtbot, engine, cockpit, tmp_path) -> None:
    engine.will(distilling)
    folder = interrupted_run(tmp_path / "runs")
    cockpit.run.set_path(tmp_path / "other")
    assert not cockpit.offer.isVisible()
    cockpit.run.set_path(tmp_path / "runs")
    assert "interrupted after step 7 of 20, best Dice 0.625" in cockpit.offer.words.text()
    click(qtbot, cockpit.offer.go_on)
    assert len(cockpit.chart.losses["total"]) >= 7
    finish(qtbot, cockpit)
    ((job, _),) = engine.made[0].jobs
    assert job == ResumeJob(run=folder.path)
    assert cockpit.use.isVisible()


def test_what_is_finished_or_left_is_not_offered(qtbot, cockpit, tmp_path) -> None:
    runs = tmp_path / "runs"
    interrupted_run(runs, step=20).append(Epoch(2, 2, {}, 0.7))
    cockpit._look_for_runs()
    assert not cockpit.offer.isVisible()
    folder = interrupted_run(runs, name="2026-01-03")
    cockpit._look_for_runs()
    assert cockpit.offer.isVisible()
    click(qtbot, cockpit.offer.leave)
    assert not cockpit.offer.isVisible()
    assert folder.set_aside


def test_a_run_of_another_process_is_watched_until_it_is_left_off(qtbot, engine, cockpit, tmp_path) -> None:
    folder = interrupted_run(tmp_path / "runs")
    with folder.locked():
        cockpit._look_for_runs()
        assert "is on its way, at step 7 of 20, best Dice 0.625" in cockpit.offer.words.text()
        click(qtbot, cockpit.offer.leave)
        assert not cockpit.offer.isVisible()
        assert not folder.set_aside
        cockpit._look_for_runs()
        click(qtbot, cockpit.offer.go_on)
        qtbot.waitUntil(lambda: len(cockpit.chart.losses.get("total", ())) == 7, timeout=SOON)
        folder.append(STEPS[7])
        qtbot.waitUntil(lambda: len(cockpit.chart.losses["total"]) == 8, timeout=SOON)
    finish(qtbot, cockpit)
    assert "was left off after step 8 of 20: it can go on" in cockpit.error_label.text()
    assert "was interrupted after step 8 of 20" in cockpit.offer.words.text()
    assert engine.made == []


def test_a_watched_run_is_paused_and_stopped_by_way_of_its_folder(qtbot, cockpit, tmp_path) -> None:
    folder = interrupted_run(tmp_path / "runs")
    with folder.locked():
        cockpit._look_for_runs()
        click(qtbot, cockpit.offer.go_on)
        click(qtbot, cockpit.stop)
        qtbot.waitUntil(lambda: folder.take_order() is Order.STOP, timeout=SOON)
        click(qtbot, cockpit.pause)
        qtbot.waitUntil(lambda: folder.take_order() is Order.PAUSE, timeout=SOON)
    finish(qtbot, cockpit)
    assert cockpit.status.text().startswith("Paused.")
    assert not folder.set_aside


def test_a_distillation_is_left_to_itself_when_napari_ends(qtbot, engine, cockpit, tmp_path, monkeypatch) -> None:
    workers: list[Any] = []
    create_worker = _job.create_worker
    monkeypatch.setattr(
        _job, "create_worker", lambda *args, **options: workers.append(create_worker(*args, **options)) or workers[-1]
    )
    engine.will(going_on_for_ever)
    click(qtbot, cockpit.button)
    qtbot.waitUntil(lambda: "Step" in cockpit.status.text(), timeout=SOON)
    (worker,) = workers
    worker.quit()  # as napari does when it closes
    finish(qtbot, cockpit)
    assert engine.made[0].detach
    assert engine.made[0].released
    (folder,) = (tmp_path / "runs").iterdir()
    assert not RunFolder(folder).set_aside


def test_a_folder_that_may_not_be_read_offers_nothing(cockpit, tmp_path, monkeypatch) -> None:
    def refuse(folder: Path) -> Any:
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(Path, "iterdir", refuse)
    cockpit.run.set_path(tmp_path)
    assert not cockpit.offer.isVisible()


def test_a_stopped_run_is_offered_as_what_it_is(cockpit, tmp_path) -> None:
    interrupted_run(tmp_path / "runs").append(Message("Stopped after step 7 of 20: resume the run to go on."))
    cockpit._look_for_runs()
    assert "was stopped after step 7 of 20" in cockpit.offer.words.text()


def going_on_for_ever(job: Any, arrays: Any) -> Any:
    folder = RunFolder.create(job) if isinstance(job, DistillJob) else RunFolder(job.run)
    folder.checkpoint.write_bytes(b"state")
    for step in itertools.cycle(STEPS[:10]):
        folder.append(step)
        yield step
        time.sleep(0.02)


def test_a_paused_run_is_offered_at_once_and_a_cancelled_one_is_not(qtbot, engine, cockpit, tmp_path) -> None:
    engine.will(going_on_for_ever)
    click(qtbot, cockpit.button)
    qtbot.waitUntil(lambda: "Step" in cockpit.status.text(), timeout=SOON)
    click(qtbot, cockpit.pause)
    finish(qtbot, cockpit)
    assert cockpit.status.text().startswith("Paused.")
    click(qtbot, cockpit.offer.go_on)
    qtbot.waitUntil(lambda: "Step" in cockpit.status.text(), timeout=SOON)
    click(qtbot, cockpit.button)
    finish(qtbot, cockpit)
    assert not cockpit.offer.isVisible()
    (folder,) = (tmp_path / "runs").iterdir()
    assert RunFolder(folder).set_aside


def test_a_pause_in_one_panel_is_one_in_every_panel_of_the_viewer(
    qtbot, engine, viewer, open_panel, cockpit, tmp_path
) -> None:
    engine.will(going_on_for_ever)
    click(qtbot, cockpit.button)
    qtbot.waitUntil(lambda: "Step" in cockpit.status.text(), timeout=SOON)
    other = DistillWidget(viewer)
    viewer.window.add_dock_widget(other, name="another")
    click(qtbot, cockpit.pause)
    for panel in (cockpit, other):
        finish(qtbot, panel)
        assert panel.status.text().startswith("Paused.")
    (folder,) = (tmp_path / "runs").iterdir()
    assert not RunFolder(folder).set_aside


def test_the_data_are_checked_on_a_click(qtbot, engine, cockpit, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    findings = [{"kind": "fact", "text": "24 images."}, {"kind": "warning", "text": "1 mask < empty."}]
    engine.will_return(({"findings": findings}, {}))
    click(qtbot, cockpit.check.button)
    assert cockpit.check.button.text() == "Cancel the check"
    qtbot.waitUntil(lambda: cockpit.check.work is None, timeout=SOON)
    ((job, _),) = engine.made[0].jobs
    assert isinstance(job, PreflightJob)
    assert job.data.images.is_relative_to(tmp_path / "temporary")
    assert list((tmp_path / "temporary").iterdir()) == []
    assert cockpit.check.words.text() == "<b>!</b> 1 mask &lt; empty.<br>✓ 24 images."
    cockpit.training.set_value(TrainOptions(epochs=3))
    cockpit.training.changed.emit()
    assert not cockpit.check.words.isVisible()


@pytest.mark.parametrize("change", ["student", "recipe"])
def test_what_was_foretold_for_another_run_does_not_stay(qtbot, engine, cockpit, change: str) -> None:
    engine.will_return(({"findings": [{"kind": "fact", "text": "It will take about 5 min."}]}, {}))
    click(qtbot, cockpit.check.button)
    qtbot.waitUntil(lambda: cockpit.check.work is None, timeout=SOON)
    assert cockpit.check.words.isVisible()
    if change == "student":
        cockpit.student.chosen.emit()
    else:
        cockpit.recipe.setCurrentIndex(1)
    assert not cockpit.check.words.isVisible()


def test_a_check_that_cannot_start_says_why_and_leaves_nothing(qtbot, engine, cockpit, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = sorted(tmp_path.iterdir())
    monkeypatch.setattr(cockpit, "reason", lambda: "Choose a teacher first.")
    click(qtbot, cockpit.check.button)
    assert "Choose a teacher first." in cockpit.check.words.text()
    assert sorted(tmp_path.iterdir()) == before


def test_editing_the_training_leaves_the_recipe(cockpit) -> None:
    open_sections(cockpit)
    cockpit.training.findChild(QSpinBox, "epochs").setValue(3)
    assert cockpit.recipe.currentText() == "As set below"
    cockpit.recipe.setCurrentIndex(1)
    assert cockpit.training.value().epochs == 100
    assert cockpit.recipe.currentIndex() == 1


def test_folders_are_asked_for_in_words(qtbot, cockpit, tmp_path) -> None:
    cockpit.data.kind.setCurrentIndex(1)
    assert cockpit.reason_label.text() == "Choose the folder with the images."
    qtbot.keyClicks(cockpit.data.folders.images.line, str(tmp_path / "nowhere"))
    assert cockpit.reason_label.text() == f"There is no folder {tmp_path / 'nowhere'}."
    cockpit.data.folders.images.set_path(tmp_path)
    assert cockpit.button.isEnabled()


def test_open_layers_become_the_training_set(qtbot, engine, viewer, cockpit) -> None:
    from rskd.io import read_labels, read_scan

    engine.will_return((DONE, {}))
    rng = np.random.default_rng(1)
    color = rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)
    mask = rng.integers(0, 2, (40, 50))
    viewer.add_image(color, name="eye/1", scale=(0.1, 0.2), units=("mm", "mm"))
    viewer.add_labels(mask, name="vessels of eye 1")
    cockpit.data.kind.setCurrentIndex(2)
    click(qtbot, cockpit.button)
    finish(qtbot, cockpit)
    job, _ = engine.made[0].jobs[0]
    plain, colored = sorted(job.data.images.iterdir())
    np.testing.assert_array_equal(read_scan(plain).data, viewer.layers["picture"].data)
    scan = read_scan(colored)
    np.testing.assert_array_equal(scan.data, color)
    assert scan.spacing == pytest.approx((0.1, 0.2))
    (only,) = job.data.masks.iterdir()
    assert only.stem == colored.stem
    np.testing.assert_array_equal(read_labels(only).data, mask)


def test_too_few_layers_are_not_enough(cockpit) -> None:
    cockpit.data.kind.setCurrentIndex(2)
    assert cockpit.reason_label.text().startswith("Open and tick at least 2 images")


def test_device_and_threads_come_from_the_preferences(plugin_settings, npe2pm) -> None:
    npe2pm.register(npe2.PluginManifest.from_distribution("napari-rskd"))
    assert compute_options() == InferenceOptions()
    settings = get_plugin_settings("napari-rskd")
    settings.compute.device, settings.compute.threads = "cpu", 3
    assert compute_options() == InferenceOptions(device="cpu", threads=3)
    settings.folders.runs = "/data/runs"
    assert runs_folder() == Path("/data/runs")
