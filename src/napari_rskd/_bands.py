"""A switch and a gain for every sub-band."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qtpy.QtCore import Qt, Signal
from qtpy.QtWidgets import QCheckBox, QGridLayout, QHBoxLayout, QLabel, QPushButton, QSlider, QWidget

from napari_rskd._form import guard_wheel
from napari_rskd._layers import subband_name

UNIT = 100  # slider steps per factor of one
MOST = 3 * UNIT


class BandGains(QWidget):
    """One row per sub-band: switch, gain, its number."""

    changed = Signal()

    def __init__(self) -> None:
        super().__init__()
        self._grid = QGridLayout(self)
        self._grid.setColumnStretch(1, 1)
        self.switches: dict[str, QCheckBox] = {}
        self.sliders: dict[str, QSlider] = {}
        self.reset = QPushButton("All at 1", self, toolTip="Switch every sub-band on and set its gain to 1.")
        self.none = QPushButton("All off", self, toolTip="Switch every sub-band off, to add them one by one.")
        self.reset.clicked.connect(lambda: self._set_all(True))
        self.none.clicked.connect(lambda: self._set_all(False))

    def offer(self, bands: Sequence[Mapping[str, Any]]) -> None:
        """Show a row per sub-band; the gains of the same sub-bands stay."""
        if list(self.switches) == [band["array"] for band in bands]:
            return
        self.switches, self.sliders = {}, {}
        while (item := self._grid.takeAt(0)) is not None:
            if (widget := item.widget()) is not None and widget not in (self.reset, self.none):
                widget.deleteLater()
        row = QHBoxLayout()
        row.addWidget(self.reset)
        row.addWidget(self.none)
        self._grid.addLayout(row, 0, 0, 1, 3)
        for place, band in enumerate(bands, 1):
            self._add(place, band["array"], subband_name(band))

    def gains(self) -> dict[str, float]:
        """Return the gain of every sub-band that is not at 1."""
        values = {
            name: slider.value() / UNIT * self.switches[name].isChecked() for name, slider in self.sliders.items()
        }
        return {name: gain for name, gain in values.items() if gain != 1}

    def _add(self, row: int, array: str, title: str) -> None:
        switch = QCheckBox(title.replace("Edges at ", ""), checked=True, toolTip=f"{title}: on or off")
        slider = QSlider(Qt.Orientation.Horizontal, minimum=0, maximum=MOST, value=UNIT, toolTip=f"{title}: gain")
        slider.setMinimumWidth(40)
        slider.setAccessibleName(f"Gain of {title}")
        guard_wheel(slider)
        number = QLabel("1.00")
        slider.valueChanged.connect(lambda value: number.setText(f"{value / UNIT:.2f}"))
        slider.valueChanged.connect(self.changed)
        switch.toggled.connect(self.changed)
        for column, widget in enumerate((switch, slider, number)):
            self._grid.addWidget(widget, row, column)
        self.switches[array], self.sliders[array] = switch, slider

    def _set_all(self, on: bool) -> None:
        self.blockSignals(True)
        for name, switch in self.switches.items():
            switch.setChecked(on)
            if on:
                self.sliders[name].setValue(UNIT)
        self.blockSignals(False)
        self.changed.emit()
