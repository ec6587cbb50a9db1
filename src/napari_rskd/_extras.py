"""What may be asked of a segmentation beside the labels: fields of a job, and how the labels are cleaned up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qtpy.QtCore import Qt
from qtpy.QtWidgets import QCheckBox, QDoubleSpinBox, QGridLayout, QLabel, QVBoxLayout, QWidget

from napari_rskd._fields import NarrowBox
from napari_rskd._form import guard_wheel
from rskd.config import CleanUpOptions
from rskd.config_results import ALL

SIDES = {"Once": "none", "4 times, flipped": "flips", "8 times, flipped and turned": "rotations"}
UNITS = {"mm³, mm²": "mm", "ml": "ml", "µm³, µm²": "um", "voxels": "voxels"}
EVERY = "Every one"
LARGEST = 1e9


class Extras(QWidget):
    """What else is made: maps, measurements, a second look at every tile."""

    def __init__(self) -> None:
        super().__init__()
        self.probabilities = _box("The probability of each class", "One image layer per class, from 0 to 1.")
        self.entropy = _box(
            "How unsure the network is", "An image layer: 0 = one class is certain, 1 = all classes are as likely."
        )
        self.margin = _box(
            "Lead of the likeliest class",
            "An image layer: how far the likeliest class is ahead of the second; 0 = even, 1 = certain.",
        )
        self.compare = _box(
            "Where teacher and student differ",
            "Segments with both, and shows where their labels differ and how far their probabilities are apart.",
        )
        self.measure = _box("Measure every class", "Volume or area, number of parts, intensity.", checked=True)
        self.sides = NarrowBox()
        for title, value in SIDES.items():
            self.sides.addItem(title, value)
        self.sides.setToolTip("Looking several times at flipped or turned pieces is a little better and slower.")
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        for box in (self.probabilities, self.entropy, self.margin, self.compare, self.measure):
            column.addWidget(box)
        column.addWidget(QLabel("Look at every piece"))
        column.addWidget(self.sides)

    def fields(self) -> dict[str, Any]:
        """Return them as fields of a job; `compare_with` is for whoever knows the networks."""
        maps = [name for name in ("entropy", "margin") if getattr(self, name).isChecked()]
        return {
            "uncertainty": tuple(maps),
            "measure": "classes" if self.measure.isChecked() else "none",
            "tta": self.sides.currentData(),
        }


class CleanUp(QWidget):
    """What is done to the labels afterwards, class by class."""

    def __init__(self) -> None:
        super().__init__()
        self._grid = QGridLayout(self)
        self._grid.setContentsMargins(0, 0, 0, 0)
        self._grid.setHorizontalSpacing(4)
        self.unit = NarrowBox()
        for title, value in UNITS.items():
            self.unit.addItem(title, value)
        self.unit.setToolTip(CleanUpOptions.model_fields["size_unit"].description or "")
        self.slices = _box("Fill holes slice by slice", CleanUpOptions.model_fields["holes_in"].description or "")
        self.rows: dict[str, _Row] = {}
        for column, title in enumerate(("", "Drop parts\nbelow", "Largest\nonly", "Fill\nholes")):
            self._grid.addWidget(QLabel(title, alignment=Qt.AlignmentFlag.AlignBottom), 0, column)
        self._sizes_in = QLabel("Sizes in")
        self.offer(())

    def offer(self, classes: Sequence[str]) -> None:
        """Show a row for every class, background left out; what was set for a class that is still there stays."""
        names = [ALL, *(classes if len(classes) > 1 else ())]
        if names == [*self.rows]:
            return
        for row in self.rows.values():
            row.remove()
        self.rows = {name: self.rows[name] if name in self.rows else _Row(name) for name in names}
        for number, row in enumerate(self.rows.values(), 1):
            for column, field in enumerate(row.fields):
                self._grid.addWidget(field, number, column)
                field.show()
        last = len(names) + 1
        self._grid.addWidget(self._sizes_in, last, 0)
        self._grid.addWidget(self.unit, last, 1, 1, 3)
        self._grid.addWidget(self.slices, last + 1, 0, 1, 4)

    def options(self) -> CleanUpOptions:
        """Return it as a group of parameters."""
        return CleanUpOptions(
            min_size=tuple(f"{name}={row.size.value():g}" for name, row in self.rows.items() if row.size.value()),
            keep_largest=tuple(name for name, row in self.rows.items() if row.largest.isChecked()),
            fill_holes=tuple(name for name, row in self.rows.items() if row.holes.isChecked()),
            size_unit=self.unit.currentData(),
            holes_in="slices" if self.slices.isChecked() else "volume",
        )


class _Row:
    """The fields of one class."""

    def __init__(self, name: str) -> None:
        title = EVERY if name == ALL else name.capitalize()
        self.label = QLabel(title, toolTip=title)
        self.label.setMinimumWidth(min(64, self.label.sizeHint().width()))
        self.size = QDoubleSpinBox(decimals=3, maximum=LARGEST, specialValueText="–")
        self.size.setStepType(QDoubleSpinBox.StepType.AdaptiveDecimalStepType)
        self.size.setFixedWidth(70)
        guard_wheel(self.size)
        self.largest, self.holes = QCheckBox(), QCheckBox()
        self.fields = (self.label, self.size, self.largest, self.holes)
        for field, what in zip(self.fields[1:], ("smallest size", "only the largest part", "fill holes"), strict=True):
            field.setAccessibleName(f"{title}: {what}")
            field.setToolTip(f"{title}: {what}")

    def remove(self) -> None:
        for field in self.fields:
            field.hide()


def _box(title: str, tooltip: str, *, checked: bool = False) -> QCheckBox:
    return QCheckBox(title, toolTip=" ".join(tooltip.split()), checked=checked)
