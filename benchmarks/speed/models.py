"""What the bundled networks cost in every runtime: `rskd bench` of each student and its teacher."""

from __future__ import annotations

from pathlib import Path

from benchmarks.speed._sheet import Sheet
from rskd.bench import bench
from rskd.bench_words import table
from rskd.events import drain
from rskd.jobs import BenchJob

STUDENT_FIRST = (Path("retina-student"), Path("retina-teacher"))


def main(sheet: Sheet) -> None:
    compute = {"device": "cpu", "threads": 1}
    seconds = 2 if sheet.quick else 30
    job = BenchJob(models=STUDENT_FIRST, seconds=seconds, memory=not sheet.quick, compute=compute)
    sheet.value = drain(bench(job)).value
    print(table(sheet.value))
