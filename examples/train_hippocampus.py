"""Train the hippocampus pair that comes with the package: a teacher on masks, then a student from the teacher.

    python examples/train_hippocampus.py DATA_FOLDER RUNS_FOLDER

DATA_FOLDER holds cases of the hippocampus task of the Medical Segmentation Decathlon (doi:10.1038/s41467-022-30695-9)
as `images/` and `labels/`, and `splits.json`, which names the files of "train", "val" and "test" under "splits". Takes
about three quarters of an hour on one CPU core. Started again after an interruption, it goes on where it was; the test
cases are looked at once, when both networks are finished, and their scores are written to RUNS_FOLDER/scores.json.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from shipping import finish, ship

from rskd.config import AugmentOptions, CaseOptions, DataOptions, DistillOptions, ModelSpec, TrainOptions
from rskd.jobs import DistillJob, EvaluateJob, TrainJob
from rskd.models.presets import fresh_spec
from rskd.records import ENVIRONMENT, read_json

CLASSES = ("anterior hippocampus", "posterior hippocampus")
MODALITY = "T1-weighted MRI, crop around one hippocampus, 1 mm"
LICENCE = (
    "CC BY-SA 4.0 (https://creativecommons.org/licenses/by-sa/4.0/), derived from the Medical Segmentation Decathlon, "
    "Task04 Hippocampus, M. Antonelli et al., Nature Communications 13:4128 (2022), changed by training on it"
)


def main(source: Path, runs: Path) -> None:
    splits = json.loads((source / "splits.json").read_text())["splits"]
    learn = select(source, splits["train"] + splits["val"], runs / "data" / "learn")
    test = select(source, splits["test"], runs / "data" / "test")
    data = DataOptions(images=learn.images, masks=learn.masks, validation=tuple(map(case_name, splits["val"])))
    for role, spec in (("teacher", teacher_spec()), ("student", student_spec())):
        (runs / f"{role}.json").write_text(spec.model_dump_json(indent=1))
    upright = AugmentOptions(flip=False, rotation=15.0)  # anterior and posterior are told apart by where they lie
    training = TrainOptions(
        epochs=16, steps_per_epoch=100, batch_size=8, learning_rate=2e-3, augmentation=upright, report=False
    )
    teacher = finish(TrainJob(model=str(runs / "teacher.json"), data=data, run=runs / "teacher", training=training))
    student = finish(
        DistillJob(
            teacher=teacher,
            student=str(runs / "student.json"),
            data=data,
            run=runs / "student",
            training=training.model_copy(update={"epochs": 40}),
            distillation=DistillOptions(),
        )
    )
    train, val, tested = (len(splits[side]) for side in ("train", "val", "test"))
    facts = {"data": f"{train} cases to train, {val} to validate, {tested} to test", "licence": LICENCE}
    scores = {}
    for role, best in (("teacher", teacher), ("student", student)):
        job = EvaluateJob(model=runs / f"hippocampus-{role}.safetensors", data=test)
        scores[role] = ship(best, job, facts, name=f"Hippocampus, {role}", modality=MODALITY, channels=("T1",))
    sessions = {role: read_json(runs / role / ENVIRONMENT) for role in scores}
    found = {"seed": training.seed, "scores": scores, "environments": sessions}
    (runs / "scores.json").write_text(json.dumps(found, indent=1))


def select(source: Path, names: Sequence[str], target: Path) -> CaseOptions:
    """Copy some of the cases into a folder of their own."""
    for kind in ("images", "labels"):
        (target / kind).mkdir(parents=True, exist_ok=True)
        for name in names:
            shutil.copyfile(source / kind / name, target / kind / name)
    return CaseOptions(images=target / "images", masks=target / "labels")


def case_name(file: str) -> str:
    return file.removesuffix(".nii.gz")


def teacher_spec() -> ModelSpec:
    """Return the teacher's description."""
    small = {"embed_dim": 128, "depth": 4, "num_heads": 4, "stem_widths": (8, 16, 32), "decoder_width": 48}
    spec = fresh_spec("rskd-teacher", in_channels=1, classes=CLASSES)
    return spec.model_copy(update=small | {"image_size": 64})


def student_spec() -> ModelSpec:
    """Return the student's description."""
    fine = {"patch_size": 8, "stem_widths": (16, 16, 32), "decoder_width": 32}
    return fresh_spec("rskd-nano", in_channels=1, classes=CLASSES).model_copy(update=fine | {"image_size": 64})


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
