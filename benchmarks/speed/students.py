"""What a student costs: parameters, multiply-adds, and CPU time per image on one core, in torch and ONNX Runtime.

Every named network with its decoder, beside ``vit_tiny`` and ``vit_small`` with the same decoder.
"""

from __future__ import annotations

import importlib.util
import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks.speed._sheet import Sheet
from benchmarks.speed._timing import interleaved, median
from rskd.bench import multiply_adds
from rskd.config import ModelSpec
from rskd.models.exported import OnnxSegmenter
from rskd.models.presets import PRESETS
from rskd.models.segmenter import Segmenter
from rskd.onnx_export import export_onnx

SIDES = (256, 512)
ROUNDS = 5
BESIDE = {name: ModelSpec(name=name, encoder=f"{name}_patch16_224") for name in ("vit_tiny", "vit_small")}
RUNTIME = all(importlib.util.find_spec(name) for name in ("onnx", "onnxruntime"))


def main(sheet: Sheet) -> None:
    specs = {spec.name: spec.model_copy(update={"in_channels": 3}) for spec in (*PRESETS.values(), *BESIDE.values())}
    models = {name: Segmenter(spec).eval() for name, spec in specs.items()}
    rounds = sheet.rounds(ROUNDS)
    columns = {side: measure(models, side, rounds) for side in SIDES}
    heads = [(f"GMACs {side}|.3g", f"torch {side}|.0f", f"ONNX Runtime {side}|.0f") for side in SIDES]
    sheet.table("CPU ms per image, batch 1, one thread", "M parameters|.2f", *itertools.chain.from_iterable(heads))
    for name, model in models.items():
        figures = itertools.chain.from_iterable(columns[side][name] for side in SIDES)
        sheet.row(name, sum(p.numel() for p in model.parameters()) / 1e6, *figures)
    sheet.note(f"Medians of {rounds} interleaved rounds.")


def measure(models: dict[str, Segmenter], side: int, rounds: int) -> dict[str, tuple[float, float, float | None]]:
    images = np.random.default_rng(0).normal(size=(1, 3, side, side)).astype(np.float32)
    work: dict[str, Callable[[], object]] = {}
    for name, model in models.items():
        work[f"torch {name}"] = lambda model=model: forward(model, images)
        if RUNTIME:
            exported = exported_network(model, side)
            work[f"ort {name}"] = lambda exported=exported: exported(images)
    times = interleaved(work, rounds=rounds)
    return {
        name: (
            multiply_adds(model, side),
            median(times, f"torch {name}"),
            median(times, f"ort {name}") if RUNTIME else None,
        )
        for name, model in models.items()
    }


def forward(model: Segmenter, images: np.ndarray) -> torch.Tensor:
    with torch.inference_mode():
        return model(torch.from_numpy(images))


def exported_network(model: Segmenter, side: int) -> OnnxSegmenter:
    with tempfile.TemporaryDirectory() as folder:
        export_onnx(model, Path(folder) / "network.onnx", size=side)
        return OnnxSegmenter(Path(folder) / "network.onnx", threads=1)
