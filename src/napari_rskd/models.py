"""Choose the teacher and the student, and read what is in their files before anything runs."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from qtpy.QtCore import Signal
from qtpy.QtWidgets import QFileDialog, QLabel

from napari_rskd import _library
from napari_rskd._fields import WEIGHT_FILES, ModelBox
from napari_rskd._job import Order, Work, aside
from napari_rskd._panel import Panel, text
from napari_rskd._passport import LARGE, PassportCard, speed_words
from napari_rskd._session import Model, fresh_models, session_of, with_passport
from napari_rskd._settings import compute_options, models_folder
from rskd.engine.failures import explain
from rskd.errors import RskdError
from rskd.jobs import BenchJob, InspectJob, Outcome

ROLES = {
    "teacher": "The large network that the student learns from.",
    "student": "The small, fast network that does the daily work.",
}
HINT = (
    "Choose models below, or drop weight files and run folders here. “Load models” reads what they are; nothing is "
    "computed yet."
)
ROUNDS = 12
SECONDS = 8.0
"""How long a measurement of speed takes, about, on a slow computer."""


class ModelsWidget(Panel):
    """Load a teacher and a student and show their passports."""

    kept = Signal(object)
    """The `Path` of a copy, or the `RskdError` that prevented it."""

    def __init__(self, napari_viewer: Any) -> None:
        super().__init__(napari_viewer, verb="Load models")
        self.session = session_of(napari_viewer)
        self.boxes: dict[str, ModelBox] = {}
        self.cards: dict[str, PassportCard] = {}
        self.passports: dict[str, QLabel] = {}
        self._queue: list[tuple[str, Model]] = []
        self.column.addWidget(text(HINT))
        for role, help_text in ROLES.items():
            self._add_role(role, help_text)
        self.column.addStretch(1)
        self.setAcceptDrops(True)
        self.kept.connect(self._show_kept)
        self.offer()
        self.refresh()

    def _add_role(self, role: str, help_text: str) -> None:
        heading = QLabel(f"<b>{role.capitalize()}</b>", toolTip=help_text)
        box, card = ModelBox(), PassportCard(self.viewer, role)
        box.setToolTip(help_text)
        box.setObjectName(role)
        box.chosen.connect(self.refresh)
        box.refused.connect(self.show_error)
        box.currentIndexChanged.connect(lambda _: self._changed(role))
        card.measure_asked.connect(partial(self._measure, role))
        card.keep_asked.connect(partial(self._keep, role))
        card.save_asked.connect(partial(self._save, role))
        self.boxes[role], self.cards[role], self.passports[role] = box, card, card.words
        for widget in (heading, box, card):
            self.column.addWidget(widget)

    def offer(self) -> None:
        """List the known models, the session's choice in front."""
        for model in _library.library_models(models_folder()):
            if model.source not in {known.source for known in self.session.library}:
                self.session.learn(model)
        for role, box in self.boxes.items():
            current = getattr(self.session, role)
            if role == "student" and self.session.fresh is not None:
                current = self.session.fresh
            box.offer((*self.session.library, *(fresh_models() if role == "student" else ())), current)
            self.cards[role].show_model(current)

    def reason(self) -> str:
        """Return why nothing can be loaded."""
        models = [box.model() for box in self.boxes.values()]
        if not any(map(_has_weights, models)):
            if any(models):
                return "Choose a teacher as well: a new student learns from it, in the Distill panel."
            return "Choose a teacher or a student first: “Open a weight file…”."
        return ""

    def _changed(self, role: str) -> None:
        """Show what is known of the chosen model; the rest is read when it is loaded."""
        model = self.boxes[role].model()
        known = {known.source: known for known in self.session.library}
        self.cards[role].show_model(None if model is None else known.get(model.source, model))
        if role == "student":
            self.session.fresh = model if model is not None and model.fresh else None
        self.refresh()

    # ----------------------------------------------------------------------------------------------------- reading

    def launch(self) -> Work:
        """Read the chosen files, one after the other."""
        chosen = {role: box.model() for role, box in self.boxes.items()}
        self._queue = [(role, model) for role, model in chosen.items() if model is not None and not model.fresh]
        return self._inspect(*self._queue[0])

    @staticmethod
    def _inspect(role: str, model: Model) -> Work:
        def order() -> Order:
            return InspectJob(model=model.path), {}

        return Work(order, title=f"Reading the {role}")

    def show_result(self, outcome: Outcome) -> None:
        """Put the model into the session, and show its passport unless another one was chosen meanwhile."""
        role, model = self._queue.pop(0)
        known = self.session.learn(with_passport(model, outcome.value))
        setattr(self.session, role, known)
        if self._is_on_card(role, model):
            self.cards[role].show_model(known)

    def _is_on_card(self, role: str, model: Model) -> bool:
        shown = self.cards[role].model
        return shown is not None and shown.source == model.source

    def _ended(self) -> None:
        finished = self.work is not None and self.work.outcome is not None
        super()._ended()
        if finished and self._queue:
            self.begin(self._inspect(*self._queue[0]))
        else:
            self._queue = []

    # ------------------------------------------------------------------------------------- speed, library, one file

    def refresh(self) -> None:
        """Look again what can start."""
        super().refresh()
        busy = self.work is not None and self.work.running
        for card in self.cards.values():
            card.measure.setEnabled(not busy)

    def _measure(self, role: str) -> None:
        model = self.cards[role].model
        assert model is not None  # noqa: S101 - the button is shown with a model
        how: dict[str, Any] = {"rounds": ROUNDS, "seconds": SECONDS, "memory": False, "compute": compute_options()}
        job = BenchJob(models=(model.path,), sizes=(_size(model),), **how)
        self._show(self.error_label, "")
        work = Work(lambda: (job, {}), title=f"Measuring the {role}")
        self.begin(work, show=partial(self._show_speed, role, model))

    def _show_speed(self, role: str, model: Model, outcome: Outcome) -> None:
        if self._is_on_card(role, model):
            self.cards[role].show_speed(speed_words(outcome.value))

    def _keep(self, role: str) -> None:
        model = self.boxes[role].model()
        if model is not None:
            self._copy(_library.keep, model.path, models_folder())

    def _save(self, role: str) -> None:
        model = self.boxes[role].model()
        if model is None:
            return
        file, _ = QFileDialog.getSaveFileName(self, "Save a copy of the model", model.path.name, WEIGHT_FILES)
        if file:
            self._copy(_library.save_copy, model.path, Path(file))

    def _copy(self, copy: Callable[[Path, Path], Path], source: Path, place: Path) -> None:
        self.say("Copying…")
        aside(copy, source, place).add_done_callback(self._copied)

    def _copied(self, future: Future[Path]) -> None:
        error = future.exception()
        with suppress(RuntimeError):  # the panel was closed meanwhile
            if error is None:
                self.kept.emit(future.result())
            elif isinstance(error, Exception):
                self.kept.emit(explain(error))

    def _show_kept(self, found: Path | RskdError) -> None:
        if isinstance(found, RskdError):
            self.say("")
            self.show_error(found)
            return
        self.say(f"Saved as {found}.")
        chosen = {role: box.model() for role, box in self.boxes.items()}
        self.offer()
        for role, model in chosen.items():
            if model is not None:
                self.boxes[role].choose(model)

    # ---------------------------------------------------------------------------------------------------- dropping

    def dragEnterEvent(self, event: Any) -> None:  # noqa: D102, N802
        if any(url.isLocalFile() for url in event.mimeData().urls()):
            event.acceptProposedAction()

    def dropEvent(self, event: Any) -> None:  # noqa: D102, N802
        self._show(self.error_label, "")
        for path in (Path(url.toLocalFile()) for url in event.mimeData().urls() if url.isLocalFile()):
            self.boxes[role_of(path)].choose_file(path)
        event.acceptProposedAction()


def role_of(path: Path) -> str:
    """Return which role a dropped file takes: the teacher's if its name says so, else the student's."""
    return "teacher" if "teacher" in path.stem.lower() else "student"


def _has_weights(model: Model | None) -> bool:
    return model is not None and not model.fresh


def _size(model: Model) -> int:
    """Return the side of the picture that a model is measured on: its own for an exported one, else about `LARGE`."""
    if model.passport is None:
        return LARGE
    spec = model.passport["spec"]
    if model.path.suffix.lower() == ".onnx":
        return int(spec["image_size"])
    patch = int(spec["patch_size"])
    return max(1, round(LARGE / patch)) * patch
