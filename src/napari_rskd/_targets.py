"""What to segment: an image, its slice in view, all open images, or a folder."""

from __future__ import annotations

from typing import Any

from napari.layers import Image
from qtpy.QtCore import Signal
from qtpy.QtWidgets import QFormLayout, QWidget

from napari_rskd._fields import FolderField, LayerBox, NarrowBox
from napari_rskd._first_steps import OPEN_FIRST
from napari_rskd._picture import Picture, slice_picture, whole_picture
from napari_rskd._source import is_result

WHOLE, SLICE, ALL, FOLDER = "One image", "The slice in view", "All open images", "A folder of images"


class Target(QWidget):
    """Asks what to segment.

    Parameters
    ----------
    viewer
        Whose layers.
    """

    changed = Signal()

    def __init__(self, viewer: Any) -> None:
        super().__init__()
        self._viewer = viewer
        self.kind = NarrowBox()
        self.kind.addItems([WHOLE, SLICE, ALL, FOLDER])
        self.kind.setToolTip("One image means all of its slices; a folder is worked on file by file.")
        self.image = LayerBox(viewer, Image)
        self.images = FolderField("Folder with the images", placeholder="images of any kind")
        self.output = FolderField("Folder for the results", placeholder="a new or empty folder")
        form = QFormLayout(self)
        form.setContentsMargins(0, 0, 0, 0)
        self._form = form
        for title, field in (("Segment", self.kind), ("Image", self.image), ("Images", self.images)):
            form.addRow(title, field)
        form.addRow("Results", self.output)
        self.kind.currentIndexChanged.connect(self._chosen)
        for signal in (self.image.changed, self.images.changed, self.output.changed):
            signal.connect(self.changed)
        self._chosen()

    def add_row(self, title: str, field: QWidget) -> None:
        """Put another field below, in line with the others."""
        self._form.addRow(title, field)

    @property
    def folder(self) -> bool:
        """Whether a folder is to be segmented."""
        return bool(self.kind.currentText() == FOLDER)

    def _chosen(self) -> None:
        kind = self.kind.currentText()
        shown = {self.image: kind in (WHOLE, SLICE), self.images: kind == FOLDER, self.output: kind == FOLDER}
        for field, visible in shown.items():
            self._form.setRowVisible(field, visible)
        self.changed.emit()

    def reason(self) -> str:
        """Return in words what is missing; empty = nothing."""
        if not self.folder:
            return "" if self._layers() else OPEN_FIRST
        for field, what in ((self.images, "the images"), (self.output, "the results")):
            if field.path() is None:
                return f"Choose the folder for {what}." if field is self.output else f"Choose the folder with {what}."
        return ""

    def pictures(self) -> list[Picture]:
        """Return the open images, or the slice, that were asked for.

        Raises
        ------
        ParameterError
            If one has more axes than a scan can have.
        """
        if self.kind.currentText() == SLICE:
            return [slice_picture(layer, self._viewer.dims) for layer in self._layers()]
        return [whole_picture(layer) for layer in self._layers()]

    def _layers(self) -> list[Any]:
        if self.kind.currentText() == ALL:
            return [layer for layer in self._viewer.layers if isinstance(layer, Image) and not is_result(layer)]
        chosen = self.image.layer()
        return [] if chosen is None else [chosen]
