"""Distill a teacher into a student, watch it learn, and keep the best."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from qtpy.QtCore import QUrl
from qtpy.QtGui import QDesktopServices
from qtpy.QtWidgets import QFormLayout, QLabel, QPushButton

from napari_rskd import _settings
from napari_rskd._chart import Chart
from napari_rskd._check import DataCheck
from napari_rskd._data_pages import DataPages
from napari_rskd._fields import FolderField, ModelBox, NarrowBox
from napari_rskd._forecast import Forecast, left_words
from napari_rskd._form import Form, Section
from napari_rskd._job import Background, Order, Work
from napari_rskd._panel import Panel, text
from napari_rskd._preview import PreviewBox
from napari_rskd._session import Model, follow_session, fresh_models, session_of
from napari_rskd._unfinished import Offer, Unfinished
from napari_rskd._watch import Watch
from rskd.config import DistillOptions, TrainOptions
from rskd.errors import ParameterError, RskdError
from rskd.events import Epoch, Event, Reference, Step
from rskd.jobs import DistillJob, Outcome, PreflightJob, ResumeJob
from rskd.records import read_json
from rskd.runs import COMPARISON, PREVIEWS, REPORT, RunFolder

RECIPES = {
    "Quick look": TrainOptions(epochs=10, steps_per_epoch=20, batch_size=4, preview=4),
    "Thorough": TrainOptions(epochs=100, steps_per_epoch=100, batch_size=8, preview=8),
}
AS_SET = "As set below"
FIRST_STUDENT = "rskd-micro"


class DistillWidget(Panel):
    """The cockpit of one distillation; the run belongs to the session, and survives the panel and napari itself."""

    private_engine = True

    def __init__(self, napari_viewer: Any) -> None:
        super().__init__(napari_viewer, verb="Start distillation")
        self.session = session_of(napari_viewer)
        self.chart = Chart(napari_viewer)
        self.teacher, self.student = ModelBox(), ModelBox()
        self._fresh: Model | None = None
        self.data = DataPages(napari_viewer)
        self.recipe = NarrowBox()
        self.training: Form[TrainOptions] = Form(next(iter(RECIPES.values())), folded=True)
        self.objective: Form[DistillOptions] = Form(DistillOptions(), folded=True)
        self.run = FolderField("Folder for the runs")
        self.check = DataCheck(self._describe_check)
        self.offer = Offer()
        self.preview = PreviewBox(napari_viewer)
        self.plateau = text(name="plateau")
        self.comparison = text(name="comparison")
        self.stop = QPushButton("Stop and keep best", toolTip="Finish this step, then keep the best student so far.")
        self.pause = QPushButton(
            "Pause", toolTip="Leave off now; the run can go on later, also after napari was closed."
        )
        self.report = QPushButton("Report", toolTip="Open the report of this run in the browser.")
        self.use = QPushButton("Use this student", toolTip="Make it the student of all panels.")
        self._forecast = Forecast()
        self._lay_out()
        self._connect()
        follow_session(self, self.session, self._offer)
        self._show_run()

    def _lay_out(self) -> None:
        self.column.addWidget(self.offer)
        self.column.addWidget(self.chart)
        self.column.addWidget(self.plateau)
        self.column.addWidget(self.comparison)
        self.column.addWidget(self.preview)
        self.plateau.hide()
        self.comparison.hide()
        networks = QFormLayout()
        networks.addRow("Teacher", self.teacher)
        networks.addRow("Student", self.student)
        self.column.addWidget(QLabel("<b>Networks</b>"))
        self.column.addLayout(networks)
        self.column.addWidget(QLabel("<b>Images to learn from</b>"))
        self.column.addWidget(self.data)
        self.column.addWidget(self.check)
        self.column.addWidget(QLabel("<b>How long, and where to</b>"))
        for name, options in RECIPES.items():
            self.recipe.addItem(f"{name} ({options.epochs * options.steps_per_epoch} steps)", options)
        self.recipe.addItem(AS_SET, None)
        self.run.set_path(_settings.runs_folder())
        length = QFormLayout()
        length.addRow("Recipe", self.recipe)
        length.addRow("Runs", self.run)
        self.column.addLayout(length)
        self.column.addWidget(Section("Training", self.training))
        self.column.addWidget(Section("What the student learns", self.objective))
        for row, buttons in ((self.buttons, (self.stop, self.pause)), (self.more_buttons, (self.use, self.report))):
            for button in buttons:
                row.addWidget(button)
                button.hide()

    def _connect(self) -> None:
        self.recipe.currentIndexChanged.connect(self._choose_recipe)
        self.training.changed.connect(self._recipe_was_edited)
        self.teacher.chosen.connect(self._choose_teacher)
        self.student.chosen.connect(self.refresh)
        self.data.changed.connect(self.refresh)
        self.run.changed.connect(self.refresh)
        self.run.settled.connect(self._look_for_runs)
        self.offer.accepted.connect(self._go_on)
        chosen = (self.teacher.chosen, self.student.chosen, self.recipe.currentIndexChanged)
        for changed in (self.data.changed, self.training.changed, self.objective.changed, *chosen):
            changed.connect(self.check.clear)
        self.stop.clicked.connect(self._stop)
        self.pause.clicked.connect(self._pause)
        self.report.clicked.connect(self._open_report)
        self.use.clicked.connect(self._use)

    # ------------------------------------------------------------------------------------------------ what to run

    def _offer(self) -> None:
        """List the known models; what is chosen stays chosen."""
        fresh = fresh_models()
        first = next((model for model in fresh if model.source == FIRST_STUDENT), None)
        chosen = self.student.model() or first
        if self.session.fresh is not self._fresh:  # chosen in the Models panel since
            self._fresh = self.session.fresh
            chosen = self._fresh or chosen
        self.teacher.offer(self.session.library, self.session.teacher)
        opened = () if chosen is None or chosen in (*fresh, *self.session.library) else (chosen,)
        self.student.offer((*fresh, *self.session.library, *opened), chosen)
        self.refresh()

    def _choose_teacher(self) -> None:
        model = self.teacher.model()
        if model is not None:
            self.session.learn(model)
            self.session.teacher = model

    def _choose_recipe(self) -> None:
        options = self.recipe.currentData()
        if options is not None:
            self.training.blockSignals(True)
            self.training.set_value(options)
            self.training.blockSignals(False)
            self.refresh()

    def _recipe_was_edited(self) -> None:
        self.recipe.setCurrentIndex(self.recipe.findText(AS_SET))
        self.refresh()

    def reason(self) -> str:
        """Return why it cannot start."""
        if self.teacher.model() is None:
            return "Choose a teacher: “Open a weight file…”."
        if self.student.model() is None:
            return "Choose a student: a new one, or a weight file."
        if self.run.path() is None:
            return "Choose the folder for the runs."
        try:
            self.training.value()
            self.objective.value()
        except RskdError as error:
            return str(error)
        return self.data.reason()

    def launch(self) -> Background:
        """Start a run in a folder of its own."""
        student, runs = self.student.model(), self.run.path()
        assert student is not None and runs is not None  # noqa: S101, PT018 - see `reason`
        run = runs / f"{datetime.now():%Y-%m-%d %H.%M.%S} {Path(student.source).stem}"
        describe = self._describe()

        def order() -> Order:
            return DistillJob(run=run, **describe(run / "data")), {}

        return self._known(_lasting(order), run)

    def _known(self, work: Background, run: Path) -> Background:
        """Tell the session of a run; returns its work."""
        self.session.run = run
        self.session.distillation = work
        return work

    def _describe(self) -> Callable[[Path], dict[str, Any]]:
        """Return what brings the data into a folder and describes the distillation; for the worker thread."""
        teacher, student = self.teacher.model(), self.student.model()
        assert teacher is not None and student is not None  # noqa: S101, PT018 - see `reason`
        objective, collect = self.objective.value(), self.data.collect()
        settled = {"training": self.training.value(), "compute": _settings.compute_options()}

        def describe(place: Path) -> dict[str, Any]:
            data = collect(place)
            terms = objective if data.masks else objective.model_copy(update={"task": 0.0})  # the teacher alone
            pair = {"teacher": teacher.path, "student": student.source}
            return {**pair, **settled, "data": data, "distillation": terms}

        return describe

    def _describe_check(self) -> Callable[[Path], PreflightJob]:
        why = self.reason()
        if why:
            raise ParameterError(why)
        describe = self._describe()
        return lambda place: PreflightJob(**describe(place / "data"))

    def _look_for_runs(self) -> None:
        """Offer what was interrupted, unless something runs now."""
        running = self.session.distillation is not None and self.session.distillation.running
        self.offer.look(None if running else self.run.path())
        self.refresh()

    def _go_on(self, found: Unfinished) -> None:
        """Watch a run that is on its way, or resume it with the curves that it has so far."""
        folder = RunFolder(found.path)
        work: Background = Watch(folder, title="Distilling")
        if not found.busy:
            work = _lasting(lambda: (ResumeJob(run=found.path), {}))
            work.history.extend(folder.events())
        self.begin(self._known(work, found.path))

    # ------------------------------------------------------------------------------------------- while it runs

    def attach(self, work: Background) -> None:
        """Show a run, with all that has happened in it so far."""
        super().attach(work)
        self.chart.clear()
        self._forecast = Forecast()
        self.offer.hide()
        self.comparison.hide()
        for button in (self.use, self.report):
            button.hide()
        for button in (self.stop, self.pause):
            button.setEnabled(True)
            button.show()
        for event in work.history:
            self._take_in(event)
        self._look_at_pictures()

    def _look_at_pictures(self) -> None:
        run = self.session.run
        self.preview.look(None if run is None else run / PREVIEWS)

    def _take_in(self, event: Event) -> None:
        self.chart.add(event)
        self._forecast.add(event)

    def show_event(self, event: Event) -> None:
        """Draw a point, and say how far it is and how long it will take."""
        self._take_in(event)
        match event:
            case Step():
                self._show_step(event)
            case Epoch(epoch=epoch, epochs=epochs, dice=dice):
                self.say(f"Round {epoch} of {epochs}: {score_words(dice)} on the validation images.")
                self._show(self.plateau, self._forecast.plateau())
                self._look_at_pictures()
            case Reference(name=name, dice=dice):
                self.say(f"Before the first step the {name} has {score_words(dice)} on the validation images.")
            case _:
                super().show_event(event)

    def _show_step(self, event: Step) -> None:
        if self.work is None or not self.work.stopping:
            left = left_words(self._forecast.left())
            self.tell(f"Step {event.step} of {event.steps}, {left}.", event.step, event.steps)

    def _stop(self) -> None:
        if self.work is not None:
            self.work.stop()
            self.stop.setEnabled(False)
            self.say("Stopping: finishing the step and keeping the best student…")

    def _pause(self) -> None:
        if self.work is not None:
            self.work.pause()
            self.pause.setEnabled(False)
            self.say("Pausing: writing down where it is…")

    def _ended(self) -> None:
        work = self.work
        self.chart.finish()
        for button in (self.stop, self.pause):
            button.hide()
        self._show(self.plateau, "")
        super()._ended()
        if work is not None and work.cancelled:
            self._left_off(work)
        self._look_for_runs()

    def _left_off(self, work: Background) -> None:
        """After a pause the run is offered; after any other cancel it is not, but its folder stays."""
        if work.paused:
            self.say("Paused. Go on whenever you like, also after napari was closed.")
            return
        with suppress(RskdError, OSError):  # it may have been cancelled before there was a run
            if self.session.run is not None:
                RunFolder(self.session.run).leave()

    # ------------------------------------------------------------------------------------------- when it is done

    def _show_run(self) -> None:
        """Take up the session's run, if the panel was closed and opened again."""
        work = self.session.distillation
        if work is None:
            self._look_for_runs()
            return
        if work.running:
            self.attach(work)
            return
        for event in work.history:
            self._take_in(event)
        self._look_at_pictures()
        self.chart.finish()
        if work.outcome is not None:
            self.show_result(work.outcome)

    def show_result(self, outcome: Outcome) -> None:
        """Say how good the best student is, beside its teacher, and offer it."""
        value, compared = outcome.value, _comparison(Path(outcome.value["run"]))
        how, rounds = "Stopped" if value["stopped"] else "Finished", value["epochs"]
        scores = "" if compared else f" {self._scores(value['dice'])}"
        self.say(f"{how} after {rounds} round{'s' * (rounds != 1)}.{scores}")
        self.status.setToolTip(f"Everything about it is in {value['run']}")
        self.use.setEnabled(True)
        self.use.show()
        self.report.setVisible((Path(value["run"]) / REPORT).is_file())
        self._show(self.comparison, compared)

    def _scores(self, dice: float) -> str:
        """Return what the validation of the training found; a comparison knows it better, in the images' own pixels."""
        beside = "" if self.chart.teacher is None else f"; the teacher has {self.chart.teacher:.3f}"
        return f"The best student has {score_words(dice)} on the validation images{beside}."

    def _open_report(self) -> None:
        if self.session.run is not None:
            QDesktopServices.openUrl(QUrl.fromLocalFile(str(self.session.run / REPORT)))

    def _use(self) -> None:
        work = self.session.distillation
        if work is None or work.outcome is None:
            return
        path = Path(work.outcome.value["student"])
        model = self.session.learn(Model(name=f"Distilled {path.parent.name}", source=str(path)))
        self.session.student = model
        self.use.setEnabled(False)
        self.say("It is now the student of the Segment and Token ranking panels.")


def _lasting(order: Callable[[], Order]) -> Work:
    """Return a distillation that goes on when napari ends."""
    return Work(order, title="Distilling", private=True, lasting=True)


def _comparison(run: Path) -> str:
    """Return what the report of a run has found out about student and teacher, as HTML."""
    found = read_json(run / COMPARISON) or {"paragraphs": ()}
    return "".join(f"<p>{words}</p>" for words in found["paragraphs"])


def score_words(dice: float) -> str:
    """Return a Dice score as one would say it; NaN = there was nothing to compare with.

    Examples
    --------
    >>> score_words(0.8125), score_words(float("nan"))
    ('a Dice of 0.812', 'no Dice (no masks)')
    """
    return "no Dice (no masks)" if math.isnan(dice) else f"a Dice of {dice:.3f}"
