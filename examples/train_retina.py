"""Train the retinal-vessel pair that comes with the package: a teacher on masks, then a student from the teacher.

    python examples/train_retina.py DRIVE_FOLDER RUNS_FOLDER

DRIVE_FOLDER holds the DRIVE data set (doi:10.1109/TMI.2004.825627) as `training/` and `test/`, each with `images/`,
`1st_manual/` and `mask/`. Takes about two hours on two CPU cores. Started again after an interruption, it goes on where
it was; the 20 test images are looked at once, when both networks are finished.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from rich.progress import Progress as Bar

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
from rskd.evaluate import evaluate
from rskd.events import Epoch, Message, Step, Task
from rskd.jobs import DistillJob, EvaluateJob, Outcome, ResumeJob, TrainJob
from rskd.models import weights
from rskd.models.presets import fresh_spec
from rskd.runs import RunFolder
from rskd.train import distill, resume, train

VALIDATION = ("25_training", "30_training", "35_training", "40_training")
LICENCE = "LICENCE UNKNOWN: trained on DRIVE, whose licence is unconfirmed; for research and demonstration only"

DESCRIPTION = {
    "channels": ("red", "green", "blue"),
    "classes": (BACKGROUND, ClassInfo(name="vessel", color="#35c9ff")),
    "modality": "colour fundus photograph, field of view 45°",
}


def main(drive: Path, runs: Path) -> None:
    runs.mkdir(parents=True, exist_ok=True)
    data = DataOptions(
        images=drive / "training" / "images",
        masks=drive / "training" / "1st_manual",
        regions=drive / "training" / "mask",
        validation=VALIDATION,
    )
    for role, spec in (("teacher", teacher_spec()), ("student", student_spec())):
        (runs / f"{role}.json").write_text(spec.model_dump_json(indent=1))
    teacher = finish(
        TrainJob(
            model=str(runs / "teacher.json"),
            data=data,
            run=runs / "teacher",
            training=TrainOptions(epochs=30, steps_per_epoch=40, batch_size=8, learning_rate=2e-3),
        )
    )
    student = finish(
        DistillJob(
            teacher=teacher,
            student=str(runs / "student.json"),
            data=data,
            run=runs / "student",
            training=TrainOptions(epochs=24, steps_per_epoch=40, batch_size=8, learning_rate=2e-3),
            distillation=DistillOptions(),
        )
    )
    ship(teacher, runs / "retina-teacher.safetensors", drive, "Retinal vessels, teacher")
    ship(student, runs / "retina-student.safetensors", drive, "Retinal vessels, student")


def teacher_spec() -> ModelSpec:
    """Return the teacher's description; 584 pixels is the longer side of the training pictures."""
    return fresh_spec("rskd-teacher", in_channels=3, classes=["vessel"]).model_copy(update={"frame": 584})


def student_spec() -> ModelSpec:
    """Return the student's description: `rskd-micro`, a quarter narrower."""
    narrow = {"embed_dim": 96, "num_heads": 3}
    return fresh_spec("rskd-micro", in_channels=3, classes=["vessel"]).model_copy(update=narrow | {"frame": 584})


def finish(job: TrainJob | DistillJob) -> Path:
    """Run a training to its end, from wherever it is, and return its best network."""
    if (job.run / "job.json").exists():
        show(resume(ResumeJob(run=job.run)))
    elif isinstance(job, TrainJob):
        show(train(job))
    else:
        show(distill(job))
    return RunFolder(job.run).best


def show(task: Task[Outcome]) -> Outcome:
    with Bar() as bar:
        row = bar.add_task("steps")
        while True:
            try:
                event = next(task)
            except StopIteration as end:
                return end.value
            if isinstance(event, Step):
                bar.update(row, completed=event.step, total=event.steps)
            elif isinstance(event, Epoch):
                bar.console.print(f"epoch {event.epoch}: validation Dice {event.dice:.4f} {'(best)' * event.best}")
            elif isinstance(event, Message):
                bar.console.print(event.text)


def ship(best: Path, target: Path, drive: Path, name: str) -> None:
    """Write the network in half precision, measure that file on the test images, and put the result on its card."""
    model, card = weights.load(best), weights.inspect(best).card
    model.spec = model.spec.model_copy(update=DESCRIPTION | {"name": name})
    weights.save(target, model, card=card, half=True)
    test = CaseOptions(
        images=drive / "test" / "images", masks=drive / "test" / "1st_manual", regions=drive / "test" / "mask"
    )
    result = show(evaluate(EvaluateJob(model=target, data=test, options=TileOptions(overlap=0.5))))
    weights.save(target, model, card=card | facts(result.value), half=True)
    print(f"{target.name}: test Dice inside the field of view {result.value['dice']['vessel']:.4f}")


def facts(result: Mapping[str, Mapping[str, float]]) -> dict[str, str]:
    return {
        "data": "DRIVE: 16 images to train, 4 to validate, 20 to test (first observer)",
        "licence": LICENCE,
        "test Dice": f"{result['dice']['vessel']:.4f} inside the field of view, mean of 20 images",
        "test IoU": f"{result['iou']['vessel']:.4f} inside the field of view, mean of 20 images",
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
