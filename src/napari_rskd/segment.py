"""Segment what is open, or a folder, with the student or the teacher."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from qtpy.QtWidgets import QCheckBox, QFileDialog, QPushButton

from napari_rskd._extras import CleanUp, Extras
from napari_rskd._fields import NarrowBox, watch_layers
from napari_rskd._first_steps import LOAD_FIRST
from napari_rskd._form import Form, Section
from napari_rskd._job import Order, Work
from napari_rskd._layers import segmentation_layers
from napari_rskd._live import after_drawing
from napari_rskd._live_preview import Preview
from napari_rskd._measured import Measured
from napari_rskd._panel import Panel, text
from napari_rskd._picture import Picture, whole_picture
from napari_rskd._results import ResultLayers, labels_beside, warm_up_drawing, warm_up_labels
from napari_rskd._saving import FORMATS, Saver, formats_for, may_replace, source_path, suggested_name, with_ending
from napari_rskd._session import Model, follow_session, session_of
from napari_rskd._settings import PLUGIN, compute_options
from napari_rskd._source import MARK, LayerData
from napari_rskd._targets import Target
from rskd.bench_words import NAMES
from rskd.config import SegmentOptions
from rskd.events import Message
from rskd.jobs import BatchJob, Outcome, SegmentJob
from rskd.measure import joined

EDITED = "What you copied or edited is still there; the new result is a layer of its own."
GONE = "There is no result any more: segment again."
MESSAGES = 4  # of a folder that are shown


@dataclass
class _Round:
    """What one press of the button asked for, however the form changes meanwhile, and how far it is."""

    by: str
    model: Model
    fields: Mapping[str, Any]
    """What its jobs say beside the picture."""
    left: deque[Picture]
    count: int
    picture: Picture
    """The one that is segmented now, or was last."""
    measured: list[tuple[str, Mapping[str, Sequence[Any]]]] = field(default_factory=list)
    """Name of the image, and its table."""
    failures: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, pictures: Sequence[Picture], by: str, model: Model, fields: Mapping[str, Any]) -> _Round:
        first, *others = pictures
        return cls(by, model, fields, deque(others), len(pictures), first)

    def work(self) -> Work:
        """Return the job for the picture of now."""
        return picture_work(self.picture, self.fields)

    def columns(self) -> Mapping[str, Sequence[Any]]:
        """Return what was measured so far; of several images, with a column that names them."""
        return self.measured[0][1] if self.count == 1 else joined("image", self.measured)


class SegmentWidget(Panel):
    """Labels for an image, a slice, all open images or a folder."""

    def __init__(self, napari_viewer: Any) -> None:
        super().__init__(napari_viewer, verb="Segment")
        self.session = session_of(napari_viewer)
        self.target = Target(napari_viewer)
        self.network = NarrowBox()
        self.network.setPlaceholderText("none is loaded")
        self.extras, self.clean_up = Extras(), CleanUp()
        self.options: Form[SegmentOptions] = Form(SegmentOptions(), omit=["probabilities"], folded=True)
        self.measured = Measured(self.show_error)
        self.legend_button = QPushButton("Legend", toolTip="Classes with colour and size; hide, fade or lock each.")
        self.save_button = QPushButton("Save result…", toolTip="Write the labels, as they are now, into a file.")
        self.live = QCheckBox("Live preview of the slice in view")
        self.live.setToolTip("Segments every slice that you scroll to, in a layer of its own, without clean-up.")
        self.speed = text(name="speed")
        self._preview = Preview(self, napari_viewer, self._previewed)
        self._results = ResultLayers(self, napari_viewer)
        self._saver = Saver(self)
        self._round: _Round | None = None
        self._build_column()
        self._connect()
        follow_session(self, self.session, self._offer)
        after_drawing(self, warm_up_drawing)
        watch_layers(napari_viewer, self, self._prepare_for_labels)
        self._prepare_for_labels()

    def _build_column(self) -> None:
        self.target.add_row("Network", self.network)
        self.column.addWidget(self.target)
        self.column.addWidget(self.live)
        self.column.addWidget(self.speed)
        self.speed.hide()
        self.column.addWidget(Section("What else to show", self.extras))
        self.column.addWidget(Section("Clean up the labels", self.clean_up))
        self.column.addWidget(Section("Tiles", self.options))
        self._measured_section = Section("Measurements", self.measured, opened=True)
        self._measured_section.hide()
        self.column.addWidget(self._measured_section)
        for button in (self.legend_button, self.save_button):
            self.column.addWidget(button)
            button.hide()

    def _connect(self) -> None:
        self.target.changed.connect(self.refresh)
        self.network.currentIndexChanged.connect(self._show_classes)
        self.live.toggled.connect(self._preview.switch)
        for signal in (self.target.image.changed, self.network.currentIndexChanged, self.options.changed):
            signal.connect(self._preview.again)
        self._preview.told.connect(lambda words: self._show(self.speed, words))
        self.legend_button.clicked.connect(self._show_legend)
        self.save_button.clicked.connect(self._ask_where)
        self._saver.saved.connect(lambda name: self.say(f"Saved as {name}."))
        self._saver.failed.connect(self.show_error)

    def _prepare_for_labels(self) -> None:
        """Warm up labels once there is any layer."""
        if self.viewer.layers:
            after_drawing(self, warm_up_labels)

    # ---------------------------------------------------------------------------------------------- what can be done

    def _offer(self) -> None:
        self.network.blockSignals(True)  # an empty list in between would drop what was set for its classes
        self._list_networks(self.network.currentData())
        self.network.blockSignals(False)
        self.extras.compare.setEnabled(self.network.count() == 2)
        self._show_classes()
        self._preview.again()
        self.refresh()

    def _list_networks(self, chosen: str | None) -> None:
        self.network.clear()
        for role in ("student", "teacher"):
            model: Model | None = getattr(self.session, role)
            if model is not None:
                self.network.addItem(f"{role.capitalize()}: {model.name}", role)
        self.network.setCurrentIndex(max(0, self.network.findData(chosen)) if self.network.count() else -1)

    def _show_classes(self) -> None:
        model = getattr(self.session, self.network.currentData() or "", None)
        passport = model.passport if model is not None else None
        self.clean_up.offer([info["name"] for info in passport["spec"]["classes"][1:]] if passport else ())

    def reason(self) -> str:
        """Return why it cannot start."""
        missing = self.target.reason()
        if not missing and self.network.currentData() is None:
            return LOAD_FIRST
        return missing

    # ------------------------------------------------------------------------------------------------ what is started

    def launch(self) -> Work:
        """Segment what was chosen; of several images, the first."""
        self._round = None
        if self.target.folder:
            return self._batch()
        role = self.network.currentData()
        self._round = _Round.of(self.target.pictures(), role, getattr(self.session, role), self._fields())
        return self._round.work()

    def _previewed(self) -> tuple[Any, Mapping[str, Any]] | None:
        """Return which image is previewed, and how: by the network and tiles that are chosen, without overlap."""
        layer, role = self.target.image.layer(), self.network.currentData()
        if layer is None or role is None:
            return None
        options = self.options.value().model_copy(update={"overlap": 0.0})
        return layer, {"model": getattr(self.session, role).path, "options": options, "compute": compute_options()}

    def _fields(self) -> dict[str, Any]:
        """Return what every job says."""
        role = self.network.currentData()
        other = self.session.teacher if role == "student" else self.session.student
        options = self.options.value()
        return {
            "model": getattr(self.session, role).path,
            "compare_with": other.path if self.extras.compare.isChecked() and other is not None else None,
            "options": options.model_copy(update={"probabilities": self.extras.probabilities.isChecked()}),
            "clean_up": self.clean_up.options(),
            "compute": compute_options(),
            **self.extras.fields(),
        }

    def _batch(self) -> Work:
        job = BatchJob(images=self.target.images.path(), output=self.target.output.path(), **self._fields())
        return Work(lambda: (job, {}), title="Segmenting a folder")

    def _ended(self) -> None:
        """Begin the next picture unless this one was cancelled; one that fails does not keep the others waiting."""
        work, now = self.work, self._round
        super()._ended()
        if work is None or now is None or now.count < 2:
            return
        if work.error is not None:
            now.failures.append(f"{now.picture.layer.name}: {work.error}")
        if work.outcome is None and work.error is None:
            return
        if now.left:
            now.picture = now.left.popleft()
            self.begin(now.work())
        else:
            self._sum_up(now)

    def _sum_up(self, now: _Round) -> None:
        """Say how the images went."""
        self.say(f"{now.count - len(now.failures)} of {now.count} images are done.")
        self._show(self.error_label, "\n".join(now.failures))

    # ------------------------------------------------------------------------------------------------- what is shown

    def show_result(self, outcome: Outcome) -> None:
        """Add the layers, or say how the folder went."""
        now = self._round
        if now is None:
            told = [event.text for event in self.work.history if isinstance(event, Message)] if self.work else []
            self.say(batch_words(outcome.value))
            self._show(self.error_label, "\n".join(told[:MESSAGES]))
            return
        kept = self._results.show(_layers(outcome, now))
        done = done_words(outcome.value)
        self.say(f"{done} {EDITED}" if kept else done)
        now.measured.append((now.picture.layer.name, outcome.value["measurements"]))
        after_drawing(self, partial(self._offer_more, now.picture.layer, now.columns()))

    def _offer_more(self, layer: Any, columns: Mapping[str, Sequence[Any]]) -> None:
        """Show what was measured in an image, and what can be done with the result."""
        self.measured.show_columns(columns, _folder_of(layer))
        self._measured_section.setVisible(bool(columns))
        for button in (self.legend_button, self.save_button):
            button.show()

    def _show_legend(self) -> None:
        """Open the legend, or bring back the one that was hidden."""
        dock, _ = self.viewer.window.add_plugin_dock_widget(PLUGIN, "Legend")
        dock.show()
        dock.raise_()

    # ------------------------------------------------------------------------------------------------- what is saved

    def _labels(self) -> list[Any]:
        """Return the labels of the selected result, or else of the last one."""
        active = self.viewer.layers.selection.active
        return labels_beside(self.viewer, active) or labels_beside(self.viewer, self._results.last)

    def _ask_where(self) -> None:
        layers = self._labels()
        if not layers:
            self.say(GONE)
            return
        image, where = self._results.image_of(layers[0]), layers[0].metadata[MARK]["where"]
        lines = formats_for(image)
        suggested = suggested_name(image, Path.home(), where=where, ending=FORMATS[lines[0]])
        name, line = QFileDialog.getSaveFileName(self, "Save the result", str(suggested), ";;".join(lines))
        if name and may_replace(self, name, with_ending(name, line)):
            self.save(with_ending(name, line), layers)

    def save(self, path: Path, layers: Sequence[Any]) -> None:
        """Write the labels of one result into a file, unless they were removed while its name was chosen."""
        self._show(self.error_label, "")
        if any(layer not in self.viewer.layers for layer in layers):
            self.say(GONE)
            return
        self.say(f"Saving {path.name}…")
        self._saver.save(path, layers, source_path(self._results.image_of(layers[0])))


def _layers(outcome: Outcome, now: _Round) -> list[LayerData]:
    """Return the layers of a result."""
    picture, value = now.picture, outcome.value
    several = picture.layer.name if now.count > 1 else ""
    return segmentation_layers(
        outcome.arrays,
        value["classes"],
        picture.source,
        by=", ".join(part for part in (now.by, several, picture.where) if part),
        axes=picture.layer_axes,
        overlapping=value["overlapping"],
        features=value["features"],
        made_from={"image": str(picture.layer.unique_id), "where": picture.where, "model": now.model.source},
    )


def picture_work(picture: Picture, fields: Mapping[str, Any]) -> Work:
    """Return the job that segments a picture; `fields` are those of the job beside the picture."""
    job = SegmentJob(axes=picture.axes, geometry=picture.geometry, fastest=True, **fields)

    def order() -> Order:
        return job, {"image": picture.pixels()}

    return Work(order, title=f"Segmenting {picture.layer.name}")


def segment_work(layer: Any, model: Model) -> Work:
    """Return the job that segments all of `layer` with `model`."""
    return picture_work(whole_picture(layer), {"model": model.path, "compute": compute_options()})


def done_words(value: Mapping[str, Any]) -> str:
    """Return how long it took, and with what.

    Examples
    --------
    >>> done_words({"seconds": 0.4321, "device": "cpu", "runtime": "onnx"})
    'Done in 0.4 s on cpu with ONNX Runtime.'
    """
    return f"Done in {value['seconds']:.1f} s on {value['device']} with {NAMES[value['runtime']]}."


def batch_words(value: Mapping[str, Any]) -> str:
    """Return how a folder went.

    Examples
    --------
    >>> batch_words({"images": 5, "done": 3, "skipped": 1, "failed": 1, "stopped": False, "output": "results"})
    '5 images: 3 done, 1 done before, 1 failed. The results are in results.'
    """
    parts = [f"{value['done']} done"]
    parts += [
        f"{value[name]} {words}" for name, words in (("skipped", "done before"), ("failed", "failed")) if value[name]
    ]
    stopped = " Stopped early; the same folders go on from here." if value["stopped"] else ""
    return f"{value['images']} images: {', '.join(parts)}. The results are in {value['output']}.{stopped}"


def _folder_of(layer: Any) -> Path:
    source = source_path(layer)
    return Path.home() if source is None else source.parent
