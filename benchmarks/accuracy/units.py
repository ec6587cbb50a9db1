"""Do the units of a study, one after the other; what is stored is never done again."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.accuracy.datasets import DATASETS, lay_out
from benchmarks.accuracy.study import ALONE, TEACHER, Study, Unit
from rskd.config import ComputeOptions, DataOptions, ModelSpec, ScoreOptions
from rskd.errors import ParameterError
from rskd.evaluate import evaluate
from rskd.events import Epoch, Task
from rskd.io.files import replacing
from rskd.jobs import DistillJob, EvaluateJob, Outcome, ResumeJob, TrainJob
from rskd.models import weights
from rskd.runs import RunFolder
from rskd.train import distill, resume, train


@dataclass(frozen=True)
class Workplace:
    """Where a study finds its data, keeps its runs, and stores its results."""

    data: Path
    """Folder that holds the data sets."""
    runs: Path
    """Run folders and links to the data; may be thrown away once the results are stored."""
    results: Path
    """One JSON file per unit."""
    compute: ComputeOptions

    def result(self, study: Study, unit: Unit) -> Path:
        """Return the file of a unit's result."""
        return self.results / study.name / f"{unit.name}.json"


class OutOfTimeError(Exception):
    """The time of this call is over; the unit goes on with the next one."""


def run_study(study: Study, workplace: Workplace, *, minutes: float) -> Iterator[str]:
    """Do what is not stored yet, and yield a sentence per unit; several processes may share a study.

    Parameters
    ----------
    study, workplace
        What and where.
    minutes
        After this time the unit in work writes its checkpoint and the call ends; the next one resumes it.
    """
    until = time.monotonic() + 60 * minutes
    for unit in study.units():
        if workplace.result(study, unit).exists():
            continue
        try:
            result = _do(study, unit, workplace, until)
        except ParameterError as error:  # another process has it, or what it needs is not ready
            yield f"{unit.name}: left out for now. {error}"
            continue
        except OutOfTimeError:
            yield f"{unit.name}: interrupted after {minutes:g} minutes; call again to go on."
            return
        _store(workplace.result(study, unit), result)
        best = max(result["validation"])
        tested = f", test Dice {_mean(result['dice']):.4f}" if "dice" in result else ""
        yield f"{unit.name}: validation Dice {best:.4f}{tested}, {result['seconds']:.0f} s"


def _do(study: Study, unit: Unit, workplace: Workplace, until: float) -> dict[str, Any]:
    (workplace.runs / study.name).mkdir(parents=True, exist_ok=True)
    folders = lay_out(study.dataset, workplace.data / study.dataset, workplace.runs / "data", masks=study.masks)
    job = _job(study, unit, workplace, folders.development)
    _until(_training(job), until)
    best = RunFolder(job.run).best
    epochs = [event for event in RunFolder(job.run).events() if isinstance(event, Epoch)]
    result = {
        "study": study.name,
        "arm": unit.arm,
        "seed": unit.seed,
        "validation": [epoch.dice for epoch in epochs],
        "seconds": sum(epoch.seconds for epoch in epochs),
        "parameters": weights.inspect(best).parameters,
        "recipe": job.model_dump(mode="json", include={"training", "distillation"}),
        **_provenance(workplace.compute),
    }
    if unit.trial is not None:
        return result | {"trial": unit.trial, "trial_changes": study.arms[unit.arm].trials[unit.trial]}
    if (trial := _chosen(study, unit, workplace)) is not None:
        result["trial"] = trial
    return result | _tested(study, best, folders.test, workplace, until)


def _tested(study: Study, model: Path, data: DataOptions, workplace: Workplace, until: float) -> dict[str, Any]:
    """Return the scores on the test images, by case and class."""
    scores = ScoreOptions(surface=True)
    job = EvaluateJob(model=model, data=data, scores=scores, options=study.segmentation, compute=workplace.compute)
    value = _until(evaluate(job), until).value
    surface = ("hd95", "surface_dice", "unit")
    return {
        "dice": value["dice"],
        "cases": {row["case"]: row["dice"] for row in value["cases"]},
        "surface": {row["case"]: {measure: row[measure] for measure in surface} for row in value["cases"]},
    }


def _chosen(study: Study, unit: Unit, workplace: Workplace) -> int | None:
    """Return the number of the trial that a unit uses: its own, or the one with the best validation."""
    if unit.arm == TEACHER or unit.trial is not None:
        return unit.trial
    scores = []
    for trial in study.trials(unit.arm):
        path = workplace.results / study.origin / f"{trial.name}.json"
        if not path.exists():
            raise ParameterError(f"It needs {trial.name} first.")
        scores.append(max(json.loads(path.read_text())["validation"]))
    return int(np.argmax(scores)) if scores else None


def _job(study: Study, unit: Unit, workplace: Workplace, data: DataOptions) -> TrainJob | DistillJob:
    place = workplace.runs / study.name
    role = TEACHER if unit.arm == TEACHER else "student"
    description = place / f"{role}.json"
    description.write_text(_spec(study, role).model_dump_json(indent=1))
    budget = study.teaching if unit.arm == TEACHER else study.training
    shared: dict[str, Any] = {"data": data, "run": place / unit.name, "compute": workplace.compute}
    shared["training"] = budget.model_copy(update={"seed": unit.seed})
    if unit.arm == TEACHER or study.arms[unit.arm].base == ALONE:
        return TrainJob(model=str(description), **shared)
    teacher = Unit(TEACHER, unit.seed).name
    if not (workplace.results / study.origin / f"{teacher}.json").exists():
        raise ParameterError(f"It needs {teacher} first.")
    trial = _chosen(study, unit, workplace)
    if (own := Unit(unit.arm, unit.seed, trial)) in study.units():
        shared["run"] = place / own.name  # the trial that was chosen is the unit of its seed itself
    best = workplace.runs / study.origin / teacher / "best.safetensors"
    distillation = study.objective(unit.arm, trial)
    return DistillJob(teacher=best, student=str(description), distillation=distillation, **shared)


def _spec(study: Study, role: str) -> ModelSpec:
    dataset = DATASETS[study.dataset]
    spec: ModelSpec = getattr(study, role)
    return spec.model_copy(update={"in_channels": dataset.channels, "classes": dataset.infos()})


def _training(job: TrainJob | DistillJob) -> Task[Outcome]:
    if (job.run / "last.ckpt").exists():
        return resume(ResumeJob(run=job.run))
    return train(job) if isinstance(job, TrainJob) else distill(job)


def _until(task: Task[Outcome], until: float) -> Outcome:
    """Run a task to its end; closed when the time is over, a training writes its checkpoint."""
    try:
        while True:
            next(task)
            if time.monotonic() > until:
                raise OutOfTimeError
    except StopIteration as end:
        outcome: Outcome = end.value
        return outcome
    finally:
        task.close()


def _provenance(compute: ComputeOptions) -> dict[str, Any]:
    """Return what a reader needs to judge or repeat a figure."""
    git = ["git", "-C", str(Path(__file__).parent)]
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    changed = subprocess.run([*git, "status", "--porcelain", "src"], capture_output=True, text=True)
    return {
        "commit": commit.stdout.strip() + ("+changes" if changed.stdout.strip() else ""),
        "hardware": {
            "machine": platform.machine(),
            "cores": os.cpu_count(),
            "threads": compute.threads,
            "device": compute.device,
            "torch": torch.__version__,
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
    }


def _mean(scores: Mapping[str, float | None]) -> float:
    known = [score for score in scores.values() if score is not None]
    return sum(known) / len(known) if known else float("nan")


def _store(path: Path, result: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        partial.write_text(json.dumps(result, indent=1) + "\n")
