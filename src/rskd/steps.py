"""Recipes: jobs in order, each with where its arrays come from; what the window records and `rskd run` does again."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError, model_validator

from rskd.config import Config
from rskd.engine.failures import explain
from rskd.errors import FileError, ParameterError
from rskd.io import read_scans
from rskd.jobs import JOB, Job, Outcome

Array = NDArray[Any]
Index = tuple[Annotated[int, Field(ge=0)], ...]


class FromFile(Config):
    """An array out of an image file."""

    file: Path
    """Image file or folder; where the name is relative, beside the recipe."""
    scan: Annotated[int, Field(ge=0)] = 0
    """Which of its images, from 0, where there are several."""
    at: Index = ()
    """Index along the first axes; empty = all of it."""

    def read(self) -> Array:
        """Return the array.

        Raises
        ------
        FileError
            If the file cannot be read, or holds no such image.
        """
        scans = read_scans(self.file)
        if self.scan >= len(scans) or not _has(scans[self.scan].data.shape, self.at):
            raise FileError(f"{self.file} holds no image number {self.scan} with an index {list(self.at)}.")
        return np.asarray(scans[self.scan].data[self.at])


class FromStep(Config):
    """An array out of what an earlier step returned."""

    step: Annotated[int, Field(ge=1)]
    """Number of the step, from 1."""
    array: str
    """Name of the array."""
    at: Index = ()
    """Index along the first axes; empty = all of it."""

    def take(self, outcomes: Sequence[Outcome]) -> Array:
        """Return the array.

        Raises
        ------
        ParameterError
            If that step returned no such array.
        """
        arrays = outcomes[self.step - 1].arrays
        if self.array not in arrays or not _has(arrays[self.array].shape, self.at):
            raise ParameterError(f"Step {self.step} returned no array {self.array!r} with an index {list(self.at)}.")
        return np.asarray(arrays[self.array][self.at])


class Step(Config):
    """A job, and the arrays that are handed over with it."""

    job: Job
    """What is done."""
    arrays: dict[str, FromFile | FromStep] = Field(default_factory=dict)
    """Where the arrays come from, by name."""


class Recipe(Config):
    """Jobs in the order in which they are done.

    Examples
    --------
    >>> Recipe.model_validate({"steps": [{"job": {"kind": "inspect", "model": "retina-student"}}]}).steps[0].job.kind
    'inspect'
    """

    kind: Literal["recipe"] = "recipe"
    steps: tuple[Step, ...]
    """What is done."""

    @model_validator(mode="after")
    def _looks_back(self) -> Self:
        for number, step in enumerate(self.steps, 1):
            for source in step.arrays.values():
                if isinstance(source, FromStep) and source.step >= number:
                    raise ValueError(f"step {number} needs what step {source.step} returns, which comes later")
        return self


def read_recipe(text: str | bytes, *, name: str, folder: Path) -> Recipe:
    """Return a recipe, or a single job as a recipe of one step.

    Parameters
    ----------
    text
        JSON.
    name
        What it is called in an error.
    folder
        Where the files are that have relative names.

    Raises
    ------
    FileError
        If it is neither.
    """
    try:
        content = json.loads(text)
        if isinstance(content, dict) and content.get("kind") == "recipe":
            return _beside(Recipe.model_validate(content), folder)
        return Recipe(steps=(Step(job=JOB.validate_python(content)),))
    except ValidationError as error:
        raise FileError(f"{name} is no job: {explain(error)}") from error
    except ValueError as error:
        raise FileError(f"{name} is no job: it is not JSON ({error}).") from error


def index_of(part: Array, whole: Array) -> Index | None:
    """Return where an array is inside of another one, as an index along its first axes; None = nowhere.

    Examples
    --------
    >>> stack = np.arange(24).reshape(2, 3, 4)
    >>> index_of(stack[1], stack), index_of(stack, stack), index_of(stack + 1, stack)
    ((1,), (), None)
    """
    beyond = whole.ndim - part.ndim
    if beyond < 0 or whole.dtype != part.dtype or whole.shape[beyond:] != part.shape:
        return None
    indices = np.ndindex(whole.shape[:beyond])
    return next((index for index in indices if _equal(np.asarray(whole[index]), part)), None)


def find_in_files(part: Array, files: Iterable[Path]) -> FromFile | None:
    """Return from which of these image files an array was read; None = from none, or it was changed since.

    Files that cannot be read are passed over.
    """
    for file in files:
        try:
            scans = read_scans(file)
        except (FileError, OSError):
            continue
        for number, scan in enumerate(scans):
            at = index_of(part, scan.data)
            if at is not None:
                return FromFile(file=file, scan=number, at=at)
    return None


def find_in_outcome(part: Array, step: int, arrays: Mapping[str, Array]) -> FromStep | None:
    """Return which array of a step's outcome another array was taken from; None = none."""
    found = ((name, index_of(part, whole)) for name, whole in arrays.items())
    return next((FromStep(step=step, array=name, at=at) for name, at in found if at is not None), None)


def _equal(one: Array, other: Array) -> bool:
    if one.ndim > 2:  # most volumes differ in their first plane
        return all(map(_equal, one, other))
    return np.array_equal(one, other, equal_nan=one.dtype.kind == "f")


def _has(shape: Sequence[int], at: Index) -> bool:
    return len(at) <= len(shape) and all(index < size for index, size in zip(at, shape, strict=False))


def _beside(recipe: Recipe, folder: Path) -> Recipe:
    """Return a recipe of which the arrays' files are looked for in `folder` where their names are relative."""
    steps = [
        step.model_copy(update={"arrays": {name: _placed(source, folder) for name, source in step.arrays.items()}})
        for step in recipe.steps
    ]
    return recipe.model_copy(update={"steps": tuple(steps)})


def _placed(source: FromFile | FromStep, folder: Path) -> FromFile | FromStep:
    return source.model_copy(update={"file": folder / source.file}) if isinstance(source, FromFile) else source
