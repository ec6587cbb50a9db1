"""The table of a study, made from its stored results."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.accuracy.study import TEACHER, Study


def table(study: Study, results: Path) -> str:
    """Return the test Dice as Markdown: mean ± sample deviation over the seeds, of all classes and of each."""
    rows = {arm: _read(results / study.name, arm, study.seeds) for arm in (TEACHER, *study.arms)}
    classes = next((list(found[0]["dice"]) for found in rows.values() if found), [])
    columns = classes if len(classes) > 1 else []
    lines = [
        "| method | M parameters | seeds | " + " | ".join(["test Dice", *columns]) + " |",
        "|---" * (4 + len(columns)) + "|",
    ]
    for arm, found in rows.items():
        if found:
            cells = [_cell([_mean(one["dice"].values()) for one in found])]
            cells += [_cell([one["dice"][name] for one in found]) for name in columns]
            lines.append(f"| {arm} | {found[0]['parameters'] / 1e6:.2f} | {len(found)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _read(place: Path, arm: str, seeds: Sequence[int]) -> list[Mapping[str, Any]]:
    paths = [place / f"{arm}-{seed}.json" for seed in seeds]
    return [json.loads(path.read_text()) for path in paths if path.exists()]


def _mean(scores: Any) -> float:
    return float(np.mean([score for score in scores if score is not None]))


def _cell(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    spread = f" ± {np.std(known, ddof=1):.3f}" if len(known) > 1 else ""
    return f"{np.mean(known):.3f}{spread}"
