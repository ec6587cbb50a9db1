"""The figures of the studies as SVG: small, the same wherever they are made, readable in light and dark."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from benchmarks.accuracy.comparison import Ranking, cliques

INK, FAINT, PAPER, MARK, BEST = "#1f2328", "#8b949e", "#ffffff", "#2e86ab", "#c8421c"
DARK = {INK: "#e6edf3", FAINT: "#7d8590", PAPER: "#0d1117", MARK: "#58b4d8", BEST: "#ff8b66"}
"""What each color becomes where the reader's system is dark."""
NAMES = {INK: "ink", FAINT: "faint", PAPER: "paper", MARK: "mark", BEST: "best"}
LINE = 20
"""Height of a line of text, in pixels."""


@dataclass(frozen=True)
class Point:
    """A network in a figure of accuracy against cost."""

    name: str
    cost: float
    scores: Sequence[float]
    """Test Dice of every seed."""


def text(x: float, y: float, words: str, *, anchor: str = "start", color: str = INK, bold: bool = False) -> str:
    weight = ' font-weight="bold"' if bold else ""
    where = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text {where} class="{NAMES[color]}" fill="{color}"{weight}>{escape(words)}</text>'


def line(points: Sequence[tuple[float, float]], *, color: str = INK, width: float = 1, dashed: bool = False) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dash = ' stroke-dasharray="4 4"' if dashed else ""
    return (
        f'<polyline points="{path}" class="{NAMES[color]}-line" fill="none" stroke="{color}" '
        f'stroke-width="{width:g}"{dash}/>'
    )


def dot(x: float, y: float, *, color: str = MARK) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" class="{NAMES[color]}" fill="{color}"/>'


def picture(width: float, height: float, title: str, parts: Sequence[str]) -> str:
    """Return a whole SVG file; it has a background of its own, so that it can be read on any page."""
    dark = "".join(
        f".{NAMES[light]}{{fill:{dark}}}.{NAMES[light]}-line{{stroke:{dark}}}" for light, dark in DARK.items()
    )
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
            f'viewBox="0 0 {width:.0f} {height:.0f}" role="img" font-family="sans-serif" font-size="13">',
            f"<title>{escape(title)}</title>",
            f"<style>@media (prefers-color-scheme: dark) {{{dark}}}</style>",
            f'<rect width="{width:.0f}" height="{height:.0f}" class="paper" fill="{PAPER}"/>',
            *parts,
            "</svg>\n",
        ]
    )


def rank_diagram(ranking: Ranking, names: Mapping[str, str], *, highlight: str = "") -> str:
    """Draw mean ranks on a line, with bars over methods that do not differ (Demšar's critical-difference diagram)."""
    ranks = list(ranking.ranks.items())
    groups = cliques([value for _, value in ranks], ranking.critical)
    left, right, top = 270.0, 570.0, 62.0
    best, worst = 1.0, float(len(ranks))

    def x(value: float) -> float:
        return left + (right - left) * (value - best) / (worst - best)

    bars = top + 14
    below = bars + 8 * len(groups) + 16
    half = math.ceil(len(ranks) / 2)
    parts = [line([(x(best), top), (x(worst), top)])]
    step = 1 if len(ranks) <= 10 else 2
    for tick in range(1, len(ranks) + 1, step):
        parts += [line([(x(tick), top - 5), (x(tick), top)]), text(x(tick), top - 9, str(tick), anchor="middle")]
    shown = min(ranking.critical, worst - best)
    parts += [line([(x(best), 18), (x(best + shown), 18)], width=2)]
    parts += [text(x(best) - 8, 22, f"critical difference {ranking.critical:.2f}", anchor="end")]
    for number, (arm, value) in enumerate(ranks):
        on_left = number < half
        y = below + LINE * (number if on_left else len(ranks) - 1 - number)
        edge, color = (left - 14 if on_left else right + 14), (BEST if arm == highlight else INK)
        words = f"{names[arm]}  {value:.2f}" if on_left else f"{value:.2f}  {names[arm]}"
        parts += [line([(x(value), top), (x(value), y), (edge, y)], color=FAINT)]
        anchor = "end" if on_left else "start"
        parts += [text(edge + (-6 if on_left else 6), y + 4, words, anchor=anchor, color=color, bold=arm == highlight)]
    for number, (first, last) in enumerate(groups):
        y = bars + 8 * number
        parts += [line([(x(ranks[first][1]) - 3, y), (x(ranks[last][1]) + 3, y)], width=4)]
    return picture(right + left, below + LINE * half, "Mean ranks with the critical difference", parts)


def cost_diagram(points: Sequence[Point], cost: str, *, highlight: str = "") -> str:
    """Draw test Dice, mean ± deviation over the seeds, against what a network costs; the first point is the teacher.

    Parameters
    ----------
    points
        The teacher, then the students, which cost the same.
    cost
        Head of the horizontal axis, on a logarithmic scale.
    highlight
        Name of a point to stand out.
    """
    left, right, top = 60.0, 560.0, 16.0
    height = max(220.0, LINE * len(points))
    bottom = top + height
    low, high = _range([value for point in points for value in _bar(point)])
    cheapest, dearest = min(p.cost for p in points) / 1.6, max(p.cost for p in points) * 1.6

    def x(value: float) -> float:
        return left + (right - left) * math.log(value / cheapest) / math.log(dearest / cheapest)

    def y(value: float) -> float:
        return bottom - height * (value - low) / (high - low)

    parts = [line([(left, top), (left, bottom), (right, bottom)])]
    for tick in _ticks(low, high):
        parts += [line([(left, y(tick)), (right, y(tick))], color=FAINT, width=0.4)]
        parts += [text(left - 7, y(tick) + 4, f"{tick:.2f}", anchor="end")]
    for value in sorted({point.cost for point in points}):
        parts += [line([(x(value), bottom), (x(value), bottom + 5)])]
        parts += [text(x(value), bottom + 19, f"{value:.3g}", anchor="middle")]
    parts += [text((left + right) / 2, bottom + 40, cost, anchor="middle")]
    teacher, *students = points
    parts += [line([(left, y(_mean(teacher))), (right, y(_mean(teacher)))], color=FAINT, dashed=True)]
    parts += _point(x(teacher.cost), teacher, y, BEST if teacher.name == highlight else INK)
    parts += [text(x(teacher.cost) + 9, y(_mean(teacher)) - 6, teacher.name)]
    ordered = sorted(students, key=lambda point: -_mean(point))
    places = _apart([y(_mean(point)) for point in ordered], top + 6, bottom - 6)
    for number, (point, place) in enumerate(zip(ordered, places, strict=True)):
        color = BEST if point.name == highlight else MARK
        centre = x(point.cost) + 3 * (number - (len(ordered) - 1) / 2)
        edge = x(point.cost) + 2 * len(ordered) + 24
        parts += [line([(centre + 5, y(_mean(point))), (edge, place)], color=FAINT, width=0.6)]
        parts += _point(centre, point, y, color)
        words = f"{point.name}  {_mean(point):.3f}"
        parts += [text(edge + 4, place + 4, words, color=color if color == BEST else INK, bold=color == BEST)]
    return picture(right + 90, bottom + 54, f"Test Dice against {cost}", parts)


def _point(x: float, point: Point, y: Callable[[float], float], color: str) -> list[str]:
    low, high = _bar(point)
    return [line([(x, y(low)), (x, y(high))], color=color), dot(x, y(_mean(point)), color=color)]


def _mean(point: Point) -> float:
    return float(np.mean(point.scores))


def _bar(point: Point) -> tuple[float, float]:
    deviation = float(np.std(point.scores, ddof=1)) if len(point.scores) > 1 else 0.0
    return _mean(point) - deviation, _mean(point) + deviation


def _range(values: Sequence[float]) -> tuple[float, float]:
    margin = max(0.1 * (max(values) - min(values)), 0.005)
    return min(values) - margin, max(values) + margin


def _ticks(low: float, high: float) -> list[float]:
    """Return round numbers between two.

    Examples
    --------
    >>> [round(tick, 2) for tick in _ticks(0.71, 0.79)]
    [0.72, 0.74, 0.76, 0.78]
    """
    step = next((s for s in (0.01, 0.02, 0.05, 0.1) if (high - low) / s <= 6), 0.2)
    return [step * number for number in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _apart(places: Sequence[float], top: float, bottom: float) -> list[float]:
    """Return sorted places of labels, moved as little as keeps them a line apart and inside.

    Examples
    --------
    >>> _apart([50.0, 51.0], 0.0, 100.0)
    [50.0, 67.0]
    """
    gap = min(17.0, (bottom - top) / max(1, len(places) - 1))
    moved: list[float] = []
    for place in places:
        moved.append(max(place, top if not moved else moved[-1] + gap))
    limit = bottom
    for index in range(len(moved) - 1, -1, -1):
        moved[index] = min(moved[index], limit)
        limit = moved[index] - gap
    return moved
