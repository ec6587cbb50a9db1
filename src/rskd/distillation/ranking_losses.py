"""Ranking losses: how far a student's scores are from the teacher's order of tokens.

Every loss takes the student's scores s (B, N) and the teacher's importance t (B, N), sorted into the teacher's order π
(stable, padding last), and returns one number per image. Top-k ListMLE is the negative log-likelihood of the teacher's
first k choices under a Plackett-Luce model with log-worths s.

Sources. ListMLE: Xia et al., ICML 2008. ListNet: Cao et al., ICML 2007. RankNet, LambdaRank: Burges, MSR-TR-2010-82.
ApproxNDCG: Qin, Liu, Li, Information Retrieval 13, 2010. RankDistil: Reddi et al., AISTATS 2021 (the idea; the closed
form here is our own).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from rskd.distillation.plackett_luce import choices, mean_one, place_weights
from rskd.errors import ParameterError
from rskd.importance.ranking import descending

FLAT = 1e-3
"""A teacher whose log-importance spreads less than this has no order to teach."""


def standardise(importance: Tensor, *, temperature: float = 0.2, valid: Tensor | None = None) -> Tensor:
    """Return z-scores of log-importance divided by `temperature`, in float32: the scores that losses rank.

    Raw importances are ≈ 1/N with a few percent of spread, on which ranking losses are dead.

    Parameters
    ----------
    importance
        (B, N), positive.
    temperature
        τ > 0; smaller = a more decided Plackett-Luce model.
    valid
        (B, N) False for padding, which is left out of mean and spread.

    Returns
    -------
    Tensor
        (B, N); zero at padding.
    """
    scores, spread, valid = _log_deviation(importance, valid)
    return torch.where(valid, scores / spread.clamp(min=1e-4**2).sqrt() / temperature, 0.0)


def is_flat(importance: Tensor, *, valid: Tensor | None = None) -> Tensor:
    """Return (B) True where the standard deviation of log-importance (B, N) is below `FLAT`: nothing to rank."""
    _, spread, _ = _log_deviation(importance, valid)
    return spread.squeeze(1) < FLAT**2


def _log_deviation(importance: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return the deviation of log-importance from its mean (B, N), its variance (B, 1) and the mask."""
    importance = importance if importance.dtype == torch.float64 else importance.float()
    valid = torch.ones_like(importance, dtype=torch.bool) if valid is None else valid
    count = valid.sum(1, keepdim=True).clamp(min=1)
    log = torch.where(valid, (importance + 1e-8).log(), 0.0)
    deviation = torch.where(valid, log - log.sum(1, keepdim=True) / count, 0.0)
    return deviation, (deviation**2).sum(1, keepdim=True) / count, valid


@dataclass(frozen=True)
class Lists:
    """Scores in the teacher's order, as every loss needs them."""

    s: Tensor
    """(B, N) the student's scores s_π, −inf at padding."""
    t: Tensor
    """(B, N) the teacher's importance t_π, 0 at padding."""
    valid: Tensor
    """(B, N) False at padding, which comes last."""
    top: Tensor
    """(B, N) True for the first k of each list."""
    weights: Tensor
    """(B, N) weight w_i of every place, zero behind the top."""

    @property
    def k(self) -> Tensor:
        """(B) number of places that count."""
        return self.top.sum(1)

    @property
    def z(self) -> Tensor:
        """(B, N) the teacher's standardised log-importance."""
        return standardise(self.t, temperature=1.0, valid=self.valid).to(self.s.dtype)


def sort_lists(
    s: Tensor,
    t: Tensor,
    *,
    k: int,
    valid: Tensor | None = None,
    position_weights: str = "uniform",
    token_weights: Tensor | None = None,
) -> Lists:
    """Sort scores s and importance t (B, N) into the teacher's order.

    Parameters
    ----------
    s, t
        (B, N) scores of the student, importance by the teacher.
    k
        Places that count; clamped to the number of valid tokens.
    valid
        (B, N) False for padding.
    position_weights
        ``"uniform"``, ``"dcg"`` (1 / log2(i + 1)) or ``"teacher"`` (t, normalised to mean one over the k places).
    token_weights
        (B, N) a further weight of every token, for example larger on small organs; normalised to mean one over the
        places that count.

    Returns
    -------
    Lists
        What the losses take.
    """
    valid = torch.ones_like(t, dtype=torch.bool) if valid is None else valid
    order = descending(t.detach(), valid)
    valid = valid.gather(1, order)
    teacher = t.detach().gather(1, order).masked_fill(~valid, 0.0)
    places = torch.arange(s.shape[1], device=s.device)
    top = (places < k) & valid
    weights = place_weights(teacher.to(s.dtype), top, position_weights)
    if token_weights is not None:
        weights = weights * mean_one(token_weights.gather(1, order).to(s.dtype) * top, top)
    return Lists(s.gather(1, order).masked_fill(~valid, float("-inf")), teacher, valid, top, weights)


def plackett_luce(lists: Lists) -> Tensor:
    """Return the top-k ListMLE of sorted lists, (B); `topk_listmle` is the same without sorting the tail."""
    longest = int(lists.k.max())
    first = torch.arange(longest, device=lists.s.device).expand(len(lists.s), -1)
    return choices(lists.s, first, lists.weights[:, :longest]) / lists.k.clamp(min=1)


def listnet(lists: Lists, *, temperature: float = 1.0) -> Tensor:
    """Return −Σ softmax(z / T) · log softmax(s) with z the teacher's standardised scores, (B)."""
    z = (lists.z / temperature).masked_fill(~lists.valid, float("-inf"))
    return -torch.where(lists.valid, z.softmax(1) * lists.s.log_softmax(1), 0.0).sum(1)


def kl_importance(student_importance: Tensor, teacher_importance: Tensor, *, valid: Tensor | None = None) -> Tensor:
    """Return KL(t ‖ m) of the importances themselves, (B): value transfer, the control of every ranking loss.

    Examples
    --------
    >>> kl_importance(torch.tensor([[0.5, 0.5]]), torch.tensor([[1.0, 0.0]]))  # log 2
    tensor([0.6931])
    """
    pairs = []
    for importance in (student_importance, teacher_importance.detach()):
        kept = importance if valid is None else importance.masked_fill(~valid, 0.0)
        pairs.append(kept / kept.sum(1, keepdim=True))
    m, t = pairs
    return (t.xlogy(t) - t.xlogy(m + 1e-12)).sum(1)


def _pairs(lists: Lists, among: str) -> tuple[Tensor, Tensor]:
    """Return differences s_π(i) − s_π(j) (B, K, N) of places i < j with i in the top, and which of them count."""
    longest = int(lists.k.max())
    s = lists.s.masked_fill(~lists.valid, 0.0)
    places = torch.arange(s.shape[1], device=s.device)
    if among not in ("topk_vs_all", "topk_only"):
        raise ParameterError(f"pairs={among!r} is unknown: use 'topk_vs_all' or 'topk_only'.")
    others = lists.valid if among == "topk_vs_all" else lists.top
    counts = lists.top[:, :longest, None] & others[:, None] & (places[:longest, None] < places)
    return s[:, :longest, None] - s[:, None], counts


def _mean_over(losses: Tensor, counts: Tensor) -> Tensor:
    return (losses * counts).flatten(1).sum(1) / counts.flatten(1).sum(1).clamp(min=1)


def pairwise_hinge(lists: Lists, *, margin: float = 0.2, pairs: str = "topk_vs_all") -> Tensor:
    """Return the mean of (θ − (s_π(i) − s_π(j)))₊ over pairs i < j with i in the top, (B); O(k·N) memory.

    ``pairs="topk_only"`` orders the top among itself and does *not* bring the right tokens into it.
    """
    differences, counts = _pairs(lists, pairs)
    return _mean_over((margin - differences).relu(), counts)


def pairwise_logistic(lists: Lists, *, pairs: str = "topk_vs_all") -> Tensor:
    """Return the mean of softplus(−(s_π(i) − s_π(j))), RankNet, over the same pairs as `pairwise_hinge`, (B)."""
    differences, counts = _pairs(lists, pairs)
    return _mean_over(F.softplus(-differences), counts)


def lambdarank(lists: Lists) -> Tensor:
    """Return ``Σ |1/D_i − 1/D_j|·|G_i − G_j|·(−log2 σ(s_i − s_j))`` over pairs t_i > t_j with i in the top, (B).

    D is the discount of the student's present places, G the teacher's importance over the ideal DCG of the top.
    """
    differences, counts = _pairs(lists, "topk_vs_all")
    longest = differences.shape[1]
    gains = lists.t.to(lists.s.dtype) / _ideal_dcg(lists)
    place = descending(lists.s.detach()).argsort(1).to(lists.s.dtype)
    discount = 1 / torch.log2(place + 2)
    gain = gains[:, :longest, None] - gains[:, None]
    change = (discount[:, :longest, None] - discount[:, None]).abs() * gain.abs()
    bits = F.softplus(-differences) / torch.log(torch.tensor(2.0))
    return (change * bits * (counts & (gain > 0))).flatten(1).sum(1)


def approx_ndcg(lists: Lists, *, alpha: float = 1.0) -> Tensor:
    """Return −DCG with soft ranks over the ideal DCG, (B), in −1 … 0; O(N²) memory."""
    gains = lists.t.to(lists.s.dtype)
    places = torch.log2(torch.arange(gains.shape[1], device=gains.device, dtype=gains.dtype) + 2)
    ideal = (gains / places).sum(1)
    return -(gains / torch.log2(1 + _soft_ranks(lists, alpha))).sum(1) / ideal


def soft_spearman(lists: Lists, *, alpha: float = 1.0) -> Tensor:
    """Return 1 − the correlation of the student's soft ranks with the teacher's ranks, (B), in 0 … 2; O(N²) memory."""
    places = torch.arange(lists.s.shape[1], device=lists.s.device, dtype=lists.s.dtype).expand_as(lists.s)
    count = lists.valid.sum(1, keepdim=True)
    a, b = (
        torch.where(lists.valid, r - torch.where(lists.valid, r, 0.0).sum(1, keepdim=True) / count, 0.0)
        for r in (_soft_ranks(lists, alpha), places)
    )
    return 1 - F.cosine_similarity(a, b, dim=1)


def _soft_ranks(lists: Lists, alpha: float) -> Tensor:
    """Return 1 + Σ_{j≠i} σ(−α (s_i − s_j)), (B, N)."""
    s = lists.s.masked_fill(~lists.valid, 0.0)
    behind = torch.sigmoid(-alpha * (s[:, :, None] - s[:, None])) * lists.valid[:, None]
    return 0.5 + behind.sum(2)  # the pair (i, i) adds ½


def _ideal_dcg(lists: Lists) -> Tensor:
    """Return the DCG (B, 1) of the teacher's own top."""
    places = torch.log2(torch.arange(lists.t.shape[1], device=lists.t.device, dtype=lists.s.dtype) + 2)
    ideal = (lists.t.to(lists.s.dtype) * lists.top / places).sum(1, keepdim=True)
    return ideal.clamp(min=torch.finfo(ideal.dtype).tiny)


def rankdistil(lists: Lists, *, beta: float = 1.0, margin: float = 0.2) -> Tensor:
    """Return top-k ListMLE + β · mean over places q > k of softplus(s_π(q) − s_π(k) + margin), (B)."""
    s = lists.s.masked_fill(~lists.valid, 0.0)
    last = s.gather(1, (lists.k - 1).clamp(min=0)[:, None])
    behind = lists.valid & ~lists.top
    return plackett_luce(lists) + beta * _mean_over(F.softplus(s - last + margin), behind)


LOSSES: dict[str, Callable[[Lists], Tensor]] = {
    "topk_listmle": plackett_luce,
    "listmle": plackett_luce,
    "listnet": listnet,
    "pairwise_hinge": pairwise_hinge,
    "pairwise_logistic": pairwise_logistic,
    "lambdarank": lambdarank,
    "approx_ndcg": approx_ndcg,
    "rankdistil": rankdistil,
    "soft_spearman": soft_spearman,
}
"""Losses of sorted lists; `kl_importance` takes the importances themselves."""
