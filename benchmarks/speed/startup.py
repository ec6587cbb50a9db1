"""How long it takes until something can be done: CPU and wall seconds of fresh interpreters, medians."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time

from benchmarks.speed._sheet import Sheet

COMMANDS = {
    "python": "pass",
    "import rskd": "import rskd",
    "rskd --help": "import sys; sys.argv = ['rskd', '--help']; from rskd.cli import main; main()",
    "import napari_rskd, engine client": "import napari_rskd, rskd.engine.client",
    "import napari": "import napari",
    "import torch": "import torch",
}
ROUNDS = 7


def measure(code: str) -> tuple[float, float]:
    began, used = time.perf_counter(), os.times()
    subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, check=True)
    now = os.times()
    cpu = now.children_user + now.children_system - used.children_user - used.children_system
    return cpu, time.perf_counter() - began


def main(sheet: Sheet) -> None:
    times = {name: [] for name in COMMANDS}
    for _ in range(sheet.rounds(ROUNDS)):
        for name, code in COMMANDS.items():
            times[name].append(measure(code))
    sheet.table("A fresh interpreter", "CPU s|.2f", "wall s|.2f", "CPU, python = 1|.1f")
    plain = statistics.median(cpu for cpu, _ in times["python"])
    for name, found in times.items():
        cpu, wall = (statistics.median(column) for column in zip(*found, strict=True))
        sheet.row(name, cpu, wall, cpu / plain)
