"""How alike the places of an image are, and those of different images: SKD (pair-wise) and CIRKD (mini-batch).

Sources: Y. Liu et al., "Structured knowledge distillation for semantic segmentation", CVPR 2019, arXiv:1903.04197;
C. Yang et al., "Cross-image relational knowledge distillation for semantic segmentation", CVPR 2022, arXiv:2204.06986.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def pairwise_loss(student: Tensor, teacher: Tensor, *, pool: int = 2) -> Tensor:
    """Return the mean squared difference of the cosine similarities between all places of an image.

    Parameters
    ----------
    student, teacher
        B C H W, of any number of channels.
    pool
        Side of the cells whose maximum stands for them.

    Examples
    --------
    >>> across = torch.tensor([[[[1., 0.]], [[0., 1.]]]])
    >>> pairwise_loss(across, torch.ones(1, 1, 1, 2), pool=1)
    tensor(0.5000)
    """
    return F.mse_loss(_cosines(student, pool), _cosines(teacher, pool))


def _cosines(x: Tensor, pool: int) -> Tensor:
    places = F.normalize(F.max_pool2d(x, pool, ceil_mode=True).flatten(2), dim=1)  # B C N
    return places.mT @ places  # B N N


def cross_image_loss(student: Tensor, teacher: Tensor, *, temperature: float = 0.1, pool: int = 1) -> Tensor:
    """Return the mean divergence between the similarities of a place to all places of one image of the batch.

    Parameters
    ----------
    student, teacher
        B C H W, of any number of channels.
    temperature
        Divides the cosine similarities.
    pool
        Side of the cells that are averaged first; the memory grows with (B · places)².

    Examples
    --------
    >>> x = torch.randn(2, 3, 2, 2)
    >>> cross_image_loss(2 * x, x).abs().item() < 1e-5
    True
    """
    log_student, log_teacher = (_similar_places(x, pool, temperature) for x in (student, teacher))
    return (log_teacher.exp() * (log_teacher - log_student)).sum(3).mean()


def _similar_places(x: Tensor, pool: int, temperature: float) -> Tensor:
    """Return the log-probabilities (B, N, B', N') of the places N' of image B' for every place, summing to one."""
    pooled = F.avg_pool2d(x, pool, ceil_mode=True)
    places = F.normalize(pooled.flatten(2), dim=1).mT  # B N C
    batch, count = places.shape[:2]
    flat = places.flatten(0, 1)
    similarity = (flat @ flat.T).reshape(batch, count, batch, count)
    return torch.log_softmax(similarity / temperature, dim=3)
