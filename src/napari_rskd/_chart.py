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
STYLES = ("-", "--", "-.", ":")


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
        self.losses: dict[str, list[tuple[int, float]]] = {}
        self.dice: list[tuple[int, float]] = []
        self.best: tuple[int, float] | None = None
        self._step = 0
        self._canvas: Any = None
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
        if not self._timer.isActive() and self._canvas is not None:
            self._draw_if_needed()

    def _draw_if_needed(self) -> None:
        if self._dirty and (self.losses or self.dice) and self.isVisible():
            self._dirty = False
            self._draw()

    def _draw(self) -> None:
        if self._canvas is None:
            from matplotlib.backends.backend_qtagg import FigureCanvasQTAgg
            from matplotlib.figure import Figure

            self._canvas = FigureCanvasQTAgg(Figure(layout="constrained"))  # type: ignore[no-untyped-call]
            self.layout().addWidget(self._canvas)
        figure = self._canvas.figure
        figure.clear()
        text, ground = (_theme.color(self._viewer, name) for name in ("text", "background"))
        figure.set_facecolor(ground)
        loss_axes, dice_axes = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        self._draw_losses(loss_axes)
        self._draw_dice(dice_axes, text)
        for axes in (loss_axes, dice_axes):
            _paint(axes, text, ground)
        self._canvas.draw_idle()

    def _draw_losses(self, axes: Any) -> None:
        for index, (term, points) in enumerate(self.losses.items()):
            steps, values = np.array(thin(points)).T
            style = STYLES[index // 10 % len(STYLES)] if term != "total" else "-"
            axes.plot(steps, values, style, label=term, linewidth=2 if term == "total" else 1)
        axes.set_yscale("log")
        axes.set_ylabel("loss")
        axes.legend(fontsize=6, ncols=2, frameon=False, labelcolor="linecolor", loc="upper right")

    def _draw_dice(self, axes: Any, text: str) -> None:
        if self.dice:
            steps, values = np.array(self.dice).T
            axes.plot(steps, values, ".-", color=text, linewidth=1)
        if self.best is not None:
            axes.plot(*self.best, "*", color=text, markersize=9)
            axes.annotate(f"best {self.best[1]:.3f}", self.best, xytext=(-4, -12), textcoords="offset points",
                          fontsize=7, color=text, ha="right")  # fmt: skip
        axes.set_ylim(0, 1)
        axes.set_ylabel("Dice")
        axes.set_xlabel("step")


def thin(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """Return at most `POINTS` of the points, evenly taken, the last among them.

    Examples
    --------
    >>> len(thin([(i, 0.0) for i in range(10_000)])) <= POINTS
    True
    """
    stride = -(-len(points) // POINTS)
    return points[::-1][:: max(1, stride)][::-1]


def _paint(axes: Any, text: str, ground: str) -> None:
    axes.set_facecolor(ground)
    axes.tick_params(colors=text, labelsize=7)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set_color(text)
        label.set_fontsize(8)
    for name, spine in axes.spines.items():
        spine.set_color(text)
        spine.set_visible(name in ("left", "bottom"))
