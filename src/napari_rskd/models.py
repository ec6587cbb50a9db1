"""Choose the teacher and the student, and read what is in their files before anything runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qtpy.QtWidgets import QLabel

from napari_rskd._fields import WEIGHT_SUFFIXES, ModelBox
from napari_rskd._job import Order, Work
from napari_rskd._panel import Panel, text
from napari_rskd._session import Model, session_of, with_passport
from rskd.jobs import InspectJob, Outcome

ROLES = {
    "teacher": "The large network that the student learns from.",
    "student": "The small, fast network that does the daily work.",
}


HIDDEN = {"recipe", "teacher sha256"}  # parts of a model card that are for programs


class ModelsWidget(Panel):
    """Load a teacher and a student and show their passports."""

    def __init__(self, napari_viewer: Any) -> None:
        super().__init__(napari_viewer, verb="Load models")
        self.session = session_of(napari_viewer)
        self.boxes: dict[str, ModelBox] = {}
        self.passports: dict[str, QLabel] = {}
        self._queue: list[str] = []
        self.column.addWidget(text("Drop weight files (.safetensors, .onnx, .pt) here, or choose them below."))
        for role, help_text in ROLES.items():
            self._add_role(role, help_text)
        self.column.addStretch(1)
        self.setAcceptDrops(True)
        self.offer()
        self.refresh()

    def _add_role(self, role: str, help_text: str) -> None:
        heading = QLabel(f"<b>{role.capitalize()}</b>", toolTip=help_text)
        box = ModelBox()
        box.setToolTip(help_text)
        box.setObjectName(role)
        box.chosen.connect(self.refresh)
        box.currentIndexChanged.connect(lambda _: self.refresh())
        passport = text(name=f"{role}_passport")
        self.boxes[role], self.passports[role] = box, passport
        for widget in (heading, box, passport):
            self.column.addWidget(widget)

    def offer(self) -> None:
        """List the known models, the session's choice in front."""
        for role, box in self.boxes.items():
            current = getattr(self.session, role)
            box.offer(self.session.library, current)
            self._show_passport(role, current)

    def reason(self) -> str:
        """Return why nothing can be loaded."""
        if all(box.model() is None for box in self.boxes.values()):
            return "Choose a teacher or a student first: “Open a weight file…”."
        return ""

    def launch(self) -> Work:
        """Read the chosen files, one after the other."""
        self._queue = [role for role, box in self.boxes.items() if box.model() is not None]
        return self._inspect(self._queue[0])

    def _inspect(self, role: str) -> Work:
        model = self.boxes[role].model()
        assert model is not None  # noqa: S101 - `launch` queued only roles with a model
        path = model.path

        def order() -> Order:
            return InspectJob(model=path), {}

        return Work(order, title=f"Reading the {role}")

    def show_result(self, outcome: Outcome) -> None:
        """Put the model into the session and show its passport."""
        role = self._queue.pop(0)
        model = self.boxes[role].model()
        if model is not None:
            known = self.session.learn(with_passport(model, outcome.value))
            setattr(self.session, role, known)
            self._show_passport(role, known)

    def _ended(self) -> None:
        finished = self.work is not None and self.work.outcome is not None
        super()._ended()
        if finished and self._queue:
            self.begin(self._inspect(self._queue[0]))
        else:
            self._queue = []

    def _show_passport(self, role: str, model: Model | None) -> None:
        known = model is not None and model.passport is not None
        self.passports[role].setText(passport_words(model.passport) if known and model and model.passport else "")
        self.passports[role].setVisible(known)

    def dragEnterEvent(self, event: Any) -> None:  # noqa: D102, N802
        if any(url.toLocalFile().endswith(WEIGHT_SUFFIXES) for url in event.mimeData().urls()):
            event.acceptProposedAction()

    def dropEvent(self, event: Any) -> None:  # noqa: D102, N802
        files = [Path(u.toLocalFile()) for u in event.mimeData().urls() if u.toLocalFile().endswith(WEIGHT_SUFFIXES)]
        for path in files:
            self.boxes[role_of(path)].choose_file(path)
        event.acceptProposedAction()


def role_of(path: Path) -> str:
    """Return which role a dropped file takes: the teacher's if its name says so, else the student's."""
    return "teacher" if "teacher" in path.stem.lower() else "student"


def passport_words(passport: Mapping[str, Any]) -> str:
    """Return what is in a weight file as a few lines for people.

    Parameters
    ----------
    passport
        `spec`, `card`, `parameters`, `bytes`, `sha256` as the engine's inspect job returns them.
    """
    spec, card = passport["spec"], dict(passport["card"])
    swatches = [f"<span style='color:{c['color']}'>■</span> {c['name']}" for c in spec["classes"][1:]]
    rows = {
        "Name": spec["name"],
        "Finds": ", ".join(swatches) + " (may overlap)" * spec["overlapping"],
        "Expects": ", ".join(filter(None, [spec["modality"], _channel_words(spec)])),
        "Network": f"{spec['encoder']}, {spec['image_size']} px tiles, {spec['patch_size']} px tokens",
        "Size": f"{passport['parameters'] / 1e6:.2f} million parameters, {passport['bytes'] / 1e6:.1f} MB",
        "Licence": card.pop("licence", card.pop("license", "")) or "<b>UNKNOWN</b>",
        **{key.replace("_", " ").capitalize(): value for key, value in card.items() if key not in HIDDEN},
        "SHA-256": passport["sha256"][:16] + "…",
    }
    return "<br>".join(f"<b>{name}</b>: {value}" for name, value in rows.items() if value)


def _channel_words(spec: Mapping[str, Any]) -> str:
    names = ", ".join(spec["channels"])
    return f"{spec['in_channels']} channel{'s' * (spec['in_channels'] != 1)}" + (f" ({names})" if names else "")
