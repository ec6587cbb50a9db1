"""What the first process of a run writes down when it begins or goes on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rskd.cases import Case
from rskd.compute import device_name
from rskd.data import Slice
from rskd.events import Message
from rskd.jobs import DistillJob
from rskd.models import weights
from rskd.models.presets import weight_file
from rskd.models.segmenter import Segmenter
from rskd.records import (
    DATA,
    NETWORKS,
    OBJECTIVE,
    CaseRecord,
    Fields,
    changed_cases,
    describe_data,
    on_both_sides,
    read_json,
    record_session,
    write_json,
)
from rskd.training.trainer import Trainer

Side = tuple[Sequence[Case], Sequence[Slice]]


def record(trainer: Trainer, teacher: Segmenter | None, sides: Mapping[str, Side], *, threads: int) -> list[Message]:
    """Write environment, networks, objective and data of a run; returns what is to be said about the data.

    Parameters
    ----------
    trainer
        Ready to go on.
    teacher
        The teacher, where there is one.
    sides
        Cases of "training" and "validation", with those of their planes that could be read.
    threads
        CPU threads of this process.
    """
    folder, fabric = trainer.folder.path, trainer.fabric
    device = device_name(fabric.device)
    record_session(folder, device=device, threads=threads, processes=fabric.world_size, step=trainer.step)
    student = trainer.learner.student
    networks = {"student": _passport(student)}
    if teacher is not None and isinstance(trainer.job, DistillJob):
        networks = {"teacher": _passport(teacher, trainer.job.teacher), **networks}
        write_json(folder / OBJECTIVE, trainer.job.distillation.model_dump(mode="json"))
    write_json(folder / NETWORKS, networks)
    cases = [record for side, (members, planes) in sides.items() for record in _records(side, members, planes)]
    classes = [info.name for info in student.spec.classes]
    data = describe_data(cases, classes, seed=trainer.options.seed)
    earlier = read_json(folder / DATA) if trainer.step else None
    if earlier is None:
        write_json(folder / DATA, data)
    return list(_warnings(data, earlier))


def _passport(network: Segmenter, file: Path | None = None) -> Fields:
    spec = network.spec
    facts: Fields = {
        "name": spec.name,
        "encoder": spec.encoder,
        "classes": [info.name for info in spec.classes],
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
    }
    if file is not None:
        facts |= {"bytes": weight_file(file).stat().st_size, "sha256": weights.sha256(file)}
    return facts


def _records(side: str, cases: Sequence[Case], planes: Sequence[Slice]) -> Iterator[CaseRecord]:
    targets: dict[str, list[NDArray[np.int64]]] = {}
    for plane in planes:
        targets.setdefault(plane.case, []).append(plane.target.numpy())
    return (CaseRecord(case, side, targets[case.name]) for case in cases if case.name in targets)


def _warnings(data: Fields, earlier: Fields | None) -> Iterator[Message]:
    twins = on_both_sides(data)
    if twins:
        yield Message(
            f"{len(twins)} images for validation are trained on as well, under another name, the first is {twins[0]}: "
            "the validation will look better than it is, remove the copies.",
            warning=True,
        )
    changed = changed_cases(data, earlier) if earlier is not None else []
    if changed:
        yield Message(
            f"{len(changed)} images or masks are not what they were when the run began, the first is {changed[0]}: "
            "the result cannot be repeated from them; put the old files back, or start anew.",
            warning=True,
        )
