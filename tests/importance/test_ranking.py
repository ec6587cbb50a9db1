"""Rankings, alignment of grids, and agreement against scipy, scikit-learn and values computed by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import ndcg_score

from rskd.errors import ParameterError
from rskd.importance import agreement, align, rank_tokens, token_mask
from rskd.importance.ranking import top_count


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_ties_keep_the_order_of_tokens_and_padding_comes_last():
    scores = torch.tensor([[1.0, 2.0, 2.0, 1.0, 9.0, 2.0]])
    valid = torch.tensor([[True, True, True, True, False, True]])
    ranking = rank_tokens(scores, (2, 3), valid=valid)
    assert ranking.order.tolist() == [[1, 2, 5, 0, 3, 4]]
    assert ranking.ranks.tolist() == [[3, 0, 1, 4, 5, 2]]
    assert ranking.top(0.5).tolist() == [[False, True, True, False, False, True]]


def test_nearest_neighbour_ties_are_deterministic():
    scores = rand(1, 4).repeat_interleave(4, 1)
    orders = [rank_tokens(scores, (4, 4)).order for _ in range(3)]
    assert all(torch.equal(orders[0], order) for order in orders)
    assert (orders[0].view(4, 4).diff(dim=1) == 1).all()


def test_alignment_down_is_block_averaging():
    scores = rand(2, 64)
    expected = scores.view(2, 4, 2, 4, 2).sum((2, 4)).flatten(1)
    assert torch.allclose(align(scores, (8, 8), (4, 4)), expected / expected.sum(1, keepdim=True))


@given(
    grid=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    to=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    seed=st.integers(0, 2**31),
)
def test_alignment_keeps_the_sum_the_range_and_a_constant(grid, to, seed):
    scores = rand(1, grid[0] * grid[1], seed=seed) + 0.1
    scores = scores / scores.sum(1, keepdim=True)
    aligned = align(scores, grid, to)
    assert aligned.shape == (1, to[0] * to[1])
    assert aligned.sum().item() == pytest.approx(1)
    flat = align(torch.ones_like(scores), grid, to)
    assert torch.allclose(flat, torch.full_like(flat, 1 / flat.shape[1]))
    assert torch.allclose(align(scores, grid, grid), scores)


def test_alignment_does_not_move_a_peak():
    peak = torch.zeros(1, 49, dtype=torch.float64) + 0.01
    peak[0, 3 * 7 + 3] = 1.0
    for side in (5, 11, 21):
        assert align(peak, (7, 7), (side, side)).argmax().item() == (side // 2) * side + side // 2


def test_tokens_of_a_mask():
    mask = torch.zeros(1, 12, 12)
    mask[0, 5, 5] = 3
    assert token_mask(mask, (4, 4)).view(4, 4).nonzero().tolist() == [[1, 1]]
    assert token_mask(mask, (4, 4), dilate=1).view(4, 4).sum() == 9


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("ties", [False, True])
def test_agreement_equals_scipy_and_scikit_learn(seed, ties):
    teacher, student = rand(40, seed=seed), rand(40, seed=seed + 50)
    if ties:
        teacher, student = (teacher * 6).round(), (student * 6).round()
    got = agreement(teacher, student, top=0.25)
    a, b = teacher.numpy(), student.numpy()
    assert got.k == 10
    assert got.kendall == pytest.approx(stats.kendalltau(a, b, variant="b").statistic)
    assert got.spearman == pytest.approx(stats.pearsonr(stats.rankdata(a), stats.rankdata(b)).statistic)
    assert got.weighted_tau == pytest.approx(stats.weightedtau(a, b).statistic)
    if not ties:
        assert got.ndcg == pytest.approx(ndcg_score(a[None], b[None], k=10))
        best = {j for j in range(40) if a[j] >= sorted(a)[-10]}
        chosen = {j for j in range(40) if b[j] >= sorted(b)[-10]}
        assert got.overlap == len(best & chosen) / 10


def test_four_tokens_by_hand_with_a_tie():
    teacher, student = torch.tensor([4.0, 3.0, 2.0, 2.0]), torch.tensor([3.0, 4.0, 1.0, 2.0])
    got = agreement(teacher, student, top=0.5)
    # pairs: (0,1) discordant; (0,2), (0,3), (1,2), (1,3) concordant; (2,3) tied by the teacher
    assert got.kendall == pytest.approx((4 - 1) / math.sqrt(5 * 6))
    # ranks 4, 3, 1.5, 1.5 and 3, 4, 1, 2
    assert got.spearman == pytest.approx(3.5 / math.sqrt(4.5 * 5.0))
    assert got.overlap == 1.0
    assert got.ndcg == pytest.approx((3 + 4 / math.log2(3)) / (4 + 3 / math.log2(3)))


def test_agreement_inside_a_class_and_of_constants():
    teacher, student = rand(16), rand(16, seed=1)
    within = torch.arange(16) < 5
    assert agreement(teacher, student, within=within) == agreement(teacher[:5], student[:5])
    constant = agreement(teacher, torch.ones(16))
    assert math.isnan(constant.kendall)
    assert math.isnan(constant.spearman)
    perfect = agreement(teacher, teacher**3)
    assert (perfect.kendall, perfect.overlap, perfect.ndcg) == pytest.approx((1, 1, 1))


def test_impossible_comparisons_and_grids():
    with pytest.raises(ParameterError, match=r"give \(N\), image by image"):
        agreement(rand(2, 4), rand(2, 4))
    with pytest.raises(ParameterError, match="on one grid"):
        agreement(rand(4), rand(9))
    with pytest.raises(ParameterError, match=r"\(3, 3\) has 9 tokens, the scores 8"):
        rank_tokens(rand(8), (3, 3))
    for share in (0.0, 1.5):
        with pytest.raises(ParameterError, match="at most 1"):
            top_count(share, 10)
    assert (top_count(0.001, 10), top_count(1.0, 10), top_count(0.25, 196)) == (1, 10, 49)
