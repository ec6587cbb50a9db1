"""The live preview: what is in view, never a queue, another image or network begins anew."""

import threading
from typing import Any

import numpy as np
import pytest
from qtpy.QtCore import QPoint, Qt

from napari_rskd._live_preview import NAME
from napari_rskd._session import Model, session_of
from rskd.errors import DataError
from rskd.jobs import Outcome

SOON = 60_000
CLASSES = [{"name": "background", "color": "#000000"}, {"name": "vessel", "color": "#e4572e"}]


def answer(job: Any, arrays: Any) -> Any:
    yield None
    labels = (arrays["image"] > 0.5).astype(np.uint8)
    value = {"classes": CLASSES, "overlapping": False, "seconds": 0.1, "device": "cpu", "runtime": "onnx"}
    return Outcome(value, {"labels": labels})


@pytest.fixture
def panel(engine: Any, viewer: Any, open_panel: Any) -> Any:
    """The Segment panel over a volume."""
    engine.will(answer)
    session = session_of(viewer)
    session.teacher = session.learn(Model("Teacher A", "/models/a.safetensors"))
    session.student = session.learn(Model("Student B", "/models/b.safetensors"))
    viewer.layers.clear()
    volume = np.random.default_rng(0).random((9, 12, 16)).astype(np.float32)
    viewer.add_image(volume, name="CT", scale=(5, 0.5, 0.25), translate=(1, 2, 3), units=("mm",) * 3, rotate=(5, 0, 0))
    return open_panel("Segment")


def switch(qtbot: Any, panel: Any) -> None:
    qtbot.mouseClick(panel.live, Qt.MouseButton.LeftButton, pos=QPoint(8, panel.live.height() // 2))


def settle(qtbot: Any, panel: Any) -> None:
    qtbot.waitUntil(lambda: not panel._preview.busy, timeout=SOON)


def test_every_slice_that_is_looked_at_gets_its_labels(qtbot, engine, viewer, panel) -> None:
    volume = viewer.layers["CT"]
    viewer.dims.set_current_step(0, 2)
    switch(qtbot, panel)
    settle(qtbot, panel)
    preview = viewer.layers[NAME]
    expected = np.zeros_like(volume.data, bool)
    expected[2] = volume.data[2] > 0.5
    np.testing.assert_array_equal(preview.data, expected)
    np.testing.assert_allclose(preview.data_to_world((3, 2, 1)), volume.data_to_world((3, 2, 1)))
    assert preview.units == volume.units
    viewer.dims.set_current_step(0, 7)
    settle(qtbot, panel)
    viewer.dims.order = (2, 1, 0)
    viewer.dims.set_current_step(2, 4)
    settle(qtbot, panel)
    np.testing.assert_array_equal(preview.data[7], volume.data[7] > 0.5)
    np.testing.assert_array_equal(preview._slice.image.raw, volume._slice.image.raw > 0.5)
    assert all(job.options.overlap == 0 for job, _ in engine.made[0].jobs)
    done = len(engine.made[0].jobs)
    viewer.dims.order = (0, 1, 2)
    viewer.dims.set_current_step(0, 2)  # was seen
    settle(qtbot, panel)
    assert len(engine.made[0].jobs) == done
    assert "slice" in panel.speed.text()
    switch(qtbot, panel)
    assert NAME not in viewer.layers
    viewer.dims.set_current_step(0, 5)
    settle(qtbot, panel)
    assert len(engine.made[0].jobs) == done


def test_a_deleted_preview_comes_back_with_the_next_slice_seen_before_or_not(qtbot, viewer, panel) -> None:
    volume = viewer.layers["CT"].data
    for step in (2, 7):
        viewer.dims.set_current_step(0, step)
        if step == 2:
            switch(qtbot, panel)
        settle(qtbot, panel)
    viewer.layers.remove(NAME)
    viewer.dims.set_current_step(0, 2)
    settle(qtbot, panel)
    np.testing.assert_array_equal(viewer.layers[NAME].data[2], volume[2] > 0.5)


def test_it_never_falls_behind(qtbot, engine, viewer, panel) -> None:
    go = threading.Event()

    def script(job: Any, arrays: Any) -> Any:
        go.wait()
        return (yield from answer(job, arrays))

    engine.will(script)
    viewer.dims.set_current_step(0, 0)
    switch(qtbot, panel)
    for step in range(1, 9):
        viewer.dims.set_current_step(0, step)
    go.set()
    settle(qtbot, panel)
    seen = [int(np.flatnonzero((viewer.layers["CT"].data == arrays["image"]).all((1, 2)))[0])
            for _, arrays in engine.made[0].jobs]  # fmt: skip
    assert seen == [0, 1, 8]


def test_another_network_or_image_begins_anew(qtbot, engine, viewer, panel) -> None:
    switch(qtbot, panel)
    settle(qtbot, panel)
    first = viewer.layers[NAME]
    panel.network.setCurrentIndex(1)
    settle(qtbot, panel)
    assert viewer.layers[NAME] is not first
    assert engine.made[0].jobs[-1][0].model.name == "a.safetensors"
    viewer.add_image(np.ones((4, 6, 8)), name="MR")
    panel.target.image.choose(viewer.layers["MR"])
    settle(qtbot, panel)
    assert viewer.layers[NAME].data.shape == (4, 6, 8)
    third, session = viewer.layers[NAME], session_of(viewer)
    session.learn(Model("Another", "/models/c.safetensors"))
    assert viewer.layers[NAME] is third  # nothing that it shows has changed
    session.teacher = Model("Another", "/models/c.safetensors")
    settle(qtbot, panel)
    assert viewer.layers[NAME] is not third
    assert engine.made[0].jobs[-1][0].model.name == "c.safetensors"


def test_a_preview_that_was_painted_in_stays_as_it_is(qtbot, viewer, panel) -> None:
    viewer.dims.set_current_step(0, 2)
    switch(qtbot, panel)
    settle(qtbot, panel)
    mine = viewer.layers[NAME]
    mine.brush_size = 3
    mine.paint((2, 6, 6), 1)
    by_hand = mine.data.copy()
    viewer.dims.set_current_step(0, 5)
    settle(qtbot, panel)
    np.testing.assert_array_equal(mine.data, by_hand)
    other = viewer.layers[f"{NAME} [1]"]
    np.testing.assert_array_equal(other.data[5], viewer.layers["CT"].data[5] > 0.5)
    other.paint((5, 6, 6), 1)
    switch(qtbot, panel)
    assert {mine, other} <= {*viewer.layers}


def test_what_goes_wrong_is_said_beside_the_switch(qtbot, engine, panel) -> None:
    engine.will_raise(DataError("The network wants colour."))
    switch(qtbot, panel)
    settle(qtbot, panel)
    assert panel.speed.text() == "No preview: The network wants colour."


def test_the_fastest_program_is_asked_for(qtbot, engine, viewer, panel) -> None:
    switch(qtbot, panel)
    settle(qtbot, panel)
    assert [(job.compute.runtime, job.fastest) for job, _ in engine.made[0].jobs] == [("auto", True)]


def test_a_preview_ends_with_its_panel(qtbot, engine, viewer, panel, close_panel) -> None:
    switch(qtbot, panel)
    settle(qtbot, panel)
    done = len(engine.made[0].jobs)
    close_panel(panel)
    for step in range(9):
        viewer.dims.set_current_step(0, step)
        qtbot.wait(20)
    assert len(engine.made[0].jobs) == done
