"""The legend: which colour is which class, how large it is, and what of it is shown or locked."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from napari.layers import Labels
from qtpy.QtCore import Qt
from qtpy.QtGui import QColor
from qtpy.QtWidgets import (
    QCheckBox,
    QColorDialog,
    QFrame,
    QGridLayout,
    QLabel,
    QPushButton,
    QScrollArea,
    QSizePolicy,
    QSlider,
    QVBoxLayout,
    QWidget,
)

from napari_rskd._farewell import when_destroyed
from napari_rskd._fields import watch_layers
from napari_rskd._form import guard_wheel
from napari_rskd._locks import locks_of
from napari_rskd._panel import NOT_FOR_DIAGNOSIS, WIDTH, Docked, text
from napari_rskd._results import labels_beside
from napari_rskd._sizes import Sizes
from napari_rskd._source import is_result, itself

NOTHING = "Segment an image: its classes are listed here, with their colours and sizes."
TITLES = {"Show": 0, "Class": 2, "Size": 3, "Fade": 4, "Lock": 5}
"""By their column; the first stands over the colour as well."""
SWATCH = 18


@dataclass(frozen=True)
class Look:
    """How a class looks.

    Parameters
    ----------
    color
        ``#rrggbb``.
    opacity
        From 0 to 1.
    shown
        Whether it is seen at all.
    locked
        Whether a brush cannot change it.
    """

    color: str
    opacity: float = 1.0
    shown: bool = True
    locked: bool = False


@dataclass
class _Row:
    """One class of one layer, and its fields."""

    layer: Any
    label: int
    name: str
    fields: dict[str, QWidget] = field(default_factory=dict)


_LOOKS: WeakKeyDictionary[Any, dict[int, Look]] = WeakKeyDictionary()


class LegendWidget(Docked):
    """Classes of the selected result, or else of the uppermost one."""

    def __init__(self, napari_viewer: Any) -> None:
        super().__init__()
        self.viewer = itself(napari_viewer)
        self.rows: list[_Row] = []
        self._layers: list[Any] = []
        self._sizes: list[Sizes] = []
        self.title, self.status = text(name="title"), text(name="status")
        self._body = QWidget()
        self._grid = QGridLayout(self._body)
        self._grid.setContentsMargins(0, 4, 0, 4)
        self._grid.setHorizontalSpacing(2)
        self._grid.setAlignment(Qt.AlignmentFlag.AlignTop)
        self._grid.setColumnStretch(2, 1)
        area = QScrollArea(widgetResizable=True, frameShape=QFrame.Shape.NoFrame)
        area.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        area.setWidget(self._body)
        column = QVBoxLayout(self)
        column.setContentsMargins(2, 4, 2, 4)
        for widget in (self.title, area, self.status, text(NOT_FOR_DIAGNOSIS, name="note")):
            column.addWidget(widget)
        self.setMinimumWidth(WIDTH)
        self.setSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Maximum)
        watch_layers(self.viewer, self, self.refresh)
        selection = self.viewer.layers.selection.events.active
        selection.connect(self.refresh)
        when_destroyed(self, lambda: selection.disconnect(self.refresh))
        when_destroyed(self, self._let_go)
        self.refresh()

    def leave(self) -> None:
        """Let go of everything, the layers first: the dock was closed."""
        self._release()
        super().leave()

    def refresh(self, event: object = None) -> None:
        """Show the classes of the result that is selected now."""
        layers = self._chosen()
        several = "Classes that may overlap"
        self.title.setText(f"<b>{layers[0].name if len(layers) == 1 else several}</b>" if layers else NOTHING)
        if layers == self._layers:
            return
        self._release()
        self._layers = layers
        for index in reversed(range(self._grid.count())):
            self._grid.takeAt(index).widget().deleteLater()
        self.rows = [row for layer in layers for row in rows_of(layer)]
        if self.rows:
            for title, column in TITLES.items():
                self._grid.addWidget(QLabel(title), 0, column, 1, 2 if column == 0 else 1)
        for number, row in enumerate(self.rows, 1):
            self._add(row, number)
        for layer in layers:
            self._follow(layer)

    def _chosen(self) -> list[Any]:
        active = self.viewer.layers.selection.active
        found = labels_beside(self.viewer, active)
        if found or has_classes(active):
            return found or [active]
        kept = [layer for layer in self._layers if layer in self.viewer.layers]
        last = next((layer for layer in reversed(self.viewer.layers) if has_classes(layer)), None)
        return kept or labels_beside(self.viewer, last) or ([last] if last is not None else [])

    # ------------------------------------------------------------------------------------------------------- one class

    def _add(self, row: _Row, number: int) -> None:
        look = looks_of(row.layer)[row.label]
        shown = QCheckBox(checked=look.shown)
        swatch = QPushButton()
        swatch.setFixedSize(SWATCH, SWATCH)
        opacity = QSlider(Qt.Orientation.Horizontal, minimum=0, maximum=100, value=round(100 * look.opacity))
        opacity.setFixedWidth(32)
        guard_wheel(opacity)
        lock = QCheckBox(checked=look.locked)
        name, size = QLabel(row.name), QLabel("…")
        size.setAlignment(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
        name.setMinimumWidth(10)
        name.setWordWrap(True)
        row.fields = dict(zip(("shown", "swatch", "name", "size", "opacity", "lock"),
                              (shown, swatch, name, size, opacity, lock), strict=True))  # fmt: skip
        tips = (f"Show or hide {row.name}", f"Colour of {row.name}: click to choose another", row.name, "",
                f"Opacity of {row.name}", f"Keep the brush away from {row.name}")  # fmt: skip
        for column, (widget, tip) in enumerate(zip(row.fields.values(), tips, strict=True)):
            widget.setToolTip(tip)
            widget.setAccessibleName(tip)
            self._grid.addWidget(widget, number, column)
        self._paint(row)
        shown.toggled.connect(lambda on: self._change(row, shown=on))
        opacity.valueChanged.connect(lambda value: self._change(row, opacity=value / 100))
        lock.toggled.connect(lambda on: self._change(row, locked=on))
        swatch.clicked.connect(partial(self._ask_color, row))

    def _ask_color(self, row: _Row) -> None:
        now = QColor(looks_of(row.layer)[row.label].color)
        chosen = QColorDialog.getColor(now, self, f"Colour of {row.name}")
        if chosen.isValid():
            self._change(row, color=chosen.name())

    def _change(self, row: _Row, **changes: Any) -> None:
        looks = looks_of(row.layer)
        looks[row.label] = replace(looks[row.label], **changes)
        if "locked" in changes:
            self._set_locks(row.layer)
            return
        row.layer.colormap = colors_of(looks)
        self._paint(row)

    def _paint(self, row: _Row) -> None:
        color = looks_of(row.layer)[row.label].color
        row.fields["swatch"].setStyleSheet(f"background-color: {color}; border: 1px solid gray; padding: 0px;")

    # ----------------------------------------------------------------------------------------------------- one layer

    def _follow(self, layer: Any) -> None:
        sizes = Sizes(self, layer)
        sizes.counted.connect(lambda counts: self._show_sizes(layer, sizes, counts))
        self._sizes.append(sizes)
        self._set_locks(layer)
        locks_of(layer).join(self._say_locked)

    def _release(self) -> None:
        self._let_go()
        for sizes in self._sizes:
            sizes.deleteLater()
        self._sizes = []

    def _let_go(self) -> None:
        """Stop following the layers; nothing of Qt is touched, so that it can be done when the legend is gone."""
        for sizes in self._sizes:
            sizes.release()
        for layer in self._layers:
            locks_of(layer).leave(self._say_locked)

    def _set_locks(self, layer: Any) -> None:
        locks_of(layer).locked = {label for label, look in looks_of(layer).items() if look.locked}

    def _show_sizes(self, layer: Any, sizes: Sizes, counts: list[int]) -> None:
        for row in self.rows:
            if row.layer is layer:
                row.fields["size"].setText(sizes.words(counts[row.label] if row.label < len(counts) else 0))

    def _say_locked(self, layer: Any, label: int) -> None:
        name = next(row.name for row in self.rows if row.layer is layer and row.label == label)
        self.status.setText(f"{name} is locked: it was left as it is.")


def has_classes(layer: Any) -> bool:
    """Tell whether a layer is labels of RSKD with the names of their classes."""
    return isinstance(layer, Labels) and is_result(layer) and "class" in layer.features


def rows_of(layer: Any) -> list[_Row]:
    """Return the classes of a layer, the background left out."""
    names = dict(zip(layer.features["index"], layer.features["class"], strict=True))
    return [_Row(layer, int(label), str(name).capitalize()) for label, name in names.items() if label]


def looks_of(layer: Any) -> dict[int, Look]:
    """Return how the classes of a layer look; at first as its colours say."""
    if layer not in _LOOKS:
        _LOOKS[layer] = {row.label: _look(layer.get_color(row.label)) for row in rows_of(layer)}
    return _LOOKS[layer]


def _look(rgba: Any) -> Look:
    red, green, blue, alpha = (0.5, 0.5, 0.5, 0.0) if rgba is None else map(float, rgba)
    name = QColor.fromRgbF(red, green, blue).name()
    return Look(name, opacity=alpha or 1.0, shown=alpha > 0)


def colors_of(looks: dict[int, Look]) -> Any:
    """Return the colours of classes as a colormap; the background and unknown labels are transparent."""
    from napari.utils.colormaps import DirectLabelColormap

    colors: dict[int | None, Any] = {None: np.zeros(4), 0: np.zeros(4)}
    for label, look in looks.items():
        red, green, blue, _ = QColor(look.color).getRgbF()
        colors[label] = np.array([red, green, blue, look.opacity if look.shown else 0.0])
    return DirectLabelColormap(color_dict=colors)
