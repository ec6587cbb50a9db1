"""Train the retinal-vessel pair that comes with the package: a teacher on masks, then a student from the teacher.

    python examples/train_retina.py DRIVE_FOLDER RUNS_FOLDER

DRIVE_FOLDER holds the DRIVE data set (doi:10.1109/TMI.2004.825627) as `training/` and `test/`, each with `images/`,
`1st_manual/` and `mask/`. Takes about an hour and a half on one CPU core. Started again after an interruption,
it goes on where it was; the 20 test images are looked at once, when both networks are finished.
"""

from __future__ import annotations

import sys
from pathlib import Path

from shipping import finish, ship

from rskd.config import (
    BACKGROUND,
    CaseOptions,
    ClassInfo,
    DataOptions,
    DistillOptions,
    ModelSpec,
    TileOptions,
    TrainOptions,
)
from rskd.jobs import DistillJob, EvaluateJob, TrainJob
from rskd.models.presets import fresh_spec

VALIDATION = ("25_training", "30_training", "35_training", "40_training")
FACTS = {
    "data": "DRIVE: 16 images to train, 4 to validate, 20 to test (first observer)",
    "licence": "LICENCE UNKNOWN: trained on DRIVE, whose licence is unconfirmed; for research and demonstration only",
}

DESCRIPTION = {
    "channels": ("red", "green", "blue"),
    "classes": (BACKGROUND, ClassInfo(name="vessel", color="#35c9ff")),
    "modality": "colour fundus photograph, field of view 45°",
}


def main(drive: Path, runs: Path) -> None:
    """Train both; outside of the field of view, too: a network that did not learn that it is empty marks its rim."""
    runs.mkdir(parents=True, exist_ok=True)
    data = DataOptions(
        images=drive / "training" / "images", masks=drive / "training" / "1st_manual", validation=VALIDATION
    )
    for role, spec in (("teacher", teacher_spec()), ("student", student_spec())):
        (runs / f"{role}.json").write_text(spec.model_dump_json(indent=1))
    teacher = finish(
        TrainJob(
            model=str(runs / "teacher.json"),
            data=data,
            run=runs / "teacher",
            training=TrainOptions(epochs=24, steps_per_epoch=40, batch_size=8, learning_rate=2e-3),
        )
    )
    student = finish(
        DistillJob(
            teacher=teacher,
            student=str(runs / "student.json"),
            data=data,
            run=runs / "student",
            training=TrainOptions(epochs=36, steps_per_epoch=40, batch_size=8, learning_rate=2e-3),
            distillation=DistillOptions(),
        )
    )
    test = CaseOptions(
        images=drive / "test" / "images", masks=drive / "test" / "1st_manual", regions=drive / "test" / "mask"
    )
    for role, best in (("teacher", teacher), ("student", student)):
        job = EvaluateJob(model=runs / f"retina-{role}.safetensors", data=test, options=TileOptions(overlap=0.5))
        ship(best, job, FACTS, **DESCRIPTION, name=f"Retinal vessels, {role}")


def teacher_spec() -> ModelSpec:
    """Return the teacher's description; 584 pixels is the longer side of the training pictures.

    It has as many tokens as the student, of 16 pixels, so that both can be ranked at a click; the vessels, finer than
    these, are the business of a wide stem and decoder.
    """
    wide = {"embed_dim": 256, "num_heads": 4, "patch_size": 16, "stem_widths": (32, 64, 96, 128), "decoder_width": 128}
    return fresh_spec("rskd-teacher", in_channels=3, classes=["vessel"]).model_copy(update=wide | {"frame": 584})


def student_spec() -> ModelSpec:
    """Return the student's description: runtimes for exported networks are fastest with multiples of 16 channels."""
    narrow = {"embed_dim": 96, "num_heads": 3, "stem_widths": (16, 16, 32), "decoder_width": 16}
    return fresh_spec("rskd-micro", in_channels=3, classes=["vessel"]).model_copy(update=narrow | {"frame": 584})


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
