"""How long it takes until something can be done: CPU and wall seconds of fresh interpreters, medians of seven."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time

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


def main() -> None:
    times = {name: [] for name in COMMANDS}
    for _ in range(ROUNDS):
        for name, code in COMMANDS.items():
            times[name].append(measure(code))
    print(f"{'':<36}{'CPU s':>8}{'wall s':>8}")
    for name, found in times.items():
        cpu, wall = (statistics.median(column) for column in zip(*found, strict=True))
        print(f"{name:<36}{cpu:>8.2f}{wall:>8.2f}")


if __name__ == "__main__":
    main()
