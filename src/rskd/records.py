"""What a run folder records beside job and events: computer, data, networks, and the scores of every case.

No name of a person, user, computer or folder gets into these files: a case is called by `rskd.cases.case_id`.
"""

from __future__ import annotations

import json
import math
import os
import platform
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rskd.cases import Case, content_hash
from rskd.io.files import write_atomically

ENVIRONMENT = "environment.json"
DATA = "data.json"
NETWORKS = "networks.json"
OBJECTIVE = "objective.json"
METRICS = "metrics.jsonl"
LIBRARIES = ("numpy", "scipy", "torch", "torchvision", "timm", "lightning-fabric", "pydantic", "safetensors")
UNLABELLED = "no label"
_PACKAGE = "napari-rskd"

Fields = dict[str, Any]


@dataclass(frozen=True)
class CaseRecord:
    """One case of the data of a run."""

    case: Case
    side: str
    """"training" or "validation"."""
    targets: Sequence[NDArray[np.integer]]
    """Target of every plane at the size at which the network works, as `rskd.data.Slice` has it."""


def record_session(folder: Path, *, device: str, threads: int, processes: int, step: int) -> None:
    """Add this computer to those on which the run has been worked on.

    Parameters
    ----------
    folder
        Run folder.
    device
        What the networks run on, in words.
    threads, processes
        How many work on it.
    step
        Steps that were taken before.
    """
    began = datetime.now(UTC).isoformat(timespec="seconds")
    session = {"began": began, "step": step, **environment(device=device, threads=threads, processes=processes)}
    sessions = (read_json(folder / ENVIRONMENT) or {}).get("sessions", []) if step else []
    write_json(folder / ENVIRONMENT, {"sessions": [*sessions, session]})


def environment(*, device: str, threads: int, processes: int) -> Fields:
    """Return what the result may depend on: versions, computer, device, threads.

    Examples
    --------
    >>> environment(device="cpu", threads=1, processes=1)["threads"]
    1
    """
    return {
        "versions": {"python": platform.python_version(), **_versions()},
        "commit": commit(),
        "system": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "device": device,
        "threads": threads,
        "processes": processes,
    }


def _versions() -> dict[str, str]:
    found = {}
    for name in (_PACKAGE, *LIBRARIES):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    """Return the name of the processor, as well as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def commit(file: Path = Path(__file__)) -> str | None:
    """Return the commit of the program's own sources, with "+" if they were changed; `None` outside of a repository."""
    if _git(file, "ls-files", "--error-unmatch", file.name) is None:
        return None
    head, changes = _git(file, "rev-parse", "HEAD"), _git(file, "status", "--porcelain", "-uno")
    return None if head is None else head + ("+" if changes else "")


def _git(file: Path, *arguments: str) -> str | None:
    program = shutil.which("git")
    if program is None:
        return None
    try:
        done = subprocess.run(  # noqa: S603 - fixed arguments
            [program, "-C", str(file.parent), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def describe_data(records: Iterable[CaseRecord], classes: Sequence[str], *, seed: int) -> Fields:
    """Return what a run learns from: per case its hashes, side of the split, planes and pixels per class.

    Parameters
    ----------
    records
        The cases of both sides.
    classes
        Names of all classes, the background first.
    seed
        Of the split and of everything else that is drawn.
    """
    return {"seed": seed, "classes": list(classes), "cases": [_describe(record, classes) for record in records]}


def _describe(record: CaseRecord, classes: Sequence[str]) -> Fields:
    case = record.case
    image = content_hash(case.image)
    counts = sum((_count(target, len(classes)) for target in record.targets), start=0)
    pixels = dict(zip([UNLABELLED, *classes], np.atleast_1d(counts).tolist(), strict=False))
    return {
        "case": image[:12],
        "side": record.side,
        "image sha256": image,
        "mask sha256": None if case.mask is None else content_hash(case.mask),
        "region sha256": None if case.region is None else content_hash(case.region),
        "planes": len(record.targets),
        "pixels": pixels,
    }


def _count(target: NDArray[np.integer], classes: int) -> NDArray[np.int64]:
    """Return the number of pixels without a label, of the background, and of every other class.

    Examples
    --------
    >>> _count(np.array([[-1, 0, 2, 2]]), 3), _count(np.array([[[-1, 0, 1, 1]], [[-1, 0, 0, 1]]]), 3)
    (array([1, 1, 0, 2]), array([1, 1, 2, 1]))
    """
    if target.ndim == 2:
        return np.bincount(target.ravel() + 1, minlength=classes + 1)
    nothing = np.count_nonzero(target.max(0) == 0)
    return np.array([np.count_nonzero(target[0] < 0), nothing, *np.count_nonzero(target == 1, axis=(1, 2))])


def on_both_sides(data: Fields) -> list[str]:
    """Return the cases of which the very same image is trained on and validated with.

    Examples
    --------
    >>> sides = [{"case": "a", "side": "training"}, {"case": "a", "side": "validation"}]
    >>> on_both_sides({"cases": sides})
    ['a']
    """
    ids = {side: {row["case"] for row in data["cases"] if row["side"] == side} for side in ("training", "validation")}
    return sorted(ids["training"] & ids["validation"])


def changed_cases(data: Fields, earlier: Fields) -> list[str]:
    """Return the cases of which image, mask or region are not the same files any more.

    Examples
    --------
    >>> now, before = ({"cases": [{"case": name, "image sha256": name}]} for name in "ab")
    >>> changed_cases(now, before)
    ['a']
    """
    hashes = ("image sha256", "mask sha256", "region sha256")
    known = {tuple(row.get(name) for name in hashes) for row in earlier["cases"]}
    return [row["case"] for row in data["cases"] if tuple(row.get(name) for name in hashes) not in known]


def case_scores(
    dice: Mapping[str, NDArray[np.float64]], classes: Sequence[str], *, epoch: int, step: int
) -> list[Fields]:
    """Return the lines of `METRICS` for one validation.

    Parameters
    ----------
    dice
        Dice of every class (the background first) by case; NaN where a case has no such class.
    classes
        Names of all classes, the background first.
    epoch, step
        After which it was measured.

    Examples
    --------
    >>> case_scores({"3fa0": np.array([0.9, 0.5])}, ["background", "organ"], epoch=1, step=50)[0]["iou"]
    {'organ': 0.3333333333333333}
    """
    lines = []
    for case, values in dice.items():
        scores = {name: None if math.isnan(d) else float(d) for name, d in zip(classes[1:], values[1:], strict=True)}
        overlap = {name: None if score is None else score / (2 - score) for name, score in scores.items()}
        lines.append({"epoch": epoch, "step": step, "case": case, "dice": scores, "iou": overlap})
    return lines


def append_lines(path: Path, lines: Iterable[Fields]) -> None:
    """Add lines of JSON to a file."""
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def read_lines(path: Path) -> list[Fields]:
    """Return the lines of JSON in a file; a last one that was cut off by a crash is left out."""
    if not path.exists():
        return []
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return lines


def rewind_scores(folder: Path, epoch: int) -> None:
    """Forget the scores after `epoch`: they will be measured again."""
    path = folder / METRICS
    if path.exists():
        kept = [line for line in read_lines(path) if line["epoch"] <= epoch]
        write_atomically(path, "".join(json.dumps(line) + "\n" for line in kept).encode())


def read_json(path: Path) -> Fields | None:
    """Return what a file holds; `None` where there is none, or it is damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def write_json(path: Path, content: Fields) -> None:
    """Write a file whole or not at all."""
    write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())
