"""What the student makes of some validation images, drawn anew after every round."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from qtpy.QtCore import QSize, Qt
from qtpy.QtGui import QImage, QPixmap
from qtpy.QtWidgets import QCheckBox, QHBoxLayout, QLabel, QToolButton, QVBoxLayout, QWidget

from napari_rskd._source import made_by

LAYER = "Preview: teacher, student, mask, mistakes"


class PreviewBox(QWidget):
    """One of the pictures of a run, two buttons to leaf through them, and a box to see it in the viewer.

    Parameters
    ----------
    viewer
        Where the picture is shown as a layer on request, right of all the others.
    """

    def __init__(self, viewer: Any) -> None:
        super().__init__()
        self._viewer = viewer
        self._folder: Path | None = None
        self._files: list[Path] = []
        self._at = 0
        self._image = QImage()
        self.picture = QLabel(alignment=Qt.AlignmentFlag.AlignCenter, objectName="preview")
        self.picture.setMinimumWidth(1)
        self.title = QLabel()
        self.back = QToolButton(arrowType=Qt.ArrowType.LeftArrow, toolTip="The image before.")
        self.next = QToolButton(arrowType=Qt.ArrowType.RightArrow, toolTip="The next image.")
        self.in_viewer = QCheckBox("Large", toolTip="Show it in the viewer as well, right of the other layers.")
        row = QHBoxLayout()
        for widget in (self.back, self.title, self.next):
            row.addWidget(widget)
        row.addStretch(1)
        row.addWidget(self.in_viewer)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addLayout(row)
        column.addWidget(self.picture)
        self.back.clicked.connect(lambda: self._leaf(-1))
        self.next.clicked.connect(lambda: self._leaf(1))
        self.in_viewer.toggled.connect(self._show_layer)
        self.hide()

    def look(self, folder: Path | None) -> None:
        """Show what is in a folder of pictures by now; hide where there is none."""
        if folder != self._folder:
            self._folder, self._at = folder, 0
        self._files = [] if folder is None else sorted(folder.glob("*.png"))
        self.setVisible(bool(self._files))
        self._show()

    def _leaf(self, by: int) -> None:
        self._at = (self._at + by) % len(self._files)
        self._show()

    def _show(self) -> None:
        if not self._files:
            return
        image = QImage(str(self._files[self._at]))
        if image.isNull():  # it is being replaced at this moment; the next round brings a new one
            return
        self._image = image
        self.title.setText(f"Image {self._at + 1} of {len(self._files)}")
        self._fit()
        self._show_layer()

    def _fit(self) -> None:
        if self._image.isNull():
            return
        zoom = self.devicePixelRatioF()
        room = QSize(round(self.width() * zoom), self._image.height())
        smooth = Qt.TransformationMode.SmoothTransformation
        pixmap = QPixmap.fromImage(self._image.scaled(room, Qt.AspectRatioMode.KeepAspectRatio, smooth))
        pixmap.setDevicePixelRatio(zoom)
        self.picture.setPixmap(pixmap)
        self.picture.setFixedHeight(round(pixmap.height() / zoom))  # where there is no room, the panel scrolls

    def resizeEvent(self, event: Any) -> None:  # noqa: N802
        super().resizeEvent(event)
        if event.size().width() != event.oldSize().width():
            self._fit()

    def _show_layer(self) -> None:
        """Add the layer, or renew it; without a tick it stays as it is, for it may have been kept on purpose."""
        if not self.in_viewer.isChecked() or self._image.isNull():
            return
        pixels = _pixels(self._image)
        if LAYER in self._viewer.layers:
            self._viewer.layers[LAYER].data = pixels
            return
        self._viewer.add_image(pixels, name=LAYER, rgb=True, metadata=made_by({"by": "distillation"}), **self._place())

    def _place(self) -> dict[str, Any]:
        """Return where the layer is right of all the others, as high as they are."""
        layers = self._viewer.layers
        if not layers:
            return {}
        (top, left), (bottom, right) = (corner[-2:] for corner in layers.extent.world)
        scale = max(bottom - top, 1e-9) / self._image.height()
        return {
            "scale": (scale, scale),
            "translate": (top, right + 0.05 * (right - left)),
            "units": layers[0].units[-2:],
        }


def _pixels(image: QImage) -> NDArray[np.uint8]:
    """Return a picture as an array, H W 3."""
    image = image.convertToFormat(QImage.Format.Format_RGBA8888)
    bits = image.constBits()
    if hasattr(bits, "setsize"):  # PyQt gives an address, PySide the memory
        bits.setsize(image.sizeInBytes())
    flat = np.frombuffer(bits, np.uint8).reshape(image.height(), image.bytesPerLine())
    return flat[:, : 4 * image.width()].reshape(image.height(), image.width(), 4)[..., :3].copy()
