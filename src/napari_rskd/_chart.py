"""The live chart of a training: every loss term over the steps, and the validation Dice over the epochs.

matplotlib is imported when the first point arrives, in the worker thread (`warm_up`): its import and its font cache
would freeze the window.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from qtpy.QtCore import QTimer
from qtpy.QtWidgets import QVBoxLayout, QWidget

from napari_rskd import _theme
from rskd.events import Epoch, Event, Step

MILLISECONDS = 500  # between two drawings
HEIGHT = 260
POINTS = 400  # drawn per curve at most; more cannot be told apart
Points = list[tuple[int, float]]


def warm_up() -> None:
    """Import the drawing library and fill its caches; to be called in a thread that may wait."""
    import matplotlib.backends.backend_qtagg  # noqa: F401
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1, 1))
    axes = figure.subplots()
    axes.set_yscale("log")
    axes.plot([1, 2], [1, 2], label="a")
    axes.legend()
    FigureCanvasAgg(figure).draw()  # type: ignore[no-untyped-call]


class Chart(QWidget):
    """Collects events and draws them at most twice a second."""

    def __init__(self, viewer: Any) -> None:
        super().__init__()
        self._viewer = viewer
        self.losses: dict[str, Points] = {}
        self.dice: Points = []
        self.best: tuple[int, float] | None = None
        self._step = 0
        self._plot: _Plot | None = None
        self._dirty = False
        self._timer = QTimer(self, interval=MILLISECONDS)
        self._timer.timeout.connect(self._draw_if_needed)
        QVBoxLayout(self).setContentsMargins(0, 0, 0, 0)
        self.setFixedHeight(HEIGHT)
        self.hide()
        _theme.follow(viewer, self, self._mark)

    def clear(self) -> None:
        """Forget everything."""
        self.losses.clear()
        self.dice.clear()
        self.best, self._step = None, 0
        self._mark()

    def add(self, event: Event) -> None:
        """Take in a `Step` or an `Epoch`; other events are passed over."""
        match event:
            case Step(step=step, losses=losses):
                self._step = step
                self._add_losses(step, losses)
            case Epoch(dice=dice, best=best):
                point = (self._step, dice)
                self.dice.append(point)
                self.best = point if best else self.best
            case _:
                return
        self._mark()
        if not self._timer.isActive():
            self._timer.start()
            self.show()

    def finish(self) -> None:
        """Draw what is left and stop."""
        self._timer.stop()
        self._draw_if_needed()

    def _add_losses(self, step: int, losses: Mapping[str, float]) -> None:
        for term, value in losses.items():
            self.losses.setdefault(term, []).append((step, value))

    def _mark(self) -> None:
        self._dirty = True
        if not self._timer.isActive() and self._plot is not None:
            self._draw_if_needed()

    def _draw_if_needed(self) -> None:
        if self._dirty and (self.losses or self.dice) and self.isVisible():
            self._dirty = False
            self._draw()

    def _draw(self) -> None:
        if self._plot is None:
            self._plot = _Plot()
            self.layout().addWidget(self._plot.canvas)
        self._plot.paint(*(_theme.color(self._viewer, name) for name in ("text", "background")))
        self._plot.show(self.losses, self.dice, self.best)


class _Plot:
    """Two axes over each other; lines are kept and only moved, which is what makes a drawing cheap."""

    def __init__(self) -> None:
        from matplotlib.backends.backend_qtagg import FigureCanvasQTAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import NullLocator

        self._figure = Figure()
        self.canvas = FigureCanvasQTAgg(self._figure)  # type: ignore[no-untyped-call]
        self._loss, self._dice = self._figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        self._figure.subplots_adjust(left=0.17, right=0.98, top=0.86, bottom=0.14, hspace=0.12)
        self._loss.set_yscale("log")
        self._loss.yaxis.set_minor_locator(NullLocator())
        self._loss.set_ylabel("loss", fontsize=8)
        self._dice.set_ylim(0, 1.05)
        self._dice.set_ylabel("Dice", fontsize=8)
        self._dice.set_xlabel("step", fontsize=8, labelpad=0)
        self._lines: dict[str, Any] = {}
        (self._curve,) = self._dice.plot([], [], ".-", linewidth=1)
        (self._star,) = self._dice.plot([], [], "*", markersize=9)
        self._words = self._dice.text(0.98, 0.08, "", fontsize=8, ha="right", transform=self._dice.transAxes)

    def paint(self, text: str, ground: str) -> None:
        """Take on the colours of the theme."""
        self._figure.set_facecolor(ground)
        for axes in (self._loss, self._dice):
            axes.set_facecolor(ground)
            axes.tick_params(which="both", colors=text, labelsize=7)
            axes.xaxis.label.set_color(text)
            axes.yaxis.label.set_color(text)
            for name, spine in axes.spines.items():
                spine.set_color(text)
                spine.set_visible(name in ("left", "bottom"))
        self._loss.tick_params(labelbottom=False)
        for artist in (self._curve, self._star, self._words):
            artist.set_color(text)

    def show(self, losses: Mapping[str, Points], dice: Points, best: tuple[int, float] | None) -> None:
        """Move the lines to these points."""
        new = losses.keys() - self._lines.keys()
        for term in (term for term in losses if term in new):
            (self._lines[term],) = self._loss.plot([], [], label=term, linewidth=2 if term == "total" else 1)
        for term, line in self._lines.items():
            line.set_data(*np.array(thin(losses.get(term, []))).reshape(-1, 2).T)
        if new:
            self._loss.legend(
                fontsize=7, ncols=4, frameon=False, labelcolor="linecolor", loc="lower left", bbox_to_anchor=(-0.2, 1),
                handlelength=1, columnspacing=1,
            )  # fmt: skip
        self._curve.set_data(*np.array(dice).reshape(-1, 2).T)
        self._star.set_data(*np.array([] if best is None else [best]).reshape(-1, 2).T)
        self._words.set_text("" if best is None else f"best {best[1]:.3f}")
        self._loss.relim()
        self._loss.autoscale_view()
        self.canvas.draw_idle()  # type: ignore[no-untyped-call]


def thin(points: Points) -> Points:
    """Return at most `POINTS` of the points, evenly taken, the last among them.

    Examples
    --------
    >>> len(thin([(i, 0.0) for i in range(10_000)])) <= POINTS
    True
    """
    stride = -(-len(points) // POINTS)
    return points[::-1][:: max(1, stride)][::-1]
