"""From scores to a ranking, from one token grid to another, and how well two rankings agree."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from rskd.errors import ParameterError
from rskd.importance.columns import shares
from rskd.importance.layout import Grid


@dataclass(frozen=True)
class TokenRanking:
    """Tokens in the order of their importance.

    Parameters
    ----------
    scores
        (…, N) importance of every token, row-major on the grid.
    order
        (…, N) tokens, the most important first; ties keep the order of the tokens.
    grid
        Height and width of the token map.

    Examples
    --------
    >>> ranking = rank_tokens(torch.tensor([0.1, 0.4, 0.3, 0.2]), (2, 2))
    >>> ranking.order.tolist(), ranking.ranks.tolist()
    ([1, 2, 3, 0], [3, 0, 1, 2])
    """

    scores: Tensor
    order: Tensor
    grid: Grid

    @property
    def ranks(self) -> Tensor:
        """(…, N) place of every token, 0 = the most important."""
        return self.order.argsort(-1)

    def top(self, share: float) -> Tensor:
        """Return (…, N) True for the `share` (0 … 1) of the tokens that lead, at least one."""
        return self.ranks < top_count(share, self.order.shape[-1])


def top_count(share: float, tokens: int) -> int:
    """Return k, the number of tokens in the top `share` (0 < share ≤ 1): at least one, at most all."""
    if not 0 < share <= 1:
        raise ParameterError(f"a top share of {share} is impossible: use more than 0 and at most 1.")
    return min(tokens, max(1, round(share * tokens)))


def rank_tokens(scores: Tensor, grid: Grid, *, valid: Tensor | None = None) -> TokenRanking:
    """Rank tokens by their scores, the highest first.

    Parameters
    ----------
    scores
        (…, N), row-major on `grid`.
    grid
        Height and width, with ``height * width = N``.
    valid
        (…, N) False for tokens of padding; they come last, in their own order.

    Returns
    -------
    TokenRanking
        Ties and the order of padding are deterministic.
    """
    _check_grid(scores, grid)
    return TokenRanking(scores, descending(scores, valid), grid)


def descending(scores: Tensor, valid: Tensor | None = None) -> Tensor:
    """Return the stable order (…, N) of `scores` from the highest to the lowest, what is not `valid` last."""
    if valid is not None:
        scores = scores.masked_fill(~valid, float("-inf"))
    return scores.argsort(dim=-1, descending=True, stable=True)


def align(scores: Tensor, grid: Grid, to_grid: Grid) -> Tensor:
    """Bring importance from one token grid to another: average down, interpolate up, and let it sum to one again.

    Parameters
    ----------
    scores
        (B, N) or (N), row-major on `grid`.
    grid, to_grid
        Height and width of the given and of the wanted map.

    Returns
    -------
    Tensor
        (B, N') or (N'), each row summing to one.

    Examples
    --------
    >>> align(torch.tensor([0.1, 0.3, 0.2, 0.4]), (2, 2), (1, 2))
    tensor([0.3000, 0.7000])
    """
    _check_grid(scores, grid)
    if tuple(grid) != tuple(to_grid):
        maps = scores.reshape(-1, 1, *grid)  # B 1 H W
        maps = F.adaptive_avg_pool2d(maps, (min(grid[0], to_grid[0]), min(grid[1], to_grid[1])))
        maps = F.interpolate(maps, tuple(to_grid), mode="bilinear", align_corners=False)
        scores = maps.reshape(*scores.shape[:-1], to_grid[0] * to_grid[1])
    return shares(scores)


def token_mask(mask: Tensor, grid: Grid, *, dilate: int = 0) -> Tensor:
    """Return which tokens contain any foreground: for padding, single classes, or small organs.

    Parameters
    ----------
    mask
        (B, H, W), non-zero = foreground.
    grid
        Height and width of the token map.
    dilate
        Rings of neighbouring tokens that are added.

    Returns
    -------
    Tensor
        (B, N) bool.

    Examples
    --------
    >>> token_mask(torch.tensor([[[0, 1], [0, 0], [0, 0], [0, 0]]]), (2, 1))
    tensor([[ True, False]])
    """
    tokens = F.adaptive_max_pool2d((mask != 0).float().unsqueeze(1), tuple(grid))
    if dilate:
        tokens = F.max_pool2d(tokens, 2 * dilate + 1, stride=1, padding=dilate)
    return tokens.flatten(1) > 0


@dataclass(frozen=True)
class Agreement:
    """How well a student's scores agree with a teacher's on one image; NaN where one of them is constant."""

    kendall: float
    """Kendall's τ-b, −1 … 1: pairs in the same order against pairs in the opposite, ties apart."""
    spearman: float
    """Pearson correlation of the ranks, −1 … 1."""
    weighted_tau: float
    """Kendall's τ with hyperbolic weights: exchanges at the top count more."""
    overlap: float
    """Share of the teacher's top k that is in the student's top k, 0 … 1; k / N by chance."""
    ndcg: float
    """Importance (the teacher's) gathered by the student's first k, discounted by place, against the best possible."""
    k: int
    """How many tokens are the top."""


def agreement(teacher: Tensor, student: Tensor, *, top: float = 0.25, within: Tensor | None = None) -> Agreement:
    """Compare two rankings of the same tokens of one image.

    Parameters
    ----------
    teacher, student
        (N) scores on the same grid; bring one to the other's with `align`.
    top
        Share of the tokens that counts as the top (0 … 1).
    within
        (N) True for the tokens to compare, for example those of one class; ``None`` = all.

    Returns
    -------
    Agreement
        Rank correlations (scipy) and agreement at the top.

    Raises
    ------
    ParameterError
        The scores are not of one image, differ in length, or fewer than two tokens are left.

    Examples
    --------
    >>> agreement(torch.tensor([4., 3., 2., 1.]), torch.tensor([4., 3., 1., 2.]), top=0.5).overlap
    1.0
    """
    a, b = _tokens(teacher, within), _tokens(student, within)
    if a.shape != b.shape or len(a) < 2:
        raise ParameterError(
            f"{len(a)} and {len(b)} tokens cannot be compared: give two or more on one grid (`align`)."
        )
    from scipy import stats

    k = top_count(top, len(a))
    best, chosen = np.argsort(-a, kind="stable")[:k], np.argsort(-b, kind="stable")[:k]
    constant = np.ptp(a) == 0 or np.ptp(b) == 0
    nan = float("nan")
    return Agreement(
        kendall=nan if constant else float(stats.kendalltau(a, b).statistic),
        spearman=nan if constant else float(stats.spearmanr(a, b).statistic),
        weighted_tau=nan if constant else float(stats.weightedtau(a, b).statistic),
        overlap=len(np.intersect1d(best, chosen)) / k,
        ndcg=_dcg(a[chosen]) / _dcg(a[best]),
        k=k,
    )


def agreement_curves(teacher: Tensor, student: Tensor) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return `Agreement.overlap` and `Agreement.ndcg` for every number of tokens in the top, 1 … N.

    Parameters
    ----------
    teacher, student
        (N) scores on the same grid.

    Examples
    --------
    >>> overlap, _ = agreement_curves(torch.tensor([3., 2., 1.]), torch.tensor([2., 3., 1.]))
    >>> overlap.tolist()
    [0.0, 1.0, 1.0]
    """
    a, b = _tokens(teacher, None), _tokens(student, None)
    best, chosen = np.argsort(-a, kind="stable"), np.argsort(-b, kind="stable")
    last = np.maximum(np.argsort(best), np.argsort(chosen))  # a token is in both tops from this place on
    common = np.bincount(last, minlength=len(a)).cumsum()
    discount = np.log2(np.arange(len(a)) + 2)
    ndcg = np.cumsum(a[chosen] / discount) / np.cumsum(a[best] / discount)
    return common / np.arange(1, len(a) + 1), ndcg


def _tokens(scores: Tensor, within: Tensor | None) -> NDArray[np.float64]:
    if scores.ndim != 1:
        raise ParameterError(f"scores of shape {tuple(scores.shape)} are not of one image: give (N), image by image.")
    chosen = scores if within is None else scores[within.to(scores.device)]
    array: NDArray[np.float64] = chosen.detach().to("cpu", torch.float64).numpy()
    return array


def _dcg(gains: NDArray[np.float64]) -> float:
    return float((gains / np.log2(np.arange(len(gains)) + 2)).sum())


def _check_grid(scores: Tensor, grid: Grid) -> None:
    if grid[0] * grid[1] != scores.shape[-1]:
        raise ParameterError(f"grid={tuple(grid)} has {grid[0] * grid[1]} tokens, the scores {scores.shape[-1]}.")
