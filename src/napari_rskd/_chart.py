"""The live chart of a training: every loss term over the steps, and the validation Dice over the epochs.

matplotlib is imported when the first point arrives, and it draws aside, in a thread: import, font cache and drawing
would each jerk the window. The window only shows the picture.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from qtpy.QtCore import QTimer
from qtpy.QtGui import QImage, QPixmap
from qtpy.QtWidgets import QLabel, QVBoxLayout, QWidget

from napari_rskd import _theme
from napari_rskd._job import aside
from rskd.events import Epoch, Event, Reference, Step

Points = list[tuple[int, float]]
INTERVAL = 500  # milliseconds between two drawings
HEIGHT = 260
INCH = 100  # pixels; what an inch of matplotlib measures on this chart
MOST_POINTS = 400  # drawn per curve; more cannot be told apart


@dataclass(frozen=True)
class _Sheet:
    """What to draw, and on what."""

    losses: Mapping[str, Points]
    dice: Points
    best: Points
    teacher: Points
    text: str
    ground: str
    width: int
    height: int
    zoom: float


class Chart(QWidget):
    """Collects events and draws them at most twice a second."""

    def __init__(self, viewer: Any) -> None:
        super().__init__()
        self._viewer = viewer
        self.losses: dict[str, Points] = {}
        self.dice: Points = []
        self.best: tuple[int, float] | None = None
        self.teacher: float | None = None
        self._step = 0
        self._plot = _Plot()
        self._drawing: Future[NDArray[np.uint8]] | None = None
        self._dirty = self._finished = False
        self._picture = QLabel()
        self._picture.setMinimumWidth(1)
        self._timer = QTimer(self, interval=INTERVAL)
        self._timer.timeout.connect(self._tick)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addWidget(self._picture)
        self.setFixedHeight(HEIGHT)
        self.hide()
        _theme.follow(viewer, self, self._mark)

    def clear(self) -> None:
        """Forget everything."""
        self.losses.clear()
        self.dice.clear()
        self.best, self.teacher, self._step = None, None, 0

    def add(self, event: Event) -> None:
        """Take in a `Step`, an `Epoch` or how good the teacher is; other events are passed over."""
        match event:
            case Step(step=step, losses=losses):
                if step <= self._step:
                    self._go_back(step)
                self._step = step
                for term, value in losses.items():
                    self.losses.setdefault(term, []).append((step, value))
            case Epoch(dice=dice, best=best):
                point = (self._step, dice)
                self.dice.append(point)
                self.best = point if best else self.best
            case Reference(name="teacher", dice=dice):
                self.teacher = dice
                return  # there is nothing to see before the first step
            case _:
                return
        self._finished = False
        self.show()
        self._mark()

    def _go_back(self, step: int) -> None:
        """Forget what came after an earlier state that a run went back to: it happens again."""
        for points in self.losses.values():
            points[:] = [point for point in points if point[0] < step]
        self.dice[:] = [point for point in self.dice if point[0] < step]
        if self.best is not None and self.best[0] >= step:
            self.best = max(self.dice, key=lambda point: point[1], default=None)

    def finish(self) -> None:
        """Draw what is left, then rest."""
        self._finished = True

    @property
    def picture(self) -> QPixmap:
        """What is shown."""
        return self._picture.pixmap()

    def resizeEvent(self, event: Any) -> None:  # noqa: N802
        super().resizeEvent(event)
        self._mark()

    def _mark(self) -> None:
        self._dirty = True
        if self.losses and not self._timer.isActive():
            self._timer.start()

    def _tick(self) -> None:
        if self._drawing is not None and self._drawing.done():
            self._show(self._drawing.result())
            self._drawing = None
        if self._drawing is None and self._dirty and self.isVisible():
            self._dirty = False
            self._drawing = aside(self._plot.draw, self._sheet())
        elif self._drawing is None and self._finished:
            self._timer.stop()

    def _sheet(self) -> _Sheet:
        return _Sheet(
            losses={term: thin(points) for term, points in self.losses.items()},
            dice=thin(self.dice),
            best=[] if self.best is None else [self.best],
            teacher=[] if self.teacher is None else [(0, self.teacher), (max(1, self._step), self.teacher)],
            text=_theme.color(self._viewer, "text"),
            ground=_theme.color(self._viewer, "background"),
            width=self.width(),
            height=self.height(),
            zoom=self.devicePixelRatioF(),
        )

    def _show(self, pixels: NDArray[np.uint8]) -> None:
        height, width, _ = pixels.shape
        image = QImage(pixels.tobytes(), width, height, 4 * width, QImage.Format.Format_RGBA8888)
        pixmap = QPixmap.fromImage(image)
        pixmap.setDevicePixelRatio(self.devicePixelRatioF())
        self._picture.setPixmap(pixmap)


class _Plot:
    """Two axes over each other; lines are kept and only moved, which is what makes a drawing cheap.

    Lives in the thread that draws.
    """

    def __init__(self) -> None:
        self._canvas: Any = None

    def draw(self, sheet: _Sheet) -> NDArray[np.uint8]:
        """Return the picture, shape (height, width, 4), RGBA."""
        if self._canvas is None:
            self._build()
        figure = self._canvas.figure
        figure.set_dpi(INCH * sheet.zoom)
        figure.set_size_inches(sheet.width / INCH, sheet.height / INCH)
        self._paint(sheet.text, sheet.ground)
        self._move(sheet)
        self._canvas.draw()
        return np.array(self._canvas.buffer_rgba())

    def _build(self) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import NullLocator

        figure = Figure()
        self._canvas = FigureCanvasAgg(figure)
        self._loss, self._dice = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        figure.subplots_adjust(left=0.17, right=0.97, top=0.86, bottom=0.14, hspace=0.12)
        self._loss.set_yscale("log")
        self._loss.yaxis.set_minor_locator(NullLocator())
        self._loss.set_ylabel("loss", fontsize=8)
        self._dice.set_ylim(0, 1.05)
        self._dice.set_ylabel("Dice", fontsize=8)
        self._dice.set_xlabel("step", fontsize=8, labelpad=0)
        self._lines: dict[str, Any] = {}
        (self._curve,) = self._dice.plot([], [], ".-", linewidth=1)
        (self._goal,) = self._dice.plot([], [], "--", linewidth=1, alpha=0.6)
        (self._star,) = self._dice.plot([], [], "*", markersize=9)
        self._words = self._dice.text(0.98, 0.08, "", fontsize=8, ha="right", transform=self._dice.transAxes)

    def _paint(self, text: str, ground: str) -> None:
        """Take on the colours of the theme."""
        self._canvas.figure.set_facecolor(ground)
        for axes in (self._loss, self._dice):
            axes.set_facecolor(ground)
            axes.tick_params(which="both", colors=text, labelsize=7)
            axes.xaxis.label.set_color(text)
            axes.yaxis.label.set_color(text)
            for name, spine in axes.spines.items():
                spine.set_color(text)
                spine.set_visible(name in ("left", "bottom"))
        self._loss.tick_params(labelbottom=False)
        for artist in (self._curve, self._goal, self._star, self._words):
            artist.set_color(text)

    def _move(self, sheet: _Sheet) -> None:
        """Move the lines to the points."""
        if sheet.losses.keys() != self._lines.keys():
            self._name_lines(sheet.losses)
        for term, line in self._lines.items():
            line.set_data(*_columns(sheet.losses[term]))
        self._curve.set_data(*_columns(sheet.dice))
        self._star.set_data(*_columns(sheet.best))
        self._goal.set_data(*_columns(sheet.teacher))
        best = [f"best {dice:.3f}" for _, dice in sheet.best]
        self._words.set_text(", ".join([*best, *(f"teacher {dice:.3f} (dashed)" for _, dice in sheet.teacher[:1])]))
        self._loss.relim()
        self._loss.autoscale_view()

    def _name_lines(self, terms: Mapping[str, Points]) -> None:
        for line in self._lines.values():
            line.remove()
        self._loss.set_prop_cycle(None)
        self._lines = {
            term: self._loss.plot([], [], label=term, linewidth=2 if term == "total" else 1)[0] for term in terms
        }
        self._loss.legend(
            fontsize=7, ncols=4, frameon=False, labelcolor="linecolor", loc="lower left", bbox_to_anchor=(-0.2, 1),
            handlelength=1, columnspacing=1,
        )  # fmt: skip


def thin(points: Points) -> Points:
    """Return at most `MOST_POINTS` of the points, evenly taken, the last among them.

    Examples
    --------
    >>> len(thin([(i, 0.0) for i in range(10_000)])) <= MOST_POINTS
    True
    """
    stride = max(1, -(-len(points) // MOST_POINTS))
    return points[::-stride][::-1]


def _columns(points: Points) -> NDArray[np.float64]:
    return np.array(points, dtype=float).reshape(-1, 2).T
