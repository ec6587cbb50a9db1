"""The tables of docs/small-machines.md are those of the stored results."""

import json
from pathlib import Path

import pytest

from benchmarks.accuracy import exports
from rskd.bench_words import markdown

ROOT = Path(__file__).parents[2]
MEASURED = ROOT / "docs" / "measured"
BENCH = ROOT / "benchmarks" / "speed" / "results" / "models.json"


def test_the_speed_table_is_made_from_the_stored_figures():
    assert (MEASURED / "bench.inc").read_text() == markdown(json.loads(BENCH.read_text()))


def test_the_table_of_precisions_is_made_from_the_stored_figures():
    value = json.loads(exports.RESULTS.read_text())
    assert (MEASURED / "exports.inc").read_text() == exports.table(value)
    for precision in exports.PRECISIONS:
        dice = value[precision]["dice"]
        assert dice["lost"] == pytest.approx(dice["original"] - dice["exported"])
