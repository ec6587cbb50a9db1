"""TIRD: the losses against brute force written from their formulas, and what a top-k loss must and must not do."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rskd.config import RankingOptions
from rskd.distillation.plackett_luce import topk_listmle
from rskd.distillation.ranking import RankingTerm, is_flat, standardise
from rskd.distillation.ranking_losses import (
    LOSSES,
    approx_ndcg,
    kl_importance,
    lambdarank,
    listnet,
    pairwise_hinge,
    pairwise_logistic,
    rankdistil,
    soft_spearman,
    sort_lists,
)
from rskd.errors import ParameterError

EVERY_LOSS = (*LOSSES, "kl_importance")


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def listmle_by_formula(s: list[float], t: list[float], k: int, weights: list[float] | None = None) -> float:
    order = sorted(range(len(s)), key=lambda j: -t[j])
    terms = [math.log(sum(math.exp(s[j]) for j in order[i:])) - s[order[i]] for i in range(k)]
    return sum(w * term for w, term in zip(weights or [1.0] * k, terms, strict=True)) / k


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_probabilities_of_all_ordered_choices_sum_to_one(k):
    s = random(1, 5)
    total = 0.0
    for choice in itertools.permutations(range(5), k):
        teacher = torch.zeros(1, 5, dtype=torch.float64)
        teacher[0, list(choice)] = torch.arange(k, 0, -1, dtype=torch.float64)
        total += math.exp(-k * topk_listmle(s, teacher, k=k).item())
    assert total == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("k", [1, 4, 9])
@pytest.mark.parametrize("position_weights", ["uniform", "dcg", "teacher"])
def test_topk_listmle_equals_its_formula(k, position_weights):
    s, t = random(3, 9), random(3, 9, seed=1).exp()
    got = topk_listmle(s, t, k=k, position_weights=position_weights)
    for row in range(3):
        top = sorted(t[row].tolist(), reverse=True)[:k]
        weights = {
            "uniform": [1.0] * k,
            "dcg": [1 / math.log2(i + 2) for i in range(k)],
            "teacher": [value * k / sum(top) for value in top],
        }[position_weights]
        expected = listmle_by_formula(s[row].tolist(), t[row].tolist(), k, weights)
        assert got[row].item() == pytest.approx(expected, abs=1e-12)


def test_listmle_of_allrank():
    """allRank's listMLE on tie-free data: sum over all places of log(Σ exp(s_j − max) + 1e-10) − (s_i − max)."""
    s, t = random(4, 30), random(4, 30, seed=1)
    ordered = s.gather(1, t.argsort(1, descending=True))
    shifted = ordered - ordered.amax(1, keepdim=True)
    tails = shifted.exp().flip(1).cumsum(1).flip(1)
    allrank = ((tails + 1e-10).log() - shifted).sum(1)
    assert torch.allclose(30 * topk_listmle(s, t, k=30), allrank, rtol=0, atol=1e-7)


@pytest.mark.parametrize("k", [1, 3, 8])
def test_gradient_is_the_analytic_one(k):
    s, t = random(2, 8).requires_grad_(), random(2, 8, seed=1)
    (grad,) = torch.autograd.grad(topk_listmle(s, t, k=k).sum(), s)
    for row in range(2):
        order = t[row].argsort(descending=True)
        sorted_s = s[row].detach()[order]
        expected = torch.zeros(8, dtype=torch.float64)
        for i in range(k):
            expected[i:] += sorted_s[i:].softmax(0) / k
            expected[i] -= 1 / k
        assert torch.allclose(grad[row][order], expected, rtol=0, atol=1e-15)
        assert (grad[row][order][k:] >= 0).all()
    assert grad.sum(1).abs().max() <= 1e-15


@pytest.mark.parametrize("position_weights", ["uniform", "dcg", "teacher"])
def test_gradcheck_with_padding(position_weights):
    s, t = random(2, 7).requires_grad_(), random(2, 7, seed=1).exp()
    valid = torch.tensor([[True] * 7, [True, False, True, True, False, True, False]])
    options = {"k": 5, "valid": valid, "position_weights": position_weights}
    assert torch.autograd.gradcheck(lambda x: topk_listmle(x, t, **options), (s,))


def test_invariances():
    s, t = random(2, 12), random(2, 12, seed=1).exp()
    loss = topk_listmle(s, t, k=4)
    permutation = torch.randperm(12, generator=torch.Generator().manual_seed(2))
    assert torch.allclose(topk_listmle(s + 37.5, t, k=4), loss, rtol=0, atol=1e-12)
    assert torch.equal(topk_listmle(s, 5 * t, k=4), loss)
    assert torch.equal(topk_listmle(s, t**3, k=4), loss)
    assert torch.allclose(topk_listmle(s[:, permutation], t[:, permutation], k=4), loss, rtol=0, atol=1e-14)


def test_constant_scores_give_the_chance_level():
    expected = sum(math.log(196 - i) for i in range(20)) / 20
    loss = topk_listmle(torch.zeros(1, 196, dtype=torch.float64), random(1, 196), k=20)
    assert loss.item() == pytest.approx(expected, abs=1e-12)


def test_limits_of_a_perfect_order():
    ideal = torch.arange(12, 0, -1, dtype=torch.float64)[None]
    losses = [4 * topk_listmle(scale * ideal, ideal, k=4).item() for scale in (1, 5, 20)]
    assert losses == pytest.approx([1.83, 0.027, 8.2e-9], rel=0.01)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scores_spread_over_ten_thousand_give_finite_gradients(dtype):
    s = (1e4 * torch.linspace(-1, 1, 64, dtype=dtype)[None]).requires_grad_()
    for teacher in (torch.arange(64.0), -torch.arange(64.0)):
        loss = topk_listmle(s, teacher[None], k=16)
        (grad,) = torch.autograd.grad(loss.sum(), s)
        assert loss.isfinite().all()
        assert grad.isfinite().all()
        assert grad.abs().max() <= 1 + 1e-6


def test_sorted_into_the_teachers_order_is_the_least_over_all_permutations():
    values, t = random(1, 6), random(1, 6, seed=1)
    losses = {p: topk_listmle(values[:, list(p)], t, k=3).item() for p in itertools.permutations(range(6))}
    best = torch.empty(6, dtype=torch.float64)
    best[t[0].argsort(descending=True)] = values[0].sort(descending=True).values
    assert topk_listmle(best[None], t, k=3).item() <= min(losses.values()) + 1e-12


def test_padding_is_as_if_it_were_not_there():
    s, t, valid = random(1, 9), random(1, 9, seed=1).exp(), torch.tensor([[True, False, True] * 3])
    kept = valid[0]
    for name, loss in LOSSES.items():
        whole, cut = sort_lists(s, t, k=4, valid=valid), sort_lists(s[:, kept], t[:, kept], k=4)
        assert torch.allclose(loss(whole), loss(cut), rtol=0, atol=1e-12), name
    assert torch.allclose(
        kl_importance(s.exp(), t, valid=valid), kl_importance(s.exp()[:, kept], t[:, kept]), atol=1e-9
    )


def test_k_is_clamped_and_ties_keep_the_order_of_tokens():
    s = random(1, 5)
    assert torch.equal(topk_listmle(s, s, k=99), topk_listmle(s, s, k=5))
    assert torch.equal(topk_listmle(s, torch.zeros(1, 5), k=2), topk_listmle(s, -torch.arange(5.0)[None], k=2))


def by_pairs(s, t, k, loss, *, only_top=False):
    order = sorted(range(len(s)), key=lambda j: -t[j])
    last = k if only_top else len(s)
    pairs = [(order[i], order[j]) for i in range(k) for j in range(i + 1, last)]
    return sum(loss(s[i] - s[j]) for i, j in pairs) / len(pairs)


@pytest.mark.parametrize("seed", range(3))
def test_other_losses_equal_brute_force(seed):
    s, t = random(1, 8, seed=seed), random(1, 8, seed=seed + 10).exp()
    k, n, lists = 3, 8, sort_lists(s, t, k=3)
    a, b = s[0].tolist(), t[0].tolist()
    order = sorted(range(n), key=lambda j: -b[j])

    def softplus(x: float) -> float:
        return math.log1p(math.exp(x))

    z = [(math.log(x) - sum(map(math.log, b)) / n) for x in b]
    z = [x / math.sqrt(sum(y * y for y in z) / n) for x in z]
    share = [math.exp(x) / sum(map(math.exp, z)) for x in z]
    log_share = [x - math.log(sum(map(math.exp, a))) for x in a]
    place = {j: r for r, j in enumerate(sorted(range(n), key=lambda j: -a[j]))}
    ideal = sum(b[j] / math.log2(r + 2) for r, j in enumerate(order[:k]))
    change = sum(
        abs(1 / math.log2(place[i] + 2) - 1 / math.log2(place[j] + 2))
        * abs(b[i] - b[j])
        / ideal
        * softplus(a[j] - a[i])
        for r, i in enumerate(order[:k])
        for j in order[r + 1 :]
    )
    soft = [1 + sum(1 / (1 + math.exp(a[i] - a[j])) for j in range(n) if j != i) for i in range(n)]
    full_ideal = sum(b[j] / math.log2(r + 2) for r, j in enumerate(order))
    ranks = {j: r for r, j in enumerate(order)}
    correlation = torch.corrcoef(torch.tensor([soft, [float(ranks[j]) for j in range(n)]], dtype=torch.float64))[0, 1]
    behind = [softplus(a[j] - a[order[k - 1]] + 0.2) for j in order[k:]]
    expected = {
        listnet: -sum(p * q for p, q in zip(share, log_share, strict=True)),
        pairwise_hinge: by_pairs(a, b, k, lambda d: max(0.2 - d, 0.0)),
        pairwise_logistic: by_pairs(a, b, k, lambda d: softplus(-d)),
        lambdarank: change / math.log(2),
        approx_ndcg: -sum(x / math.log2(1 + r) for x, r in zip(b, soft, strict=True)) / full_ideal,
        soft_spearman: 1 - correlation.item(),
        rankdistil: listmle_by_formula(a, b, k) + sum(behind) / len(behind),
    }
    for loss, value in expected.items():
        assert loss(lists).item() == pytest.approx(value, rel=1e-6, abs=1e-8), loss.__name__
    only = by_pairs(a, b, k, lambda d: softplus(-d), only_top=True)
    assert pairwise_logistic(lists, pairs="topk_only").item() == pytest.approx(only, abs=1e-12)
    m, p = s[0].exp() / s[0].exp().sum(), t[0] / t[0].sum()
    assert kl_importance(s.exp(), t).item() == pytest.approx(float((p * (p / m).log()).sum()), abs=1e-9)


def moved(loss, *, steps: int = 400) -> Tensor:
    """Return scores (1, 64) that started in the opposite order and minimised `loss`; the teacher is 64 … 1."""
    teacher = torch.arange(64, 0, -1, dtype=torch.float64)[None]
    noise = 0.3 * random(1, 64)
    scores = (-standardise(teacher, temperature=1.0) + noise).requires_grad_()
    optimiser = torch.optim.Adam([scores], lr=0.05)
    for _ in range(steps):
        optimiser.zero_grad()
        loss(sort_lists(scores, teacher, k=16)).sum().backward()
        optimiser.step()
    return scores.detach()


def overlap(scores: Tensor) -> float:
    return float((scores[0].argsort(descending=True)[:16] < 16).double().mean())


@pytest.mark.parametrize(
    "name", ["topk_listmle", "listmle", "pairwise_hinge", "pairwise_logistic", "rankdistil", "listnet"]
)
def test_the_top_set_is_transferred(name):
    assert overlap(moved(LOSSES[name])) >= 0.95


def test_ordering_the_top_among_itself_does_not_transfer_the_set():
    scores = moved(lambda lists: pairwise_logistic(lists, pairs="topk_only"))
    assert overlap(scores) <= 0.6
    inside = scores[0, :16]
    assert (inside[:-1] > inside[1:]).double().mean() >= 0.9


def importances(batch: int = 2, tokens: int = 36, seed: int = 0) -> Tensor:
    return torch.softmax(random(batch, tokens, seed=seed), 1)


@pytest.mark.parametrize("name", EVERY_LOSS)
def test_every_loss_reaches_the_student_and_only_the_student(name):
    student, teacher = importances().requires_grad_(), importances(tokens=16, seed=1).requires_grad_()
    loss = RankingTerm(RankingOptions(loss=name))(student, teacher, (6, 6), (4, 4))
    loss.backward()
    assert loss.isfinite()
    assert teacher.grad is None
    assert student.grad.isfinite().all()
    assert student.grad.abs().max() > 0


@pytest.mark.parametrize("name", EVERY_LOSS)
def test_the_scale_is_zero_for_a_perfect_order_and_one_by_chance(name):
    teacher = importances(4, 49)
    term = RankingTerm(RankingOptions(loss=name))
    assert term.scale(teacher, teacher, (7, 7), (7, 7)).abs().max() <= 1e-9
    chance = torch.stack([term.scale(importances(4, 49, seed=9 + s), teacher, (7, 7), (7, 7)) for s in range(60)])
    assert chance.mean().item() == pytest.approx(1.0, abs=0.12)
    assert torch.equal(
        term.scale(importances(4, 49, seed=3), teacher, (7, 7), (7, 7)),
        term.scale(importances(4, 49, seed=3), teacher, (7, 7), (7, 7)),
    )


def test_raw_importance_would_be_dead_and_standardised_scores_are_not():
    attention = torch.softmax(random(6, 196, 196), -1).mean((0, 1))[None]
    raw = [topk_listmle(s, attention, k=20).item() for s in (attention, torch.zeros_like(attention))]
    alive = topk_listmle(standardise(attention), attention, k=20).item()
    assert raw[1] - raw[0] < 1e-3 * raw[1]
    assert alive < 0.6 * raw[1]


def test_a_flat_teacher_counts_nothing():
    student, teacher = importances(), importances(seed=1)
    term = RankingTerm()
    alone = term(student[:1], teacher[:1], (6, 6), (6, 6))
    half = torch.stack([teacher[0], torch.full((36,), 1 / 36, dtype=torch.float64)])
    assert is_flat(half).tolist() == [False, True]
    assert term(student, half, (6, 6), (6, 6)).item() == pytest.approx(alone.item())
    leaf = student.clone().requires_grad_()
    nothing = term(leaf, half[1:].repeat(2, 1), (6, 6), (6, 6))
    nothing.backward()
    assert nothing.item() == 0
    assert (leaf.grad == 0).all()
    assert term.scale(student, half, (6, 6), (6, 6)).isnan().tolist() == [False, True]


def test_a_flat_student_gets_finite_gradients():
    student = torch.full((1, 36), 1 / 36).requires_grad_()
    RankingTerm()(student, importances(1).float(), (6, 6), (6, 6)).backward()
    assert student.grad.isfinite().all()
    assert student.grad.abs().max() > 0


def test_windows_are_ranked_one_by_one():
    student, teacher = importances(2, 16), importances(2, 16, seed=1)
    windows = torch.tensor([0, 0, 1, 1, 0, 0, 1, 1, 2, 2, 3, 3, 2, 2, 3, 3])
    term = RankingTerm(RankingOptions(keep_ratio=0.5))
    parts = [term(student[:, windows == w], teacher[:, windows == w], (2, 2), (2, 2)) for w in range(4)]
    whole = term(student, teacher, (4, 4), (4, 4), windows=windows)
    assert whole.item() == pytest.approx(torch.stack(parts).mean().item())
    louder = teacher * (1 + 9 * (windows == 2))
    assert term(student, louder, (4, 4), (4, 4), windows=windows).item() == pytest.approx(whole.item())
    with pytest.raises(ParameterError, match="use 'feature_norm'"):
        term(student, importances(2, 64), (4, 4), (8, 8), windows=windows)


def test_token_weights_move_the_weight_to_the_foreground():
    s, t = random(1, 8), random(1, 8, seed=1)
    weights = torch.rand(1, 8, dtype=torch.float64) + 0.1
    order = t[0].argsort(descending=True)[:3]
    chosen = (3 * weights[0, order] / weights[0, order].sum()).tolist()
    expected = listmle_by_formula(s[0].tolist(), t[0].tolist(), 3, chosen)
    assert topk_listmle(s, t, k=3, token_weights=weights).item() == pytest.approx(expected, abs=1e-12)
    assert torch.equal(topk_listmle(s, t, k=3, token_weights=torch.full_like(s, 7.0)), topk_listmle(s, t, k=3))


@pytest.mark.parametrize("name", EVERY_LOSS)
def test_bfloat16_autocast_changes_nothing(name):
    student, teacher = importances().float(), importances(seed=1).float()
    term = RankingTerm(RankingOptions(loss=name))
    plain = term(student, teacher, (6, 6), (6, 6))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(term(student, teacher, (6, 6), (6, 6)), plain)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), k=st.integers(1, 12), keep=st.lists(st.booleans(), min_size=12, max_size=12))
def test_loss_is_never_negative(seed, k, keep):
    valid = torch.tensor([keep])
    loss = topk_listmle(random(1, 12, seed=seed), random(1, 12, seed=seed + 1), k=k, valid=valid)
    assert loss.item() >= -1e-12


def test_unknown_names_are_refused():
    with pytest.raises(ParameterError, match="use 'uniform', 'dcg' or 'teacher'"):
        topk_listmle(random(1, 4), random(1, 4), k=2, position_weights="linear")
    with pytest.raises(ParameterError, match="use 'topk_vs_all' or 'topk_only'"):
        pairwise_hinge(sort_lists(random(1, 4), random(1, 4), k=2), pairs="all")
    with pytest.raises(ParameterError, match="same images"):
        RankingTerm()(importances(2), importances(3), (6, 6), (6, 6))
