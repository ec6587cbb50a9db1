"""What the shipped networks cost in every runtime: `rskd bench` of the student and its teacher.

``python benchmarks/speed/models.py --store`` keeps the figures in ``results/models.json`` and writes the table and the
figure of the documentation from them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from rskd.bench import bench
from rskd.bench_words import draw, markdown, table
from rskd.events import drain
from rskd.jobs import BenchJob

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "models.json"
MEASURED = HERE.parents[1] / "docs" / "measured"
STUDENT_FIRST = (Path("retina-student"), Path("retina-teacher"))


def main(*, store: bool) -> None:
    output = RESULTS if store else None
    job = BenchJob(
        models=STUDENT_FIRST, seconds=30, memory=store, compute={"device": "cpu", "threads": 1}, output=output
    )
    value = drain(bench(job)).value
    print(table(value))
    if store:
        write()


def write() -> None:
    """Write table and figure from the stored figures."""
    value = json.loads(RESULTS.read_text())
    (MEASURED / "bench.inc").write_text(markdown(value))
    draw(value, MEASURED / "bench.svg")


if __name__ == "__main__":
    main(store="--store" in sys.argv[1:])
