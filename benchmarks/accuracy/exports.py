"""What a student loses and gains in fp16 and int8: ``python -m benchmarks.accuracy.exports DRIVE``, on the test images.

The figures are kept in ``results/exports.json``; the table of the documentation is written from them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.accuracy.datasets import lay_out
from rskd.bench import bench, computer
from rskd.bench_words import NAMES
from rskd.config import InferenceOptions
from rskd.evaluate import evaluate
from rskd.events import drain
from rskd.export import export
from rskd.jobs import BenchJob, EvaluateJob, ExportJob
from rskd.models.exported import available_runtimes

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "exports.json"
TABLE = HERE.parents[1] / "docs" / "measured" / "exports.inc"
STUDENT = Path("retina-student")
PRECISIONS = ("fp32", "fp16", "int8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("drive", type=Path, help="folder of the data set")
    drive = parser.parse_args().drive
    with TemporaryDirectory() as folder:
        value = measure(drive, Path(folder))
    RESULTS.write_text(json.dumps(value, indent=2) + "\n")
    write()


def measure(drive: Path, folder: Path) -> dict[str, Any]:
    folders = lay_out("drive", drive, folder)
    test = folders.test
    files = {precision: folder / f"{precision}.onnx" for precision in PRECISIONS}
    value: dict[str, Any] = {"student": str(STUDENT), "images": "test images of DRIVE", "computer": computer()}
    for precision, output in files.items():
        job = ExportJob(
            model=STUDENT,
            output=output,
            precision=precision,
            calibration=folders.development.images,
            test_images=test.images,
            test_masks=test.masks,
            test_regions=test.regions,
        )
        found = drain(export(job)).value
        size = found["size"]
        value[precision] = {key: found[key] for key in ("bytes", "difference", "agreement", "dice")}
    for runtime in available_runtimes():
        job = EvaluateJob(model=files["int8"], data=test, compute=InferenceOptions(runtime=runtime))
        value["int8"][f"dice in {runtime}"] = drain(evaluate(job)).value["dice"]
    job = BenchJob(models=tuple(files.values()), sizes=(size,), rounds=60, memory=False, compute={"threads": 1})
    value["bench"] = drain(bench(job)).value
    return value


def write() -> None:
    """Write the table from the stored figures."""
    TABLE.write_text(table(json.loads(RESULTS.read_text())))


def table(value: Mapping[str, Any]) -> str:
    rows = value["bench"]["rows"]
    runtimes = list(dict.fromkeys(row["runtime"] for row in rows))
    heads = ["precision", "MB", "largest difference of a logit", "same label", "Dice", "lost"]
    heads += [f"CPU time in {NAMES[name]}, fp32 = 1" for name in runtimes]
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)]]
    for precision in PRECISIONS:
        found = value[precision]
        ratios = {row["runtime"]: row["ratio"] for row in rows if row["network"] == f"{precision}.onnx"}
        cells = [precision, f"{found['bytes'] / 1e6:.2f}", f"{found['difference']:.1e}", f"{found['agreement']:.2%}"]
        cells += [f"{found['dice']['exported']:.4f}", f"{found['dice']['lost']:.4f}"]
        lines.append([*cells, *(f"{ratios[name]:.2f}" for name in runtimes)])
    where = f"`{value['student']}`, {value['images']}; times on one thread of {value['computer']['processor']}."
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + f"\n\n{where}\n"


if __name__ == "__main__":
    main()
