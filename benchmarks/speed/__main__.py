"""Print the speed tables of the project, each in a process of its own: ``python -m benchmarks.speed``.

`--only NAME` chooses tables, `--quick` does with fewer rounds, `--store` keeps the figures in `results/NAME.json`, from
which `python -m benchmarks.accuracy docs` writes the tables of the documentation. The peers are measured in the same
run where they are installed; what is left out is said with its reason.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from rskd.io.files import write_atomically

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RESULTS = HERE / "results"
VIRTUAL_DISPLAY = ROOT / "scripts" / "virtual-display"
app = App(name="python -m benchmarks.speed", help=__doc__)


@dataclass(frozen=True)
class Table:
    """What a benchmark needs."""

    about: str
    needs: dict[str, str] = field(default_factory=dict)
    """Modules without which it is left out, and how to get them."""
    peers: dict[str, str] = field(default_factory=dict)
    """Modules without which it has fewer columns or lines."""
    display: bool = False


ONNX = dict.fromkeys(("onnx", "onnxruntime"), "pip install 'napari-rskd[onnx]'")
TABLES = {
    "contourlet": Table(
        "the contourlet transform against DTCWT, an FFT pair, a convolution, a copy",
        peers={"pytorch_wavelets": "pip install pytorch_wavelets 'setuptools<82'"},
    ),
    "importance": Table("token importance and ranking losses against a plain forward pass and allRank's arithmetic"),
    "step": Table("a step of distillation, term by term, against the floor of any distiller"),
    "cache": Table("steps with the teacher's answers kept, against a plain step of the student"),
    "tiling": Table(
        "tiled inference against a bare loop and MONAI", peers={"monai": "pip install 'napari-rskd[test]'"}
    ),
    "startup": Table("commands and imports in a fresh interpreter"),
    "models": Table(
        "the bundled networks in every runtime",
        peers={**ONNX, "openvino": "pip install 'napari-rskd[openvino]'"},
    ),
    "students": Table("the named networks, in torch and ONNX Runtime", peers=ONNX),
    "window": Table("how fast the window answers", needs={"napari": "pip install 'napari-rskd[all]'"}, display=True),
}


@app.default
def speed(
    *,
    only: Annotated[list[str] | None, Parameter(help="A table; may be repeated.")] = None,
    quick: Annotated[bool, Parameter(help="Fewer rounds.")] = False,
    store: Annotated[bool, Parameter(help="Keep the figures.")] = False,
    results: Annotated[Path, Parameter(help="Where they are kept.")] = RESULTS,
) -> None:
    """Print the speed tables."""
    names = list(only or TABLES)
    if unknown := [name for name in names if name not in TABLES]:
        sys.exit(f"There is no table {', '.join(unknown)}: choose among {', '.join(TABLES)}.")
    left_out = {name: reason for name in names if (reason := why_not(TABLES[name])) is not None}
    for name in names:
        if name not in left_out:
            print(f"\n== {name}: {TABLES[name].about}", flush=True)
            for sentence in without(TABLES[name]):
                print(sentence, flush=True)
            if problem := run(name, quick=quick, output=results / f"{name}.json" if store else None):
                left_out[name] = problem
    print()
    for name, reason in left_out.items():
        print(f"{name}: left out, {reason}")


@app.command(show=False)
def one(name: str, /, *, quick: bool = False, output: Path | None = None) -> None:
    """Measure one table in this process."""
    from benchmarks.speed._sheet import Sheet

    sheet = Sheet(name, quick=quick)
    importlib.import_module(f"benchmarks.speed.{name}").main(sheet)
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        sheet.value["commit"] = commit()
        write_atomically(output, (json.dumps(sheet.value, indent=1) + "\n").encode())


def commit() -> str:
    """Return the commit that was measured, and whether the sources differ from it."""
    git = ["git", "-C", str(ROOT)]
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    changed = subprocess.run([*git, "status", "--porcelain", "src"], capture_output=True, text=True).stdout.strip()
    return (head or "unknown") + ("+changes" if changed else "")


def run(name: str, *, quick: bool, output: Path | None) -> str | None:
    """Measure a table in a process of its own; returns what went wrong, if anything did."""
    command = [sys.executable, "-m", "benchmarks.speed", "one", name]
    command += ["--quick"] if quick else []
    command += ["--output", str(output)] if output else []
    if TABLES[name].display and not has_display():
        command = [str(VIRTUAL_DISPLAY), *command]
    code = subprocess.run(command, cwd=ROOT).returncode
    return f"it ended with code {code}" if code else None


def why_not(table: Table) -> str | None:
    """Return why a table cannot be measured here."""
    missing = _missing(table.needs)
    if missing:
        return f"{' and '.join(missing)} not installed: {table.needs[missing[0]]}"
    if table.display and not has_display() and not has_virtual_display():
        return "there is no display: start it on a desktop, or install xvfb-run"
    return None


def without(table: Table) -> list[str]:
    """Return a sentence for every peer that is not measured beside."""
    return [f"without {name}, which is not installed: {table.peers[name]}" for name in _missing(table.peers)]


def has_display() -> bool:
    return platform.system() != "Linux" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def has_virtual_display() -> bool:
    return platform.system() == "Linux" and shutil.which("xvfb-run") is not None and VIRTUAL_DISPLAY.exists()


def _missing(modules: dict[str, str]) -> list[str]:
    return [name for name in modules if importlib.util.find_spec(name) is None]


if __name__ == "__main__":
    app()
