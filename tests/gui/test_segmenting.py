"""The Segment panel: what is segmented, what is shown, what is kept and what is saved."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from napari._app_model import get_app_model
from napari.layers import Labels
from qtpy.QtCore import QPoint, Qt
from qtpy.QtWidgets import QFileDialog, QMessageBox

from napari_rskd import _results
from napari_rskd._job import aside
from napari_rskd._readers import layer_of
from napari_rskd._record import record_of
from napari_rskd._session import Model, session_of
from rskd.errors import DataError
from rskd.events import Message
from rskd.io import read_labels, read_scan, write_image
from rskd.jobs import BatchJob, Outcome
from rskd.scan import Scan
from tests.io.test_dicom import series

SOON = 60_000
CLASSES = [{"name": "background", "color": "#000000"}, {"name": "vessel", "color": "#e4572e"}]
ROW = {"class": ["vessel"], "time": [None], "size": [1.25], "unit": ["ml"], "components": [2], "mean_intensity": [0.5]}


def answer(job: Any, arrays: Any) -> Any:
    """Stand in for the network: a voxel is a vessel where it is bright."""
    yield None
    image = arrays["image"]
    labels = (image.mean(job.axes.index("c")) if "c" in job.axes else image) > 0.5
    maps = {name: np.ones(labels.shape, np.float32) / 2 for name in job.uncertainty}
    if job.compare_with is not None:
        maps |= {name: np.zeros(labels.shape, np.float32) for name in ("disagreement", "divergence")}
    if job.options.probabilities:
        maps["probabilities"] = np.stack([1.0 - labels, labels]).astype(np.float32)
    value = {"classes": CLASSES, "overlapping": False, "seconds": 0.1, "device": "cpu", "runtime": "onnx"}
    value |= {"features": {"index": [0, 1], "class": ["background", "vessel"], "ml": [None, 1.25]}}
    return Outcome({**value, "measurements": ROW}, {"labels": labels.astype(np.uint8), **maps})


@pytest.fixture
def panel(engine: Any, viewer: Any, open_panel: Callable[[str], Any]) -> Any:
    """The Segment panel over a volume, a teacher and a student."""
    engine.will(answer)
    session = session_of(viewer)
    session.teacher = session.learn(Model("Teacher A", "/models/a.safetensors"))
    session.student = session.learn(Model("Student B", "/models/b.safetensors"))
    viewer.layers.clear()
    volume = np.random.default_rng(0).random((5, 12, 16)).astype(np.float32)
    viewer.add_image(volume, name="CT", scale=(5, 0.5, 0.25), translate=(1, 2, 3), units=("mm",) * 3)
    return open_panel("Segment")


def click(qtbot: Any, button: Any) -> None:
    qtbot.mouseClick(button, Qt.MouseButton.LeftButton, pos=QPoint(8, button.height() // 2))


def segment(qtbot: Any, panel: Any) -> None:
    click(qtbot, panel.button)
    qtbot.waitUntil(lambda: panel.work is None and not panel._results.busy, timeout=SOON)


def save_table(qtbot: Any, panel: Any, monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    """Press “Save table…” and type a name."""
    monkeypatch.setattr(QFileDialog, "getSaveFileName", lambda *_: (str(path), "Table (*.csv)"))
    click(qtbot, panel.measured.save_button)


def choose(panel: Any, what: str) -> None:
    panel.target.kind.setCurrentText(what)


@pytest.mark.parametrize(("order", "axis"), [((0, 1, 2), 0), ((1, 0, 2), 1), ((2, 0, 1), 2)])
def test_the_slice_in_view_is_segmented_whatever_axis_it_is_cut_along(
    qtbot, engine, viewer, panel, order: tuple[int, ...], axis: int
) -> None:
    viewer.dims.order = order
    viewer.dims.set_current_step(axis, 3)
    choose(panel, "The slice in view")
    segment(qtbot, panel)
    (layer,) = [layer for layer in viewer.layers if isinstance(layer, Labels)]
    assert layer.name == f"Vessel (student, {'zyx'[axis]}=3)"
    expected = np.take(viewer.layers["CT"].data, [3], axis) > 0.5
    np.testing.assert_array_equal(layer.data, expected)
    first = np.zeros(3)
    np.testing.assert_allclose(
        layer.data_to_world(first), viewer.layers["CT"].data_to_world(3 * np.eye(3)[axis]), atol=1e-9
    )
    ((job, arrays),) = engine.made[0].jobs
    sizes = tuple(np.delete((5, 0.5, 0.25), axis))
    assert (job.axes, job.geometry.spacing, job.geometry.units) == ("yx", sizes, "mm")
    assert arrays["image"].ndim == 2


def test_what_a_brush_needs_is_drawn_after_the_labels(qtbot, viewer, panel) -> None:
    seen: list[list[bool]] = []
    viewer.layers.events.inserted.connect(lambda event: seen.append(aids(event.value)))
    segment(qtbot, panel)
    assert not any(seen[0])
    plain = viewer.add_labels(np.zeros((5, 12, 16), np.uint8))
    assert any(aids(plain))
    qtbot.waitUntil(lambda: aids(viewer.layers["Vessel (student)"]) == aids(plain), timeout=SOON)


def aids(layer: Any) -> list[bool]:
    """Return which of the things that its tools draw over a layer can be seen."""
    return [aid.visible for aid in layer._overlays.values()]


def test_the_record_names_the_program_that_was_used(qtbot, engine, viewer, panel) -> None:
    segment(qtbot, panel)
    ((asked, _),) = engine.made[0].jobs
    assert (asked.fastest, asked.compute.runtime) == (True, "auto")
    assert panel.status.text() == "Done in 0.1 s on cpu with ONNX Runtime."
    recorded = record_of(viewer).last().job
    assert (recorded.fastest, recorded.compute.runtime) == (False, "onnx")


@pytest.fixture
def done_aside(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], None]]:
    """What is to be done aside to be ready for labels, as if it had not been done yet."""
    asked: list[Callable[[], None]] = []
    _results.warm_up_drawing.cache_clear()
    _results.warm_up_labels.cache_clear()
    monkeypatch.setattr(_results, "aside", asked.append)
    return asked


def test_napari_is_ready_for_labels_before_the_first_ones(qtbot, engine, open_panel, done_aside) -> None:
    open_panel("Segment")
    qtbot.waitUntil(lambda: len(done_aside) == 2, timeout=SOON)
    for do in done_aside:
        do()
    qtbot.wait(100)
    assert len(done_aside) == 2


def test_two_threads_never_make_the_first_layer_at_once(qtbot, engine, viewer, open_panel, done_aside) -> None:
    viewer.layers.clear()
    open_panel("Segment")
    qtbot.waitUntil(lambda: done_aside == [_results._draw], timeout=SOON)
    qtbot.wait(200)
    assert done_aside == [_results._draw]
    viewer.add_image(np.zeros((8, 8)))
    qtbot.waitUntil(lambda: done_aside == [_results._draw, _results._make_labels], timeout=SOON)


def test_all_open_images_one_after_the_other_past_those_that_fail(qtbot, engine, viewer, panel) -> None:
    def script(job: Any, arrays: Any) -> Any:
        if arrays["image"].ndim == 2:
            raise DataError("It is too small.")
        return (yield from answer(job, arrays))

    engine.will(script)
    viewer.add_image(np.ones((4, 4)), name="crumb")
    viewer.add_image(np.ones((2, 8, 8)), name="MR")
    choose(panel, "All open images")
    segment(qtbot, panel)
    assert [layer.name for layer in viewer.layers if isinstance(layer, Labels)] == [
        "Vessel (student, CT)", "Vessel (student, MR)",
    ]  # fmt: skip
    assert panel.status.text() == "2 of 3 images are done."
    assert panel.error_label.text() == "crumb: It is too small."
    segment(qtbot, panel)  # what was made is no image to segment, and is replaced
    assert len(engine.made[0].jobs) == 6
    assert len(viewer.layers) == 5


def test_a_form_that_changes_meanwhile_changes_nothing_for_the_images_that_wait(qtbot, engine, viewer, panel) -> None:
    go_on = threading.Event()

    def script(job: Any, arrays: Any) -> Any:
        while not go_on.is_set():
            yield None
            time.sleep(0.01)
        return (yield from answer(job, arrays))

    engine.will(script)
    for name in ("MR", "PET"):
        viewer.add_image(np.ones((2, 8, 8)), name=name)
    choose(panel, "All open images")
    click(qtbot, panel.button)
    qtbot.waitUntil(lambda: bool(engine.made and engine.made[0].jobs), timeout=SOON)
    panel.network.setCurrentIndex(1)
    panel.extras.entropy.setChecked(True)
    panel.clean_up.rows["all"].largest.setChecked(True)
    session_of(viewer).student = None
    choose(panel, "A folder of images")
    go_on.set()
    qtbot.waitUntil(lambda: panel.work is None and not panel._results.busy, timeout=SOON)
    assert panel.status.text() == "3 of 3 images are done."
    jobs = [job for job, _ in engine.made[0].jobs]
    assert len(jobs) == 3
    for job in jobs:
        assert (job.model, job.uncertainty, job.clean_up.keep_largest) == (Path("/models/b.safetensors"), (), ())
    names = {f"Vessel (student, {name})" for name in ("CT", "MR", "PET")}
    assert names == {layer.name for layer in viewer.layers if isinstance(layer, Labels)}


def test_all_open_images_are_measured_in_one_table(qtbot, viewer, panel, monkeypatch, tmp_path) -> None:
    viewer.add_image(np.ones((2, 8, 8)), name="MR")
    choose(panel, "All open images")
    segment(qtbot, panel)
    table = panel.measured.table
    qtbot.waitUntil(lambda: panel.measured.isVisible() and table.rowCount() == 2, timeout=SOON)
    cells = [[table.item(row, column).text() for column in range(5)] for row in range(2)]
    assert cells == [["CT", "Vessel", "1.25 ml", "2", "0.5"], ["MR", "Vessel", "1.25 ml", "2", "0.5"]]
    save_table(qtbot, panel, monkeypatch, tmp_path / "table.csv")
    lines = (tmp_path / "table.csv").read_text().splitlines()
    assert [line.partition(",")[0] for line in lines] == ["image", "CT", "MR"]


def test_cancelling_one_of_all_cancels_them_all(qtbot, engine, viewer, panel) -> None:
    engine.will_run_until_stopped()
    viewer.add_image(np.ones((2, 8, 8)), name="MR")
    choose(panel, "All open images")
    click(qtbot, panel.button)
    qtbot.waitUntil(lambda: len(engine.made[0].jobs) == 1, timeout=SOON)
    click(qtbot, panel.button)
    qtbot.waitUntil(lambda: panel.work is None, timeout=SOON)
    assert panel.status.text() == "Cancelled."
    assert len(engine.made[0].jobs) <= 1  # it may have been too quick for the first, too


def test_a_folder_and_what_failed_in_it(qtbot, engine, panel, tmp_path) -> None:
    def script(job: Any, arrays: Any) -> Any:
        yield Message("Image 0123 is left out: It cannot be read.", warning=True)
        counts = {"images": 3, "done": 2, "skipped": 0, "failed": 1, "stopped": False, "output": str(job.output)}
        return Outcome(counts)

    engine.will(script)
    choose(panel, "A folder of images")
    assert panel.reason_label.text() == "Choose the folder with the images."
    panel.target.images.set_path(tmp_path / "scans")
    assert panel.reason_label.text() == "Choose the folder for the results."
    panel.target.output.set_path(tmp_path / "results")
    segment(qtbot, panel)
    ((job, _),) = engine.made[0].jobs
    assert isinstance(job, BatchJob)
    assert (job.images, job.output) == (tmp_path / "scans", tmp_path / "results")
    assert panel.status.text() == f"3 images: 2 done, 1 failed. The results are in {tmp_path / 'results'}."
    assert panel.error_label.text() == "Image 0123 is left out: It cannot be read."


def test_maps_measurements_and_clean_up_that_were_asked_for(
    qtbot, engine, viewer, panel, monkeypatch, tmp_path
) -> None:
    for box in (panel.extras.probabilities, panel.extras.entropy, panel.extras.compare):
        box.setChecked(True)
    row = panel.clean_up.rows["all"]
    row.size.setValue(0.5)
    row.largest.setChecked(True)
    panel.clean_up.unit.setCurrentText("ml")
    segment(qtbot, panel)
    ((job, _),) = engine.made[0].jobs
    assert (job.uncertainty, job.compare_with, job.measure) == (("entropy",), Path("/models/a.safetensors"), "classes")
    assert (job.clean_up.sizes, job.clean_up.size_unit, job.clean_up.keep_largest) == ({"all": 0.5}, "ml", ("all",))
    image = viewer.layers["CT"]
    names = ["Uncertainty", "Where the networks differ", "How far the networks are apart", "Probability of vessel"]
    for layer in [viewer.layers[f"{name} (student)"] for name in [*names, "Vessel"]]:
        assert layer.data.shape == image.data.shape
        np.testing.assert_allclose(layer.data_to_world((4, 3, 2)), image.data_to_world((4, 3, 2)))
        assert (layer.units, layer.axis_labels) == (image.units, image.axis_labels)
    assert [*viewer.layers["Vessel (student)"].features["ml"]][1] == 1.25
    qtbot.waitUntil(panel.save_button.isVisible, timeout=SOON)
    table = panel.measured.table
    assert [table.item(0, column).text() for column in range(4)] == ["Vessel", "1.25 ml", "2", "0.5"]
    save_table(qtbot, panel, monkeypatch, tmp_path / "table")
    assert (tmp_path / "table.csv").read_text().splitlines()[1] == "vessel,,1.25,ml,2,0.5"


def test_classes_of_a_known_network_are_cleaned_up_one_by_one(viewer, panel) -> None:
    session = session_of(viewer)
    classes = [{"name": name} for name in ("background", "liver", "lesion")]
    session.learn(Model("Student B", "/models/b.safetensors", passport={"spec": {"classes": classes}}))
    assert panel.column.parentWidget().minimumSizeHint().width() <= 300 - 14  # beside a scroll bar
    panel.clean_up.rows["liver"].holes.setChecked(True)
    assert panel.clean_up.options().fill_holes == ("liver",)
    session.learn(Model("Another", "/models/c.safetensors"))
    session.teacher = Model("Teacher C", "/models/c.safetensors")
    session.run = Path("run")
    assert panel.clean_up.options().fill_holes == ("liver",)
    session.learn(Model("Student B", "/models/b.safetensors"))
    assert not panel.clean_up.options().active


def test_running_again_replaces_its_own_labels_but_never_edited_ones(qtbot, viewer, panel) -> None:
    segment(qtbot, panel)
    first = viewer.layers["Vessel (student)"]
    first.opacity = 0.3
    viewer.layers["CT"].data = 1 - viewer.layers["CT"].data
    for _ in range(2):
        segment(qtbot, panel)
        assert [layer for layer in viewer.layers if isinstance(layer, Labels)] == [first]
    assert first.opacity == 0.3
    np.testing.assert_array_equal(first.data, viewer.layers["CT"].data > 0.5)

    first.brush_size = 3
    first.paint((2, 6, 6), 1)
    by_hand = first.data.copy()
    segment(qtbot, panel)
    second = viewer.layers["Vessel (student) [1]"]
    np.testing.assert_array_equal(first.data, by_hand)
    assert "edited is still there" in panel.status.text()
    segment(qtbot, panel)  # the new one was not edited
    assert [layer for layer in viewer.layers if isinstance(layer, Labels)] == [first, second]
    assert "edited" in panel.status.text()

    panel.network.setCurrentIndex(1)
    segment(qtbot, panel)
    assert "Vessel (teacher)" in viewer.layers


def test_what_was_painted_in_a_copy_of_the_labels_stays(qtbot, viewer, panel) -> None:
    segment(qtbot, panel)
    first = viewer.layers["Vessel (student)"]
    viewer.layers.selection.active = first
    get_app_model().commands.execute_command("napari.layer.duplicate").result()
    copy = viewer.layers["Vessel (student) copy"]
    copy.brush_size = 3
    copy.paint((2, 6, 6), 1)
    by_hand = copy.data.copy()
    viewer.layers["CT"].data = 1 - viewer.layers["CT"].data
    segment(qtbot, panel)
    np.testing.assert_array_equal(copy.data, by_hand)
    np.testing.assert_array_equal(first.data, viewer.layers["CT"].data > 0.5)
    assert "copied or edited is still there" in panel.status.text()


def test_labels_that_got_other_data_count_as_edited_and_other_slices_stay(qtbot, viewer, panel) -> None:
    choose(panel, "The slice in view")
    viewer.dims.set_current_step(0, 1)
    segment(qtbot, panel)
    viewer.dims.set_current_step(0, 2)
    segment(qtbot, panel)
    assert {"Vessel (student, z=1)", "Vessel (student, z=2)"} <= {layer.name for layer in viewer.layers}
    mine = viewer.layers["Vessel (student, z=2)"]
    mine.data = np.zeros_like(mine.data)
    segment(qtbot, panel)
    assert not mine.data.any()
    assert "Vessel (student, z=2) [1]" in viewer.layers


def test_the_legend_is_shown_again_after_it_was_hidden(qtbot, viewer, panel) -> None:
    segment(qtbot, panel)
    qtbot.waitUntil(panel.legend_button.isVisible, timeout=SOON)
    click(qtbot, panel.legend_button)
    dock, legend = viewer.window.add_plugin_dock_widget("napari-rskd", "Legend")
    qtbot.waitUntil(legend.isVisible, timeout=SOON)
    click(qtbot, dock.title.hide_button)
    assert not legend.isVisible()
    click(qtbot, panel.legend_button)
    qtbot.waitUntil(legend.isVisible, timeout=SOON)


@pytest.mark.parametrize("ending", [".nii.gz", ".ome.tif", ".zarr"])
def test_save_as_it_is_now(qtbot, viewer, panel, monkeypatch, tmp_path, ending: str) -> None:
    scan = Scan(viewer.layers["CT"].data, "zyx", spacing=(5.0, 0.5, 0.25), units="mm")
    write_image(tmp_path / "head.nii.gz", scan)
    data, options, _ = layer_of(read_scan(tmp_path / "head.nii.gz"))
    viewer.layers.clear()
    viewer.add_image(data, **options)
    segment(qtbot, panel)
    labels = viewer.layers["Vessel (student)"]
    labels.brush_size = 3
    labels.paint((2, 6, 6), 1)
    asked: list[str] = []

    def dialog(parent: Any, title: str, suggested: str, lines: str) -> tuple[str, str]:
        asked.append(suggested)
        return str(tmp_path / f"saved{ending}"), lines.split(";;")[0]

    monkeypatch.setattr(QFileDialog, "getSaveFileName", dialog)
    qtbot.waitUntil(panel.save_button.isVisible, timeout=SOON)
    click(qtbot, panel.save_button)
    qtbot.waitUntil(lambda: panel.status.text() == f"Saved as saved{ending}.", timeout=SOON)
    assert asked == [str(tmp_path / "head_segmentation.nii.gz")]
    np.testing.assert_array_equal(read_labels(tmp_path / f"saved{ending}").data, labels.data)
    before = (tmp_path / "head.nii.gz").read_bytes()
    panel.save(tmp_path / "head.nii.gz", [labels])
    qtbot.waitUntil(panel.error_label.isVisible, timeout=SOON)
    assert "is the image itself" in panel.error_label.text()
    assert (tmp_path / "head.nii.gz").read_bytes() == before


@pytest.fixture
def next_one(qtbot: Any, engine: Any, viewer: Any, panel: Any) -> Callable[[], None]:
    """Two open images of which the first, CT, is segmented; lets the result of the other arrive."""
    go_on = threading.Event()

    def script(job: Any, arrays: Any) -> Any:
        while len(engine.made[0].jobs) > 1 and not go_on.is_set():
            yield None
            time.sleep(0.01)
        return (yield from answer(job, arrays))

    def arrive() -> None:
        go_on.set()
        qtbot.waitUntil(lambda: panel.work is None and not panel._results.busy, timeout=SOON)
        qtbot.waitUntil(lambda: panel.measured.table.rowCount() == 2, timeout=SOON)

    engine.will(script)
    viewer.add_image(np.ones((2, 8, 8)), name="MR")
    choose(panel, "All open images")
    click(qtbot, panel.button)
    qtbot.waitUntil(lambda: panel.save_button.isVisible() and panel.measured.table.rowCount() == 1, timeout=SOON)
    return arrive


def test_a_result_that_arrives_while_a_name_is_chosen_is_not_saved_under_it(
    qtbot, viewer, panel, next_one, monkeypatch, tmp_path
) -> None:
    def dialog(parent: Any, title: str, suggested: str, lines: str) -> tuple[str, str]:
        next_one()
        return str(tmp_path / f"{Path(suggested).stem}.nii.gz"), ""

    monkeypatch.setattr(QFileDialog, "getSaveFileName", dialog)
    click(qtbot, panel.save_button)
    qtbot.waitUntil(lambda: panel.status.text().startswith("Saved as CT_"), timeout=SOON)
    (file,) = tmp_path.glob("CT_*")
    np.testing.assert_array_equal(read_labels(file).data, viewer.layers["Vessel (student, CT)"].data)


def test_measurements_that_arrive_while_a_name_is_chosen_are_not_saved_under_it(
    qtbot, panel, next_one, monkeypatch, tmp_path
) -> None:
    def dialog(*_: Any) -> tuple[str, str]:
        next_one()
        return str(tmp_path / "CT.csv"), ""

    monkeypatch.setattr(QFileDialog, "getSaveFileName", dialog)
    click(qtbot, panel.measured.save_button)
    lines = (tmp_path / "CT.csv").read_text().splitlines()
    assert [line.partition(",")[0] for line in lines] == ["image", "CT"]


def test_a_result_that_was_removed_while_a_name_is_chosen_is_not_saved(
    qtbot, viewer, panel, monkeypatch, tmp_path
) -> None:
    def dialog(*_: Any) -> tuple[str, str]:
        viewer.layers.remove("Vessel (student)")
        return str(tmp_path / "saved.nii.gz"), ""

    segment(qtbot, panel)
    qtbot.waitUntil(panel.save_button.isVisible, timeout=SOON)
    monkeypatch.setattr(QFileDialog, "getSaveFileName", dialog)
    click(qtbot, panel.save_button)
    assert panel.status.text() == "There is no result any more: segment again."
    qtbot.wait(200)
    assert not (tmp_path / "saved.nii.gz").exists()


def test_what_is_painted_after_saving_was_asked_for_is_not_saved(qtbot, viewer, panel, monkeypatch, tmp_path) -> None:
    segment(qtbot, panel)
    qtbot.waitUntil(panel.save_button.isVisible, timeout=SOON)
    labels, go_on = viewer.layers["Vessel (student)"], threading.Event()
    before = labels.data.copy()
    aside(go_on.wait, SOON / 1000)
    monkeypatch.setattr(QFileDialog, "getSaveFileName", lambda *_: (str(tmp_path / "saved.nii.gz"), ""))
    click(qtbot, panel.save_button)
    labels.fill((2, 6, 6), 7)
    assert not np.array_equal(labels.data, before)
    go_on.set()
    qtbot.waitUntil(lambda: panel.status.text() == "Saved as saved.nii.gz.", timeout=SOON)
    np.testing.assert_array_equal(read_labels(tmp_path / "saved.nii.gz").data, before)


def test_a_file_that_the_completed_name_would_replace_is_asked_about(
    qtbot, viewer, panel, monkeypatch, tmp_path
) -> None:
    segment(qtbot, panel)
    qtbot.waitUntil(panel.save_button.isVisible, timeout=SOON)
    names = {"saved": ("saved.ome.tif", panel.save_button), "table": ("table.csv", panel.measured.save_button)}
    asked: list[str] = []

    def answer(button: QMessageBox.StandardButton) -> None:
        monkeypatch.setattr(QMessageBox, "question", lambda *words: (asked.append(words[-1]), button)[1])

    for typed, (name, button) in names.items():
        file = tmp_path / name
        file.write_bytes(b"somebody else's")
        monkeypatch.setattr(
            QFileDialog, "getSaveFileName", lambda *_, t=typed: (str(tmp_path / t), "OME-TIFF (*.ome.tif *.ome.tiff)")
        )
        answer(QMessageBox.StandardButton.No)
        click(qtbot, button)
        assert asked == [f"{name}: there is such a file already. Replace it?"]
        qtbot.wait(200)
        assert file.read_bytes() == b"somebody else's"
        answer(QMessageBox.StandardButton.Yes)
        click(qtbot, button)
        qtbot.waitUntil(lambda f=file: f.read_bytes() != b"somebody else's", timeout=SOON)
        asked.clear()


def test_labels_of_a_dicom_series_are_saved_as_a_dicom_segmentation(
    qtbot, viewer, panel, monkeypatch, tmp_path
) -> None:
    data, options, _ = layer_of(read_scan(series(tmp_path / "scan")))
    viewer.layers.clear()
    viewer.add_image(data, **options)
    segment(qtbot, panel)
    asked: list[str] = []

    def dialog(parent: Any, title: str, suggested: str, lines: str) -> tuple[str, str]:
        asked.append(suggested)
        return str(tmp_path / "saved"), lines.split(";;")[0]

    monkeypatch.setattr(QFileDialog, "getSaveFileName", dialog)
    qtbot.waitUntil(panel.save_button.isVisible, timeout=SOON)
    click(qtbot, panel.save_button)
    qtbot.waitUntil(lambda: panel.status.text() == "Saved as saved.dcm.", timeout=SOON)
    assert asked[0].endswith("_segmentation.dcm")
    saved, source = read_scan(tmp_path / "saved.dcm"), read_scan(tmp_path / "scan")
    assert (saved.meaning, saved.modality) == ("labels", "SEG")
    np.testing.assert_allclose(saved.affine, source.affine, atol=1e-6)
    np.testing.assert_array_equal(saved.data, viewer.layers["Vessel (student)"].data)
