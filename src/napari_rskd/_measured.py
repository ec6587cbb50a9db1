"""A table of what was measured, to be read and to be saved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qtpy.QtCore import Qt
from qtpy.QtWidgets import QFileDialog, QHeaderView, QPushButton, QTableWidget, QTableWidgetItem, QVBoxLayout, QWidget

from napari_rskd._saving import may_replace
from rskd.errors import RskdError
from rskd.measure import write_table

_ROWS_SHOWN = 12
_WORDS = ("Image", "Class")
"""Columns of words; the others are of numbers."""


class Measured(QWidget):
    """The measurements of the last result.

    Parameters
    ----------
    fail
        Takes the error if they cannot be saved.
    """

    def __init__(self, fail: Any) -> None:
        super().__init__()
        self._fail = fail
        self._columns: Mapping[str, Sequence[Any]] = {}
        self._folder = Path()
        self.table = QTableWidget()
        self.table.setEditTriggers(QTableWidget.EditTrigger.NoEditTriggers)
        self.table.verticalHeader().hide()
        self.save_button = QPushButton("Save table…", toolTip="Write all that was measured as a CSV file.")
        self.save_button.clicked.connect(self._ask)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setAlignment(Qt.AlignmentFlag.AlignTop)
        column.addWidget(self.table)
        column.addWidget(self.save_button)

    def show_columns(self, columns: Mapping[str, Sequence[Any]], folder: Path) -> None:
        """Show measurements, as `rskd.measure.columns` gives them; `folder` is where they are saved by default."""
        self._columns, self._folder = columns, folder
        titles, rows = table_of(columns)
        self.table.setColumnCount(len(titles))
        self.table.setRowCount(len(rows))
        self.table.setHorizontalHeaderLabels(titles)
        for at, row in enumerate(rows):
            for column, cell in enumerate(row):
                self.table.setItem(at, column, _cell(cell, number=titles[column] not in _WORDS))
        self.table.horizontalHeader().setSectionResizeMode(QHeaderView.ResizeMode.ResizeToContents)
        line, head = self.table.verticalHeader().defaultSectionSize(), self.table.horizontalHeader().sizeHint().height()
        scroll = self.table.horizontalScrollBar().sizeHint().height()
        self.table.setFixedHeight(head + line * min(len(rows), _ROWS_SHOWN) + scroll + 4)

    def _ask(self) -> None:
        columns, suggested = self._columns, str(self._folder / "measurements.csv")  # others may come while it asks
        name, _ = QFileDialog.getSaveFileName(self, "Save the measurements", suggested, "Table (*.csv)")
        if name and may_replace(self, name, _with_ending(Path(name))):
            self.save(Path(name), columns)

    def save(self, path: Path, columns: Mapping[str, Sequence[Any]]) -> None:
        """Write measurements, as `rskd.measure.columns` gives them, as CSV."""
        try:
            write_table(_with_ending(path), columns)
        except RskdError as error:
            self._fail(error)


def _with_ending(path: Path) -> Path:
    return path if path.suffix else path.with_suffix(".csv")


def _cell(text: str, *, number: bool) -> QTableWidgetItem:
    item = QTableWidgetItem(text)
    item.setToolTip(text)
    if number:
        item.setTextAlignment(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
    return item


def table_of(columns: Mapping[str, Sequence[Any]]) -> tuple[list[str], list[list[str]]]:
    """Return titles and rows of what people look for first: size, number of parts, mean intensities.

    Examples
    --------
    >>> columns = {"class": ["liver"], "size": [1234.5678], "unit": ["ml"], "components": [2], "mean_intensity": [57.3]}
    >>> table_of({**columns, "time": [None]})
    (['Class', 'Size', 'Parts', 'Mean intensity'], [['Liver', '1235 ml', '2', '57.3']])
    """
    if not columns:
        return [], []
    sizes = [size_words(size, unit) for size, unit in zip(columns["size"], columns["unit"], strict=True)]
    shown = {"Image": list(map(str, columns["image"]))} if "image" in columns else {}
    shown["Class"] = [str(name).capitalize() for name in columns["class"]]
    if any(time is not None for time in columns["time"]):
        shown["Time"] = [str(time) for time in columns["time"]]
    shown |= {"Size": sizes, "Parts": [str(count) for count in columns["components"]]}
    for name, values in columns.items():
        if name.startswith("mean_"):
            shown[f"Mean {name.removeprefix('mean_')}"] = ["–" if v is None else f"{v:.4g}" for v in values]
    return [*shown], [list(row) for row in zip(*shown.values(), strict=True)]


def size_words(size: float, unit: str) -> str:
    """Return a size as people write it.

    Examples
    --------
    >>> size_words(12.3456, "mm2"), size_words(20351, "voxels"), size_words(0, "ml")
    ('12.3 mm²', '20351 voxels', '0 ml')
    """
    figure = f"{size:.0f}" if size >= 1000 or unit in ("voxels", "pixels") else f"{size:.3g}"
    return f"{figure} {unit.replace('2', '²').replace('3', '³').replace('um', 'µm')}"
