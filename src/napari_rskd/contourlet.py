"""Split a picture into contourlet sub-bands: by scale, and within a scale by the direction of its edges."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from napari.layers import Image
from qtpy.QtWidgets import QFormLayout, QPushButton, QVBoxLayout, QWidget

from napari_rskd._bands import BandGains
from napari_rskd._fields import LayerBox, NarrowBox, NetworkBoxes
from napari_rskd._first_steps import OPEN_FIRST
from napari_rskd._form import Form, Section
from napari_rskd._job import Order, Work
from napari_rskd._layers import feature_band_layers, subband_layers
from napari_rskd._live import Latest, LiveLayers
from napari_rskd._panel import Panel, text
from napari_rskd._rose import Rose, directional_energies, rose_words
from napari_rskd._session import session_of
from napari_rskd._settings import compute_options
from napari_rskd._source import Source, add_layer, made_by, visible_slice
from rskd.config import ContourletOptions, DenoiseOptions, FeatureMapOptions
from rskd.jobs import ContourletJob, DenoiseJob, Outcome, ReconstructJob, TextureJob

CHANNELS = ("Red", "Green", "Blue")
OVER, GRID = "Over the image", "Side by side in a grid"
RECONSTRUCTION = "Reconstruction"


class ContourletWidget(Panel):
    """Sub-bands of the visible slice, each an image layer in its place."""

    def __init__(self, napari_viewer: Any) -> None:
        super().__init__(napari_viewer, verb="Split into sub-bands")
        self.networks = NetworkBoxes(session_of(napari_viewer))
        self.image = LayerBox(napari_viewer, Image)
        self.channel = NarrowBox()
        self.channel.setToolTip("Which colour to split; vessels and red lesions show best in green.")
        self.options: Form[ContourletOptions] = Form(ContourletOptions())
        self.arrangement = NarrowBox()
        self.gains = BandGains()
        self._source: Source | None = None
        self._asked: Mapping[str, Any] | None = None
        self._subbands, self._textures, self._rebuilt = (LiveLayers(self, napari_viewer) for _ in range(3))
        self._subbands.made.connect(self._arrange)
        self._rebuilding = Latest(self, self._show_reconstruction, self.show_error)
        self.options.put_above(image=self.image, channel=self.channel)
        self.column.addWidget(self.options)
        self._add_arrangement()
        self._gain_section = Section("Switch and weigh the sub-bands", self.gains, opened=True)
        self._gain_section.hide()
        self.column.addWidget(self._gain_section)
        self.rose = Rose(napari_viewer)
        self.column.addWidget(self.rose)
        self._add_networks()
        self._add_denoising()
        self.gains.changed.connect(self._rebuild)
        self.image.changed.connect(self._offer_channels)
        self.networks.changed.connect(self.refresh)
        self._offer_channels()

    def _add_arrangement(self) -> None:
        self.arrangement.addItems([OVER, GRID])
        self.arrangement.setToolTip("Where the sub-bands are shown; in a grid, all layers are side by side.")
        self.arrangement.currentIndexChanged.connect(self._arrange)
        form = QFormLayout()
        form.addRow("Show", self.arrangement)
        self.column.addLayout(form)

    def _add_networks(self) -> None:
        """Sub-bands of the networks' own maps."""
        content = QWidget()
        column = QVBoxLayout(content)
        self.feature_map: Form[FeatureMapOptions] = Form(FeatureMapOptions())
        self.split_map = QPushButton("Split the networks' maps")
        self.split_map.setToolTip("Show the sub-bands of what teacher and student compute from the image.")
        self.energies = text(name="energies")
        for widget in (self.networks, self.feature_map, self.split_map, self.energies):
            column.addWidget(widget)
        self.split_map.clicked.connect(lambda: self.attempt(self._split_maps))
        self.column.addWidget(Section("Feature maps of teacher and student", content))

    def _add_denoising(self) -> None:
        content = QWidget()
        column = QVBoxLayout(content)
        self.noise: Form[DenoiseOptions] = Form(DenoiseOptions())
        self.denoise = QPushButton("Denoise", toolTip="Add a layer with the visible picture without its noise.")
        self.denoise.clicked.connect(lambda: self.attempt(self._denoise))
        column.addWidget(self.noise)
        column.addWidget(self.denoise)
        self.column.addWidget(Section("Denoise", content))

    # ---------------------------------------------------------------------------------------------- what can be done

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
            return OPEN_FIRST
        return ""

    def refresh(self) -> None:
        """Look again what can start."""
        super().refresh()
        free = self.work is None and not self.reason()
        self.denoise.setEnabled(free)
        self.split_map.setEnabled(free and bool(self.networks.chosen()))

    # ------------------------------------------------------------------------------------------------ what is started

    def launch(self) -> Work:
        """Split what is in view."""
        layer = self.image.layer()
        plane, axes, self._source = visible_slice(layer, self.viewer.dims)
        options, channel = self.options.value(), self.channel.currentData()
        self._asked = {"plane": plane, "axes": axes, "channel": channel, "options": options}
        return contourlet_work(plane, axes, channel=channel, options=options, name=layer.name)

    def _denoise(self) -> None:
        layer = self.image.layer()
        plane, axes, source = visible_slice(layer, self.viewer.dims)
        job = DenoiseJob(axes=axes, options=self.noise.value())
        self._begin(Work(lambda: (job, {"image": plane}), title=f"Denoising {layer.name}"), self._show_denoised, source)

    def _split_maps(self) -> None:
        layer = self.image.layer()
        plane, axes, source = visible_slice(layer, self.viewer.dims)
        job = TextureJob(
            axes=axes,
            feature_map=self.feature_map.value(),
            options=self.options.value(),
            compute=compute_options(),
            **{role: model.path for role, model in self.networks.chosen().items()},
        )
        work = Work(lambda: (job, {"image": plane}), title=f"Splitting the networks' maps of {layer.name}")
        self._begin(work, self._show_textures, source)

    def _begin(self, work: Work, show: Callable[[Outcome, Source], None], source: Source) -> None:
        self.begin(work, lambda outcome: show(outcome, source))

    # ------------------------------------------------------------------------------------------------- what is shown

    def show_result(self, outcome: Outcome) -> None:
        """Show the sub-bands and say how exactly they make up the picture."""
        if self._source is None:
            return
        bands = outcome.value["bands"]
        layers = subband_layers(bands, outcome.arrays, self._source)
        self._subbands.show_all({band["array"]: data for band, data in zip(bands, layers, strict=True)})
        error = outcome.value["reconstruction_error"]
        self.say(f"{len(bands)} sub-bands; put together again they differ from the image by at most {error:.1g}.")
        self._rebuilt.show_all({})
        self.rose.show_energies({"": directional_energies(bands)})
        self.gains.offer(bands)
        self._gain_section.show()
        if self.gains.gains():
            self._rebuild()

    def _rebuild(self) -> None:
        """Put the picture together with the gains as they stand."""
        if self._asked is None:
            return
        asked = self._asked
        job = ReconstructJob(
            axes=asked["axes"], channel=asked["channel"], options=asked["options"], gains=self.gains.gains()
        )
        self._rebuilding.ask(Work(lambda: (job, {"image": asked["plane"]})))

    def _show_reconstruction(self, outcome: Outcome) -> None:
        if self._source is None:
            return
        picture = self._source.embed(outcome.arrays["reconstruction"])
        options = {"name": RECONSTRUCTION, "rgb": False, **_as_image(self._source)}
        self._rebuilt.show(RECONSTRUCTION, (picture, options, "image"))

    def _show_denoised(self, outcome: Outcome, source: Source) -> None:
        picture, name = outcome.arrays["denoised"], f"{source.name} (denoised)"
        options = {"name": name, "rgb": picture.ndim == 3, **_as_image(source)}
        add_layer(self.viewer, (source.embed(picture), options, "image"))
        self.say(f"Added the layer “{name}”.")

    def _show_textures(self, outcome: Outcome, source: Source) -> None:
        layers = feature_band_layers(outcome.value, outcome.arrays, source)
        self._textures.show_all({data[1]["name"]: data for data in layers})
        self.rose.show_energies({role: directional_energies(facts["bands"]) for role, facts in outcome.value.items()})
        self.energies.setText(energy_words(outcome.value))

    def _arrange(self) -> None:
        """Show the sub-bands over the image, or all of them in napari's grid."""
        side_by_side = self.arrangement.currentText() == GRID
        grid = getattr(self.viewer, "canvas", self.viewer).grid
        if side_by_side:
            for layer in self._subbands.layers():
                layer.visible = True
        if side_by_side or grid.enabled:
            grid.enabled = side_by_side
            self.viewer.reset_view()


def _as_image(source: Source) -> dict[str, Any]:
    """Return the layer arguments of a picture that takes its source's place, the orientation of the scan included."""
    return {"metadata": {**source.metadata, **made_by({})}, **source.place()}


def energy_words(value: Mapping[str, Any]) -> str:
    """Return where each network's map was observed, and how the energy of its finest level is spread.

    Examples
    --------
    >>> bands = [{"level": 1, "wedge": (0, 90), "energy": 3.0}, {"level": 1, "wedge": (90, 180), "energy": 1.0}]
    >>> energy_words({"student": {"where": "stem, level 0", "bands": bands}})
    'Student (stem, level 0): 135° 75 %, 45° 25 %'
    """
    return "<br>".join(
        rose_words(f"{role} ({facts['where']})", directional_energies(facts["bands"])) for role, facts in value.items()
    )


def contourlet_work(plane: Any, axes: str, *, channel: int | None, options: ContourletOptions, name: str) -> Work:
    """Return the job that splits a picture into sub-bands."""
    job = ContourletJob(axes=axes, channel=channel, options=options)

    def order() -> Order:
        return job, {"image": plane}

    return Work(order, title=f"Splitting {name} into sub-bands")
