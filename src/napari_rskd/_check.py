"""The part of the Distill panel that looks at the data before a run starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from qtpy.QtWidgets import QPushButton, QVBoxLayout, QWidget

from napari_rskd._job import Order, Work
from napari_rskd._panel import text
from rskd.errors import RskdError
from rskd.events import Event, Progress
from rskd.jobs import Outcome, PreflightJob

MARKS = {"fact": "✓", "warning": "<b>!</b>", "problem": "<b>✗</b>"}
"""A sign of its own for every kind, so that nobody has to tell colours apart."""
VERB = "Check the data first"


class DataCheck(QWidget):
    """A button that looks at data, split and cost of a run, and what it found.

    Parameters
    ----------
    describe
        Returns a function that puts the data into a folder and returns the job; it is called in the worker thread.
    """

    def __init__(self, describe: Callable[[], Callable[[Path], PreflightJob]]) -> None:
        super().__init__()
        self._describe = describe
        self.work: Work | None = None
        self.button = QPushButton(VERB, objectName="check")
        self.button.setToolTip(
            "Reads all images and masks, looks for mistakes in them, and times a few steps. Nothing is changed."
        )
        self.words = text(name="findings")
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addWidget(self.button)
        column.addWidget(self.words)
        self.words.hide()
        self.button.clicked.connect(self._clicked)

    def clear(self) -> None:
        """Forget what was found: the data or the options are others now."""
        if self.work is None:
            self.words.hide()

    def _clicked(self) -> None:
        if self.work is not None:
            self.work.cancel()
            self.button.setText("Cancelling…")
            return
        try:
            describe = self._describe()
        except RskdError as error:
            self._show_error(error)
            return
        place = TemporaryDirectory(prefix="rskd-check-", ignore_cleanup_errors=True)  # for copies of open layers

        def order() -> Order:
            return describe(Path(place.name)), {}

        work = self.work = Work(order, title="Checking the data", private=True, release=place.cleanup)
        work.happened.connect(self._show_event)
        work.returned.connect(self._show_result)
        work.failed.connect(self._show_error)
        work.ended.connect(self._ended)
        self.destroyed.connect(work.cancel)
        self.button.setText("Cancel the check")
        self._say("Checking…")
        work.start()

    def _show_event(self, event: Event) -> None:
        if isinstance(event, Progress):
            self._say(f"{event.done} of {event.total} {event.what}…")

    def _show_result(self, outcome: Outcome) -> None:
        self._say(findings_words(outcome.value["findings"]))

    def _show_error(self, error: RskdError) -> None:
        self._say(findings_words([{"kind": "problem", "text": str(error)}]))

    def _ended(self) -> None:
        work, self.work = self.work, None
        if work is not None and work.outcome is None and work.error is None:
            self.words.hide()
        self.button.setText(VERB)

    def _say(self, words: str) -> None:
        self.words.setText(words)
        self.words.show()


def findings_words(findings: Sequence[Mapping[str, Any]]) -> str:
    """Return findings as lines, the gravest first.

    Examples
    --------
    >>> findings_words([{"kind": "fact", "text": "4 images."}, {"kind": "warning", "text": "1 mask is empty."}])
    '<b>!</b> 1 mask is empty.<br>✓ 4 images.'
    """
    order = [*MARKS][::-1]
    lines = sorted(findings, key=lambda finding: order.index(finding["kind"]))
    return "<br>".join(f"{MARKS[finding['kind']]} {escape(finding['text'])}" for finding in lines)
