"""Is the map telling the truth? Deletion and insertion curves against random orders of the same tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from rskd.errors import ParameterError
from rskd.events import Progress, Task
from rskd.importance.ranking import TokenRanking

Score = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Gain:
    """Area between a curve and its random orders, over images; positive = the ranking knows more than chance."""

    mean: float
    low: float
    """Lower end of the confidence interval of the mean (Student's t); NaN for a single image."""
    high: float
    per_image: tuple[float, ...]

    @property
    def verdict(self) -> str:
        """What the interval allows to say."""
        if self.low > 0:
            return "better than chance"
        return "worse than chance" if self.high < 0 else "no better than chance"


@dataclass(frozen=True)
class DeletionCheck:
    """How the model's confidence in its own answer follows the ranking."""

    shares: NDArray[np.float64]
    """(S) shares of the tokens that are deleted or inserted, 0 … 1."""
    deletion: NDArray[np.float64]
    """(B, S) score while the most important tokens are deleted first: should fall early."""
    insertion: NDArray[np.float64]
    """(B, S) score while the most important tokens are inserted first: should rise early."""
    random_deletion: NDArray[np.float64]
    """(B, S) mean over random orders."""
    random_insertion: NDArray[np.float64]
    """(B, S) mean over random orders."""
    deletion_gain: Gain
    """∫ random − ordered."""
    insertion_gain: Gain
    """∫ ordered − random."""


@torch.no_grad()
def delete_tokens(images: Tensor, deleted: Tensor) -> Tensor:
    """Return `images` with the cells of deleted tokens replaced by their mean.

    Parameters
    ----------
    images
        (B, C, H, W).
    deleted
        (B, h, w) True where a token goes.

    Returns
    -------
    Tensor
        (B, C, H, W).

    Examples
    --------
    >>> image = torch.arange(8.0).view(1, 1, 2, 4)
    >>> delete_tokens(image, torch.tensor([[[True, False]]]))[0, 0]
    tensor([[2.5000, 2.5000, 2.0000, 3.0000],
            [2.5000, 2.5000, 6.0000, 7.0000]])
    """
    size = images.shape[-2:]
    height, width = deleted.shape[-2:]
    means = F.interpolate(F.adaptive_avg_pool2d(images, (height, width)), size, mode="nearest-exact")
    cells = F.interpolate(deleted.to(images.dtype).unsqueeze(1), size, mode="nearest-exact")
    return torch.where(cells > 0.5, means, images)


def deletion_check(
    model: Callable[[Tensor], Tensor],
    images: Tensor,
    *,
    ranking: TokenRanking,
    generator: torch.Generator,
    score: Score | None = None,
    steps: int = 10,
    random_orders: int = 8,
    confidence: float = 0.95,
) -> Task[DeletionCheck]:
    """Delete and insert tokens in the order of a ranking and in random orders, and compare the areas.

    Parameters
    ----------
    model
        Images (B, C, H, W) → logits (B, K) or (B, K, H, W).
    images
        (B, C, H, W); every image is one sample of the confidence interval.
    ranking
        Of the tokens of these images, scores (B, N).
    generator
        Source of the random orders, on the CPU.
    score
        Logits → (B); ``None`` = the mean probability of what the model predicts on the whole image (over its
        foreground, where a segmentation has any).
    steps
        Steps from no token to all.
    random_orders
        Random orders per image.
    confidence
        Of the interval over images, 0 … 1.

    Yields
    ------
    Progress
        After every order of tokens.

    Returns
    -------
    DeletionCheck
        Curves, and the areas between them with their intervals.

    Raises
    ------
    ParameterError
        The ranking is of other images.

    References
    ----------
    Petsiuk, Das, Saenko, *RISE*, BMVC 2018.
    """
    batch, tokens = ranking.order.shape[0], ranking.order.shape[-1]
    if ranking.order.ndim != 2 or batch != len(images):
        raise ParameterError(
            f"a ranking of shape {tuple(ranking.order.shape)} is not one of {len(images)} images (B, N)."
        )
    score = score or _confidence(model, images)
    shares = np.linspace(0, 1, steps + 1)
    orders = [ranking.order.cpu(), *(_shuffled(batch, tokens, generator) for _ in range(random_orders))]
    curves = []
    for done, order in enumerate(orders, 1):
        curves.append([_curve(model, images, order, ranking.grid, shares, score, keep=keep) for keep in (False, True)])
        yield Progress(done, len(orders), "orders")
    deletion, insertion = curves[0]
    chance = np.mean(curves[1:], axis=0)
    return DeletionCheck(
        shares,
        deletion,
        insertion,
        chance[0],
        chance[1],
        _gain(np.trapezoid(chance[0] - deletion, shares), confidence),
        _gain(np.trapezoid(insertion - chance[1], shares), confidence),
    )


def _confidence(model: Callable[[Tensor], Tensor], images: Tensor) -> Score:
    """Return the score that asks how sure the model still is of what it says about the whole image."""
    with torch.no_grad():
        answer = model(images).argmax(1, keepdim=True)  # B 1 (H W)
    counted = torch.ones_like(answer, dtype=torch.float)
    if answer.ndim == 4:
        foreground = (answer > 0).float()
        counted = torch.where(foreground.flatten(1).any(1).view(-1, 1, 1, 1), foreground, counted)

    def score(logits: Tensor) -> Tensor:
        certain = logits.softmax(1).gather(1, answer) * counted
        return certain.flatten(1).sum(1) / counted.flatten(1).sum(1)

    return score


def overlapping_certainty(model: Callable[[Tensor], Tensor], images: Tensor) -> Score:
    """Return the score of `deletion_check` for classes that may overlap, each with a logit of its own.

    Parameters
    ----------
    model
        Images (B, C, H, W) → logits (B, K, H, W); a class is there from a logit of 0 on.
    images
        (B, C, H, W).

    Returns
    -------
    Score
        Mean probability of the classes where the model finds them on the whole images; of their absence everywhere
        where it finds none.

    Examples
    --------
    >>> score = overlapping_certainty(lambda images: images, torch.tensor([[[[9.0, -9.0]]]]))
    >>> score(torch.tensor([[[[0.0, 5.0]]]])).tolist()
    [0.5]
    """
    with torch.no_grad():
        answer = model(images) >= 0  # B K H W
    counted = torch.where(answer.flatten(1).any(1).view(-1, 1, 1, 1), answer, True)

    def score(logits: Tensor) -> Tensor:
        certain = torch.where(answer, logits, -logits).sigmoid() * counted
        return certain.flatten(1).sum(1) / counted.flatten(1).sum(1)

    return score


def _curve(
    model: Callable[[Tensor], Tensor],
    images: Tensor,
    order: Tensor,
    grid: tuple[int, int],
    shares: NDArray[np.float64],
    score: Score,
    *,
    keep: bool,
) -> NDArray[np.float64]:
    """Return the scores (B, S) with the first tokens of `order` deleted, or with all but them."""
    values = []
    for chosen in _chosen(order, shares):
        deleted = ~chosen if keep else chosen
        with torch.no_grad():
            logits = model(delete_tokens(images, deleted.view(-1, *grid).to(images.device)))
            values.append(score(logits).double().cpu().numpy())
    return np.stack(values, 1)


def _chosen(order: Tensor, shares: NDArray[np.float64]) -> Iterator[Tensor]:
    """Yield (B, N), True for the first tokens of `order` at every share."""
    places = order.argsort(1)
    for share in shares:
        yield places < round(float(share) * order.shape[1])


def _shuffled(batch: int, tokens: int, generator: torch.Generator) -> Tensor:
    return torch.rand(batch, tokens, generator=generator).argsort(1)


def _gain(areas: NDArray[np.float64], confidence: float) -> Gain:
    from scipy import stats

    mean, low, high = float(areas.mean()), float("nan"), float("nan")
    if len(areas) > 1:
        half = float(stats.t.ppf((1 + confidence) / 2, len(areas) - 1) * stats.sem(areas))
        low, high = mean - half, mean + half
    return Gain(mean, low, high, tuple(float(area) for area in areas))
