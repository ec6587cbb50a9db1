"""What the panels have in common: one column, one primary button that is its own Cancel, errors in words."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from qtpy.QtCore import QEvent, Qt
from qtpy.QtGui import QKeyEvent
from qtpy.QtWidgets import (
    QFrame,
    QHBoxLayout,
    QLabel,
    QProgressBar,
    QPushButton,
    QScrollArea,
    QVBoxLayout,
    QWidget,
)

from napari_rskd import _theme
from napari_rskd._first_steps import FIRST_STEPS
from napari_rskd._job import Background, warm_up
from napari_rskd._recipe_menu import RecipeMenu
from napari_rskd._record import record_of
from rskd.errors import RskdError
from rskd.events import Event, Message, Progress
from rskd.jobs import Outcome

NOT_FOR_DIAGNOSIS = "For research. Not for diagnosis."
WIDTH = 300
TELL_EVERY = 0.25  # seconds


def text(words: str = "", *, name: str = "") -> QLabel:
    """Return a label that wraps its words and lets them be copied."""
    label = QLabel(words, wordWrap=True, objectName=name)
    label.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
    label.setMinimumWidth(0)
    return label


class Docked(QWidget):
    """A widget in a dock that ends when its dock is closed: napari only takes it out, and it would work on unseen."""

    _in_dock = False

    def changeEvent(self, event: QEvent) -> None:  # noqa: N802
        super().changeEvent(event)
        if event.type() != QEvent.Type.ParentChange:
            return
        was_in_dock, self._in_dock = self._in_dock, self.parent() is not None
        if was_in_dock and not self._in_dock:
            self.leave()

    def leave(self) -> None:
        """Let go of everything: the dock was closed."""
        self.deleteLater()


class Panel(Docked):
    """A dock widget that starts one kind of job.

    A panel says what it needs in `reason`, starts its job in `launch`, and shows what comes back in `show_result`.

    Parameters
    ----------
    viewer
        The napari viewer.
    verb
        Text of the primary button.
    note
        A line that is always visible under the button.
    """

    private_engine = False  # True: its jobs have an engine of their own and live on when the panel is closed

    def __init__(self, viewer: Any, *, verb: str, note: str = NOT_FOR_DIAGNOSIS) -> None:
        super().__init__()
        self.viewer = viewer
        self.work: Background | None = None
        self._shows: Callable[[Outcome], None] = self.show_result
        self._verb = verb
        self._told = 0.0
        self.button = QPushButton(verb, objectName="primary")
        self.reason_label = text(name="reason")
        self.first_step = QPushButton(objectName="first_step")
        self.bar = QProgressBar(textVisible=False)
        self.status = text(name="status")
        self.error_label = text(name="error")
        self.column = QVBoxLayout()
        self.buttons, self.more_buttons = QHBoxLayout(), QHBoxLayout()  # a second row: a dock has 300 pixels
        self._build(note)
        self.button.clicked.connect(self._clicked)
        self.button.setToolTip("Ctrl+Enter starts it as well, while the keyboard is in this panel.")
        self.first_step.clicked.connect(self._take_first_step)
        _theme.follow(viewer, self, self._apply_theme)
        if not self.private_engine:
            warm_up()  # while the user chooses, the engine imports torch

    def _build(self, note: str) -> None:
        self.setMinimumWidth(WIDTH)
        content = QWidget()
        content.setLayout(self.column)
        self.column.setContentsMargins(8, 8, 8, 8)
        self.column.setSpacing(6)
        self.column.setAlignment(Qt.AlignmentFlag.AlignTop)
        area = QScrollArea(widgetResizable=True, frameShape=QFrame.Shape.NoFrame)
        area.setWidget(content)
        self.buttons.addWidget(self.button)
        foot = QVBoxLayout()
        foot.setContentsMargins(8, 4, 8, 8)
        foot.addLayout(self.buttons)
        foot.addLayout(self.more_buttons)
        for widget in (self.reason_label, self.first_step, self.bar, self.status, self.error_label):
            foot.addWidget(widget)
        last = QHBoxLayout()
        last.addWidget(text(note, name="note"), 1)
        last.addWidget(RecipeMenu(self.viewer, self.say))
        foot.addLayout(last)
        for hidden in (self.reason_label, self.first_step, self.bar, self.status, self.error_label):
            hidden.hide()
        self.bar.setFixedHeight(6)
        outer = QVBoxLayout(self)
        outer.setContentsMargins(0, 0, 0, 0)
        outer.addWidget(area, 1)
        outer.addLayout(foot)

    # ------------------------------------------------------------------------------------- for the panels to fill

    def reason(self) -> str:
        """Return in words why the job cannot start; empty = it can."""
        return ""

    def launch(self) -> Background:
        """Return the job, ready to start; may raise `RskdError`."""
        raise NotImplementedError

    def show_event(self, event: Event) -> None:
        """Show what a running job tells."""
        match event:
            case Message(words):
                self.say(words)
            case Progress(done, total, what):
                self.tell(f"{done} of {total} {what}", done, total)

    def show_result(self, outcome: Outcome) -> None:
        """Show what a finished job returned."""

    # --------------------------------------------------------------------------------------------- the life of a job

    def refresh(self) -> None:
        """Look again whether the job can start."""
        if self.work is not None and self.work.running:
            return
        why = self.reason()
        self.button.setEnabled(not why)
        self.button.setText(self._verb)
        self._show_missing(why)

    def _show_missing(self, why: str) -> None:
        """Say what is missing, and offer to mend it where that takes one click."""
        self._show(self.reason_label, why)
        words, _ = FIRST_STEPS.get(why, ("", None))
        self.first_step.setText(words)
        self.first_step.setVisible(bool(words))

    def _take_first_step(self) -> None:
        FIRST_STEPS[self.reason()][1](self.viewer)
        self.refresh()

    def keyPressEvent(self, event: QKeyEvent) -> None:  # noqa: N802
        """Press the main button at Ctrl+Enter, but never as Cancel: a key is pressed twice in no time."""
        enter = event.key() in (Qt.Key.Key_Return, Qt.Key.Key_Enter)
        if enter and event.modifiers() & Qt.KeyboardModifier.ControlModifier and self.work is None:
            self.button.click()
        else:
            super().keyPressEvent(event)

    def _clicked(self) -> None:
        if self.work is not None and self.work.running:
            self.work.cancel()
            self._cancelling()
            return
        self.attempt(lambda: self.begin(self.launch()))

    def attempt(self, start: Callable[[], None]) -> None:
        """Start a job; say in words why it cannot be started."""
        self._show(self.error_label, "")
        try:
            start()
        except RskdError as error:
            self.show_error(error)

    def begin(self, work: Background, show: Callable[[Outcome], None] | None = None) -> None:
        """Start a job; `show` takes what it returns, `show_result` if there is none."""
        if not self.private_engine:
            self.destroyed.connect(work.cancel)
        self.attach(work)
        self._shows = show or self.show_result
        record_of(self.viewer).follow(work)
        work.start()
        self.refresh()

    def attach(self, work: Background) -> None:
        """Show a job that is about to start or already on its way."""
        self.work = work
        work.happened.connect(self.show_event)
        work.returned.connect(self._returned)
        work.failed.connect(self.show_error)
        work.ended.connect(self._ended)
        self.button.setText("Cancel")
        self.button.setEnabled(True)
        self._show_missing("")
        self.say(work.title + "…")
        self._show_progress(0, 0)

    def _cancelling(self) -> None:
        self.button.setText("Cancelling…")
        self.button.setEnabled(False)
        self._show_progress(0, 0)

    def _returned(self, outcome: Outcome) -> None:
        self.say("")
        try:
            self._shows(outcome)
        except RskdError as error:
            self.show_error(error)

    def _ended(self) -> None:
        work, self.work = self.work, None
        self.bar.hide()
        if work is not None and work.outcome is None:
            self.say("" if work.error is not None else "Cancelled.")
        self.refresh()

    # ------------------------------------------------------------------------------------------------------ the words

    def say(self, words: str) -> None:
        """Show one line about what is going on."""
        self._show(self.status, words)

    def show_error(self, error: RskdError) -> None:
        """Show what went wrong in its one sentence; the details are in the tooltip and the log."""
        self._show(self.error_label, str(error))
        self.error_label.setToolTip("\n".join(getattr(error, "__notes__", ())))

    def tell(self, words: str, done: int, total: int) -> None:
        """Show words and a share of what is done, unless that was done a moment ago: drawing the window costs."""
        now = time.monotonic()
        if done < total and now - self._told < TELL_EVERY:
            return
        self._told = now
        self.setUpdatesEnabled(False)  # one drawing for both
        self.say(words)
        self._show_progress(done, total)
        self.setUpdatesEnabled(True)

    def _show_progress(self, done: int, total: int) -> None:
        """Show a share; an empty bar while it is not known, for a moving one would redraw the window all the time."""
        self.bar.setRange(0, max(1, total))
        self.bar.setValue(done)
        self.bar.show()

    @staticmethod
    def _show(label: QLabel, words: str) -> None:
        label.setText(words)
        label.setVisible(bool(words))

    def _apply_theme(self) -> None:
        """Mark the primary button and errors with the theme's own colours."""
        accent, error = (_theme.color(self.viewer, name) for name in ("current", "error"))
        self.button.setStyleSheet(f"QPushButton:enabled {{ background-color: {accent}; font-weight: bold; }}")
        self.error_label.setStyleSheet(f"border-left: 4px solid {error}; padding-left: 6px;")
