"""Runs that can go on, after a pause, a crash or the end of napari, and the offer to do so."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from qtpy.QtCore import Signal
from qtpy.QtWidgets import QFrame, QHBoxLayout, QPushButton, QVBoxLayout

from napari_rskd._panel import text
from rskd.errors import RskdError
from rskd.runs import RunFolder, Standing

_BUTTONS = {
    False: (
        ("Go on", "Resume it from its last checkpoint."),
        ("Leave it", "Do not offer it again; its folder stays as it is."),
    ),
    True: (
        ("Watch it", "Show its curves here, and stop or pause it from here."),
        ("Not now", "It goes on without being watched."),
    ),
}
"""By whether a run is on its way: words and help of the button that takes it up, and of the one that does not."""


@dataclass(frozen=True)
class Unfinished:
    """A run that can go on, or is being worked on by a process that is not of this napari."""

    path: Path
    standing: Standing
    busy: bool = False

    def words(self) -> str:
        """Return what it is, for people."""
        now = self.standing
        best = "" if now.dice is None else f", best Dice {now.dice:.3f}"
        if self.busy:
            return f"The run “{self.path.name}” is on its way, at step {now.step} of {now.steps}{best}."
        how = "stopped" if now.stopped else "interrupted"
        return f"The run “{self.path.name}” was {how} after step {now.step} of {now.steps}{best}."


def unfinished_runs(runs: Path) -> Iterator[Unfinished]:
    """Yield the runs in a folder that can go on or are on their way, the latest first."""
    try:
        folders = sorted(runs.iterdir(), reverse=True)
    except OSError:  # there is no such folder, or it may not be read
        return
    for path in folders:
        try:
            folder = RunFolder(path)
            if folder.set_aside or not folder.checkpoint.exists():
                continue
            found = Unfinished(path, folder.standing(), folder.busy)
        except (RskdError, OSError, ValueError):  # no run, or damaged: there is nothing to offer
            continue
        if found.busy or (found.standing.step and not found.standing.finished):
            yield found


class Offer(QFrame):
    """Says that a run can go on, or is on its way, with a button to take it up and one to let it be."""

    accepted = Signal(object)
    """The `Unfinished` to take up."""

    def __init__(self) -> None:
        super().__init__()
        self._run: Unfinished | None = None
        self.words = text(name="unfinished")
        self.go_on, self.leave = QPushButton(), QPushButton()
        buttons = QHBoxLayout()
        buttons.addWidget(self.go_on)
        buttons.addWidget(self.leave)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addWidget(self.words)
        column.addLayout(buttons)
        self.go_on.clicked.connect(self._accept)
        self.leave.clicked.connect(self._leave)
        self.hide()

    def look(self, runs: Path | None) -> None:
        """Offer the latest run in a folder that can go on, if there is one."""
        self._run = None if runs is None else next(unfinished_runs(runs), None)
        self.setVisible(self._run is not None)
        if self._run is None:
            return
        self.words.setText(self._run.words())
        for button, (words, help_text) in zip((self.go_on, self.leave), _BUTTONS[self._run.busy], strict=True):
            button.setText(words)
            button.setToolTip(help_text)

    def _accept(self) -> None:
        run, self._run = self._run, None
        self.hide()
        if run is not None:
            self.accepted.emit(run)

    def _leave(self) -> None:
        run, self._run = self._run, None
        self.hide()
        if run is not None and not run.busy:
            RunFolder(run.path).leave()
            self.look(run.path.parent)
