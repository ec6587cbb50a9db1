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


@dataclass(frozen=True)
class Unfinished:
    """A run that can go on."""

    path: Path
    standing: Standing

    def words(self) -> str:
        """Return what it is, for people."""
        now = self.standing
        how = "stopped" if now.stopped else "interrupted"
        best = "" if now.dice is None else f", best Dice {now.dice:.3f}"
        return f"The run “{self.path.name}” was {how} after step {now.step} of {now.steps}{best}."


def unfinished_runs(runs: Path) -> Iterator[Unfinished]:
    """Yield the runs in a folder that can go on, the latest first; those that are being worked on are left out."""
    try:
        folders = sorted(runs.iterdir(), reverse=True)
    except OSError:  # there is no such folder, or it may not be read
        return
    for path in folders:
        try:
            folder = RunFolder(path)
            if folder.set_aside or not folder.checkpoint.exists():
                continue
            with folder.locked():
                standing = folder.standing()
        except (RskdError, OSError, ValueError):  # no run, in use, or damaged: there is nothing to offer
            continue
        if standing.step and not standing.finished:
            yield Unfinished(path, standing)


class Offer(QFrame):
    """Says that a run can go on, with a button to do so and one to let it be."""

    accepted = Signal(object)
    """The `Unfinished` to go on with."""

    def __init__(self) -> None:
        super().__init__()
        self._run: Unfinished | None = None
        self.words = text(name="unfinished")
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
        """Offer the latest run in a folder that can go on, if there is one."""
        self._run = None if runs is None else next(unfinished_runs(runs), None)
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
