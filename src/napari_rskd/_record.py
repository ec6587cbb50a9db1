"""What was done in a viewer: every job that finished, and the recipe that does it again."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np

from napari_rskd._readers import SCAN
from napari_rskd._source import Array
from rskd.jobs import AgreementJob, BenchJob, Job, Outcome, PreflightJob, SegmentJob
from rskd.models.presets import BUNDLED
from rskd.steps import FromFile, FromStep, Recipe, Step, find_in_files, find_in_outcome

if TYPE_CHECKING:
    from napari_rskd._job import Background

KEPT = 256 << 20
"""Bytes up to which an array is kept for the recipe; of a larger one the layer must still be open."""
KEPT_IN_ALL = 1 << 30
"""Bytes that the arrays of one record may have; beyond them the oldest are let go."""
UNRECORDED = (PreflightJob, BenchJob)
"""Jobs whose outcome is no result: they tell what would be, or how fast."""
BY_ITSELF = (AgreementJob,)
"""Jobs that nobody asked for: they follow from others."""
_NETWORKS = ("model", "teacher", "student", "compare_with")
_BUNDLED = {str(path): name for name, path in BUNDLED.items()}


class Hold:
    """An array that was handed over: kept for the recipe, or there only as long as somebody else has it.

    Parameters
    ----------
    array
        Of a view that is part of a larger array a copy is kept: a slice would keep its whole volume.
    """

    def __init__(self, array: Array) -> None:
        self._elsewhere = weakref.ref(array)
        self.kept: Array | None = _alone(array) if array.nbytes <= KEPT else None

    def __call__(self) -> Array | None:
        """Return the array, None if it is no longer in memory."""
        return self._elsewhere() if self.kept is None else self.kept

    def let_go(self) -> None:
        """Keep it no longer."""
        self.kept = None


def _alone(array: Array) -> Array:
    part = isinstance(array.base, np.ndarray) and array.base.nbytes > array.nbytes
    return array.copy() if part else array


@dataclass(frozen=True, eq=False)
class Action:
    """A job that finished.

    Parameters
    ----------
    title
        What was done, for people; empty = it followed a slider.
    job
        The job, the networks that came along by their names.
    arrays
        Each array that was handed over.
    earlier
        Where an array is out of an earlier action: that one, and which of its arrays.
    outcome
        Gives back what it returned as long as a panel holds it.
    """

    title: str
    job: Job
    arrays: Mapping[str, Hold]
    earlier: Mapping[str, tuple[Action, FromStep]] = field(default_factory=dict)
    outcome: Callable[[], Outcome | None] = lambda: None

    @property
    def needs(self) -> list[Action]:
        """The actions that are needed to do this one again, and itself, in order."""
        before = [needed for action, _ in self.earlier.values() for needed in action.needs]
        return [*dict.fromkeys(before), self]


class Record:
    """The actions in one viewer, in order; of what follows a slider only the last state is kept."""

    def __init__(self) -> None:
        self.actions: list[Action] = []

    def follow(self, work: Background) -> None:
        """Take a job down when it has returned."""
        work.returned.connect(lambda outcome: self._add(work, outcome))

    def last(self) -> Action | None:
        """Return what the user did last."""
        asked_for = (action for action in reversed(self.actions) if not isinstance(action.job, BY_ITSELF))
        return next(asked_for, None)

    def _add(self, work: Background, outcome: Outcome) -> None:
        if work.order is None or isinstance(work.order[0], UNRECORDED):
            return
        job, arrays = work.order
        found = {name: self._earlier(array) for name, array in arrays.items()}
        earlier = {name: place for name, place in found.items() if place is not None}
        held = {name: Hold(array) for name, array in arrays.items() if name not in earlier}
        if not work.title:
            self._forget_last(job)
        self.actions.append(Action(work.title, portable(settled(job, outcome)), held, earlier, weakref.ref(outcome)))
        self._let_go()

    def _let_go(self) -> None:
        """Let go of the oldest arrays where all are too large together."""
        room, kept = KEPT_IN_ALL, set[int]()
        for hold in (hold for action in reversed(self.actions) for hold in action.arrays.values()):
            if hold.kept is None or id(hold.kept) in kept:
                continue
            room -= hold.kept.nbytes
            if room < 0:
                hold.let_go()
            else:
                kept.add(id(hold.kept))

    def _earlier(self, array: Array) -> tuple[Action, FromStep] | None:
        """Return the latest action that returned this array."""
        for action in reversed(self.actions):
            outcome = action.outcome()
            place = None if outcome is None or not action.title else find_in_outcome(array, 1, outcome.arrays)
            if place is not None:
                return action, place
        return None

    def _forget_last(self, job: Job) -> None:
        """Forget the state before this one of what follows the same slider."""
        for index in reversed(range(len(self.actions))):
            if self.actions[index].title:
                return
            if self.actions[index].job.kind == job.kind:
                del self.actions[index]
                return


_RECORDS: WeakKeyDictionary[Any, Record] = WeakKeyDictionary()


def record_of(viewer: Any) -> Record:
    """Return the record of a viewer (or of napari's proxy of it)."""
    return _RECORDS.setdefault(getattr(viewer, "__wrapped__", viewer), Record())


def settled(job: Job, outcome: Outcome) -> Job:
    """Return a job that names the runtime which it turned out to take, so that it does the very same again."""
    if not isinstance(job, SegmentJob) or not job.fastest:
        return job
    compute = job.compute.model_copy(update={"runtime": outcome.value["runtime"]})
    return job.model_copy(update={"fastest": False, "compute": compute})


def portable(job: Job) -> Job:
    """Return a job that calls the networks which came along by their names, not by where they are on this computer.

    Examples
    --------
    >>> from rskd.jobs import InspectJob
    >>> portable(InspectJob(model=BUNDLED["retina-student"])).model.name
    'retina-student'
    """
    files = {name: getattr(job, name) for name in _NETWORKS if hasattr(job, name)}
    names = {name: type(file)(_BUNDLED[str(file)]) for name, file in files.items() if str(file) in _BUNDLED}
    return job.model_copy(update=names)


def open_files(viewer: Any) -> list[Path]:
    """Return the files of the open layers; those of DICOM are left out, for their names may say who somebody is."""
    paths = [layer.source.path for layer in viewer.layers if not _is_dicom(layer)]
    return list(dict.fromkeys(Path(path) for path in paths if path and Path(path).exists()))


def _is_dicom(layer: Any) -> bool:
    scan = layer.metadata.get(SCAN)
    return scan is not None and bool(scan.files)


@dataclass(frozen=True)
class Draft:
    """Actions, and where the array of each comes from; where it has no file, the array itself.

    Parameters
    ----------
    actions
        In order, whole: with all that one of them needs.
    places
        Per action and name: a place, an array, or None if there is neither any more.
    """

    actions: Sequence[Action]
    places: Sequence[Mapping[str, FromFile | FromStep | Array | None]]

    @property
    def loose(self) -> list[Array]:
        """The arrays without a file, each once."""
        arrays = [place for step in self.places for place in step.values()]
        loose = {id(array): array for array in arrays if not isinstance(array, FromFile | FromStep | None)}
        return list(loose.values())

    @property
    def lost(self) -> list[int]:
        """Numbers of the steps of which an array is gone."""
        return [number for number, step in enumerate(self.places, 1) if any(place is None for place in step.values())]

    def recipe(self, files: Mapping[int, Path]) -> Recipe:
        """Return the recipe.

        Parameters
        ----------
        files
            For every loose array, by its `id`, the file that it is saved in.
        """
        steps = []
        for action, places in zip(self.actions, self.places, strict=True):
            arrays = {
                name: place if isinstance(place, FromFile | FromStep) else FromFile(file=files[id(place)])
                for name, place in places.items()
            }
            steps.append(Step(job=action.job, arrays=arrays))
        return Recipe(steps=tuple(steps))


def draft(actions: Sequence[Action], files: Iterable[Path]) -> Draft:
    """Find where the arrays of some actions come from; it may read every one of the files.

    Parameters
    ----------
    actions
        In order, whole.
    files
        Image files that are open.
    """
    known: dict[int, FromFile | Array] = {}
    paths = list(files)

    def place(action: Action, name: str) -> FromFile | FromStep | Array | None:
        if name in action.earlier:
            origin, found = action.earlier[name]
            return found.model_copy(update={"step": list(actions).index(origin) + 1})
        array = action.arrays[name]()
        if array is None:
            return None
        if id(array) not in known:
            known[id(array)] = find_in_files(array, paths) or array
        return known[id(array)]

    return Draft(
        actions, [{name: place(action, name) for name in (*action.arrays, *action.earlier)} for action in actions]
    )
