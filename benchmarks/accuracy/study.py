"""What a study is: the file that describes it, and the units of work that follow from it."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from rskd.config import Config, DistillOptions, ModelSpec, SegmentOptions, TrainOptions
from rskd.distillation.baselines.table import METHODS, method

TEACHER = "teacher"
ALONE = "alone"


class Arm(Config):
    """One method of a study."""

    base: str
    """A method of `rskd.distillation.baselines.table.METHODS`."""
    changes: dict[str, Any] = Field(default_factory=dict)
    """What differs from its published options, group by group."""

    def options(self) -> DistillOptions:
        """Return the objective of the method."""
        return DistillOptions.model_validate(_merged(method(self.base).model_dump(), self.changes))


class Study(Config):
    """A comparison under one budget: the same data, patches, schedule and number of steps for every arm and seed."""

    name: str
    dataset: Literal["acdc", "drive", "hippocampus_mr", "isbi2012_em", "sts_ct"]
    teacher: ModelSpec
    student: ModelSpec
    training: TrainOptions
    """The budget of every arm, and of the teacher."""
    arms: dict[str, Arm]
    """The methods, in the order of the table; the teacher comes first by itself."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """One teacher is trained per seed, and teaches the students of that seed."""
    masks: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Share of the patients whose masks are used; the images of the others are unlabelled."""
    segmentation: SegmentOptions = SegmentOptions()
    """How the test images are segmented."""

    @model_validator(mode="after")
    def _known(self) -> Study:
        for name, arm in self.arms.items():
            if arm.base not in METHODS or name == TEACHER:
                raise ValueError(f"arm {name!r}: base is one of {', '.join(METHODS)}, and its name is not {TEACHER!r}")
        return self

    def units(self) -> Iterator[Unit]:
        """Yield every training of the study, the teachers first."""
        for arm in (TEACHER, *self.arms):
            yield from (Unit(arm, seed) for seed in self.seeds)


@dataclass(frozen=True)
class Unit:
    """One training and its test."""

    arm: str
    seed: int

    @property
    def name(self) -> str:
        """Name of its run folder and of its result."""
        return f"{self.arm}-{self.seed}"


def read_study(path: Path) -> Study:
    """Read the description of a study; classes, channels and range of both networks are those of the data set."""
    with path.open("rb") as file:
        return Study.model_validate({"name": path.stem, **tomllib.load(file)})


def _merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return `base` with `changes`, group by group.

    Examples
    --------
    >>> _merged({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}})
    {'a': {'b': 3, 'c': 2}}
    """
    merged = dict(base)
    for name, value in changes.items():
        merged[name] = _merged(base[name], value) if isinstance(base.get(name), dict) else value
    return merged
