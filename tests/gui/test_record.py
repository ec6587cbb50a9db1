"""What is done in the window is recorded, and gives the same arrays when it is done again without one."""

import gc
import json
import shlex
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qtpy.QtCore import QPoint, Qt
from qtpy.QtGui import QGuiApplication
from qtpy.QtWidgets import QFileDialog, QMessageBox

from napari_rskd import _job
from napari_rskd._recipe_menu import RecipeMenu
from napari_rskd._record import KEPT, Record, draft, record_of
from rskd.config import ContourletOptions
from rskd.io import write_image
from rskd.jobs import Outcome
from rskd.scan import Scan
from tests.io.test_dicom import series

LONG = 120_000  # milliseconds
LEVELS = ContourletOptions(levels=(2, 2))


@pytest.fixture(scope="module", autouse=True)
def no_engine_left() -> Iterator[None]:
    yield
    _job.shut_down()


@pytest.fixture
def photo(viewer: Any, tmp_path: Path) -> Any:
    """A colour photograph that was opened from a file whose name is a person's."""
    path = tmp_path / "Jane Doe.png"
    rng = np.random.default_rng(0)
    write_image(path, Scan(rng.integers(0, 256, (64, 96, 3), np.uint8), "yxc"))
    viewer.layers.clear()
    (layer,) = viewer.open(str(path))
    return layer


def press(qtbot: Any, panel: Any, button: Any) -> Outcome:
    """Press a button and wait; return what came of it."""
    outcomes: list[Outcome] = []
    qtbot.mouseClick(button, Qt.MouseButton.LeftButton, pos=QPoint(8, button.height() // 2))
    panel.work.returned.connect(outcomes.append)
    qtbot.waitUntil(lambda: panel.work is None, timeout=LONG)
    assert panel.error_label.text() == ""
    return outcomes[0]


def choose(qtbot: Any, panel: Any, entry: str) -> None:
    """Choose an entry of the recipe menu, and wait until it is done."""
    menu = panel.findChild(RecipeMenu)
    menu.menu().aboutToShow.emit()
    action = getattr(menu, entry)
    assert action.isEnabled()
    action.trigger()
    qtbot.waitUntil(menu.isEnabled, timeout=LONG)


def save_as(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    monkeypatch.setattr(QFileDialog, "getSaveFileName", lambda *_: (str(path), ""))


def run_line(line: str, folder: Path) -> None:
    """Run a copied command as a terminal would."""
    program, *words = shlex.split(line)
    assert program == "rskd"
    subprocess.run([sys.executable, "-m", "rskd", *words], cwd=folder, check=True, capture_output=True)


def found(folder: Path) -> dict[str, np.ndarray]:
    return {path.stem: np.load(path) for path in folder.glob("*.npy")}


def same(one: Any, other: Any) -> None:
    assert sorted(one) == sorted(other)
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])


@pytest.mark.slow
def test_a_click_through_is_replayed_with_the_same_arrays(
    qtbot, viewer, photo, open_panel, tmp_path, monkeypatch
) -> None:
    outcomes = {}
    segment = open_panel("Segment")
    outcomes["01_segment"] = press(qtbot, segment, segment.button)
    tokens = open_panel("Token ranking")
    outcomes["02_survey"] = press(qtbot, tokens, tokens.button)
    qtbot.waitUntil(lambda: "Agreement" in tokens.agreement.text(), timeout=LONG)
    split = open_panel("Contourlet")
    split.image.choose(photo)
    split.options.set_value(LEVELS)
    outcomes["04_contourlet"] = press(qtbot, split, split.button)
    slider = split.gains.sliders["lowpass"]
    slider.setFocus()
    for _ in range(3):
        qtbot.keyClick(slider, Qt.Key.Key_PageDown)
    qtbot.waitUntil(lambda: not split._rebuilding.busy and "Reconstruction" in viewer.layers, timeout=LONG)
    picture = np.asarray(viewer.layers["Reconstruction"].data)

    save_as(monkeypatch, tmp_path / "recipe.json")
    choose(qtbot, split, "save")
    assert "Saved recipe.json: “rskd run" in split.status.text()
    jobs = [step["job"] for step in json.loads((tmp_path / "recipe.json").read_text())["steps"]]
    used = outcomes["01_segment"].value["runtime"]  # the faster one, whichever that is here
    assert (jobs[0]["compute"]["runtime"], jobs[0]["fastest"]) == (used, False)
    kinds = [job["kind"] for job in jobs]
    assert kinds == ["segment", "survey", "agreement", "contourlet", "reconstruct"]
    run_line(f"rskd run {tmp_path / 'recipe.json'} --output again", tmp_path)
    for folder, outcome in outcomes.items():
        same(found(tmp_path / "again" / folder), outcome.arrays)
    np.testing.assert_array_equal(found(tmp_path / "again" / "05_reconstruct")["reconstruction"], picture)

    choose(qtbot, split, "command")
    run_line(QGuiApplication.clipboard().text(), tmp_path)
    np.testing.assert_array_equal(found(tmp_path / "results" / "01_reconstruct")["reconstruction"], picture)
    choose(qtbot, split, "python")
    pasted: dict[str, Any] = {}
    exec(QGuiApplication.clipboard().text(), pasted)  # noqa: S102 - that it runs is what is to be shown
    np.testing.assert_array_equal(pasted["step1"].arrays["reconstruction"], picture)


def test_a_picture_without_a_file_is_saved_beside_on_request(qtbot, viewer, open_panel, tmp_path, monkeypatch) -> None:
    panel = open_panel("Contourlet")
    outcome = press(qtbot, panel, panel.denoise)
    asked: list[str] = []
    save_as(monkeypatch, tmp_path / "mine.json")

    def answer(yes: bool) -> None:
        button = QMessageBox.StandardButton.Yes if yes else QMessageBox.StandardButton.No
        monkeypatch.setattr(QMessageBox, "question", lambda *words: (asked.append(words[-1]), button)[1])

    answer(False)
    choose(qtbot, panel, "save")
    assert panel.status.text() == "The recipe was not saved."
    assert list(tmp_path.iterdir()) == []
    answer(True)
    choose(qtbot, panel, "save")
    assert "One picture of this recipe has no file" in asked[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine-1.npy", "mine.json"]
    assert str(tmp_path) not in (tmp_path / "mine.json").read_text()  # both can be moved
    run_line("rskd run mine.json --output out", tmp_path)
    same(found(tmp_path / "out" / "01_denoise"), outcome.arrays)

    save_as(monkeypatch, tmp_path / "picture.npy")
    choose(qtbot, panel, "command")
    run_line(QGuiApplication.clipboard().text(), tmp_path)
    import tifffile

    np.testing.assert_array_equal(tifffile.imread(tmp_path / "denoised.tif"), outcome.arrays["denoised"])


def test_nothing_done_nothing_offered(qtbot, engine, viewer, open_panel) -> None:
    panel = open_panel("Contourlet")
    menu = panel.findChild(RecipeMenu)
    menu.menu().aboutToShow.emit()
    assert not any(entry.isEnabled() for entry in (menu.command, menu.python, menu.save))


def test_no_name_of_a_layer_enters_a_recipe(qtbot, engine, viewer, open_panel, tmp_path, monkeypatch) -> None:
    viewer.layers["picture"].name = "Jane Doe"
    engine.will_return(({}, {"denoised": np.zeros((48, 64))}))
    panel = open_panel("Contourlet")
    press(qtbot, panel, panel.denoise)
    save_as(monkeypatch, tmp_path / "r.json")
    monkeypatch.setattr(QMessageBox, "question", lambda *_: QMessageBox.StandardButton.Yes)
    choose(qtbot, panel, "save")
    assert "Doe" not in (tmp_path / "r.json").read_text()


def test_the_files_of_dicom_are_not_named(qtbot, engine, viewer, open_panel, tmp_path, monkeypatch) -> None:
    folder = tmp_path / "DOE^JANE"
    series(folder)
    viewer.layers.clear()
    viewer.open(str(folder), plugin="napari-rskd")
    engine.will_return(({}, {"denoised": np.zeros((4, 4))}))
    panel = open_panel("Contourlet")
    press(qtbot, panel, panel.denoise)
    monkeypatch.setattr(QMessageBox, "question", lambda *_: QMessageBox.StandardButton.Yes)
    save_as(monkeypatch, tmp_path / "r.json")
    choose(qtbot, panel, "save")
    assert "DOE" not in (tmp_path / "r.json").read_text()
    assert (tmp_path / "r-1.npy").exists()


def test_of_what_follows_a_slider_only_the_last_state_is_kept(qtbot, engine, viewer) -> None:
    from rskd.jobs import ContourletJob, ReconstructJob

    engine.will(lambda job, arrays: iter_outcome())
    record = Record()

    def do(job: Any, title: str) -> None:
        work = _job.Work(lambda: (job, {"image": np.zeros((4, 4))}), title=title)
        record.follow(work)
        with qtbot.waitSignal(work.ended):
            work.start()

    do(ContourletJob(), "Splitting")
    for gain in (0.9, 0.8):
        do(ReconstructJob(gains={"lowpass": gain}), "")
    do(ContourletJob(), "Splitting")
    do(ReconstructJob(gains={"lowpass": 0.1}), "")
    kinds = [action.job.kind for action in record.actions]
    assert kinds == ["contourlet", "reconstruct", "contourlet", "reconstruct"]
    assert record.actions[1].job.gains == {"lowpass": 0.8}


def iter_outcome() -> Any:
    yield None
    return Outcome({}, {})


def test_a_large_array_is_not_kept_for_the_recipe_alone(qtbot, engine, viewer, tmp_path) -> None:
    from rskd.jobs import DenoiseJob

    engine.will(lambda job, arrays: iter_outcome())
    record = Record()
    arrays = {"image": np.zeros(KEPT + 1, np.uint8)}
    work = _job.Work(lambda: (DenoiseJob(), dict(arrays)))
    record.follow(work)
    with qtbot.waitSignal(work.ended):
        work.start()
    assert len(draft(record.actions, []).loose) == 1
    arrays.clear()
    engine.made[0].jobs.clear()
    assert draft(record.actions, []).lost == [1]


def test_each_viewer_has_its_own_record(make_napari_viewer) -> None:
    one, other = make_napari_viewer(), make_napari_viewer()
    assert record_of(one) is not record_of(other)
    assert record_of(one) is record_of(one)


def test_a_picture_that_is_there_is_replaced_only_on_request(
    qtbot, engine, viewer, open_panel, tmp_path, monkeypatch
) -> None:
    engine.will_return(({}, {"denoised": np.zeros((48, 64))}))
    panel = open_panel("Contourlet")
    press(qtbot, panel, panel.denoise)
    other = tmp_path / "r-1.npy"
    other.write_bytes(b"somebody else's")
    asked: list[str] = []
    yes, no = QMessageBox.StandardButton.Yes, QMessageBox.StandardButton.No

    def save(*, replace: bool) -> None:
        def question(parent: Any, title: str, words: str) -> Any:
            asked.append(words)
            return no if "r-1.npy" in words and not replace else yes

        monkeypatch.setattr(QMessageBox, "question", question)
        choose(qtbot, panel, "save")

    save_as(monkeypatch, tmp_path / "r.json")
    save(replace=False)
    assert asked[-1] == "r-1.npy: there is such a file already. Replace it?"
    assert panel.status.text() == "The recipe was not saved."
    assert other.read_bytes() == b"somebody else's"
    assert not (tmp_path / "r.json").exists()
    save(replace=True)
    assert np.load(other).shape == (48, 64)
    save_as(monkeypatch, tmp_path / "alone.npy")
    (tmp_path / "alone.npy").touch()
    before = len(asked)
    choose(qtbot, panel, "command")
    assert len(asked) == before  # the file dialog has asked


def done(qtbot: Any, engine: Any, record: Record, array: np.ndarray) -> None:
    """Do something with an array that only the record keeps."""
    from rskd.jobs import DenoiseJob

    arrays = {"image": array}
    work = _job.Work(lambda: (DenoiseJob(), arrays), title="Removing noise")
    record.follow(work)
    with qtbot.waitSignal(work.ended):
        work.start()
    engine.made[0].jobs.clear()
    arrays.clear()


def test_a_slice_does_not_keep_its_volume(qtbot, engine, viewer) -> None:
    engine.will(lambda job, arrays: iter_outcome())
    record = Record()
    volume = np.arange(4 * 6 * 8).reshape(4, 6, 8).copy()
    expected, gone = volume[2].copy(), weakref.ref(volume)
    done(qtbot, engine, record, volume[2])
    del volume
    gc.collect()
    assert gone() is None
    np.testing.assert_array_equal(draft(record.actions, []).loose[0], expected)


def test_the_oldest_arrays_are_let_go_when_all_are_too_large(qtbot, engine, viewer, monkeypatch) -> None:
    monkeypatch.setattr("napari_rskd._record.KEPT_IN_ALL", 2500)
    engine.will(lambda job, arrays: iter_outcome())
    record = Record()
    open_still = np.zeros(1000, np.uint8)
    done(qtbot, engine, record, open_still)
    for _ in range(3):
        done(qtbot, engine, record, np.zeros(1000, np.uint8))
    gc.collect()
    assert draft(record.actions, []).lost == [2]  # the first is kept by somebody else
    del open_still
    gc.collect()
    assert draft(record.actions, []).lost == [1, 2]


def test_pictures_are_written_off_the_windows_thread(qtbot, engine, viewer, open_panel, tmp_path, monkeypatch) -> None:
    engine.will_return(({}, {"denoised": np.zeros((48, 64))}))
    panel = open_panel("Contourlet")
    press(qtbot, panel, panel.denoise)
    threads: list[threading.Thread] = []
    save = np.save
    monkeypatch.setattr(np, "save", lambda *a, **k: (threads.append(threading.current_thread()), save(*a, **k)))
    monkeypatch.setattr(QMessageBox, "question", lambda *_: QMessageBox.StandardButton.Yes)
    for name, entry in (("r.json", "save"), ("picture.npy", "command")):
        save_as(monkeypatch, tmp_path / name)
        choose(qtbot, panel, entry)
    assert len(threads) == 2
    assert threading.main_thread() not in threads
    (tmp_path / "occupied").touch()
    save_as(monkeypatch, tmp_path / "occupied" / "r.json")
    choose(qtbot, panel, "save")
    assert "cannot be written" in panel.status.text()
