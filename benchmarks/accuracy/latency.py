"""What the networks of a study cost on this computer; weights do not matter, so none are needed."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.accuracy.datasets import DATASETS
from benchmarks.accuracy.study import TEACHER, Study
from rskd.bench import bench
from rskd.events import drain
from rskd.jobs import BenchJob
from rskd.models import weights
from rskd.models.segmenter import Segmenter

STUDENT = "student"
SIZE = 256
"""Side of the image in pixels, the same for all studies."""


def measure(study: Study, *, seconds: float = 20) -> dict[str, Any]:
    """Time teacher and student in turn, on one thread, in every runtime that is installed; what `bench` returns."""
    dataset = DATASETS[study.dataset]
    with TemporaryDirectory() as folder:
        paths = []
        for role in (STUDENT, TEACHER):
            spec = getattr(study, role).model_copy(
                update={"in_channels": dataset.channels, "classes": dataset.infos(), "image_size": SIZE}
            )
            paths.append(Path(folder) / f"{role}.safetensors")
            weights.save(paths[-1], Segmenter(spec), card={})
        compute = {"device": "cpu", "threads": 1}
        job = BenchJob(models=tuple(paths), sizes=(SIZE,), seconds=seconds, memory=False, compute=compute)
        value: dict[str, Any] = drain(bench(job)).value
    return value


def cost(value: dict[str, Any], role: str) -> float:
    """Return the CPU milliseconds of an image, in ONNX Runtime where it was measured, else in torch."""
    rows = {row["runtime"]: row for row in value["rows"] if row["network"] == role}
    return float(rows["onnx" if "onnx" in rows else "torch"]["cpu"])


def runtime(value: dict[str, Any]) -> str:
    """Return the runtime that `cost` speaks of."""
    return "ONNX Runtime" if any(row["runtime"] == "onnx" for row in value["rows"]) else "torch"
