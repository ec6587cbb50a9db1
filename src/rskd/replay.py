"""Do the jobs of a recipe again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from rskd.events import Message, Task
from rskd.io.files import write_atomically
from rskd.jobs import Job, Outcome
from rskd.run import Session
from rskd.steps import FromFile, Recipe

VALUE = "value.json"
_TAKEN = ("model", "teacher", "student", "compare_with", "run")
"""Fields of jobs that may name something inside of a run."""


def replay(recipe: Recipe, *, output: Path | None = None) -> Task[tuple[Outcome, ...]]:
    """Do the jobs of a recipe again.

    Parameters
    ----------
    recipe
        The jobs.
    output
        Folder for what they return: for every step a folder with an npy file per array and `VALUE`. What a job itself
        writes goes there as well. None = nothing is written but what a job itself writes.

    Yields
    ------
    Event
        As the jobs do, and a message at every step.

    Returns
    -------
    tuple of Outcome
        What every step returned.

    Raises
    ------
    RskdError
        As the jobs do.

    Examples
    --------
    >>> from rskd.events import drain
    >>> recipe = Recipe.model_validate({"steps": [{"job": {"kind": "inspect", "model": "retina-student"}}]})
    >>> drain(replay(recipe))[0].value["spec"]["name"]
    'Retinal vessels, student'
    """
    session, outcomes = Session(), list[Outcome]()
    moved: dict[Path, Path] = {}
    for number, step in enumerate(recipe.steps, 1):
        if len(recipe.steps) > 1:
            yield Message(f"Step {number} of {len(recipe.steps)}: {step.job.kind}.")
        arrays = {
            name: source.read() if isinstance(source, FromFile) else source.take(outcomes)
            for name, source in step.arrays.items()
        }
        folder = None if output is None else output / f"{number:02d}_{step.job.kind}"
        job = _moved(_after(step.job, moved), folder)
        if (run := getattr(step.job, "run", None)) is not None:
            moved[run] = getattr(job, "run")  # noqa: B009 - a job that has it
        outcomes.append((yield from session.run(job, arrays)))
        if folder is not None:
            write_outcome(folder, outcomes[-1])
    return tuple(outcomes)


def write_outcome(folder: Path, outcome: Outcome) -> None:
    """Write what a job returned into a folder: every array as npy, exactly as it is, and the facts as `VALUE`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in outcome.arrays.items():
        np.save(folder / f"{name}.npy", array, allow_pickle=False)
    write_atomically(folder / VALUE, json.dumps(outcome.value, indent=1).encode())


def _after(job: Job, moved: Mapping[Path, Path]) -> Job:
    """Return a job that takes what it took out of the run of an earlier step out of where that run is now."""
    changes = {}
    for name in _TAKEN:
        value = getattr(job, name, None)
        for old, new in moved.items():
            if value is not None and Path(value).is_relative_to(old):
                changes[name] = type(value)(new / Path(value).relative_to(old))
    return job.model_copy(update=changes)


def _moved(job: Job, folder: Path | None) -> Job:
    """Return a job that writes what it writes into `folder`, instead of over what it wrote the first time."""
    if folder is None:
        return job
    changes: dict[str, Path] = {}
    output: Path | None = getattr(job, "output", None)
    if output is not None:
        changes["output"] = folder / output.name
    if job.kind in ("train", "distill"):
        changes["run"] = folder / "run"
    return job.model_copy(update=changes)
