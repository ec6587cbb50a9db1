"""The part of the Distill panel that asks what to learn from."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from napari.layers import Image, Labels
from qtpy.QtCore import Signal
from qtpy.QtWidgets import QCheckBox, QFormLayout, QHBoxLayout, QVBoxLayout, QWidget

from napari_rskd._data import PHANTOMS, pair_of, write_examples, write_pairs
from napari_rskd._fields import FolderField, NarrowBox, watch_layers
from napari_rskd._panel import text
from napari_rskd._source import is_result
from rskd.config import DataOptions

Collect = Callable[[Path], DataOptions]
"""Puts the data into a folder, where it has to, and returns where it is; for the worker thread."""

MINIMUM = 2  # one image to train on and one to validate with


class DataPages(QWidget):
    """Generated examples, folders on disk, or open layers."""

    changed = Signal()

    def __init__(self, viewer: Any) -> None:
        super().__init__()
        self.kind = NarrowBox()
        self.folders = FolderPage()
        self.layers = LayerPage(viewer)
        self._pages: list[Any] = [ExamplePage(), self.folders, self.layers]
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addWidget(self.kind)
        self.kind.addItems(["Generated examples", "Folders on this computer", "Open layers"])
        for page in self._pages:
            column.addWidget(page)
        self.kind.currentIndexChanged.connect(self._show)
        self.folders.changed.connect(self.changed)
        self.layers.changed.connect(self.changed)
        self._show(0)

    def reason(self) -> str:
        """Return why there is nothing to learn from."""
        return str(self._pages[self.kind.currentIndex()].reason())

    def collect(self) -> Collect:
        """Return what brings the data together."""
        return self._pages[self.kind.currentIndex()].collect()  # type: ignore[no-any-return]

    def _show(self, index: int) -> None:
        for number, page in enumerate(self._pages):
            page.setVisible(number == index)
        self.changed.emit()


class ExamplePage(QWidget):
    """Pictures that the program draws."""

    def __init__(self) -> None:
        super().__init__()
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addWidget(
            text(f"{PHANTOMS} small pictures of branching vessels are drawn, with their masks: to try it.")
        )

    def reason(self) -> str:
        return ""

    def collect(self) -> Collect:
        return write_examples


class FolderPage(QWidget):
    """Images, and masks if there are any, on disk."""

    changed = Signal()

    def __init__(self) -> None:
        super().__init__()
        self.images = FolderField("Folder with the images")
        self.masks = FolderField("Folder with the masks", placeholder="none: learn from the teacher alone")
        form = QFormLayout(self)
        form.setContentsMargins(0, 0, 0, 0)
        form.addRow("Images", self.images)
        form.addRow("Masks", self.masks)
        help_text = DataOptions.model_fields["masks"].description or ""
        self.masks.line.setToolTip(help_text)
        for field in (self.images, self.masks):
            field.changed.connect(self.changed)

    def reason(self) -> str:
        images, masks = self.images.path(), self.masks.path()
        if images is None:
            return "Choose the folder with the images."
        for folder in (images, masks):
            if folder is not None and not folder.is_dir():
                return f"There is no folder {folder}."
        return ""

    def collect(self) -> Collect:
        images = self.images.path()
        assert images is not None  # noqa: S101 - `reason` has seen to it
        options = DataOptions(images=images, masks=self.masks.path())
        return lambda _: options


class LayerPage(QWidget):
    """One row per open image: whether it is used, and which labels are its mask."""

    changed = Signal()

    def __init__(self, viewer: Any) -> None:
        super().__init__()
        self._viewer = viewer
        self._rows: dict[Any, tuple[QCheckBox, NarrowBox]] = {}
        self._ticks: dict[Any, bool] = {}  # what was decided by hand; the rest is guessed anew
        self._masks: dict[Any, Any] = {}
        self._column = QVBoxLayout(self)
        self._column.setContentsMargins(0, 0, 0, 0)
        self._column.addWidget(text("Tick the images to learn from, and choose the mask of each."))
        watch_layers(viewer, self, self.read_layers)
        self.read_layers()

    def read_layers(self) -> None:
        """List the open layers; what was ticked and chosen by hand stays so."""
        while self._column.count() > 1:
            self._column.takeAt(1).widget().deleteLater()
        self._rows.clear()
        masks = [layer for layer in self._viewer.layers if isinstance(layer, Labels)]
        images = [layer for layer in self._viewer.layers if isinstance(layer, Image)]
        for decided in (self._ticks, self._masks):
            for closed in decided.keys() - set(images):
                del decided[closed]
        for layer in images:
            mask = self._masks.get(layer, guess_mask(layer, images, masks))
            self._add_row(layer, masks, ticked=self._ticks.get(layer, not is_result(layer)), mask=mask)
        self.changed.emit()

    def _add_row(self, layer: Any, masks: list[Any], *, ticked: bool, mask: Any) -> None:
        tick = QCheckBox(layer.name, checked=ticked, toolTip=layer.name)
        tick.setMinimumWidth(40)
        box = NarrowBox()
        box.addItem("no mask", None)
        for candidate in masks:
            box.addItem(candidate.name, candidate)
        box.setCurrentIndex(masks.index(mask) + 1 if mask in masks else 0)
        tick.toggled.connect(lambda on: self._ticks.update({layer: on}))
        tick.toggled.connect(self.changed)
        box.activated.connect(lambda _: self._masks.update({layer: box.currentData()}))
        row = QWidget()
        line = QHBoxLayout(row)
        line.setContentsMargins(0, 0, 0, 0)
        line.addWidget(tick, 1)
        line.addWidget(box, 1)
        self._column.addWidget(row)
        self._rows[layer] = (tick, box)

    def pairs(self) -> list[tuple[Any, Any]]:
        """Return the ticked images, each with its labels layer or None."""
        return [(layer, box.currentData()) for layer, (tick, box) in self._rows.items() if tick.isChecked()]

    def reason(self) -> str:
        if len(self.pairs()) < MINIMUM:
            return f"Open and tick at least {MINIMUM} images: one is kept to check the student with."
        return ""

    def collect(self) -> Collect:
        return partial(write_pairs, [pair_of(image, labels) for image, labels in self.pairs()])


def guess_mask(image: Any, images: list[Any], masks: list[Any]) -> Any:
    """Return the labels layer that can only belong to `image`: by its name, or as the only pair of that shape.

    What RSKD has made itself is never taken for the truth, unless it is chosen by hand.
    """
    fitting = [mask for mask in masks if mask.data.shape == _shape(image) and not is_result(mask)]
    named = [mask for mask in fitting if image.name in mask.name or mask.name in image.name]
    rivals = [other for other in images if _shape(other) == _shape(image) and not is_result(other)]
    if len(named) == 1:
        return named[0]
    return fitting[0] if len(fitting) == len(rivals) == 1 else None


def _shape(image: Any) -> tuple[int, ...]:
    return tuple(image.data.shape[:-1] if image.rgb else image.data.shape)
