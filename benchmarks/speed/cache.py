"""What the cache of the teacher's answers saves: a cached step against the plain step of the student, data included.

Teacher ``vit_small``, student ``vit_tiny``, 224 pixels, AdamW, a pool of views that is drawn anew in every step; the
answers are read from disk. Then what drawing the views takes of each step, on one thread that does nothing else.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch

from benchmarks.speed._sheet import Sheet
from benchmarks.speed._timing import interleaved, median, ratio
from benchmarks.speed.step import VARIANTS, only
from rskd.config import DistillOptions, ModelSpec
from rskd.data import PatchSampler, Slice
from rskd.distillation.cache import cache_size, open_cache
from rskd.distillation.objective import Objective
from rskd.events import drain
from rskd.models.segmenter import Segmenter

BATCH, SIDE, POOL, ROUNDS = 4, 224, 16, 7
NAMES = ("KD", "KD + TIRD", "KD + CDM", "KD + SCCF", "all")


def planes() -> list[Slice]:
    """Return eight made-up colour pictures of 512 pixels with three kinds of blobs."""
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.standard_normal((8, 3, 512, 512), np.float32))
    targets = torch.nn.functional.interpolate(torch.from_numpy(rng.integers(0, 2, (8, 1, 8, 8))).double(), (512, 512))
    return [Slice(f"{i}", image, target[0].long()) for i, (image, target) in enumerate(zip(images, targets))]  # noqa: B905


class Stepper:
    """One optimiser step on the batch of a run; with a cache, after the teacher was asked about the whole pool."""

    def __init__(
        self, teacher: Segmenter, options: DistillOptions | None, sampler: PatchSampler, folder: Path | None = None
    ) -> None:
        torch.manual_seed(0)
        student = Segmenter(ModelSpec(name="student", in_channels=3))
        self.objective = Objective(student, teacher if options else None, options or only())
        self.optimizer = torch.optim.AdamW(self.objective.parameters(), fused=True)
        self.sampler, self.step = sampler, 0
        if folder is not None:
            example = self.objective.ask(sampler.batch(0).images[:1])
            self.size = cache_size(example, POOL) / POOL
            self.objective.cache = drain(open_cache(folder, views=POOL, example=example, key="bench"))
            with torch.no_grad():
                for step in range(POOL // BATCH):
                    batch = sampler.batch(step)
                    self.objective.cache.answers(batch.views, lambda images=batch.images: self.objective.ask(images))

    def __call__(self) -> None:
        batch = self.sampler.batch(self.step)
        self.step += 1
        total = self.objective.total(self.objective(batch.images, batch.targets, batch.views))
        self.optimizer.zero_grad()
        total.backward()
        self.optimizer.step()


def main(sheet: Sheet) -> None:
    teacher = Segmenter(ModelSpec(name="teacher", encoder="vit_small_patch16_224", in_channels=3)).eval()
    sampler = PatchSampler(planes(), patch=SIDE, batch_size=BATCH, views=POOL)
    steps = iter(range(10**6))
    with tempfile.TemporaryDirectory() as folder:
        plain = Stepper(teacher, None, sampler)
        cached = {name: Stepper(teacher, VARIANTS[name], sampler, Path(folder) / name) for name in NAMES}
        work = {
            "plain student": plain,
            "all, not cached": Stepper(teacher, VARIANTS["all"], sampler),
            **{f"{name}, cached": step for name, step in cached.items()},
            "data": lambda: sampler.batch(next(steps)),
        }
        times = interleaved(work, rounds=sheet.rounds(ROUNDS))
    title = f"A step, batch {BATCH}, {SIDE} pixels, 3 channels, one thread"
    sheet.table(title, "CPU ms|.0f", "x plain student|.3f", "share of the data|.1%", "KB per view|.0f")
    for name in work:
        kept = cached.get(name.removesuffix(", cached"))
        figures = median(times, name), ratio(times, name, "plain student"), ratio(times, "data", name)
        sheet.row(name, *figures, kept.size / 1e3 if kept else None)
    sheet.note(f"Medians of {len(times['data'])} interleaved rounds.")
