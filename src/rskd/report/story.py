"""What a run folder tells, read without torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rskd.config import DistillOptions
from rskd.events import Epoch, Message, Reference, Step
from rskd.jobs import DistillJob, TrainJob
from rskd.records import DATA, ENVIRONMENT, METRICS, NETWORKS, OBJECTIVE, read_json, read_lines
from rskd.runs import RunFolder, has_ended

VALIDATION = "validation.json"
"""Scores of the best network and its teacher on the validation images, in the run folder."""
Fields = dict[str, Any]


@dataclass(frozen=True)
class Story:
    """A run, as its folder tells it."""

    job: TrainJob | DistillJob
    steps: tuple[Step, ...]
    epochs: tuple[Epoch, ...]
    references: Mapping[str, Reference]
    """Where "teacher" and "student" stood before the first step."""
    messages: tuple[Message, ...]
    sessions: tuple[Fields, ...]
    """Computers on which it was worked on, in order."""
    data: Fields | None
    networks: Fields
    """Passports of "teacher" and "student"."""
    objective: DistillOptions | None
    """The terms that are used: what was asked for, without what the teacher cannot show; `None` without a teacher."""
    scores: tuple[Fields, ...]
    """Dice and intersection over union of every case at the best epoch."""
    validation: Fields | None
    """What an earlier report has measured."""

    @classmethod
    def read(cls, folder: RunFolder) -> Story:
        """Read a run folder; what an older or unfinished run lacks is empty."""
        events = list(folder.events())
        epochs = tuple(event for event in events if isinstance(event, Epoch))
        best = max((epoch.epoch for epoch in epochs if epoch.best), default=0)
        return cls(
            job=(job := folder.job()),
            steps=tuple(event for event in events if isinstance(event, Step)),
            epochs=epochs,
            references={event.name: event for event in events if isinstance(event, Reference)},
            messages=tuple(event for event in events if isinstance(event, Message)),
            sessions=tuple((read_json(folder.path / ENVIRONMENT) or {}).get("sessions", ())),
            data=read_json(folder.path / DATA),
            networks=_networks(folder),
            objective=_objective(folder, job),
            scores=tuple(line for line in read_lines(folder.path / METRICS) if line["epoch"] == best),
            validation=read_json(folder.path / VALIDATION),
        )

    @property
    def best(self) -> Epoch | None:
        """The epoch whose network was kept."""
        return next((epoch for epoch in reversed(self.epochs) if epoch.best), None)

    @property
    def distilled(self) -> bool:
        """Whether there was a teacher."""
        return isinstance(self.job, DistillJob)

    @property
    def finished(self) -> bool:
        """Whether the run has come to its end: all steps, or no better validation for as long as it had patience."""
        return has_ended(self.job.training, self.epochs)

    @property
    def seconds(self) -> float:
        """Time spent in rounds that count."""
        return math.fsum(epoch.seconds for epoch in self.epochs)


def _objective(folder: RunFolder, job: TrainJob | DistillJob) -> DistillOptions | None:
    if not isinstance(job, DistillJob):
        return None
    found = read_json(folder.path / OBJECTIVE)  # not there in a run of an older version
    return job.distillation if found is None else DistillOptions.model_validate(found)


def _networks(folder: RunFolder) -> Fields:
    networks = read_json(folder.path / NETWORKS) or {}
    if "student" in networks and folder.best.exists():
        networks["student"]["bytes"] = folder.best.stat().st_size
    return networks
