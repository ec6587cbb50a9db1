"""The fields of the jobs as flags of the command line."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Group, Parameter
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from rskd.jobs import (
    BatchJob,
    BenchJob,
    ContourletJob,
    DeletionJob,
    DenoiseJob,
    DistillJob,
    EvaluateJob,
    ExportJob,
    InspectJob,
    Job,
    PreflightJob,
    RankJob,
    ReportJob,
    ResumeJob,
    SegmentJob,
    TrainJob,
)

_INPUTS = frozenset({"model", "models", "teacher", "student", "image", "images", "run"})
"""Fields that need no flag: they may be given in order."""
NOT_ASKED = frozenset({"kind", "geometry"})
"""Fields that a command line cannot set: it names files, and a file says where it lies."""
_TITLES = {
    "data": "Data",
    "training": "Training",
    "distillation": "Distillation",
    "scores": "Scores",
    "options": "Options",
    "clean_up": "Clean-up",
    "compute": "Computer",
    "spread": "Cluster",
}
COMMANDS: dict[str, type[BaseModel]] = {
    "train": TrainJob,
    "preflight": PreflightJob,
    "distill": DistillJob,
    "resume": ResumeJob,
    "report": ReportJob,
    "segment": SegmentJob,
    "batch": BatchJob,
    "rank": RankJob,
    "deletion": DeletionJob,
    "contourlet": ContourletJob,
    "denoise": DenoiseJob,
    "evaluate": EvaluateJob,
    "export": ExportJob,
    "bench": BenchJob,
    "inspect": InspectJob,
}


@dataclass(frozen=True)
class Leaf:
    """A field that is no group: where it is in its job, and the default that it has there."""

    path: tuple[str, ...]
    field: FieldInfo
    default: Any

    @property
    def flag(self) -> str:
        """Its flag; the outermost group is a heading, not a part of it."""
        return "--" + ".".join(self.path[1:] or self.path).replace("_", "-")

    def words(self, value: Any) -> list[str] | None:
        """Return flag and value as they are typed; None = this value cannot be typed."""
        match value:
            case bool():
                return [self.flag if value else f"--no-{self.flag[2:]}"]
            case str() | int() | float() | Path():
                return [self.flag, str(value)]
            case tuple() if value and all(isinstance(part, str | int | float) for part in value):
                return [self.flag, *map(str, value)]
            case _:
                return None

    def parameter(self, name: str) -> inspect.Parameter:
        """Return it as the parameter of a command."""
        group, *inner = self.path
        options: dict[str, Any] = {"name": self.flag, "help": self.field.description}
        if inner:
            options["group"] = Group(_TITLES[group], sort_key=list(_TITLES).index(group))
        free = name in _INPUTS
        return inspect.Parameter(
            name,
            inspect.Parameter.POSITIONAL_OR_KEYWORD if free else inspect.Parameter.KEYWORD_ONLY,
            default=self.default,
            annotation=Annotated[self.field.annotation, Parameter(**options)],
        )


def leaves_of(model: type[BaseModel], path: tuple[str, ...] = (), values: Any = None) -> Iterator[Leaf]:
    """Yield the fields of a job and of its groups (cyclopts would parse the source of every group: seconds)."""
    for name, field in model.model_fields.items():
        default = inspect.Parameter.empty if field.is_required() else field.default
        value = default if values is None else getattr(values, name)
        kind = field.annotation
        if not path and name in NOT_ASKED:
            continue
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from leaves_of(kind, (*path, name), value if isinstance(value, BaseModel) else None)
        else:
            yield Leaf((*path, name), field, value)


def command_line(job: Job) -> list[str] | None:
    """Return the words with which a job is told on the command line; None = there are none for it.

    Examples
    --------
    >>> command_line(InspectJob(model=Path("retina-student")))
    ['inspect', '--model', 'retina-student']
    """
    if job.kind not in COMMANDS:
        return None
    words: list[str] = [job.kind]
    for leaf in leaves_of(type(job)):
        value: Any = job
        for name in leaf.path:
            value = None if value is None else getattr(value, name)
        if value == leaf.default:
            continue
        told = leaf.words(value)
        if told is None:
            return None
        words += told
    return words
