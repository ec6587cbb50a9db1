"""The tables of a study, made from its stored results."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.accuracy.comparison import LEVEL, RESAMPLES, Pair, Ranking, compare, holm, rank
from benchmarks.accuracy.stored import DICE, HD95, SURFACE_DICE, Result, Stored
from benchmarks.accuracy.study import ALONE, TEACHER, Study
from rskd.config import ScoreOptions

RSKD = "rskd"
PARTS = {"ranking": "no_ranking", "texture": "no_texture", "fusion": "no_fusion"}
"""Arm without each part."""
LABELS = {
    ALONE: "student alone",
    "kd": "KD",
    "balanced_kd": "balanced KD",
    "cwd": "CWD",
    "reviewkd": "ReviewKD",
    "at": "AT",
    "dist": "DIST",
    "mgd": "MGD",
    RSKD: "RSKD",
    **{arm: f"RSKD without {part}" for part, arm in PARTS.items()},
    "ranking_as_values": "RSKD, values for ranks",
    "texture_as_mse": "RSKD, MSE for texture",
    "texture_as_wavelet": "RSKD, wavelets for contourlets",
    "fusion_as_reviewkd": "RSKD, ReviewKD for fusion",
}
SMALL = "-small"
"""Ends the name of a first trial, which counts in no mean."""
CONTROL = "kl_importance"
"""Base of an arm that stands in for a part of RSKD and is no published method."""
NONE = "–"


def label(arm: str) -> str:
    """Return what readers call an arm."""
    return LABELS.get(arm, arm.replace("_", " "))


def section(stored: Stored, trials: dict[str, list[tuple[int, Result]]], figures: Sequence[tuple[str, str]]) -> str:
    """Return all tables of a study as Markdown.

    Parameters
    ----------
    stored, trials
        From `benchmarks.accuracy.stored`.
    figures
        What each shows, and its file.
    """
    parts = [scores_table(stored), *incomplete(stored.study, stored)]
    if stored.has(DICE):
        ranking = ranking_of(stored)
        parts += [borders(stored)] if stored.has(HD95) else []
        parts += [failures(stored), *_ranks(stored, ranking)]
        parts += [f"![{words}]({file})" for words, file in figures]
        against = [arm for arm in stored.students if arm != RSKD]
        if RSKD in stored.results:
            parts += comparisons(stored, "RSKD less every other method", [(RSKD, arm) for arm in against])
        if ALONE in stored.results:
            better = [(arm, ALONE) for arm in stored.students if arm != ALONE]
            parts += comparisons(stored, "Every method less the student alone", better)
        parts += [_note(stored)]
    parts += [trials_table(stored, trials)] if trials else []
    return "\n\n".join(parts) + "\n"


def scores_table(stored: Stored) -> str:
    """Return the test Dice: mean ± sample deviation over the seeds, of all classes and of each."""
    classes = stored.classes if len(stored.classes) > 1 else []
    ranking = ranking_of(stored) if stored.has(DICE) else None
    heads = ["method", "M parameters", "seeds", "test Dice", *classes]
    heads += ["gap closed"] if gap(stored) is not None else []
    heads += ["mean rank"] if ranking else []
    rows = []
    for arm, by_seed in stored.results.items():
        parameters = next(iter(by_seed.values()))["parameters"] / 1e6
        cells = [label(arm), f"{parameters:.2f}", str(len(by_seed)), spread(stored.by_seed(arm))]
        cells += [spread(stored.by_seed(arm, only=name)) for name in classes]
        cells += [_share(gap_closed(stored, arm))] if "gap closed" in heads else []
        cells += [f"{ranking.ranks[arm]:.2f}" if arm in ranking.ranks else NONE] if ranking else []
        rows.append(cells)
    return markdown(heads, rows)


def incomplete(study: Study, stored: Stored) -> list[str]:
    """Return a sentence on what a study lacks, if anything."""
    seeds = len(study.seeds)
    counts = {arm: len(stored.results.get(arm, ())) for arm in (TEACHER, *study.arms)}
    words = [f"{label(arm)} {count or 'none'}" for arm, count in counts.items() if count < seeds]
    return [f"**Not complete:** of {seeds} seeds there are so far: {', '.join(words)}."] if words else []


def borders(stored: Stored) -> str:
    """Return the measures of borders: mean ± sample deviation over the seeds."""
    rows = []
    for arm in stored.results:
        cells = [label(arm), spread(stored.by_seed(arm, HD95), 2), str(stored.missed(arm))]
        cells += [spread(stored.by_seed(arm, SURFACE_DICE)), _p_of(stored, arm, HD95), _p_of(stored, arm, SURFACE_DICE)]
        rows.append(cells)
    heads = ["method", f"HD95 ({stored.unit})", "without distance", "surface Dice"]
    heads += ["p, HD95 against RSKD", "p, surface Dice against RSKD"]
    words = (
        f"Borders: the 95th percentile of the Hausdorff distance, and surface Dice at {ScoreOptions().tolerance:g} "
        f"{stored.unit}. "
        "*Without distance*: how often a class is in the mask or in the segmentation alone; it is not in the mean, and "
        "counts as the largest distance of the study in the test. p: Wilcoxon's signed-rank test over the cases, not "
        "corrected: Dice decides."
    )
    return f"{words}\n\n{markdown(heads, rows)}"


def failures(stored: Stored) -> str:
    """Return which classes were lost altogether, and how often a class was missed in a case."""
    lines = []
    lost: dict[tuple[str, str], list[int]] = {}
    for arm, seed, name in stored.lost():
        lost.setdefault((arm, name), []).append(seed)
    for (arm, name), seeds in lost.items():
        words = f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"
        lines.append(f"{label(arm)} loses the {name} in every case ({words})")
    for arm in stored.results:
        zeros, scores = stored.without_overlap(arm)
        if zeros:
            lines.append(f"{label(arm)}: {zeros} of {scores} scores are 0")
    return "Failures: " + ("; ".join(lines) if lines else "none, every class is found in every case") + "."


def comparisons(stored: Stored, title: str, pairs: Sequence[tuple[str, str]]) -> list[str]:
    """Return a table of paired comparisons, one family of tests; first less second."""
    found = {pair: compared(stored, *pair) for pair in pairs}
    known = {pair: value for pair, value in found.items() if value is not None}
    if not known:
        return []
    clustered = any(value.patients < value.cases for value in known.values())
    corrected = holm([value.p for value in known.values()])
    by_patient = holm([value.p_patients for value in known.values()])
    heads = ["difference to" if pairs[0][0] == RSKD else "method", "seeds", "mean", "95 % interval", "d_z", "r", "p"]
    heads += ["p (Holm)", *(["p over patients (Holm)"] if clustered else [])]
    rows = []
    for ((first, second), value), p, q in zip(known.items(), corrected, by_patient, strict=True):
        arm = second if heads[0] == "difference to" else first
        cells = [label(arm), str(len(stored.seeds(first, second))), *_difference(value)]
        rows.append([*cells, _p(value.p), _p(p), *([_p(q)] if clustered else [])])
    return [f"{title}:", markdown(heads, rows)]


def trials_table(stored: Stored, trials: dict[str, list[tuple[int, Result]]]) -> str:
    """Return what was tried for each method, on validation images alone."""
    rows = []
    for arm, found in trials.items():
        chosen = {result.get("trial") for result in stored.results.get(arm, {}).values()}
        for number, result in found:
            mark = " ← chosen" if number in chosen else ""
            best = max(score for score in result["validation"] if score is not None)
            rows.append([label(arm), f"{number}{mark}", _changes(result.get("trial_changes", {})), f"{best:.4f}"])
    words = "Trials, chosen by the best validation Dice; the test images were not looked at:"
    return f"{words}\n\n{markdown(['method', 'trial', 'what it changes', 'validation Dice'], rows)}"


def overview(studies: Sequence[Stored]) -> str:
    """Return a line per study: what the student gains by RSKD, beside the best of the others."""
    heads = ["study", "seeds", "teacher", "student alone", "best other method", "RSKD", "above all others"]
    heads += ["gap closed", *(f"{part} adds" for part in PARTS)]
    told = [stored for stored in studies if {TEACHER, RSKD} <= set(stored.results)]
    rows = [_overview_row(stored) for stored in told]
    full = [stored for stored in told if stored.study.after is None and not stored.study.name.endswith(SMALL)]
    if len(full) > 1:
        means = [_mean_of([gap_closed(stored, RSKD) for stored in full], _share)]
        means += [_mean_of([_added(stored, arm) for stored in full], _signed) for arm in PARTS.values()]
        rows.append(["mean", *[""] * (len(heads) - 1 - len(means)), *means])
    words = (
        "Mean ± sample deviation of the test Dice over the seeds. *Above all others*: RSKD's mean is above that of the "
        "student alone and of every published method, each on the seeds that both have. *Gap closed*: share of the way "
        "from the student alone to the teacher, where these are further apart than twice the larger of their standard "
        "deviations. *Adds*: RSKD less RSKD without this part. *Mean*: of the studies with all masks whose name does "
        f"not end in `{SMALL}`, as far as they have a value: every data set counts once."
    )
    return f"{markdown(heads, rows)}\n\n{words}\n"


def _overview_row(stored: Stored) -> list[str]:
    others = {arm: float(np.mean(stored.by_seed(arm))) for arm in baselines(stored)}
    best = max(others, key=lambda arm: others[arm], default=None)
    alone = ALONE in stored.results
    ahead = [_added(stored, arm) for arm in ([ALONE] if alone else []) + list(others)]
    cells = [f"`{stored.study.name}`", str(len(stored.seeds(TEACHER, RSKD)))]
    cells += [spread(stored.by_seed(TEACHER)), spread(stored.by_seed(ALONE)) if alone else NONE]
    cells += [f"{label(best)} {spread(stored.by_seed(best))}" if best else NONE, spread(stored.by_seed(RSKD))]
    cells += ["yes" if all(more is not None and more > 0 for more in ahead) else "no", _share(gap_closed(stored, RSKD))]
    return [*cells, *(_signed(_added(stored, arm)) for arm in PARTS.values())]


def _mean_of(values: Sequence[float | None], words: Callable[[float | None], str]) -> str:
    known = [value for value in values if value is not None]
    return words(float(np.mean(known)) if known else None)


def baselines(stored: Stored) -> list[str]:
    """Return the published methods of a study: neither the student alone, nor RSKD or something made from it."""
    return [arm for arm in stored.students if stored.study.arms[arm].base not in (ALONE, RSKD, CONTROL)]


def compared(stored: Stored, first: str, second: str, measure: str = DICE) -> Pair | None:
    """Compare two arms over the cases, on the seeds that both have."""
    seeds = stored.seeds(first, second)
    if not seeds:
        return None
    return compare(stored.scores(first, seeds, measure), stored.scores(second, seeds, measure), stored.owners)


def ranking_of(stored: Stored) -> Ranking | None:
    """Rank the students over the patients, on the seeds that all have."""
    seeds = stored.seeds(*stored.students)
    if not seeds:
        return None
    return rank({arm: stored.scores(arm, seeds) for arm in stored.students}, stored.owners)


def gap(stored: Stored) -> float | None:
    """Return how far the teacher is above the student alone.

    None where the two are not further apart than twice the larger of their standard deviations over the seeds, or have
    fewer than two seeds in common.
    """
    seeds = stored.seeds(TEACHER, ALONE)
    if len(seeds) < 2:
        return None
    above, below = (_seed_means(stored, arm, seeds) for arm in (TEACHER, ALONE))
    distance = float(np.mean(above) - np.mean(below))
    return distance if distance > 2 * max(np.std(above, ddof=1), np.std(below, ddof=1)) else None


def gap_closed(stored: Stored, arm: str) -> float | None:
    """Return which share of the way from the student alone to the teacher an arm goes, on its own seeds."""
    if arm in (TEACHER, ALONE) or gap(stored) is None:
        return None
    seeds = stored.seeds(TEACHER, ALONE, arm)
    if not seeds:
        return None
    teacher, alone, mine = (float(np.mean(_seed_means(stored, name, seeds))) for name in (TEACHER, ALONE, arm))
    return (mine - alone) / (teacher - alone)


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Return mean ± sample deviation.

    Examples
    --------
    >>> spread([0.5, 0.7]), spread([0.25]), spread([float("nan")])
    ('0.600 ± 0.141', '0.250', '–')
    """
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return NONE
    deviation = f" ± {np.std(known, ddof=1):.{digits}f}" if len(known) > 1 else ""
    return f"{np.mean(known):.{digits}f}{deviation}"


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table whose first column stands left."""
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _ranks(stored: Stored, ranking: Ranking | None) -> Iterator[str]:
    if ranking is not None:
        yield (
            f"Mean ranks over {ranking.patients} patients, of scores averaged over the seeds that all students have "
            f"({', '.join(map(str, stored.seeds(*stored.students)))}); 1 = best. Friedman's test that all are alike: "
            f"p {_p(ranking.p, sign='= ')}. Two mean ranks differ at 5 % if they are {ranking.critical:.2f} apart "
            "(Nemenyi)."
        )


def _note(stored: Stored) -> str:
    patients, cases = len(set(stored.owners)), len(stored.cases)
    whose = f"{cases} test images of {patients} patients" if patients < cases else f"{cases} test images"
    return (
        f"Every comparison is paired, over {whose}, whose scores are averaged over the seeds that both methods have. "
        f"*95 % interval*: of the mean, by bootstrap over patients ({RESAMPLES} resamples). *d_z*: mean of the "
        "differences by their standard deviation. *r*: matched-pairs rank-biserial correlation. *p*: Wilcoxon's "
        "signed-rank test, two-sided; *Holm*: corrected for the lines of the table. Intervals and tests speak of other "
        "patients, for these very networks; what another training would change is in the ± of the first table."
    )


def _difference(pair: Pair) -> list[str]:
    assert LEVEL == 0.95, "the head of the column says so"
    interval = f"{_signed(pair.low)} to {_signed(pair.high)}"
    return [_signed(pair.difference), interval, _signed(pair.d_z, 2), _signed(pair.rank_biserial, 2)]


def _p_of(stored: Stored, arm: str, measure: str) -> str:
    if arm in (TEACHER, RSKD) or RSKD not in stored.results:
        return NONE
    pair = compared(stored, RSKD, arm, measure)
    return NONE if pair is None else _p(pair.p)


def _p(value: float, sign: str = "") -> str:
    return f"{sign}{value:.3f}" if value >= 0.001 else "< 0.001"


def _signed(value: float | None, digits: int = 3) -> str:
    return NONE if value is None or math.isnan(value) else f"{value:+.{digits}f}".replace("-", "−")


def _share(value: float | None) -> str:
    return NONE if value is None else f"{value:.0%}".replace("-", "−")


def _seed_means(stored: Stored, arm: str, seeds: Sequence[int]) -> list[float]:
    by_seed = dict(zip(stored.results[arm], stored.by_seed(arm), strict=True))
    return [by_seed[seed] for seed in seeds]


def _added(stored: Stored, without: str) -> float | None:
    seeds = stored.seeds(RSKD, without)
    if not seeds:
        return None
    mine, less = (float(np.mean(_seed_means(stored, arm, seeds))) for arm in (RSKD, without))
    return mine - less


def _changes(changes: dict[str, Any], before: str = "") -> str:
    """Return nested changes as words.

    Examples
    --------
    >>> _changes({"logits": {"weight": 2.0, "temperature": 4}})
    'logits.weight = 2.0, logits.temperature = 4'
    """
    words = [
        _changes(value, f"{before}{name}.") if isinstance(value, dict) else f"{before}{name} = {value}"
        for name, value in changes.items()
    ]
    return ", ".join(words) or "nothing"


def table(study: Study, results: Path) -> str:
    """Return the scores of what is stored of a study, or say that nothing is."""
    from benchmarks.accuracy.stored import read_stored

    stored = read_stored(study, results)
    if stored is None:
        return f"Nothing is stored of {study.name}."
    return "\n\n".join([scores_table(stored), *incomplete(study, stored)])
