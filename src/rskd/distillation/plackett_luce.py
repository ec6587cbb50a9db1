"""Top-k ListMLE: the likelihood of the teacher's first k choices in a Plackett-Luce model of the student's scores."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rskd.errors import ParameterError
from rskd.importance.ranking import descending

PARTIAL_SORT = 512
"""From so many tokens on a CPU, finding the top and sorting it is faster than sorting all."""
SAFE_SPREAD = 600.0
"""exp(−600) is a normal number in double precision: within this spread a plain cumulative sum loses nothing."""


def topk_listmle(
    student_scores: Tensor,
    teacher_scores: Tensor,
    *,
    k: int,
    valid: Tensor | None = None,
    position_weights: str = "uniform",
    token_weights: Tensor | None = None,
) -> Tensor:
    """Return (B) the negative log-likelihood per place of the teacher's first k choices, given the student's scores.

    ``L = 1/k Σ_{i≤k} w_i [logsumexp_{j≥i} s_π(j) − s_π(i)]``, in O(N + k log k) to O(N log N) time and O(B·N) memory.

    Parameters
    ----------
    student_scores
        (B, N) log-worths, usually from `standardise`.
    teacher_scores
        (B, N); only their order counts (and their values for ``position_weights="teacher"``).
    k
        Length of the list that is taught; clamped to the number of valid tokens.
    valid
        (B, N) False for padding.
    position_weights
        ``"uniform"``, ``"dcg"`` (1 / log2(i + 1)) or ``"teacher"`` (its scores, with mean one over the places).
    token_weights
        (B, N) a further weight of every token, for example larger on small organs; normalised to mean one over the
        places that count.

    Returns
    -------
    Tensor
        (B), ≥ 0; mean of log(N − i + 1) for constant scores.

    References
    ----------
    Xia et al., *Listwise approach to learning to rank*, ICML 2008 (ListMLE).

    Examples
    --------
    >>> topk_listmle(torch.zeros(1, 3), torch.tensor([[1., 2., 3.]]), k=1)  # log 3
    tensor([1.0986])
    """
    teacher = teacher_scores.detach()
    first = leaders(teacher, min(k, teacher.shape[1]), valid)
    top = torch.ones_like(first, dtype=torch.bool) if valid is None else valid.gather(1, first)
    s = student_scores if valid is None else student_scores.masked_fill(~valid, float("-inf"))
    weights = place_weights(teacher.gather(1, first).to(s.dtype), top, position_weights)
    if token_weights is not None:
        weights = weights * mean_one(token_weights.gather(1, first).to(s.dtype) * top, top)
    return choices(s, first, weights) / (first.shape[1] if valid is None else top.sum(1).clamp(min=1))


def leaders(t: Tensor, k: int, valid: Tensor | None = None) -> Tensor:
    """Return the first k of the stable descending order of t (B, N), without sorting the rest where that pays."""
    if valid is None and k < t.shape[1] and t.shape[1] >= PARTIAL_SORT and t.device.type == "cpu":
        values, tokens = t.topk(k + 1, dim=1)
        if not bool((values[:, k - 1] == values[:, k]).any()):  # a tie at the edge needs the order of all tokens
            tokens = tokens[:, :k].sort(1).values
            return tokens.gather(1, t.gather(1, tokens).argsort(dim=1, descending=True, stable=True))
    return descending(t, valid)[:, :k]


def place_weights(teacher: Tensor, top: Tensor, name: str) -> Tensor:
    """Return the weight of every place (B, K): zero where `top` is False; `teacher` are the sorted scores (B, K)."""
    weights = top.to(teacher.dtype)
    if name == "dcg":
        return weights / torch.log2(torch.arange(top.shape[1], device=top.device, dtype=teacher.dtype) + 2)
    if name == "teacher":
        return mean_one(weights * teacher, top)
    if name != "uniform":
        raise ParameterError(f"position_weights={name!r} is unknown: use 'uniform', 'dcg' or 'teacher'.")
    return weights


def mean_one(weights: Tensor, top: Tensor) -> Tensor:
    """Return `weights` scaled to mean one over the places that count; all one where they vanish."""
    mean = weights.sum(1, keepdim=True) / top.sum(1, keepdim=True).clamp(min=1)
    return torch.where(mean > 0, weights / mean.clamp(min=torch.finfo(weights.dtype).tiny), top.to(weights.dtype))


def choices(s: Tensor, first: Tensor, weights: Tensor) -> Tensor:
    """Return Σ_i w_i [logsumexp over what is left at place i − s_i], (B).

    Parameters
    ----------
    s
        (B, N), −inf at padding.
    first
        (B, K) the tokens chosen first, in their order; all others are left at every place.
    weights
        (B, K) weights of the places, ≥ 0; zero where there is no choice.
    """
    terms: Tensor = _Choices.apply(s, first, weights)
    return terms


class _Choices(torch.autograd.Function):
    """The sum of `choices` with its closed-form gradient: everything behind the top is summed up once."""

    @staticmethod
    def forward(ctx: Any, s: Tensor, first: Tensor, weights: Tensor) -> Tensor:
        top = s.gather(1, first)
        ends = top.flip(1)
        if top.shape[1] < s.shape[1]:
            ends = torch.cat((s.scatter(1, first, float("-inf")).logsumexp(1, keepdim=True), ends), 1)
        ctx.range = _narrow_range(s)
        if ctx.range:
            rest = (ends.double() - ctx.range[1]).exp_().cumsum(1).log_().add_(ctx.range[1])
        else:
            rest = ends.logcumsumexp(1)
        rest = rest.flip(1)[:, : top.shape[1]]  # c_i = logsumexp_{j ≥ i} s_j
        ctx.save_for_backward(s, first, weights, top, rest)
        terms = weights * (rest - top) if ctx.range else torch.where(weights > 0, weights * (rest - top), 0.0)
        return terms.sum(1).to(s.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        s, first, weights, top, rest = ctx.saved_tensors
        # ∂/∂s_q = Σ_{i ≤ min(q, k)} w_i exp(s_q − c_i) − w_q; summed in logarithms, and s_q ≤ c_i: nothing overflows
        if ctx.range:
            chosen = (weights * (ctx.range[0] - rest).exp_()).cumsum(1).log_().sub_(ctx.range[0])
        else:
            chosen = torch.where(weights > 0, weights.log() - rest, float("-inf")).logcumsumexp(1)
        every = (s + chosen[:, -1:].to(s.dtype)).exp_()
        every.scatter_(1, first, (top + chosen).exp_().sub_(weights).to(s.dtype))
        return every.mul_(grad[:, None]), None, None


def _narrow_range(s: Tensor) -> tuple[float, float] | None:
    """Return the least and the greatest score where plain sums in double are exact and fast (on a CPU), or ``None``."""
    if s.device.type != "cpu":
        return None
    low, high = (float(end) for end in s.aminmax())
    return (low, high) if high - low < SAFE_SPREAD else None
