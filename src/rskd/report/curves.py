"""The curves of a run, drawn without state, light, and to be told apart without colour."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np

from rskd.events import Epoch, Reference, Step

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

POINTS = 300
"""Points drawn per curve; more cannot be told apart."""
_COLUMNS = 3
_INK, _PALE, _ACCENT = "#1f2933", "#b8c2cc", "#0b5394"
_STYLES = ("-", "--", "-.", ":")
_MARKS = "os^Dv*"


def dice_curves(epochs: Sequence[Epoch], references: Mapping[str, Reference]) -> bytes:
    """Draw the validation Dice of every class over the rounds, with the teacher's mean; returns SVG.

    Parameters
    ----------
    epochs
        At least one.
    references
        Where "teacher" and "student" stood before the first step.
    """
    from matplotlib.ticker import MaxNLocator

    figure = _figure(7.2, 3.2)
    axes = figure.subplots()
    rounds = [epoch.epoch for epoch in epochs]
    names = list(epochs[-1].dice_per_class)
    if len(names) > 1:
        for place, name in enumerate(names):
            scores = [epoch.dice_per_class.get(name, math.nan) for epoch in epochs]
            style: dict[str, Any] = {"linestyle": _STYLES[(place + 1) % 4], "marker": _MARKS[place % 6]}
            axes.plot(rounds, scores, color=_ACCENT, linewidth=1, markersize=3.5, markevery=_every(rounds), **style)
            axes.lines[-1].set_label(name)
    axes.plot(rounds, [epoch.dice for epoch in epochs], color=_INK, linewidth=2.2, label="mean of all classes")
    if len(rounds) == 1:
        axes.lines[-1].set_marker("o")
    best = [epoch for epoch in epochs if epoch.best and not math.isnan(epoch.dice)][-1:]
    for epoch in best:
        axes.plot([epoch.epoch], [epoch.dice], "*", color=_INK, markersize=12, label=f"best: {epoch.dice:.3f}")
    if "teacher" in references:
        level = references["teacher"].dice
        axes.axhline(level, color=_INK, linewidth=1, linestyle=(0, (1, 2)), label=f"teacher: {level:.3f}")
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("round")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))  # there is no half of a round
    axes.set_ylabel("validation Dice")
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
    _plain(axes)
    return _svg(figure)


def loss_curves(steps: Sequence[Step]) -> bytes:
    """Draw every loss term, and the learning rate, over the steps, each on a scale of its own; returns SVG.

    Parameters
    ----------
    steps
        At least one.
    """
    terms = list(dict.fromkeys(name for step in steps for name in step.losses))
    curves: dict[str, list[float]] = {
        name: [step.losses.get(name, math.nan) for step in steps] for name in ("total", *terms) if name in terms
    }
    curves["learning rate"] = [step.learning_rate for step in steps]
    rows = -(-len(curves) // _COLUMNS)
    figure = _figure(7.2, 1.75 * rows)
    grid = figure.subplots(rows, _COLUMNS, squeeze=False)
    places = [step.step for step in steps]
    for axes, (name, values) in zip(grid.flat, curves.items(), strict=False):
        if name != "learning rate":
            axes.plot(*_thin(places, values, POINTS), color=_PALE, linewidth=0.8)
            axes.plot(*_thin(places, values, 30), color=_INK, linewidth=1.6)
        else:
            axes.plot(*_thin(places, values, POINTS), color=_INK, linewidth=1.6)
        axes.set_title(name, fontsize=9, loc="left")
        _plain(axes)
    for axes in grid.flat[len(curves) :]:
        axes.set_visible(False)
    for axes in grid[-1]:
        axes.set_xlabel("step", fontsize=8)
    return _svg(figure)


def _thin(places: Sequence[int], values: Sequence[float], count: int) -> tuple[list[float], list[float]]:
    """Return means over at most `count` neighbouring groups, as equal as can be, of points that are numbers.

    Examples
    --------
    >>> _thin([1, 2, 3, 4], [1.0, 3.0, float("nan"), 5.0], 2)
    ([1.5, 4.0], [2.0, 5.0])
    >>> _thin([1, 2, 3, 4], [2.0, 4.0, 6.0, 8.0], 3)[1]
    [3.0, 7.0]
    """
    group = -(-len(places) // count)
    pairs = [np.array_split(np.asarray(column, float), -(-len(places) // group)) for column in (places, values)]
    means = []
    for x, y in zip(*pairs, strict=True):
        known = np.isfinite(y)
        if known.any():
            means.append((float(x[known].mean()), float(y[known].mean())))
    return [x for x, _ in means], [y for _, y in means]


def _every(rounds: Sequence[int]) -> int:
    return max(1, len(rounds) // 15)


def _figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(figure)
    return figure


def _plain(axes: Axes) -> None:
    axes.tick_params(labelsize=7.5, color=_INK, labelcolor=_INK)
    axes.grid(visible=True, color="#e4e7eb", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _svg(figure: Figure) -> bytes:
    buffer = BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()
