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
    trials: tuple[dict[str, Any], ...] = ()
    """Further changes that are tried with the first seed; the one with the best validation is used for every seed."""
    follows: str | None = None
    """The arm whose chosen trial is used here as well: an ablation changes nothing but what it leaves out."""


class Study(Config):
    """A comparison under one budget: the same data, patches, schedule and number of steps for every arm and seed."""

    name: str
    after: str | None = None
    """The study whose networks, budget, teachers and chosen trials are used; `arms` then names some of its arms."""
    dataset: Literal["acdc", "drive", "hippocampus_mr", "isbi2012_em", "sts_ct"]
    teacher: ModelSpec
    student: ModelSpec
    training: TrainOptions
    """The budget of every arm."""
    teaching: TrainOptions
    """The budget of the teacher; where none is given, that of the arms."""
    arms: dict[str, Arm]
    """The methods, in the order of the table; the teacher comes first by itself."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """One teacher is trained per seed, and teaches the students of that seed."""
    masks: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Share of the patients whose masks are used; the images of the others are unlabelled."""
    segmentation: SegmentOptions = SegmentOptions()
    """How the test images are segmented."""

    @model_validator(mode="before")
    @classmethod
    def _teach_as_long(cls, values: Any) -> Any:
        if isinstance(values, dict) and "training" in values:
            return {"teaching": values["training"], **values}
        return values

    @model_validator(mode="after")
    def _known(self) -> Study:
        for name, arm in self.arms.items():
            if arm.base not in METHODS or name == TEACHER:
                raise ValueError(f"arm {name!r}: base is one of {', '.join(METHODS)}, and its name is not {TEACHER!r}")
            if arm.follows is not None and not getattr(self.arms.get(arm.follows), "trials", ()):
                raise ValueError(f"arm {name!r}: follows={arm.follows!r} is no arm with trials")
        return self

    @property
    def origin(self) -> str:
        """Name of the study that the teachers and the chosen trials are of."""
        return self.after or self.name

    def units(self) -> Iterator[Unit]:
        """Yield every training of the study: the teachers, the trials, then all arms, seed by seed."""
        if self.after is None:
            yield from (Unit(TEACHER, seed) for seed in self.seeds)
            yield from (trial for name, arm in self.arms.items() if arm.trials for trial in self.trials(name))
        yield from (Unit(name, seed) for seed in self.seeds for name in self.arms)

    def trials(self, arm: str) -> list[Unit]:
        """Return the trials of an arm, or of the one that it follows."""
        tuned = self.arms[arm].follows or arm
        return [Unit(tuned, self.seeds[0], number) for number in range(len(self.arms[tuned].trials))]

    def objective(self, arm: str, trial: int | None = None) -> DistillOptions:
        """Return the objective of an arm, with the changes of a trial of its own or of the arm that it follows."""
        own = self.arms[arm]
        tuned = self.arms[own.follows or arm]
        layers = [tuned.changes] if trial is None else [tuned.changes, tuned.trials[trial]]
        options = method(own.base).model_dump()
        for changes in layers if tuned is own else [*layers, own.changes]:
            options = _merged(options, changes)
        if not self.masks:
            options["task"] = 0.0  # there is nothing but the teacher to learn from
        return DistillOptions.model_validate(options)


@dataclass(frozen=True)
class Unit:
    """One training and its test, or a trial, which is validated only."""

    arm: str
    seed: int
    trial: int | None = None

    @property
    def name(self) -> str:
        """Name of its run folder and of its result."""
        return f"{self.arm}-{self.seed}" if self.trial is None else f"{self.arm}.{self.trial}-{self.seed}"


def read_study(path: Path) -> Study:
    """Read the description of a study; classes, channels and range of both networks are those of the data set."""
    described = {"name": path.stem, **tomllib.loads(path.read_text())}
    if "after" in described:
        first = tomllib.loads(path.with_stem(described["after"]).read_text())
        arms = {name: first["arms"][name] for name in described["arms"]}
        described = {**first, **described, "arms": arms}
    return Study.model_validate(described)


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
