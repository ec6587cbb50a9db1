"""The small menu at the foot of every panel: what was done, to be done again elsewhere; and help."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from qtpy.QtCore import QObject, Signal
from qtpy.QtGui import QGuiApplication
from qtpy.QtWidgets import QFileDialog, QMenu, QMessageBox, QToolButton

from napari_rskd._diagnose import Diagnosis
from napari_rskd._job import aside
from napari_rskd._record import Action, Draft, draft, open_files, record_of
from napari_rskd._saving import may_replace
from napari_rskd._settings import as_set
from napari_rskd._source import Array
from rskd.errors import RskdError
from rskd.io.files import replacing, write_atomically
from rskd.jobs import Outcome
from rskd.steps import Recipe

NOTHING = "Nothing was done yet: the recipe begins with the first result."
ASK = (
    "{pictures} of this recipe {has} no file that says the same, such as a sample or a picture that was made here."
    "\n\nSave {it} beside the recipe? Without {it} the recipe cannot be repeated."
)


class RecipeMenu(QToolButton):
    """Copies the last action as a command or as Python, and saves all of them as one recipe.

    Parameters
    ----------
    viewer
        Whose actions.
    say
        Takes a line that tells the user what came of it.
    """

    def __init__(self, viewer: Any, say: Callable[[str], None]) -> None:
        super().__init__(text="Recipe", objectName="recipe", toolTip="Repeat elsewhere what was done here.")
        self._viewer, self._say = viewer, say
        self.setPopupMode(QToolButton.ToolButtonPopupMode.InstantPopup)
        menu = QMenu(self)
        menu.setToolTipsVisible(True)
        self.command = menu.addAction("Copy the last action as a command", self._copy_command)
        self.python = menu.addAction("Copy the last action as Python", self._copy_python)
        self.save = menu.addAction("Save all actions as a recipe…", self._save_all)
        self.command.setToolTip("A line for the terminal that gives the same result.")
        self.python.setToolTip("Lines for a notebook or a script that give the same result.")
        self.save.setToolTip(
            "A file for “rskd run”. It holds the names of image files as they are, and nothing out of their headers."
        )
        menu.addSeparator()
        self.diagnose = menu.addAction("Save a diagnostic file…", self._diagnose)
        self.diagnose.setToolTip("For whoever is to help: versions, checks, settings, places of errors. No names.")
        menu.aboutToShow.connect(self._offer)
        self.setMenu(menu)
        self.setStyleSheet("QToolButton { padding-right: 14px; }")  # or the arrow lies on the word

    def _offer(self) -> None:
        done = bool(record_of(self._viewer).actions)
        for entry in (self.command, self.python, self.save):
            entry.setEnabled(done)

    def _copy_command(self) -> None:
        from rskd.as_code import as_command  # with all of the command line: not before it is asked for

        self._copy(as_command, "Copied: paste it into a terminal.")

    def _copy_python(self) -> None:
        from rskd.as_code import as_python

        self._copy(as_python, "Copied: paste it into Python.")

    def _copy(self, tell: Callable[[Recipe], str], said: str) -> None:
        last = record_of(self._viewer).last()

        def finish(found: Draft) -> None:
            files = self._ask_for_pictures(found.loose)
            if files is None:
                self._say("Nothing was copied: the picture has no file that a command could name.")
                return
            recipe = found.recipe(files)
            self._aside(partial(write_arrays, files, found.loose), lambda _: copy(recipe))

        def copy(recipe: Recipe) -> None:
            QGuiApplication.clipboard().setText(tell(recipe))
            self._say(said)

        self._draft([] if last is None else last.needs, finish)

    def _save_all(self) -> None:
        self._draft(list(record_of(self._viewer).actions), self._save)

    def _diagnose(self) -> None:
        name, _ = QFileDialog.getSaveFileName(self, "Save a diagnostic file", "rskd-diagnosis.txt", "Text (*.txt)")
        if not name:
            return
        self.diagnosis = Diagnosis(Path(name), as_set())
        self.diagnosis.returned.connect(self._diagnosed)
        self.diagnosis.failed.connect(lambda error: self._say(str(error)))
        self._say("Trying everything out for the diagnostic file: it takes a minute…")
        self.diagnosis.start()

    def _diagnosed(self, outcome: Outcome) -> None:
        well = "everything works" if outcome.value["healthy"] else "something does not work"
        self._say(f"Saved {Path(outcome.value['file']).name} ({well}): read it before you pass it on.")

    # ------------------------------------------------------------------------------- where the pictures came from

    def _draft(self, actions: Sequence[Action], finish: Callable[[Draft], None]) -> None:
        """Look for the files of the pictures, which may take a while, and go on with `finish`."""
        if not actions:
            self._say(NOTHING)
            return
        self._aside(partial(draft, actions, open_files(self._viewer)), partial(self._drafted, finish))

    def _drafted(self, finish: Callable[[Draft], None], found: Draft) -> None:
        if found.lost:
            steps = ", ".join(map(str, found.lost))
            self._say(f"The picture of step {steps} is no longer there: open it again, and repeat that step.")
        else:
            finish(found)

    def _aside(self, work: Callable[[], Any], then: Callable[[Any], None]) -> None:
        """Do something that would hold up the window, and go on with `then`, which takes what it returns."""
        self.setEnabled(False)
        self._then = then
        self._courier = _Courier()
        self._courier.arrived.connect(self._arrived)
        aside(work).add_done_callback(self._courier.bring)

    def _arrived(self, found: Any) -> None:
        self.setEnabled(True)
        try:
            if isinstance(found, Exception):
                raise found
            self._then(found)
        except RskdError as error:
            self._say(str(error))
        except Exception as error:
            self._say(f"The recipe cannot be written: {error}")

    def _ask_for_pictures(self, loose: Sequence[Array]) -> dict[int, Path] | None:
        """Ask where pictures without a file are to be saved; None = nowhere."""
        if not loose:
            return {}
        name, _ = QFileDialog.getSaveFileName(self, "Save the picture, which has no file yet", "picture.npy", "*.npy")
        files = beside(Path(name).absolute(), loose) if name else {}
        return files if files and may_replace(self, name, *files.values()) else None

    # ------------------------------------------------------------------------------------------------ the recipe

    def _save(self, found: Draft) -> None:
        name, _ = QFileDialog.getSaveFileName(self, "Save the recipe", "recipe.json", "Recipes (*.json)")
        if not name:
            return
        path, loose = Path(name), found.loose
        files = beside(path, loose)
        if (loose and not self._may_save(len(loose))) or not may_replace(self, name, *files.values()):
            self._say("The recipe was not saved.")
            return
        pictures = f" and {len(loose)} picture{'s' * (len(loose) > 1)}" if loose else ""
        said = f"Saved {path.name}{pictures}: “rskd run {path.name} --output results” repeats it."
        self._aside(partial(_write_recipe, path, found, files), lambda _: self._say(said))

    def _may_save(self, count: int) -> bool:
        one = count == 1
        words = ASK.format(
            pictures="One picture" if one else f"{count} pictures",
            has="has" if one else "have",
            it="it" if one else "them",
        )
        return bool(QMessageBox.question(self, "Pictures without a file", words) == QMessageBox.StandardButton.Yes)


class _Courier(QObject):
    """Brings what another thread has found to the thread of the window."""

    arrived = Signal(object)

    def bring(self, future: Future[Any]) -> None:
        error = future.exception()
        self.arrived.emit(error if error is not None else future.result())


def beside(path: Path, arrays: Sequence[Array]) -> dict[int, Path]:
    """Return npy files for arrays, beside a file and called after it, each by the array's `id`."""
    alone = len(arrays) == 1 and path.suffix == ".npy"
    files = [path] if alone else [path.with_name(f"{path.stem}-{n}.npy") for n, _ in enumerate(arrays, 1)]
    return {id(array): file for array, file in zip(arrays, files, strict=True)}


def write_arrays(files: Mapping[int, Path], arrays: Iterable[Array]) -> None:
    """Write every array into its file; `files` has them by the arrays' `id`."""
    for array in arrays:
        with replacing(files[id(array)]) as partial_file:
            np.save(partial_file, array, allow_pickle=False)


def _write_recipe(path: Path, found: Draft, files: Mapping[int, Path]) -> None:
    """Write a recipe, and the arrays that lie beside it."""
    write_arrays(files, found.loose)
    recipe = found.recipe({key: Path(file.name) for key, file in files.items()})
    write_atomically(path, recipe.model_dump_json(indent=1).encode())
