"""The chart: it takes every event, draws aside, in the colours of the theme, and then rests."""

import numpy as np
from qtpy.QtGui import QImage

from napari_rskd._chart import MOST_POINTS, Chart, thin
from rskd.events import Epoch, Message, Reference, Step


def pixels(chart: Chart) -> np.ndarray:
    image = chart.picture.toImage().convertToFormat(QImage.Format.Format_RGBA8888)
    bits = image.constBits()
    if hasattr(bits, "setsize"):  # PyQt6 does not say how much there is
        bits.setsize(image.sizeInBytes())
    return np.frombuffer(bits, np.uint8).reshape(image.height(), image.width(), 4).copy()


def filled(qtbot, viewer) -> Chart:
    chart = Chart(viewer)
    qtbot.addWidget(chart)
    chart.resize(300, 260)
    for n in range(1, 30):
        chart.add(Step(n, 30, 1, {"task": 1 / n, "total": 2 / n}, 1e-3, 0.1))
    chart.add(Epoch(1, 2, {}, 0.5, best=True))
    return chart


def drawn(qtbot, chart: Chart) -> None:
    chart.finish()
    qtbot.waitUntil(lambda: not chart._timer.isActive(), timeout=60_000)


def test_it_appears_with_the_first_point_and_rests_in_the_end(qtbot, viewer) -> None:
    chart = Chart(viewer)
    qtbot.addWidget(chart)
    chart.add(Message("not a point"))
    assert not chart.isVisible()
    chart = filled(qtbot, viewer)
    assert chart.isVisible()
    drawn(qtbot, chart)
    picture = pixels(chart)
    assert picture.shape == (260, 300, 4)
    assert len(np.unique(picture.reshape(-1, 4), axis=0)) > 20


def test_it_follows_the_theme(qtbot, viewer) -> None:
    viewer.theme = "dark"
    chart = filled(qtbot, viewer)
    drawn(qtbot, chart)
    dark = pixels(chart)[0, 0].copy()
    viewer.theme = "light"
    drawn(qtbot, chart)
    light = pixels(chart)[0, 0]
    assert dark[:3].mean() < 80
    assert light[:3].mean() > 170


def test_the_best_is_the_last_that_was_called_so(qtbot, viewer) -> None:
    chart = filled(qtbot, viewer)
    chart.add(Epoch(2, 2, {}, 0.4, best=False))
    assert chart.best == (29, 0.5)
    assert chart.dice == [(29, 0.5), (29, 0.4)]


def test_a_run_that_goes_back_does_not_fold_its_curves(qtbot, viewer) -> None:
    chart = filled(qtbot, viewer)
    chart.add(Step(20, 30, 1, {"task": 1.0, "total": 1.0}, 1e-3, 0.1))
    assert [step for step, _ in chart.losses["total"]] == list(range(1, 21))
    assert chart.dice == []
    assert chart.best is None


def test_the_teacher_is_a_line_of_its_own(qtbot, viewer) -> None:
    plain, goal = filled(qtbot, viewer), filled(qtbot, viewer)
    goal.add(Reference("student", 0.1))
    goal.add(Reference("teacher", 0.9))
    for chart in (plain, goal):
        drawn(qtbot, chart)
    assert goal.teacher == 0.9
    assert (pixels(goal) != pixels(plain)).any(2).sum() > 100
    goal.clear()
    assert goal.teacher is None


def test_thin_keeps_the_last_point_and_few_points_whole() -> None:
    many = [(n, float(n)) for n in range(12_345)]
    few = thin(many)
    assert few[-1] == many[-1]
    assert len(few) <= MOST_POINTS
    assert thin(many[:7]) == many[:7]
