"""The statistics of the studies, against hand-computed cases, brute force, published tables and properties."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from benchmarks.accuracy.comparison import (
    cliques,
    cohens_d,
    compare,
    grouped,
    holm,
    interval,
    nemenyi,
    rank,
    rank_biserial,
    signed_rank,
)

SCORES = arrays(float, 9, elements=st.integers(-50, 50).map(lambda number: number / 100))


def by_enumeration(differences: np.ndarray) -> float:
    """Share of all signs whose rank sum is at least as far from its middle as the one that was seen."""
    size = np.abs(differences)
    ranks = [1 + sum(size < one) for one in size]
    middle = sum(ranks) / 2
    seen = abs(sum(r for r, d in zip(ranks, differences, strict=True) if d > 0) - middle)
    sums = [sum(itertools.compress(ranks, signs)) for signs in itertools.product((0, 1), repeat=len(ranks))]
    return sum(abs(total - middle) >= seen - 1e-9 for total in sums) / len(sums)


@pytest.mark.parametrize("seed", range(5))
def test_the_signed_rank_test_is_that_of_all_possible_signs(seed):
    differences = np.random.default_rng(seed).normal(0.3, 1, 10)
    assert signed_rank(differences) == pytest.approx(by_enumeration(differences))


def test_no_difference_is_no_evidence():
    assert signed_rank(np.array([1e-17, 0, -1e-16])) == 1
    assert rank_biserial(np.zeros(3)) == 0
    assert math.isnan(cohens_d(np.full(3, 0.1)))


def test_effect_sizes_by_hand():
    differences = np.array([3.0, -1.0, 2.0, 4.0])  # ranks 3, 1, 2, 4: (9 - 1) / 10; mean 2, variance 14 / 3
    assert rank_biserial(differences) == pytest.approx(0.8)
    assert cohens_d(differences) == pytest.approx(2 / math.sqrt(14 / 3))


@given(SCORES, SCORES)
@settings(deadline=None, max_examples=30)
def test_a_comparison_turned_round_turns_its_signs(first, second):
    here, there = (compare(*pair, range(9)) for pair in ((first, second), (second, first)))
    assert here.p == pytest.approx(there.p)
    assert here.rank_biserial == pytest.approx(-there.rank_biserial)
    assert here.difference == pytest.approx(-there.difference)
    assert here.low == pytest.approx(-there.high)
    assert here.low - 1e-12 <= here.difference <= here.high + 1e-12


@pytest.mark.parametrize(
    ("values", "corrected"),
    [([0.04], [0.04]), ([0.01, 0.02, 0.03, 0.9], [0.04, 0.06, 0.06, 0.9]), ([0.6, 0.7], [1, 1]), ([], [])],
)
def test_holm_by_hand(values, corrected):
    assert holm(values) == pytest.approx(corrected)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_lies_between_no_correction_and_bonferroni(values):
    for value, corrected in zip(values, holm(values), strict=True):
        assert value <= corrected <= min(1, len(values) * value) + 1e-12
    order = np.argsort(values, kind="stable")
    assert list(np.array(holm(values))[order]) == sorted(holm(values))


def test_the_interval_is_that_of_the_normal_distribution_for_many_patients():
    differences = np.random.default_rng(1).normal(0.02, 0.05, 400)
    low, high = interval(differences, grouped(range(400)))
    half = 1.96 * differences.std() / 20
    assert (low, high) == pytest.approx((differences.mean() - half, differences.mean() + half), abs=half / 10)


def test_volumes_of_one_patient_are_drawn_together():
    differences = np.repeat(np.random.default_rng(2).normal(0, 1, 30), 4)
    apart = interval(differences, grouped(range(120)))
    together = interval(differences, grouped([case // 4 for case in range(120)]))
    assert (together[1] - together[0]) / (apart[1] - apart[0]) == pytest.approx(2, rel=0.1)  # √4
    once = interval(differences[::4], grouped(range(30)))
    assert together == pytest.approx(once)


def test_patients_count_once_in_the_test_over_patients():
    first, second = np.repeat([0.9, 0.8, 0.7, 0.6, 0.5], 2), np.repeat([0.8, 0.75, 0.6, 0.4, 0.45], 2)
    pair = compare(first, second, ["a", "a", "b", "b", "c", "c", "d", "d", "e", "e"])
    assert (pair.cases, pair.patients) == (10, 5)
    assert pair.p_patients == pytest.approx(2 / 2**5)
    assert pair.p < pair.p_patients


def test_a_case_without_a_score_does_not_count():
    pair = compare(np.array([0.5, np.nan, 0.7]), np.array([0.4, 0.1, 0.5]), "abc")
    assert pair.cases == 2
    assert pair.difference == pytest.approx(0.15)
    assert compare(np.array([np.nan]), np.array([0.1]), "a") is None


@pytest.mark.parametrize(("methods", "q"), [(2, 1.960), (3, 2.343), (4, 2.569), (5, 2.728), (10, 3.164)])
def test_the_critical_difference_is_that_of_demsars_table(methods, q):
    assert nemenyi(methods, 10) == pytest.approx(q * math.sqrt(methods * (methods + 1) / 60), rel=5e-4)


def test_ranks_by_hand():
    scores = {"a": np.array([0.9, 0.8, 0.7]), "b": np.array([0.5, 0.8, 0.6]), "c": np.array([0.4, 0.1, 0.9])}
    ranking = rank(scores, "xyz")  # ranks 1 2 3, 1.5 1.5 3, 2 3 1
    assert ranking.ranks == pytest.approx({"a": 4.5 / 3, "b": 6.5 / 3, "c": 7 / 3})
    assert list(ranking.ranks) == ["a", "b", "c"]
    assert rank(scores, "xxx") is None
    assert rank({"a": scores["a"], "b": scores["b"]}, "xyz") is None


def test_friedmans_test_by_enumeration():
    scores = np.array([[0.9, 0.5, 0.4], [0.8, 0.7, 0.1], [0.7, 0.6, 0.5], [0.9, 0.3, 0.4]])
    ranking = rank(dict(zip("abc", scores.T, strict=True)), range(4))
    sums = np.array([4, 9, 11])  # chi² = 12 / (N k (k + 1)) Σ R² - 3 N (k + 1), here with 2 degrees of freedom
    chi2 = 12 / (4 * 3 * 4) * (sums**2).sum() - 3 * 4 * 4
    assert ranking.p == pytest.approx(math.exp(-chi2 / 2))


def test_alike_in_everything_is_no_difference():
    same = np.array([0.5, 0.6])
    ranking = rank({"a": same, "b": same, "c": same + 1e-15}, "xy")
    assert ranking.p == 1
    assert set(ranking.ranks.values()) == {2.0}


@given(st.lists(st.floats(1, 9), min_size=1, max_size=9).map(sorted), st.floats(0, 4))
def test_cliques_hold_every_pair_that_does_not_differ(ranks, critical):
    groups = cliques(ranks, critical)
    for first, second in itertools.combinations(range(len(ranks)), 2):
        together = any(low <= first and second <= high for low, high in groups)
        assert together == (ranks[second] - ranks[first] <= critical)
