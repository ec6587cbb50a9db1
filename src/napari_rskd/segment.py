"""Segment an open image with the student or the teacher."""

from __future__ import annotations

from typing import Any

from napari.layers import Image
from qtpy.QtWidgets import QCheckBox, QFormLayout

from napari_rskd._fields import LayerBox, NarrowBox
from napari_rskd._form import Form, Section
from napari_rskd._job import Order, Work
from napari_rskd._layers import segmentation_layers
from napari_rskd._panel import Panel
from napari_rskd._session import Model, follow_session, session_of
from napari_rskd._settings import compute_options
from napari_rskd._source import Source, add_layer, axes_of, whole
from rskd.config import SegmentOptions
from rskd.jobs import Outcome, SegmentJob


class SegmentWidget(Panel):
    """Labels for the whole of an image layer."""

    def __init__(self, napari_viewer: Any) -> None:
        super().__init__(napari_viewer, verb="Segment")
        self.session = session_of(napari_viewer)
        self.image = LayerBox(napari_viewer, Image)
        self.network = NarrowBox()
        self.network.setPlaceholderText("none is loaded")
        self.probabilities = QCheckBox("Also show the probability of each class")
        self.options: Form[SegmentOptions] = Form(SegmentOptions(), omit=["probabilities"])
        self._source: Source | None = None
        self._axes, self._by = "", ""
        form = QFormLayout()
        form.addRow("Image", self.image)
        form.addRow("Network", self.network)
        self.column.addLayout(form)
        self.column.addWidget(self.probabilities)
        self.column.addWidget(Section("Tiles", self.options))
        self.image.changed.connect(self.refresh)
        follow_session(self, self.session, self._offer)

    def _offer(self) -> None:
        chosen = self.network.currentData()
        self.network.clear()
        for role in ("student", "teacher"):
            model: Model | None = getattr(self.session, role)
            if model is not None:
                self.network.addItem(f"{role.capitalize()}: {model.name}", role)
        self.network.setCurrentIndex(max(0, self.network.findData(chosen)) if self.network.count() else -1)
        self.refresh()

    def reason(self) -> str:
        """Return why it cannot start."""
        if self.image.layer() is None:
            return "Open an image first: File › Open, or File › Open Sample › RSKD."
        if self.network.currentData() is None:
            return "Load a student or a teacher first, in the Models panel."
        return ""

    def launch(self) -> Work:
        """Segment the chosen layer."""
        layer, role = self.image.layer(), self.network.currentData()
        options = self.options.value().model_copy(update={"probabilities": self.probabilities.isChecked()})
        self._source, self._axes, self._by = Source.of(layer), axes_of(layer), role
        return segment_work(layer, getattr(self.session, role), options=options)

    def show_result(self, outcome: Outcome) -> None:
        """Add the layers and say how long it took."""
        if self._source is None:
            return
        classes = outcome.value["classes"]
        how = {"by": self._by, "axes": self._axes, "overlapping": outcome.value["overlapping"]}
        for data in segmentation_layers(outcome.arrays, classes, self._source, **how):
            add_layer(self.viewer, data)
        self.say(f"Done in {outcome.value['seconds']:.1f} s on {outcome.value['device']}.")


def segment_work(layer: Any, model: Model, *, options: SegmentOptions | None = None) -> Work:
    """Return the job that segments all of `layer` with `model`."""
    job = SegmentJob(
        model=model.path, axes=axes_of(layer), options=options or SegmentOptions(), compute=compute_options()
    )

    def order() -> Order:
        return job, {"image": whole(layer)}

    return Work(order, title=f"Segmenting {layer.name}")
