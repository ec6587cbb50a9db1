"""The command that prints the speed tables: what it leaves out and why, what it keeps, and one table for real."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.speed import __main__ as speed
from benchmarks.speed import startup
from benchmarks.speed._sheet import Sheet, cells, markdown

ROOT = Path(__file__).parents[2]


def test_every_benchmark_is_a_table_of_the_command():
    assert {path.stem for path in speed.HERE.glob("[a-z]*.py")} == set(speed.TABLES)


def test_a_sheet_prints_what_it_keeps(capsys):
    sheet = Sheet("made up", quick=True)
    assert (sheet.rounds(9), Sheet("long").rounds(9)) == (3, 9)
    sheet.table("Two nets", "CPU ms|.1f", "x first|.2f", "target|")
    sheet.row("a", 12.34, 1.0, "< 20")
    sheet.row("b", None, 2.0, "")
    sheet.note("Medians.")
    printed = capsys.readouterr().out
    assert printed.split() == ["Two", "nets", "CPU", "ms", "x", "first", "target", "a", "12.3", "1.00", "<", "20",
                               "b", "–", "2.00", "Medians."]  # fmt: skip
    value = json.loads(json.dumps(sheet.value))
    assert value["tables"][0]["rows"] == [["a", 12.34, 1.0, "< 20"], ["b", None, 2.0, ""]]
    lines = markdown(value).splitlines()
    assert lines[:6] == [
        "Two nets:",
        "",
        "|  | CPU ms | x first | target |",
        "| --- | ---: | ---: | ---: |",
        "| a | 12.3 | 1.00 | < 20 |",
        "| b | – | 2.00 |  |",
    ]
    assert lines[7] == "Medians."
    assert lines[-1].startswith("Measured on ")


def test_figures_and_columns_go_together():
    with pytest.raises(ValueError, match="zip"):
        cells([1.0, 2.0], [".1f"])


def test_what_is_missing_is_said_with_the_way_to_get_it(monkeypatch):
    table = speed.Table("made up", needs={"no_such_module": "pip install it"}, peers={"no_such_peer": "get it"})
    assert speed.why_not(table) == "no_such_module not installed: pip install it"
    assert speed.without(table) == ["without no_such_peer, which is not installed: get it"]
    assert speed.why_not(speed.Table("here", needs={"json": ""}, peers={"json": ""})) is None
    window = speed.Table("window", display=True)
    monkeypatch.setattr(speed, "has_display", lambda: False)
    monkeypatch.setattr(speed, "has_virtual_display", lambda: False)
    assert "no display" in speed.why_not(window)
    monkeypatch.setattr(speed, "has_virtual_display", lambda: True)
    assert speed.why_not(window) is None


def test_a_table_that_fails_does_not_end_the_others(monkeypatch, capsys):
    monkeypatch.setattr(speed, "TABLES", {name: speed.Table(f"about {name}") for name in ("bad", "good")})
    monkeypatch.setattr(speed, "run", lambda name, **_: "it ended with code 1" if name == "bad" else None)
    speed.speed()
    printed = capsys.readouterr().out
    assert "== good: about good" in printed
    assert printed.splitlines()[-1] == "bad: left out, it ended with code 1"


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    call = [sys.executable, "-m", "benchmarks.speed", *arguments]
    return subprocess.run(call, capture_output=True, text=True, cwd=ROOT)


def test_an_unknown_table_is_refused_with_the_known_ones():
    done = command("--only", "unheard-of")
    assert done.returncode == 1
    assert "There is no table unheard-of: choose among contourlet, importance" in done.stderr


def test_one_table_is_measured_and_stored(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(startup, "COMMANDS", {"python": "pass", "import rskd": "import rskd"})
    with pytest.raises(SystemExit, match="0"):
        speed.app(["one", "startup", "--quick", "--output", str(tmp_path / "made" / "startup.json")])
    assert "import rskd" in capsys.readouterr().out
    value = json.loads((tmp_path / "made" / "startup.json").read_text())
    (table,) = value["tables"]
    figures = {name: row for name, *row in table["rows"]}
    assert figures["import rskd"][0] > 0
    assert figures["python"][2] == 1
    assert len(value["commit"].removesuffix("+changes")) == 40 or value["commit"] == "unknown"
    assert value["computer"]["processor"]
