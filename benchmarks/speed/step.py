"""What distillation costs: a step with every term, against a plain step of the student plus the teacher's forward pass.

Teacher ``vit_small``, student ``vit_tiny``, 224 pixels, AdamW. The floor of any distiller without a cache is 1.
"""

from __future__ import annotations

import statistics

import torch

from benchmarks.speed._sheet import Sheet
from benchmarks.speed._timing import interleaved, median, peak_memory
from rskd.config import DistillOptions, ModelSpec
from rskd.distillation.objective import Objective
from rskd.models.segmenter import Segmenter

BATCH, SIDE, ROUNDS = 4, 224, 5
OFF = {name: {"weight": 0} for name in ("logits", "ranking", "texture", "fusion")}


def only(*names: str, **more: object) -> DistillOptions:
    return DistillOptions.model_validate(OFF | {name: {} for name in names} | more)


VARIANTS = {
    "plain student": None,
    "KD": only("logits"),
    "KD + TIRD": only("logits", "ranking"),
    "KD + CDM": only("logits", "texture"),
    "KD + SCCF": only("logits", "fusion"),
    "all": DistillOptions(),
    "all, teacher in bfloat16": DistillOptions(teacher_bfloat16=True),
}


class Stepper:
    """One optimiser step of one variant, on the same images every time."""

    def __init__(self, teacher: Segmenter, options: DistillOptions | None) -> None:
        torch.manual_seed(0)
        student = Segmenter(ModelSpec(name="student", in_channels=3))
        self.objective = Objective(student, teacher if options else None, options or only())
        self.optimizer = torch.optim.AdamW(self.objective.parameters(), fused=True)
        self.images = torch.randn(BATCH, 3, SIDE, SIDE)
        self.targets = torch.randint(0, 2, (BATCH, SIDE, SIDE))

    def __call__(self) -> None:
        total = self.objective.total(self.objective(self.images, self.targets))
        self.optimizer.zero_grad()
        total.backward()
        self.optimizer.step()


def main(sheet: Sheet) -> None:
    teacher = Segmenter(ModelSpec(name="teacher", encoder="vit_small_patch16_224", in_channels=3)).eval()
    images = torch.randn(BATCH, 3, SIDE, SIDE)

    def teach() -> None:
        with torch.inference_mode():
            teacher(images)

    steps = {name: Stepper(teacher, options) for name, options in VARIANTS.items()}
    memory = {name: peak_memory(step) for name, step in steps.items()}
    times = interleaved(steps | {"teacher forward": teach}, rounds=sheet.rounds(ROUNDS))
    floor = [a + b for a, b in zip(times["plain student"], times["teacher forward"], strict=True)]
    title = f"A step, batch {BATCH}, {SIDE} pixels, one thread"
    sheet.table(title, "CPU ms|.0f", "x (plain + teacher)|.3f", "peak MiB|.0f")
    for name in (*VARIANTS, "teacher forward"):
        ratio = statistics.median(a / b for a, b in zip(times[name], floor, strict=True))
        sheet.row(name, median(times, name), ratio, memory.get(name))
    sheet.note(f"Medians of {len(floor)} interleaved rounds.")
