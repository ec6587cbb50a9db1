"""The networks of a training: which student, which teacher, and whether they suit each other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rskd.cases import Case
from rskd.config import ModelSpec, TrainOptions
from rskd.errors import FileError, ModelError, ParameterError
from rskd.io import read_scan
from rskd.jobs import DistillJob, PreflightJob, TrainJob
from rskd.models import weights
from rskd.models.foreign import from_elsewhere
from rskd.models.presets import PRESETS, fresh_spec, student_spec, weight_file
from rskd.models.segmenter import Segmenter
from rskd.plan import SAME_SIZE


def networks_for(job: TrainJob | DistillJob | PreflightJob, case: Case) -> tuple[Segmenter, Segmenter | None]:
    """Return the network to train, and its teacher where it has one."""
    if isinstance(job, TrainJob):
        return _network(job.model, lambda: _fresh_spec(job, case), job.pretrained), None
    teacher = weights.load(job.teacher)
    student = _network(job.student, lambda: student_spec(job.student, teacher.spec), job.pretrained)
    _check_pair(student.spec, teacher.spec)
    student.spec = _seeing_alike(student.spec, teacher.spec)
    return student, teacher


def _network(name: str, fresh: Callable[[], ModelSpec], pretrained: Path | None) -> Segmenter:
    """Return a network from a weight file, from a description, or fresh by name."""
    path = weight_file(Path(name))
    if name in PRESETS:
        return Segmenter(fresh(), pretrained=pretrained)
    if path.suffix == ".json":
        return Segmenter(weights.read_spec(path), pretrained=pretrained)
    if not path.exists():
        raise FileError(f"{name} is neither a file nor one of the named networks: {', '.join(PRESETS)}.")
    if pretrained is not None:
        raise ParameterError(f"{path.name} holds weights already: leave pretrained out, or start a network fresh.")
    model = weights.load(path)
    if from_elsewhere(model):
        raise ModelError(f"{path.name} is a network from elsewhere: it can teach and segment, but not be trained here.")
    return model


def _fresh_spec(job: TrainJob, case: Case) -> ModelSpec:
    scan = read_scan(case.image)
    channels = tuple(channel for channel in scan.channels if channel != "alpha")
    count = len(channels) or scan.channel_count
    classes = job.classes or ("foreground",)
    spec = fresh_spec(job.model, in_channels=count, classes=classes, overlapping=job.overlapping)
    return spec.model_copy(update={"channels": channels})


def _check_pair(student: ModelSpec, teacher: ModelSpec) -> None:
    """Refuse a pair that sees different images, or speaks of different classes."""
    for what, mine, theirs in (
        ("number of image channels", student.in_channels, teacher.in_channels),
        ("classes", _names(student), _names(teacher)),
        ("kind of classes", _kind(student), _kind(teacher)),
        ("intensities", student.normalisation, teacher.normalisation),
        ("size of the whole picture", student.frame, teacher.frame),
    ):
        if mine != theirs:
            raise ModelError(
                f"Student and teacher differ in their {what}: {student.name} has {mine}, {teacher.name} has {theirs}; "
                "choose a pair made for the same task, or a fresh student by name."
            )

    _check_spacing(student, teacher)


def _check_spacing(student: ModelSpec, teacher: ModelSpec) -> None:
    """Refuse a teacher that would see pixels of another size than in its training."""
    if student.frame or not student.spacing or not teacher.spacing:
        return
    if abs(student.spacing / teacher.spacing - 1) > SAME_SIZE:
        raise ModelError(
            f"{student.name} was made for pixels of {student.spacing:g} mm, its teacher {teacher.name} for those of "
            f"{teacher.spacing:g} mm: choose a pair made for the same size of a pixel, or a fresh student by name."
        )


def _seeing_alike(student: ModelSpec, teacher: ModelSpec) -> ModelSpec:
    """Return the student with the size of a pixel that its teacher was trained at, where it names none."""
    return student.model_copy(update={"spacing": student.spacing or teacher.spacing})


def _names(spec: ModelSpec) -> str:
    return ", ".join(info.name for info in spec.classes)


def _kind(spec: ModelSpec) -> str:
    return "classes that may overlap" if spec.overlapping else "one class per pixel"


def check_patch(options: TrainOptions, student: Segmenter, teacher: Segmenter | None) -> None:
    """Refuse patches that are no whole number of tokens for both networks."""
    patch = options.patch or student.spec.image_size
    for model in (student, *([teacher] if teacher else [])):
        step = model.spec.patch_size
        if patch % step:
            raise ParameterError(
                f"patch={patch} does not suit {model.spec.name}, whose tokens are {step} pixels wide: "
                f"use {max(1, round(patch / step)) * step}."
            )
