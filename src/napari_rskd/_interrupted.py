"""Runs that were interrupted, by a pause, a crash or the end of napari, and the offer to go on with them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qtpy.QtCore import Signal
from qtpy.QtWidgets import QFrame, QHBoxLayout, QPushButton, QVBoxLayout

from napari_rskd._panel import text
from rskd.errors import RskdError
from rskd.events import Epoch, Step
from rskd.runs import RunFolder


@dataclass(frozen=True)
class Interrupted:
    """A run that can go on."""

    path: Path
    step: int
    steps: int
    dice: float | None
    """Of its best round so far."""

    def words(self) -> str:
        """Return what it is, for people."""
        best = "" if self.dice is None else f", best Dice {self.dice:.3f}"
        return f"The run “{self.path.name}” was interrupted after step {self.step} of {self.steps}{best}."


def interrupted_runs(runs: Path) -> list[Interrupted]:
    """Return the runs in a folder that can go on, the latest first; those that are being worked on are left out."""
    folders = sorted(runs.iterdir(), reverse=True) if runs.is_dir() else []
    found = (_interrupted(folder) for folder in folders if (folder / "job.json").is_file())
    return [run for run in found if run is not None]


def _interrupted(path: Path) -> Interrupted | None:
    try:
        folder = RunFolder(path)
        if folder.set_aside or not folder.checkpoint.exists():
            return None
        with folder.locked():
            events = list(folder.events())
    except (RskdError, OSError):  # in use, or damaged: there is nothing to offer
        return None
    last = next((event for event in reversed(events) if isinstance(event, Step)), None)
    if last is None or last.step >= last.steps:
        return None
    best = next((event.dice for event in reversed(events) if isinstance(event, Epoch) and event.best), None)
    return Interrupted(path, last.step, last.steps, best)


class Offer(QFrame):
    """Says that a run was interrupted, with a button to go on and one to let it be."""

    accepted = Signal(object)
    """The `Interrupted` to go on with."""

    def __init__(self) -> None:
        super().__init__()
        self._run: Interrupted | None = None
        self.words = text(name="interrupted")
        self.go_on = QPushButton("Go on", toolTip="Resume it from its last checkpoint.")
        self.leave = QPushButton("Leave it", toolTip="Do not offer it again; its folder stays as it is.")
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
        """Offer the latest interrupted run in a folder, if there is one."""
        found = interrupted_runs(runs) if runs is not None else []
        self._run = found[0] if found else None
        self.setVisible(self._run is not None)
        self.words.setText("" if self._run is None else self._run.words())

    def _accept(self) -> None:
        run, self._run = self._run, None
        self.hide()
        if run is not None:
            self.accepted.emit(run)

    def _leave(self) -> None:
        if self._run is not None:
            RunFolder(self._run.path).leave()
            self.look(self._run.path.parent)
