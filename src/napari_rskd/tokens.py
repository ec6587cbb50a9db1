"""Which tokens a teacher and a student find important, side by side or over each other."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from napari.layers import Image
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QCheckBox, QFileDialog, QFormLayout, QLabel, QPushButton, QSlider

from napari_rskd._fields import LayerBox, NarrowBox
from napari_rskd._form import Form, guard_wheel
from napari_rskd._job import Order, Work
from napari_rskd._layers import Source, attention_layer, importance_layers, kept_layer, rank_order, visible_slice
from napari_rskd._live import Latest, LiveLayers
from napari_rskd._panel import Panel, text
from napari_rskd._session import Model, follow_session, session_of
from napari_rskd._settings import compute_options
from rskd.config import RankOptions
from rskd.jobs import AgreementJob, AttendJob, DeletionJob, Outcome, RankJob, SurveyJob

ROLES = ("teacher", "student")
AGREEMENT = {
    "spearman": "Rank correlation (Spearman)",
    "kendall": "Rank correlation (Kendall)",
    "weighted_tau": "The same, top weighted (τ)",
    "overlap": "Share of the top in common",
    "ndcg": "Student finds teacher's top (NDCG)",
}


class TokensWidget(Panel):
    """Token importance of the visible slice, at every block and head."""

    def __init__(self, napari_viewer: Any) -> None:
        super().__init__(napari_viewer, verb="Rank tokens")
        self.session = session_of(napari_viewer)
        self.image = LayerBox(napari_viewer, Image)
        self.roles = {role: QCheckBox(checked=True, objectName=role) for role in ROLES}
        self.options: Form[RankOptions] = Form(RankOptions(), omit=("block", "head", "keep_ratio"))
        self.agreement = text(name="agreement")
        self._plane: Any = None
        self._axes = ""
        self._source: Source | None = None
        self._networks: dict[str, Model] = {}
        self._seen: Outcome | None = None
        self._rows: Outcome | None = None
        self._agreed: Outcome | None = None
        self._deleting = False
        self._live = LiveLayers(napari_viewer)
        self._comparing = Latest(self, self._show_agreement, self.show_error)
        self._attending = Latest(self, self._show_rows, self.show_error)
        self.options.put_above(image=self.image)
        self.column.addWidget(self.options)
        for box in self.roles.values():
            self.column.addWidget(box)
            box.toggled.connect(self.refresh)
        self._add_sliders()
        self._add_buttons()
        self.column.addWidget(self.agreement)
        self.image.changed.connect(self.refresh)
        follow_session(self, self.session, self._offer)
        self._follow_clicks()

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
        self.head.currentIndexChanged.connect(self._show_maps)
        self.keep.valueChanged.connect(self._show_kept)
        self.mask.toggled.connect(self._show_kept)

    @staticmethod
    def _slider(name: str, tooltip: str) -> QSlider:
        slider = QSlider(Qt.Orientation.Horizontal, objectName=name, toolTip=" ".join(tooltip.split()))
        slider.setMinimumWidth(40)
        guard_wheel(slider)
        return slider

    def _add_buttons(self) -> None:
        self.clicks = QCheckBox("Click a token to see what it attends to", checked=True)
        self.deletion = QPushButton("Check: delete the top tokens")
        self.deletion.setToolTip("Delete tokens in this order and in random orders: does the network lose its answer?")
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
        self.destroyed.connect(lambda: callbacks.remove(on_press) if on_press in callbacks else None)

    def _offer(self) -> None:
        for role, box in self.roles.items():
            model: Model | None = getattr(self.session, role)
            box.setEnabled(model is not None)
            box.setText(f"{role.capitalize()}: {model.name if model else 'none loaded'}")
        self.refresh()

    def chosen(self) -> dict[str, Model]:
        """Return the networks to look into, by role."""
        models = {role: getattr(self.session, role) for role in ROLES}
        return {role: model for role, model in models.items() if model is not None and self.roles[role].isChecked()}

    def reason(self) -> str:
        """Return why it cannot start."""
        if self.image.layer() is None:
            return "Open an image first: File › Open, or File › Open Sample › RSKD."
        if not any(getattr(self.session, role) for role in ROLES):
            return "Load a teacher or a student first, in the Models panel."
        if not self.chosen():
            return "Tick the teacher, the student, or both."
        return ""

    def refresh(self) -> None:
        """Look again what can start."""
        super().refresh()
        free = self.work is None and self._seen is not None
        for widget in (self.deletion, self.export):
            widget.setEnabled(free)
        for widget in (self.block, self.head, self.keep, self.mask):
            widget.setEnabled(self._seen is not None)

    # ------------------------------------------------------------------------------------------------ what is started

    def launch(self) -> Work:
        """Rank the tokens of what is in view, at every block and head."""
        layer = self.image.layer()
        self._plane, self._axes, self._source = visible_slice(layer, self.viewer.dims.point)
        self._networks = self.chosen()
        self._seen = self._rows = self._agreed = None
        self._live.drop_all()
        job = SurveyJob(axes=self._axes, options=self.options.value(), compute=compute_options(), **self._paths())
        return self._work(job, f"Ranking the tokens of {layer.name}")

    def _paths(self) -> dict[str, Path]:
        return {role: model.path for role, model in self._networks.items()}

    def _work(self, job: Any, title: str) -> Work:
        plane = self._plane
        return Work(lambda: (job, {"image": plane}), title=title)

    def _ranking(self) -> RankOptions:
        """Return the options of the ranking that is shown."""
        block = self._facts(self._roles()[-1])["block"]
        chosen = {"block": block, "head": self.head.currentData(), "keep_ratio": self.keep.value() / 100}
        return self.options.value().model_copy(update=chosen)

    def _check(self) -> None:
        self._deleting = True
        job = DeletionJob(axes=self._axes, options=self._ranking(), compute=compute_options(), **self._paths())
        self.begin(self._work(job, "Deleting tokens"))
        self.deletion.setEnabled(False)

    def _export(self) -> None:
        folder = QFileDialog.getExistingDirectory(self, "Folder for figure and tables")
        if folder:
            self.save(Path(folder))

    def save(self, folder: Path) -> None:
        """Write maps, figure, tables and agreement of the ranking that is shown into a folder."""
        options, compute = self._ranking(), compute_options()
        job = RankJob(axes=self._axes, options=options, compute=compute, output=folder, **self._paths())
        work = self._work(job, "Saving figure and tables")
        work.returned.connect(lambda _: self.say(f"Saved in {folder}."))
        work.failed.connect(self.show_error)
        work.start()

    def _ask(self, position: Any) -> None:
        """Ask what the token at a place in the world attends to."""
        importance = next((layer for role in ROLES if (layer := self._live.get(f"{role} map")) is not None), None)
        if self._source is None or importance is None:
            return
        token = self._facts(next(role for role in ROLES if self._live.get(f"{role} map") is importance))["token"]
        place = (np.array(importance.world_to_data(position))[-2:] + 0.5) * token - 0.5
        if np.all(place >= -0.5) and np.all(place < np.array(self._plane.shape[:2]) - 0.5):
            at = (float(place[0]), float(place[1]))
            job = AttendJob(axes=self._axes, at=at, compute=compute_options(), **self._paths())
            self._attending.ask(self._work(job, "Reading the attention of one token"))

    # ------------------------------------------------------------------------------------------------- what is shown

    def show_result(self, outcome: Outcome) -> None:
        """Show the maps, or the words of the deletion check."""
        if self._deleting:
            self._deleting = False
            self.say(deletion_words(outcome.value))
            return
        self._seen = outcome
        depth = len(outcome.value[self._roles()[-1]]["blocks"])
        self.block.setRange(0, depth - 1)
        self.block.setValue(depth - 1)
        self._show_block()

    def _ended(self) -> None:
        self._deleting = False
        super()._ended()

    def _roles(self) -> list[str]:
        return [role for role in ROLES if self._seen is not None and role in self._seen.value]

    def _facts(self, role: str) -> Mapping[str, Any]:
        """Return the facts about the block of this network that is shown: the teacher's as deep as the student's."""
        seen: Mapping[str, Any] = self._seen.value if self._seen is not None else {}
        own, last = (seen[name]["blocks"] for name in (role, self._roles()[-1]))
        facts: Mapping[str, Any] = own[max(0, round((self.block.value() + 1) * len(own) / len(last)) - 1)]
        return facts

    def _map(self, role: str, outcome: Outcome) -> Any:
        head = self.head.currentData()
        maps = outcome.arrays[f"{role}_block{self._facts(role)['block']}"]
        return maps[0 if head is None else min(1 + head, len(maps) - 1)]

    def _show_block(self) -> None:
        if self._seen is None:
            return
        self.block_number.setText(f"Block {self.block.value() + 1} of {self.block.maximum() + 1}")
        heads = min(self._facts(role)["heads"] for role in self._roles())
        chosen = self.head.currentData()
        self.head.blockSignals(True)
        self.head.clear()
        self.head.addItem("All together", None)
        for head in range(heads):
            self.head.addItem(f"Head {head + 1}", head)
        self.head.setCurrentIndex(max(0, self.head.findData(chosen)))
        self.head.blockSignals(False)
        self._show_maps()

    def _show_maps(self) -> None:
        """Show the chosen block and head, and compare the networks."""
        if self._seen is None or self._source is None:
            return
        self._show_kept()
        self._show_attention()
        if len(self._roles()) == 2:
            arrays = {role: np.ascontiguousarray(self._map(role, self._seen)) for role in ROLES}
            self._comparing.ask(Work(lambda: (AgreementJob(), arrays), title="Comparing the rankings"))

    def _show_kept(self) -> None:
        """Follow the share of the tokens that counts as the top: no job, the maps are here."""
        self.keep_number.setText(f"Top {self.keep.value()} %")
        if self._seen is None or self._source is None:
            return
        for role in self._roles():
            importance, facts = self._map(role, self._seen), self._facts(role)
            order = rank_order(importance)
            top = min(order.size, max(1, round(self.keep.value() / 100 * order.size)))
            told = {**facts, "top": top, "definition": self._seen.value[role]["definition"]}
            image, points = importance_layers(role, told, importance, order, self._source)
            self._live.show(f"{role} map", image)
            self._live.show(f"{role} points", points)
            layer = self._live.show(f"{role} kept", kept_layer(role, told, importance, order, self._source))
            layer.visible = self.mask.isChecked()
        self._tell_agreement()

    def _show_rows(self, outcome: Outcome) -> None:
        self._rows = outcome
        self._show_attention()

    def _show_attention(self) -> None:
        if self._rows is None or self._source is None:
            return
        for role in self._roles():
            if f"{role}_block{self._facts(role)['block']}" in self._rows.arrays:
                row, facts = self._map(role, self._rows), self._facts(role)
                self._live.show(f"{role} attention", attention_layer(role, facts, row, self._source))

    def _show_agreement(self, outcome: Outcome) -> None:
        self._agreed = outcome
        self._tell_agreement()

    def _tell_agreement(self) -> None:
        if self._agreed is None:
            self.agreement.setText("")
            return
        curves = self._agreed.arrays
        k = min(len(curves["overlap"]), max(1, round(self.keep.value() / 100 * len(curves["overlap"]))))
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


def rank_work(plane: Any, axes: str, models: Mapping[str, Model], *, options: RankOptions, name: str) -> Work:
    """Return the job that ranks the tokens of a picture for a teacher, a student, or both."""
    paths = {role: model.path for role, model in models.items()}
    job = RankJob(axes=axes, options=options, compute=compute_options(), **paths)

    def order() -> Order:
        return job, {"image": plane}

    return Work(order, title=f"Ranking the tokens of {name}")


def rank_layers(outcome: Outcome, source: Source) -> list[Any]:
    """Return the layers of a ranking, the student's on top."""
    return [
        layer
        for role in ROLES
        if role in outcome.value
        for layer in importance_layers(
            role,
            outcome.value[role],
            outcome.arrays[f"{role}_importance"],
            outcome.arrays[f"{role}_order"],
            source,
        )
    ]


def agreement_words(agreement: Mapping[str, Any]) -> str:
    """Return the agreement numbers as lines.

    Examples
    --------
    >>> agreement_words({"spearman": 0.5})
    '<b>Agreement of teacher and student</b><br>Rank correlation (Spearman): 0.50'
    """
    numbers = [f"{title}: {agreement[key]:.2f}" for key, title in AGREEMENT.items() if key in agreement]
    return "<br>".join(["<b>Agreement of teacher and student</b>", *numbers]) if numbers else ""
