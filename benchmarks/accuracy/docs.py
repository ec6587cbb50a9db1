"""The tables and figures of the documentation, made from the stored results; none of them is typed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from benchmarks.accuracy import exports, latency, ranking_transfer
from benchmarks.accuracy.figures import Point, cost_diagram, rank_diagram
from benchmarks.accuracy.stored import DICE, Stored, read_stored, read_trials
from benchmarks.accuracy.study import TEACHER, read_study
from benchmarks.accuracy.table import RSKD, SMALL, label, overview, ranking_of, section
from benchmarks.speed import _sheet
from rskd.bench_words import draw
from rskd.bench_words import markdown as bench_table
from rskd.io.files import write_atomically

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RESULTS = HERE / "results"
STUDIES = HERE / "studies"
LATENCY = RESULTS / "latency"
SPEED = HERE.parent / "speed" / "results"
DOCS = ROOT / "docs"
MEASURED = "measured"


def render(results: Path = RESULTS, studies: Path = STUDIES) -> dict[str, str]:
    """Return every file of docs/measured that follows from the stored results, by name."""
    found = list(stored_studies(results, studies))
    files: dict[str, str] = {}
    for stored in found:
        name, figures = stored.study.name, []
        for kind, words, drawn in _figures(stored, results):
            files[f"{name}-{kind}.svg"] = drawn
            figures.append((words, f"{MEASURED}/{name}-{kind}.svg"))
        files[f"{name}.inc"] = section(stored, read_trials(stored.study, results), figures)
    files["overview.inc"] = overview(found)
    return files


def render_others() -> dict[str, str]:
    """Return the files that follow from stored results other than those of studies."""
    speed = {path.stem: json.loads(path.read_text()) for path in sorted(SPEED.glob("*.json"))}
    models = speed.pop("models")
    return {
        **{f"speed-{name}.inc": _sheet.markdown(value) for name, value in speed.items()},
        "bench.inc": bench_table(models),
        "exports.inc": exports.table(json.loads(exports.RESULTS.read_text())),
        "ranking-transfer.inc": ranking_transfer.table(ranking_transfer.read(RESULTS / "ranking_transfer.jsonl")),
    }


def write(docs: Path = DOCS) -> list[str]:
    """Write all files that are not as the stored results say; returns what was written and what was removed."""
    wanted = render() | render_others()
    said = []
    for name in differing(docs, wanted):
        path = docs / MEASURED / name
        if name in wanted:
            write_atomically(path, wanted[name].encode())
        else:
            path.unlink()
        if name == "bench.inc":
            draw(json.loads((SPEED / "models.json").read_text()), path.with_suffix(".svg"))
        said.append(f"{name}: {'written' if name in wanted else 'removed, nothing is stored for it'}")
    return said


def check(docs: Path = DOCS) -> list[str]:
    """Return a sentence for everything in the documentation that is not as the stored results say."""
    wanted = render() | render_others()
    said = [f"docs/measured/{name} is not what the stored results give." for name in differing(docs, wanted)]
    pages = "".join(path.read_text() for path in docs.rglob("*.md"))
    tables = [name for name in wanted if name.endswith(".inc")]
    return said + [f"No page includes docs/measured/{name}." for name in tables if name not in pages]


def differing(docs: Path, wanted: dict[str, str]) -> Iterator[str]:
    """Yield the names of files that are missing, different, or left over from a study without results."""
    place = docs / MEASURED
    for name, content in wanted.items():
        if not (place / name).exists() or (place / name).read_text(encoding="utf-8") != content:
            yield name
    ours = [path.name for path in place.glob("*.inc")] + [path.name for path in place.glob("*-*.svg")]
    yield from (name for name in ours if name not in wanted)


def stored_studies(results: Path, studies: Path) -> Iterator[Stored]:
    """Yield every study of which anything is stored, the small first trials last."""
    for path in sorted(studies.glob("*.toml"), key=lambda path: (path.stem.endswith(SMALL), path.stem)):
        stored = read_stored(read_study(path), results)
        if stored is not None:
            yield stored


def _figures(stored: Stored, results: Path) -> Iterator[tuple[str, str, str]]:
    """Yield kind, words and content of each figure of a study."""
    ranking = ranking_of(stored) if stored.has(DICE) else None
    if ranking is not None:
        names = {arm: label(arm) for arm in ranking.ranks}
        yield "ranks", "Mean ranks of the methods", rank_diagram(ranking, names, highlight=RSKD)
    if TEACHER in stored.results and stored.students:
        where, costs = _costs(stored, results)
        points = [Point(label(arm), costs[arm], stored.by_seed(arm)) for arm in stored.results]
        yield "cost", f"Test Dice against {where}", cost_diagram(points, where, highlight=label(RSKD))


def _costs(stored: Stored, results: Path) -> tuple[str, dict[str, float]]:
    """Return what the cost is, and the cost of every arm: measured time if there is one, else parameters."""
    path = results / LATENCY.name / f"{stored.study.name}.json"
    if not path.exists():
        first = {arm: next(iter(by_seed.values())) for arm, by_seed in stored.results.items()}
        return "millions of parameters", {arm: result["parameters"] / 1e6 for arm, result in first.items()}
    value = json.loads(path.read_text())
    size = value["rows"][0]["size"]
    where = f"CPU ms per image of {size} pixels, one thread, {latency.runtime(value)}"
    roles = {arm: TEACHER if arm == TEACHER else latency.STUDENT for arm in stored.results}
    return where, {arm: latency.cost(value, role) for arm, role in roles.items()}
