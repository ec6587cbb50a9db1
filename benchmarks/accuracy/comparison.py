"""Compare methods over test cases: paired tests, effect sizes, intervals, ranks. Arrays in, numbers out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Scores = NDArray[np.float64]
RESAMPLES = 10_000
LEVEL = 0.95


@dataclass(frozen=True)
class Pair:
    """What the paired scores of two methods say about their difference."""

    cases: int
    """Cases with a score of both."""
    patients: int
    difference: float
    """Mean of first - second over the cases."""
    low: float
    """Lower end of its 95 % interval."""
    high: float
    d_z: float
    """Cohen's d_z: the difference in standard deviations of the differences; nan where these are all the same."""
    rank_biserial: float
    """Matched-pairs rank-biserial correlation, -1 to 1: 1 where the first is better in every case."""
    p: float
    """Wilcoxon's signed-rank test over the cases, two-sided, not corrected."""
    p_patients: float
    """The same over patients, whose cases are averaged first."""


def compare(first: Scores, second: Scores, patients: Sequence[object]) -> Pair | None:
    """Compare two methods on the same cases.

    Parameters
    ----------
    first, second
        Scores, one per case; a case in which either is nan does not count.
    patients
        To whom each case belongs.

    Returns
    -------
    Pair
        Or None if no case has both scores.

    Examples
    --------
    >>> pair = compare(np.array([0.9, 0.8, 0.7]), np.array([0.6, 0.6, 0.6]), ["a", "b", "c"])
    >>> round(pair.difference, 3), pair.rank_biserial, round(pair.p, 3), round(pair.d_z, 3)
    (0.2, 1.0, 0.25, 2.0)
    """
    both = ~(np.isnan(first) | np.isnan(second))
    if not both.any():
        return None
    differences = first[both] - second[both]
    groups = grouped([patient for patient, kept in zip(patients, both, strict=True) if kept])
    low, high = interval(differences, groups)
    return Pair(
        cases=len(differences),
        patients=len(groups),
        difference=float(differences.mean()),
        low=low,
        high=high,
        d_z=cohens_d(differences),
        rank_biserial=rank_biserial(differences),
        p=signed_rank(differences),
        p_patients=signed_rank(np.array([differences[group].mean() for group in groups])),
    )


def grouped(patients: Sequence[object]) -> list[list[int]]:
    """Return which cases belong to each patient.

    Examples
    --------
    >>> grouped(["a", "b", "a"])
    [[0, 2], [1]]
    """
    groups: dict[object, list[int]] = {}
    for case, patient in enumerate(patients):
        groups.setdefault(patient, []).append(case)
    return list(groups.values())


def signed_rank(differences: Scores) -> float:
    """Return the two-sided p value of Wilcoxon's signed-rank test; differences of zero do not count."""
    moved = _without_noise(differences)
    return float(stats.wilcoxon(moved).pvalue) if len(moved) else 1.0


def rank_biserial(differences: Scores) -> float:
    """Return the matched-pairs rank-biserial correlation [1].

    The sum of the ranks of the positive differences less that of the negative ones, by the sum of all: 0 where nothing
    differs.

    References
    ----------
    1. D. S. Kerby, *The simple difference formula*, Comprehensive Psychology 3, 2014, doi:10.2466/11.IT.3.1.
    """
    moved = _without_noise(differences)
    ranks = stats.rankdata(np.abs(moved))
    return float((ranks * np.sign(moved)).sum() / ranks.sum()) if len(moved) else 0.0


def cohens_d(differences: Scores) -> float:
    """Return d_z, the mean of the differences by their standard deviation; nan where that is zero or unknown."""
    if len(differences) < 2:
        return math.nan
    spread = float(differences.std(ddof=1))
    return float(differences.mean()) / spread if spread > 1e-12 else math.nan


def interval(differences: Scores, groups: Sequence[Sequence[int]]) -> tuple[float, float]:
    """Return the 95 % percentile interval of the mean, by bootstrap over patients.

    Parameters
    ----------
    differences
        One per case.
    groups
        The cases of each patient: a patient is drawn with all of them. The seed is fixed.
    """
    sums = np.array([differences[list(group)].sum() for group in groups])
    sizes = np.array([len(group) for group in groups])
    drawn = np.random.default_rng(0).integers(len(groups), size=(RESAMPLES, len(groups)))
    means = sums[drawn].sum(1) / sizes[drawn].sum(1)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def holm(values: Sequence[float]) -> list[float]:
    """Return p values corrected for their number by Holm's method.

    Examples
    --------
    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    corrected = [0.0] * len(values)
    largest = 0.0
    for done, index in enumerate(sorted(range(len(values)), key=lambda index: values[index])):
        largest = max(largest, min(1.0, (len(values) - done) * values[index]))
        corrected[index] = largest
    return corrected


@dataclass(frozen=True)
class Ranking:
    """How methods rank against each other over many patients."""

    ranks: dict[str, float]
    """Mean rank of each method, 1 = best, the best first."""
    patients: int
    p: float
    """Friedman's test: do any two differ?"""
    critical: float
    """Nemenyi's critical difference of two mean ranks, at 5 %."""


def rank(scores: dict[str, Scores], patients: Sequence[object]) -> Ranking | None:
    """Rank methods within each patient, and average [1].

    Parameters
    ----------
    scores
        By method, one score per case, more = better; a patient's cases are averaged, and a patient with a nan is left
        out.
    patients
        To whom each case belongs.

    Returns
    -------
    Ranking
        Or None with fewer than three methods or two patients.

    References
    ----------
    1. J. Demšar, *Statistical comparisons of classifiers over multiple data sets*, JMLR 7, 2006.
    """
    groups = grouped(patients)
    table = np.array([[scores[name][group].mean() for name in scores] for group in groups])  # patients x methods
    table = np.round(table[~np.isnan(table).any(1)], 12)
    count, methods = table.shape if table.size else (0, len(scores))
    if methods < 3 or count < 2:
        return None
    mean = stats.rankdata(-table, axis=1).mean(0)
    ranks = dict(sorted(zip(scores, map(float, mean), strict=True), key=lambda item: item[1]))
    differ = (table != table[:, :1]).any()
    p = float(stats.friedmanchisquare(*table.T).pvalue) if differ else 1.0
    return Ranking(ranks, count, p, nemenyi(methods, count))


def nemenyi(methods: int, patients: int) -> float:
    """Return the critical difference of mean ranks at 5 %.

    Examples
    --------
    >>> round(nemenyi(4, 14), 2)  # Demšar 2006, section 3.2.4
    1.25
    """
    q = stats.studentized_range.ppf(0.95, methods, np.inf) / math.sqrt(2)
    return float(q * math.sqrt(methods * (methods + 1) / (6 * patients)))


def cliques(ranks: Sequence[float], critical: float) -> list[tuple[int, int]]:
    """Return the largest groups of neighbours, in sorted ranks, that do not differ: first and last index.

    Examples
    --------
    >>> cliques([1.0, 1.5, 2.2, 4.0], 1.0)
    [(0, 1), (1, 2)]
    """
    found: list[tuple[int, int]] = []
    for first, low in enumerate(ranks):
        last = max(index for index, high in enumerate(ranks) if high - low <= critical)
        if last > first and (not found or last > found[-1][1]):
            found.append((first, last))
    return found


def _without_noise(differences: Scores) -> Scores:
    """Return the differences that are none of arithmetic, and let equal ones be equal."""
    rounded = np.round(differences, 12)
    return rounded[rounded != 0]
