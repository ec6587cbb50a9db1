"""What follows a slider, a click and the eye: the latest request, layers in place, the rose of edges."""

import gc
import itertools
import threading
import weakref
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from napari.utils.interactions import mouse_move_callbacks, mouse_press_callbacks, mouse_release_callbacks
from qtpy.QtCore import QTimer
from qtpy.QtWidgets import QWidget

from napari_rskd import _live, _theme
from napari_rskd._job import Work
from napari_rskd._live import Latest, LiveLayers
from napari_rskd._source import PAUSE, Source
from napari_rskd._survey import Shown, Survey
from rskd.config import RankOptions
from rskd.errors import DataError
from rskd.jobs import AgreementJob, Outcome

SOON = 60_000  # milliseconds


def asked(number: int) -> Work:
    return Work(lambda: (AgreementJob(), {"number": np.array(number)}))


def test_only_the_latest_request_follows(qtbot, engine) -> None:
    go = threading.Event()

    def script(job: Any, arrays: Any) -> Any:
        yield None
        go.wait()
        return Outcome({"number": int(arrays["number"])})

    engine.will(script)
    parent = QWidget()
    qtbot.addWidget(parent)
    shown: list[int] = []
    latest = Latest(parent, lambda outcome: shown.append(outcome.value["number"]), pytest.fail)
    for number in range(4):
        latest.ask(asked(number))
    assert latest.busy
    go.set()
    qtbot.waitUntil(lambda: not latest.busy, timeout=SOON)
    assert shown == [0, 3]


def test_a_failed_request_does_not_hold_up_the_next(qtbot, engine) -> None:
    engine.will_raise(DataError("too small"))
    parent = QWidget()
    qtbot.addWidget(parent)
    failed: list[str] = []
    latest = Latest(parent, pytest.fail, lambda error: failed.append(str(error)))
    latest.ask(asked(0))
    latest.ask(asked(1))
    qtbot.waitUntil(lambda: not latest.busy, timeout=SOON)
    assert failed == ["too small"] * 2


def test_layers_change_in_place_come_back_and_go(qtbot, viewer) -> None:
    parent = QWidget()
    qtbot.addWidget(parent)
    live = LiveLayers(parent, viewer)
    source = Source.of(viewer.layers["picture"])

    def data(value: float) -> Any:
        return np.full((4, 4), value), {"name": f"is {value}", **source.place()}, "image"

    live.show_all({"a": data(1), "b": data(2), "c": data(3)})
    qtbot.waitUntil(lambda: not live.busy, timeout=SOON)
    assert [layer.name for layer in live.layers()] == ["is 1", "is 2", "is 3"]
    kept = live.get("a")
    kept.colormap = "red"
    live.show_all({"a": data(5)})
    qtbot.waitUntil(lambda: not live.busy, timeout=SOON)
    assert (kept.name, kept.data.max(), kept.colormap.name) == ("is 5", 5, "red")
    assert [layer.name for layer in viewer.layers] == ["picture", "is 5"]
    viewer.layers.remove(kept)  # the user does not want it
    live.show("a", data(6))
    qtbot.waitUntil(lambda: not live.busy, timeout=SOON)
    assert viewer.layers["is 6"] is not kept


def test_what_the_user_has_removed_is_let_go_of(qtbot, viewer) -> None:
    live, source = LiveLayers(viewer.window._qt_window, viewer), Source.of(viewer.layers["picture"])
    live.show("a", (np.zeros((4, 4)), {"name": "a", **source.place()}, "image"))
    qtbot.waitUntil(lambda: not live.busy, timeout=SOON)
    removed = weakref.ref(live.get("a"))
    viewer.layers.remove("a")
    live.show("b", (np.zeros((4, 4)), {"name": "b", **source.place()}, "image"))
    qtbot.waitUntil(lambda: not live.busy, timeout=SOON)
    gc.collect()
    assert removed() is None


def test_the_window_has_a_turn_between_making_a_layer_showing_and_selecting_it(qtbot, viewer, monkeypatch) -> None:
    live, source = LiveLayers(viewer.window._qt_window, viewer), Source.of(viewer.layers["picture"])
    turns: list[str] = []
    make = _live.make_layer
    monkeypatch.setattr(_live, "make_layer", lambda data: turns.append("made") or make(data))
    viewer.layers.events.inserted.connect(lambda event: turns.append("in"))
    viewer.layers.selection.events.active.connect(lambda event: turns.append("selected"))
    timer = QTimer(interval=1)
    timer.timeout.connect(lambda: turns.append("turn"))
    timer.start()
    live.show_all({name: (np.zeros((4, 4)), {"name": name, **source.place()}, "image") for name in "ab"})
    qtbot.waitUntil(lambda: not live.busy, timeout=SOON)
    timer.stop()
    one = ["turn", "made", "turn", "in", "turn"]
    assert [name for name, _ in itertools.groupby(turns)] == [*one, *one[1:], "selected"]
    assert viewer.layers.selection.active.name == "b"
    assert viewer.layers.selection.active is viewer.layers[-1]
    plain = viewer.add_image(np.zeros((4, 4)))
    assert viewer.layers.selection.active is plain


def test_a_layer_that_gets_other_data_before_it_is_shown_is_made_once(qtbot, viewer) -> None:
    live, source = LiveLayers(viewer.window._qt_window, viewer), Source.of(viewer.layers["picture"])
    for number in range(3):
        live.show("a", (np.full((4, 4), number), {"name": f"is {number}", **source.place()}, "image"))
        qtbot.waitUntil(lambda: live._made is not None, timeout=SOON)
    qtbot.waitUntil(lambda: not live.busy, timeout=SOON)
    assert [layer.name for layer in viewer.layers] == ["picture", "is 2"]
    assert live.get("a").data.max() == 2


def test_what_is_hidden_follows_what_is_seen(qtbot, viewer) -> None:
    live, source = LiveLayers(viewer.window._qt_window, viewer), Source.of(viewer.layers["picture"])

    def show(value: int) -> None:
        data = np.full((48, 64), value), source.place(), "image"
        live.show_all({name: (data[0], {"name": name, **data[1]}, data[2]) for name in ("hidden", "seen")})

    show(1)
    qtbot.waitUntil(lambda: not live.busy)
    assert [layer.name for layer in viewer.layers[-2:]] == ["hidden", "seen"]
    hidden, seen = live.get("hidden"), live.get("seen")
    hidden.visible = False
    for value in (2, 3):
        show(value)
        assert (hidden.data.max(), seen.data.max(), live.busy) == (1, value, True)
    qtbot.waitUntil(lambda: not live.busy)
    assert (hidden.data.max(), hidden.visible) == (3, False)
    show(4)
    live.show_all({"seen": (np.zeros((48, 64)), source.place(), "image")})
    qtbot.waitUntil(lambda: not live.busy)
    qtbot.wait(2 * PAUSE)
    assert (hidden in viewer.layers, live.get("hidden")) == (False, None)  # nor does it come back


def test_only_what_is_other_than_before_is_set(qtbot, viewer) -> None:
    live, source = LiveLayers(viewer.window._qt_window, viewer), Source.of(viewer.layers["picture"])
    told: list[str] = []

    def show(number: int, scale: float, limits: tuple[float, float]) -> None:
        place = {**source.place((scale, scale)), "contrast_limits": limits}
        live.show("a", (np.full((48, 64), number), {"name": "a", **place}, "image"))

    show(1, 1, (0, 9))
    qtbot.waitUntil(lambda: not live.busy, timeout=SOON)
    layer = viewer.layers["a"]
    for name in ("scale", "translate", "rotate", "shear", "affine", "units", "axis_labels", "name", "contrast_limits"):
        getattr(layer.events, name).connect(lambda event: told.append(event.type))
    show(2, 1, (0, 9))
    assert (told, layer.data.max()) == ([], 2)
    show(3, 2, (0, 5))
    assert set(told) == {"scale", "contrast_limits"}
    np.testing.assert_allclose(layer.scale, 2 * viewer.layers["picture"].scale)
    assert layer.contrast_limits == [0, 5]


def survey(teacher: int, student: int) -> Survey:
    """Networks with so many blocks, the maps of which say which block they are of."""
    value, arrays = {}, {}
    for role, depth in (("teacher", teacher), ("student", student)):
        blocks = [{"block": n, "heads": 2, "grid": [1, 2], "token": [8, 8], "windows": False} for n in range(depth)]
        value[role] = {"name": role, "definition": "received", "blocks": blocks}
        arrays |= {f"{role}_block{n}": np.full((3, 1, 2), n) + np.arange(3)[:, None, None] / 10 for n in range(depth)}
    return Survey(Outcome(value, arrays))


def test_the_teacher_is_shown_as_deep_as_the_student() -> None:
    found = survey(12, 3)
    assert (found.roles, found.depth, found.heads(0)) == (("teacher", "student"), 3, 2)
    maps = [(found.map("teacher", Shown(n)).max(), found.map("student", Shown(n)).max()) for n in range(3)]
    assert maps == [(3, 0), (7, 1), (11, 2)]
    assert found.map("student", Shown(1, head=1)).max() == pytest.approx(1.2)
    assert survey(12, 6).as_deep_as(found, Shown(2)).block == 5


def click_at(viewer: Any, position: Any, *, drag: bool = False) -> None:
    """Press and release a mouse button over the canvas, as napari hears it from its own."""
    event = SimpleNamespace(type="mouse_press", position=position, pos=(0, 0), modifiers=(), handled=False)
    mouse_press_callbacks(viewer, event)
    if drag:
        event.type, event.is_dragging = "mouse_move", True
        mouse_move_callbacks(viewer, event)
    event.type = "mouse_release"
    mouse_release_callbacks(viewer, event)


def test_a_click_asks_about_the_token_under_it_and_a_drag_does_not(qtbot, engine, viewer, open_panel) -> None:
    found = survey(1, 1)
    (facts,) = found.outcome.value["student"]["blocks"]
    facts |= {"grid": [3, 4], "token": [16.0, 16.0]}
    found.outcome.value["teacher"]["blocks"][0].update(facts)
    maps = np.arange(12, dtype=np.float32).reshape(1, 3, 4)
    arrays = {"teacher_block0": maps, "student_block0": maps}
    agreed = ({}, {"overlap": np.ones(12), "ndcg": np.ones(12)})
    engine.will_return((found.outcome.value, arrays), agreed, (found.outcome.value, arrays))
    panel = open_panel("Token ranking")
    panel.button.click()
    qtbot.waitUntil(lambda: panel.work is None and not panel._live.busy and bool(panel.agreement.text()), timeout=SOON)
    place = viewer.layers["picture"].data_to_world((20, 50))
    click_at(viewer, place, drag=True)
    click_at(viewer, viewer.layers["picture"].data_to_world((20, 500)))  # beside the picture
    assert [job.kind for job, _ in engine.made[0].jobs] == ["survey", "agreement"]
    click_at(viewer, place)
    qtbot.waitUntil(lambda: "Attention of one token (student)" in viewer.layers, timeout=SOON)
    assert engine.made[0].jobs[-1][0].at == pytest.approx((20, 50))


def test_a_click_finds_its_token_along_any_axes_and_what_is_saved_is_what_is_shown(
    qtbot, engine, viewer, open_panel, tmp_path
) -> None:
    found = survey(1, 1)
    for role in ("teacher", "student"):
        found.outcome.value[role]["blocks"][0].update({"grid": [3, 4], "token": [16.0, 16.0]})
    maps = np.arange(12, dtype=np.float32).reshape(1, 3, 4)
    arrays = {"teacher_block0": maps, "student_block0": maps}
    agreed = ({}, {"overlap": np.ones(12), "ndcg": np.ones(12)})
    engine.will_return((found.outcome.value, arrays), agreed, (found.outcome.value, arrays), ({}, {}))
    viewer.layers.clear()
    scan = viewer.add_image(np.zeros((48, 7, 64)), name="scan")
    viewer.dims.order = (1, 2, 0)  # the last two are shown
    panel = open_panel("Token ranking")
    panel.button.click()
    qtbot.waitUntil(lambda: panel.work is None and not panel._live.busy and bool(panel.agreement.text()), timeout=SOON)
    click_at(viewer, scan.data_to_world((20, 3, 50)))
    qtbot.waitUntil(lambda: "Attention of one token (student)" in viewer.layers, timeout=SOON)
    assert engine.made[0].jobs[-1][0].at == pytest.approx((20, 50))
    shown = engine.made[0].jobs[0][0].options.definition
    panel.options.set_value(RankOptions(definition="feature_norm"))
    panel.save(tmp_path)
    qtbot.waitUntil(lambda: len(engine.made[0].jobs) == 4, timeout=SOON)
    assert engine.made[0].jobs[-1][0].options.definition == shown != "feature_norm"


def test_the_rose_points_where_the_edges_run(engine, viewer, open_panel) -> None:
    rose = open_panel("Contourlet").rose
    rose.show_energies({"": [(80, 100, 0.9), (-10, 10, 0.1)]})  # nearly all of them upright
    picture, wedge = rose.grab().toImage(), _theme.color(viewer, "current")
    inside = [
        (y, x)
        for y in range(picture.height())
        for x in range(picture.width())
        if picture.pixelColor(x, y).name() == wedge
    ]
    height, width = np.ptp(np.array(inside), axis=0)
    assert height > 4 * width
    assert rose.accessibleDescription() == "90° 90 %, 0° 10 %"
    rose.show_energies({"": []})
    assert not rose.isVisible()
