"""Does TIRD alone move a student's token ranking towards its teacher's?

    python benchmarks/accuracy/ranking_transfer.py DRIVE_FOLDER TEACHER RESULTS.jsonl

Students (`rskd-nano`) learn from the teacher's ranking alone (`topk_listmle`), from the values of its importance
(`kl_importance`, the control), or from the masks without any distillation, with the same patches, steps and seeds.
Kendall's τ and the overlap of the top quarter are measured before and after, on tiles of the four validation images,
at every matched block. One line per run is added to RESULTS.jsonl; what is there is not done again. The table at the
end is made from that file.
"""

from __future__ import annotations

import itertools
import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from rskd.cases import find_cases, split_cases
from rskd.config import DataOptions, DistillOptions, TrainOptions
from rskd.data import PatchSampler, load_slices
from rskd.distillation.features import Taps, match_blocks, observe
from rskd.events import drain
from rskd.importance.ranking import agreement, align
from rskd.jobs import DistillJob
from rskd.models import weights
from rskd.models.presets import student_spec
from rskd.models.segmenter import Segmenter
from rskd.runs import RunFolder
from rskd.train import distill

VALIDATION = ("25_training", "30_training", "35_training", "40_training")
STUDENT = "rskd-nano"
LAYERS = 3
SEEDS = (0, 1, 2)
OFF = {"logits": {"weight": 0}, "texture": {"weight": 0}, "fusion": {"weight": 0}}
METHODS = {
    "masks only": {**OFF, "ranking": {"weight": 0}, "task": 1},
    "kl_importance": {**OFF, "ranking": {"weight": 1, "loss": "kl_importance", "layers": LAYERS}, "task": 0},
    "topk_listmle": {**OFF, "ranking": {"weight": 1, "loss": "topk_listmle", "layers": LAYERS}, "task": 0},
}
WORDS = {
    "masks only": "the masks only",
    "kl_importance": "the values of the importance (`kl_importance`, the control)",
    "topk_listmle": "its order (`topk_listmle`)",
}
TRAINING = TrainOptions(epochs=3, steps_per_epoch=40, batch_size=8, learning_rate=1e-3)


def main(drive: Path, teacher: Path, results: Path) -> None:
    data = DataOptions(images=drive / "training" / "images", masks=drive / "training" / "1st_manual",
                       regions=drive / "training" / "mask", validation=VALIDATION)  # fmt: skip
    done = read(results)
    for method, seed in itertools.product(METHODS, SEEDS):
        if (method, seed) not in done:
            row = {"method": method, "seed": seed} | unit(method, seed, data, teacher)
            with results.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(row, flush=True)
    print(table(read(results)))


def unit(method: str, seed: int, data: DataOptions, teacher: Path) -> dict[str, float]:
    options = DistillOptions.model_validate(METHODS[method])
    training = TRAINING.model_copy(update={"seed": seed})
    network = weights.load(teacher)
    tiles = validation_tiles(data, network)
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # as the run itself starts
        fresh = Segmenter(student_spec(STUDENT, network.spec)).eval()
    before = compare(network, fresh, tiles)
    with tempfile.TemporaryDirectory() as folder:
        job = DistillJob(teacher=teacher, student=STUDENT, data=data, run=Path(folder) / "run", training=training,
                         distillation=options)  # fmt: skip
        drain(distill(job))
        state = torch.load(RunFolder(job.run).checkpoint, weights_only=True)["objective"]
    trained = {name.removeprefix("student."): value for name, value in state.items() if name.startswith("student.")}
    fresh.load_state_dict(trained)
    after = compare(network, fresh, tiles)
    return {f"{name} before": value for name, value in before.items()} | after


def validation_tiles(data: DataOptions, teacher: Segmenter) -> torch.Tensor:
    _, held_out = split_cases(find_cases(data), data, 0)
    planes = [plane for case in held_out for plane in load_slices(case, teacher.spec)]
    return PatchSampler(planes, patch=128, batch_size=32, augment=None, seed=0).batch(0).images


@torch.inference_mode()
def compare(teacher: Segmenter, student: Segmenter, tiles: torch.Tensor) -> dict[str, float]:
    mine, theirs = match_blocks(len(student.encoder.blocks), len(teacher.encoder.blocks), LAYERS)
    student_seen, teacher_seen = (
        observe(model, tiles, Taps(importance=blocks)) for model, blocks in ((student, mine), (teacher, theirs))
    )
    found = [
        agreement(align(t, teacher_seen.grid, student_seen.grid)[i], s[i])
        for s, t in zip(student_seen.importance, teacher_seen.importance, strict=True)
        for i in range(len(tiles))
    ]
    return {"tau": float(np.mean([a.kendall for a in found])), "overlap": float(np.mean([a.overlap for a in found]))}


def read(results: Path) -> dict[tuple[str, int], dict[str, float]]:
    rows = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    return {(row["method"], row["seed"]): row for row in rows}


def table(rows: Mapping[tuple[str, int], Mapping[str, float]]) -> str:
    lines = [
        "| learns from | Kendall τ before | after | overlap of the top quarter before | after |",
        "|---|---|---|---|---|",
    ]
    for method, words in WORDS.items():
        mine = [row for (name, _), row in rows.items() if name == method]
        cells = []
        for name in ("tau before", "tau", "overlap before", "overlap"):
            values = [row[name] for row in mine]
            cells.append(f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}")
        lines.append(f"| {words} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:4]))
