"""Run a study, print its table, or write all tables and figures of the documentation.

    python -m benchmarks.accuracy run STUDY.toml --data DATA --runs RUNS [--minutes 10]
    python -m benchmarks.accuracy table STUDY.toml
    python -m benchmarks.accuracy docs [--check]
    python -m benchmarks.accuracy latency STUDY.toml ...
    python -m benchmarks.accuracy patients DATA

A study is a comparison described by one file (see `studies/`). `run` does its units one after the other, each a
training and its test, and stores every result in `results/STUDY/`; what is stored is not done again. A unit that is not
ready after `--minutes` writes a checkpoint, and the next call goes on with it. Started several times, the processes
share the work.

`docs` writes `docs/measured/` from the stored results; with `--check` it writes nothing and fails where they differ.
`latency` times the networks of a study on this computer, for the figure of accuracy against cost. `patients` notes
which test images belong to one patient, for the bootstrap.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from benchmarks.accuracy.study import read_study
from benchmarks.accuracy.table import table
from rskd.config import ComputeOptions, Device
from rskd.io.files import write_atomically

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


@app.command(name="docs")
def write_docs(
    *, check: Annotated[bool, Parameter(help="Write nothing; fail where something differs.")] = False
) -> None:
    """Write the tables and figures of the documentation from all stored results."""
    from benchmarks.accuracy import docs

    said = docs.check() if check else docs.write()
    print("\n".join(said) or "Everything is as the stored results say.")
    sys.exit(1 if check and said else 0)


@app.command
def latency(*studies: Path, seconds: Annotated[float, Parameter(help="Time of each study.")] = 20.0) -> None:
    """Time teacher and student of studies on this computer, and store it."""
    from benchmarks.accuracy.docs import LATENCY
    from benchmarks.accuracy.latency import measure

    for path in studies:
        value = measure(read_study(path), seconds=seconds)
        LATENCY.mkdir(parents=True, exist_ok=True)
        write_atomically(LATENCY / f"{path.stem}.json", (json.dumps(value, indent=1) + "\n").encode())
        print(f"{path.stem}: stored", flush=True)


@app.command(name="patients")
def write_patients(data: Path, /) -> None:
    """Note which test images belong to one patient."""
    from benchmarks.accuracy.patients import patients
    from benchmarks.accuracy.stored import PATIENTS

    write_atomically(PATIENTS, (json.dumps(patients(data), indent=1) + "\n").encode())


if __name__ == "__main__":
    app()
