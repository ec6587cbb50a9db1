"""In which directions the edges of a picture run: the energy of the directional sub-bands as a rose."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from qtpy.QtCore import QPointF, QRectF, Qt
from qtpy.QtGui import QColor, QPainter, QPaintEvent
from qtpy.QtWidgets import QWidget

from napari_rskd import _theme

HEIGHT = 130
MARGIN = 22  # pixels for the words around a rose
FINEST = 1

Energies = Sequence[tuple[float, float, float]]
"""Angles in degrees between which edges run, and their share of the energy, of every direction."""


def directional_energies(bands: Iterable[Mapping[str, Any]]) -> Energies:
    """Return how the energy of the finest level is spread over the directions of edges.

    Parameters
    ----------
    bands
        `level`, `energy`, and `wedge`: between which angles its waves run, None where a band has no direction. Edges
        run across the waves.

    Examples
    --------
    >>> bands = [{"level": 1, "wedge": (0, 90), "energy": 3.0}, {"level": 1, "wedge": (90, 180), "energy": 1.0}]
    >>> directional_energies(bands)
    [(90, 180, 0.75), (180, 270, 0.25)]
    """
    finest = [band for band in bands if band["level"] == FINEST and band["wedge"] is not None]
    total = sum(band["energy"] for band in finest) or 1.0
    return [(band["wedge"][0] + 90, band["wedge"][1] + 90, band["energy"] / total) for band in finest]


class Rose(QWidget):
    """A wedge per direction, as long as its share of the energy, and its mirror image: edges have no beginning."""

    def __init__(self, viewer: Any) -> None:
        super().__init__()
        self._viewer = viewer
        self.energies: dict[str, Energies] = {}
        self.setFixedHeight(HEIGHT)
        self.setToolTip("Energy of the finest sub-bands by the direction of the edges that they hold.")
        self.hide()
        _theme.follow(viewer, self, self.update)

    def show_energies(self, energies: Mapping[str, Energies]) -> None:
        """Show a rose per entry, with its name beneath; those without directions are left out."""
        self.energies = {name: found for name, found in energies.items() if found}
        self.setAccessibleDescription("; ".join(rose_words(name, found) for name, found in self.energies.items()))
        self.setVisible(bool(self.energies))
        self.update()

    def paintEvent(self, event: QPaintEvent) -> None:  # noqa: N802 - the name is Qt's
        """Draw every rose in its share of the width."""
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        width = self.width() / max(1, len(self.energies))
        for number, (name, energies) in enumerate(self.energies.items()):
            self._draw(painter, QRectF(number * width, 0, width, self.height()), name, energies)

    def _draw(self, painter: QPainter, area: QRectF, name: str, energies: Energies) -> None:
        text, wedge = (QColor(_theme.color(self._viewer, key)) for key in ("text", "current"))
        radius = min(area.width(), area.height()) / 2 - MARGIN
        middle = QPointF(area.center().x(), area.center().y() - MARGIN / 4)
        square = QRectF(middle.x() - radius, middle.y() - radius, 2 * radius, 2 * radius)
        painter.setPen(text)
        painter.setBrush(Qt.BrushStyle.NoBrush)
        painter.drawEllipse(square)
        painter.setBrush(wedge)
        largest = max(share for *_, share in energies) or 1.0
        for first, last, share in energies:
            length = radius * share / largest
            inner = QRectF(middle.x() - length, middle.y() - length, 2 * length, 2 * length)
            for turn in (0, 180):  # Qt counts sixteenths of a degree, against the clock
                painter.drawPie(inner, round(16 * (first + turn)), round(16 * (last - first)))
        painter.drawText(QRectF(middle.x() + radius + 3, middle.y() - 8, MARGIN, 16), "0°")
        painter.drawText(QRectF(middle.x() - MARGIN, square.top() - 17, 2 * MARGIN, 16), CENTRED, "90°")
        if name:
            painter.drawText(QRectF(area.left(), area.bottom() - 17, area.width(), 16), CENTRED, name.capitalize())


CENTRED = Qt.AlignmentFlag.AlignCenter


def rose_words(name: str, energies: Energies) -> str:
    """Return a rose as words, for those who cannot see it and for copying.

    Examples
    --------
    >>> rose_words("student", [(90, 180, 0.75), (180, 270, 0.25)])
    'Student: 135° 75 %, 45° 25 %'
    """
    parts = ", ".join(f"{(first + last) / 2 % 180:.0f}° {100 * share:.0f} %" for first, last, share in energies)
    return f"{name.capitalize()}: {parts}" if name else parts
