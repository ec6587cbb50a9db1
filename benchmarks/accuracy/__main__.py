"""Run a study, or print its table.

    python -m benchmarks.accuracy run STUDY.toml --data DATA --runs RUNS [--minutes 10]
    python -m benchmarks.accuracy table STUDY.toml

A study is a comparison described by one file (see `studies/`). `run` does its units one after the other, each a
training and its test, and stores every result in `results/STUDY/`; what is stored is not done again. A unit that is not
ready after `--minutes` writes a checkpoint, and the next call goes on with it. Started several times, the processes
share the work.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from benchmarks.accuracy.study import read_study
from benchmarks.accuracy.table import table
from rskd.config import ComputeOptions, Device

RESULTS = Path(__file__).parent / "results"
app = App(name="python -m benchmarks.accuracy", help=__doc__.partition("\n")[0])


@app.command
def run(
    study: Path,
    /,
    *,
    data: Path,
    runs: Path,
    minutes: Annotated[float, Parameter(help="Time of this call.")] = 10.0,
    device: Device = "auto",
    threads: int = 1,
) -> None:
    """Do what is not stored yet."""
    from benchmarks.accuracy.units import Workplace, run_study

    workplace = Workplace(data, runs, RESULTS, ComputeOptions(device=device, threads=threads))
    for sentence in run_study(read_study(study), workplace, minutes=minutes):
        print(sentence, flush=True)


@app.command(name="table")
def show(study: Path, /) -> None:
    """Print the table of what is stored."""
    print(table(read_study(study), RESULTS))


if __name__ == "__main__":
    app()
