"""Which tokens a teacher and a student find important, side by side or over each other."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from napari.layers import Image
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QCheckBox, QFileDialog, QFormLayout, QLabel, QPushButton, QSlider

from napari_rskd._farewell import when_destroyed
from napari_rskd._fields import LayerBox, NarrowBox, NetworkBoxes
from napari_rskd._first_steps import LOAD_FIRST, OPEN_FIRST
from napari_rskd._form import Form, guard_wheel
from napari_rskd._job import Work
from napari_rskd._live import Latest, LiveLayers
from napari_rskd._panel import Panel, text
from napari_rskd._record import record_of
from napari_rskd._session import ROLES, session_of
from napari_rskd._settings import compute_options
from napari_rskd._source import Array, LayerData, Source, visible_slice
from napari_rskd._survey import Shown, Survey
from rskd.config import RankOptions
from rskd.jobs import AgreementJob, AttendJob, DeletionJob, Outcome, RankJob, SurveyJob

AGREEMENT = {
    "spearman": "Rank correlation (Spearman)",
    "kendall": "Rank correlation (Kendall)",
    "weighted_tau": "The same, top weighted (τ)",
    "overlap": "Share of the top in common",
    "ndcg": "Student finds teacher's top (NDCG)",
}


@dataclass(frozen=True)
class _Asked:
    """What the networks were asked about."""

    plane: Array
    source: Source
    options: RankOptions
    common: Mapping[str, Any]
    """What every job about it says: axes, networks, device."""


class TokensWidget(Panel):
    """Token importance of the visible slice, at every block and head."""

    def __init__(self, napari_viewer: Any) -> None:
        super().__init__(napari_viewer, verb="Rank tokens")
        self.image = LayerBox(napari_viewer, Image)
        self.networks = NetworkBoxes(session_of(napari_viewer))
        self.options: Form[RankOptions] = Form(RankOptions(), omit=("block", "head", "keep_ratio"))
        self.agreement = text(name="agreement")
        self._asked: _Asked | None = None
        self._survey: Survey | None = None
        self._rows: Survey | None = None
        self._agreed: Outcome | None = None
        self._live = LiveLayers(self, napari_viewer)
        self._comparing = Latest(self, self._show_agreement, self.show_error)
        self._attending = Latest(self, self._show_rows, self.show_error)
        self.options.put_above(image=self.image)
        self.column.addWidget(self.options)
        self.column.addWidget(self.networks)
        self._add_sliders()
        self._add_buttons()
        self.column.addWidget(self.agreement)
        self.image.changed.connect(self.refresh)
        self.networks.changed.connect(self.refresh)
        self._follow_clicks()
        self.refresh()

    def _add_sliders(self) -> None:
        options = RankOptions.model_fields
        self.block = self._slider("block", options["block"].description or "")
        self.keep = self._slider("keep_ratio", options["keep_ratio"].description or "")
        self.keep.setRange(1, 100)
        self.keep.setValue(25)
        self.block_number, self.keep_number = QLabel(), QLabel("Top 25 %")
        self.head = NarrowBox()
        self.head.setToolTip(options["head"].description or "")
        self.mask = QCheckBox("Darken the other tokens", checked=True)
        self.mask.setToolTip("Cover the tokens that are not in the top.")
        form = QFormLayout()
        form.addRow(self.block_number, self.block)
        form.addRow("Heads", self.head)
        form.addRow(self.keep_number, self.keep)
        self.column.addLayout(form)
        self.column.addWidget(self.mask)
        self.block.valueChanged.connect(self._show_block)
        self.head.currentIndexChanged.connect(self._show_all)
        self.keep.valueChanged.connect(self._show_maps)
        self.mask.toggled.connect(self._cover)

    @staticmethod
    def _slider(name: str, tooltip: str) -> QSlider:
        slider = QSlider(Qt.Orientation.Horizontal, objectName=name, toolTip=" ".join(tooltip.split()))
        slider.setMinimumWidth(40)
        guard_wheel(slider)
        return slider

    def _add_buttons(self) -> None:
        self.clicks = QCheckBox("Attention on a click", checked=True)
        self.deletion = QPushButton("Check by deletion")
        self.deletion.setToolTip("Delete tokens in this order and in random orders: does the network lose its answer?")
        self.clicks.setToolTip("Click a token in the picture to see what it attends to.")
        self.export = QPushButton("Save figure and tables…")
        self.export.setToolTip("Write maps, figure (PNG, SVG), tables (CSV) and agreement into a folder.")
        for widget in (self.clicks, self.deletion, self.export):
            self.column.addWidget(widget)
        self.deletion.clicked.connect(self._check)
        self.export.clicked.connect(self._export)

    def _follow_clicks(self) -> None:
        callbacks = self.viewer.mouse_drag_callbacks

        def on_press(viewer: Any, event: Any) -> Generator[None, None, None]:
            moved = False
            yield
            while event.type == "mouse_move":
                moved = True
                yield
            if not moved and self.clicks.isChecked():
                self._ask(event.position)

        callbacks.append(on_press)
        when_destroyed(self, lambda: callbacks.remove(on_press) if on_press in callbacks else None)

    def reason(self) -> str:
        """Return why it cannot start."""
        if self.image.layer() is None:
            return OPEN_FIRST
        if not self.networks.loaded():
            return LOAD_FIRST
        if not self.networks.chosen():
            return "Tick the teacher, the student, or both."
        return ""

    def refresh(self) -> None:
        """Look again what can start."""
        super().refresh()
        free = self.work is None and self._survey is not None
        for widget in (self.deletion, self.export):
            widget.setEnabled(free)
        for control in (self.block, self.head, self.keep, self.mask, self.clicks):
            control.setEnabled(self._survey is not None)

    # ------------------------------------------------------------------------------------------------ what is started

    def launch(self) -> Work:
        """Rank the tokens of what is in view, at every block and head."""
        layer = self.image.layer()
        plane, axes, source = visible_slice(layer, self.viewer.dims)
        paths = {role: model.path for role, model in self.networks.chosen().items()}
        options = self.options.value()
        self._forget()
        self._asked = _Asked(plane, source, options, {"axes": axes, "compute": compute_options(), **paths})
        return self._work(SurveyJob, f"Ranking the tokens of {layer.name}", options=options)

    def _forget(self) -> None:
        self._survey = self._rows = self._agreed = None
        self._tell_agreement()

    def _work(self, kind: type[Any], title: str = "", **more: Any) -> Work:
        """Return a job about what the networks were asked about."""
        asked = self._asked
        assert asked is not None  # noqa: S101 - nothing else can be pressed before
        job = kind(**asked.common, **more)
        return Work(lambda: (job, {"image": asked.plane}), title=title)

    def _ranking(self) -> RankOptions:
        """Return the options of the ranking that is shown, whatever the form says by now."""
        assert self._survey is not None  # noqa: S101
        assert self._asked is not None  # noqa: S101
        shown = self._shown()
        block = self._survey.facts(self._survey.roles[-1], shown.block)["block"]
        chosen = {"block": block, "head": shown.head, "keep_ratio": shown.keep}
        return self._asked.options.model_copy(update=chosen)

    def _check(self) -> None:
        work = self._work(DeletionJob, "Deleting tokens", options=self._ranking())
        self.begin(work, lambda outcome: self.say(deletion_words(outcome.value)))

    def _export(self) -> None:
        folder = QFileDialog.getExistingDirectory(self, "Folder for figure and tables")
        if folder:
            self.save(Path(folder))

    def save(self, folder: Path) -> None:
        """Write maps, figure, tables and agreement of the ranking that is shown into a folder."""
        work = self._work(RankJob, "Saving figure and tables", options=self._ranking(), output=folder)
        work.returned.connect(lambda _: self.say(f"Saved in {folder}."))
        work.failed.connect(self.show_error)
        record_of(self.viewer).follow(work)
        work.start()

    def _ask(self, position: Any) -> None:
        """Ask what the token at a place in the world attends to."""
        if self._survey is None or self._asked is None:
            return
        role = self._survey.roles[-1]
        importance = self._live.get(f"{role} map")
        if importance is None:
            return
        token = self._survey.facts(role, self._shown().block)["token"]
        index = np.array(importance.world_to_data(position))[list(self._asked.source.shown)]
        place = (index + 0.5) * token - 0.5
        if np.all(place >= -0.5) and np.all(place < np.array(self._asked.plane.shape[:2]) - 0.5):
            at = (float(place[0]), float(place[1]))
            self._attending.ask(self._work(AttendJob, at=at))

    # ------------------------------------------------------------------------------------------------- what is shown

    def show_result(self, outcome: Outcome) -> None:
        """Show the maps of the last block."""
        self._survey = Survey(outcome)
        self.block.setRange(0, self._survey.depth - 1)
        self.block.setValue(self._survey.depth - 1)
        self._show_block()

    def _shown(self) -> Shown:
        return Shown(self.block.value(), self.head.currentData(), self.keep.value() / 100)

    def _show_block(self) -> None:
        if self._survey is None:
            return
        block, chosen = self.block.value(), self.head.currentData()
        self.block_number.setText(f"Block {block + 1} of {self._survey.depth}")
        self.head.blockSignals(True)
        self.head.clear()
        self.head.addItem("All together", None)
        for head in range(self._survey.heads(block)):
            self.head.addItem(f"Head {head + 1}", head)
        self.head.setCurrentIndex(max(0, self.head.findData(chosen)))
        self.head.blockSignals(False)
        self._show_all()

    def _show_all(self) -> None:
        """Show the chosen block and head, and compare the networks."""
        if self._survey is None:
            return
        self._show_maps()
        if len(self._survey.roles) == 2:
            shown = self._shown()
            arrays = {role: np.ascontiguousarray(self._survey.map(role, shown)) for role in ROLES}
            self._comparing.ask(Work(lambda: (AgreementJob(), arrays)))

    def _show_maps(self) -> None:
        """Show what there is: no job, the maps are here."""
        self.keep_number.setText(f"Top {self.keep.value()} %")
        if self._survey is None or self._asked is None:
            return
        self._live.show_all(self._layers(self._survey, self._asked.source))
        self._tell_agreement()

    def _layers(self, survey: Survey, source: Source) -> dict[str, LayerData]:
        """Return all that is to be seen now."""
        shown, layers = self._shown(), {}
        found = {
            (role, part): data for role in survey.roles for part, data in survey.layers(role, shown, source).items()
        }
        for role, part in sorted(found, key=lambda layer: layer[1] == "points"):  # hidden at first, so made last
            array, options, kind = found[role, part]
            seen = {"visible": self.mask.isChecked()} if part == "kept" else {}
            layers[f"{role} {part}"] = (array, options | seen, kind)
        if self._rows is not None:
            beside = self._rows.as_deep_as(survey, shown)
            layers |= {f"{role} attention": self._rows.attention(role, beside, source) for role in self._rows.roles}
        return layers

    def _cover(self) -> None:
        for role in ROLES:
            layer = self._live.get(f"{role} kept")
            if layer is not None:
                layer.visible = self.mask.isChecked()

    def _show_rows(self, outcome: Outcome) -> None:
        self._rows = Survey(outcome)
        self._show_maps()

    def _show_agreement(self, outcome: Outcome) -> None:
        self._agreed = outcome
        self._tell_agreement()

    def _tell_agreement(self) -> None:
        if self._agreed is None:
            self.agreement.setText("")
            return
        curves = self._agreed.arrays
        k = min(len(curves["overlap"]), max(1, round(self._shown().keep * len(curves["overlap"]))))
        numbers = {name: value for name, value in self._agreed.value.items() if value is not None}
        self.agreement.setText(agreement_words(numbers | {name: float(c[k - 1]) for name, c in curves.items()}))


def deletion_words(value: Mapping[str, Any]) -> str:
    """Return what the deletion check found, a sentence per network.

    Examples
    --------
    >>> deletion_words({"student": {"deletion_gain": 0.02, "insertion_gain": 0.05}})
    'Student: deleting the top tokens first costs more certainty than deleting random ones (area 0.020).'
    """
    return " ".join(
        f"{role.capitalize()}: deleting the top tokens first costs {'more' if facts['deletion_gain'] > 0 else 'less'} "
        f"certainty than deleting random ones (area {facts['deletion_gain']:.3f})."
        for role, facts in value.items()
    )


def agreement_words(agreement: Mapping[str, Any]) -> str:
    """Return the agreement numbers as lines.

    Examples
    --------
    >>> agreement_words({"spearman": 0.5})
    '<b>Agreement of teacher and student</b><br>Rank correlation (Spearman): 0.50'
    """
    numbers = [f"{title}: {agreement[key]:.2f}" for key, title in AGREEMENT.items() if key in agreement]
    return "<br>".join(["<b>Agreement of teacher and student</b>", *numbers]) if numbers else ""
