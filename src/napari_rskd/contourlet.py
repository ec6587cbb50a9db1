"""Split a picture into contourlet sub-bands: by scale, and within a scale by the direction of its edges."""

from __future__ import annotations

from typing import Any

from napari.layers import Image

from napari_rskd._fields import LayerBox, NarrowBox
from napari_rskd._form import Form
from napari_rskd._job import Order, Work
from napari_rskd._layers import Source, add_layer, subband_layers, visible_slice
from napari_rskd._panel import Panel
from napari_rskd._session import session_of
from rskd.config import ContourletOptions
from rskd.jobs import ContourletJob, Outcome

CHANNELS = ("Red", "Green", "Blue")


class ContourletWidget(Panel):
    """Sub-bands of the visible slice, each an image layer in its place."""

    def __init__(self, napari_viewer: Any) -> None:
        super().__init__(napari_viewer, verb="Split into sub-bands")
        self.session = session_of(napari_viewer)
        self.image = LayerBox(napari_viewer, Image)
        self.channel = NarrowBox()
        self.channel.setToolTip("Which colour to split; vessels and red lesions show best in green.")
        self.options: Form[ContourletOptions] = Form(ContourletOptions())
        self._source: Source | None = None
        self.options.put_above(image=self.image, channel=self.channel)
        self.column.addWidget(self.options)
        self.image.changed.connect(self._offer_channels)
        self._offer_channels()

    def _offer_channels(self) -> None:
        layer, chosen = self.image.layer(), self.channel.currentText()
        colors = layer.data.shape[-1] if layer is not None and layer.rgb else 0
        self.channel.clear()
        for index, name in enumerate(CHANNELS[:colors]):
            self.channel.addItem(name, index)
        self.channel.addItem("Mean of all" if colors else "The only one", None)
        self.channel.setCurrentIndex(max(0, self.channel.findText(chosen or "Green")))
        self.channel.setEnabled(colors > 0)
        self.refresh()

    def reason(self) -> str:
        """Return why it cannot start."""
        if self.image.layer() is None:
            return "Open an image first: File › Open, or File › Open Sample › RSKD."
        return ""

    def launch(self) -> Work:
        """Split what is in view."""
        layer = self.image.layer()
        plane, axes, self._source = visible_slice(layer, self.viewer.dims.point)
        options = self.options.value()
        return contourlet_work(plane, axes, channel=self.channel.currentData(), options=options, name=layer.name)

    def show_result(self, outcome: Outcome) -> None:
        """Add the sub-bands and say how exactly they make up the picture."""
        if self._source is None:
            return
        bands = outcome.value["bands"]
        for data in subband_layers(bands, outcome.arrays, self._source):
            add_layer(self.viewer, data)
        error = outcome.value["reconstruction_error"]
        self.say(f"{len(bands)} sub-bands; put together again they differ from the image by at most {error:.1g}.")


def contourlet_work(plane: Any, axes: str, *, channel: int | None, options: ContourletOptions, name: str) -> Work:
    """Return the job that splits a picture into sub-bands."""
    job = ContourletJob(axes=axes, channel=channel, options=options)

    def order() -> Order:
        return job, {"image": plane}

    return Work(order, title=f"Splitting {name} into sub-bands")
