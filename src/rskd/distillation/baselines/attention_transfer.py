"""Where feature maps are large, and how that changes between stages: AT and DSD.

Sources: S. Zagoruyko and N. Komodakis, "Paying more attention to attention", ICLR 2017, arXiv:1612.03928;
Y. Feng et al., "Double similarity distillation for semantic image segmentation", TIP 2021, arXiv:2107.08591, in the
form of its implementation in CIRKD.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rskd.distillation.features import Features
from rskd.distillation.fusion import same_grid


def attention_map(x: Tensor, *, power: float = 2.0) -> Tensor:
    """Return ``mean_c |x_c|^p`` of maps (B, C, H, W) as vectors of length one, (B, H·W)."""
    return F.normalize(x.abs().pow(power).mean(1).flatten(1))


def attention_transfer_loss(student: Tensor, teacher: Tensor, *, power: float = 2.0) -> Tensor:
    """Return the squared distance of the normalised attention maps, mean over the batch.

    Parameters
    ----------
    student, teacher
        B C H W, of any number of channels.
    power
        Exponent of the activations.

    Examples
    --------
    >>> attention_transfer_loss(torch.tensor([[[[3., 0.]]]]), torch.tensor([[[[0., 1.]]]]))
    tensor(2.)
    """
    return (attention_map(student, power=power) - attention_map(teacher, power=power)).square().sum(1).mean()


def pixel_similarity_loss(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Return how differently attention changes between every two stages (PSD of DSD).

    Parameters
    ----------
    student, teacher
        Maps (B, C_i, H, W) of at least two stages on one grid.
    """
    losses = []
    for shallow, deep in combinations(range(len(student)), 2):
        mine, theirs = (
            F.normalize(attention_map(side[deep]) - attention_map(side[shallow])) for side in (student, teacher)
        )
        losses.append((mine - theirs).square().sum(1).mean())
    return torch.stack(losses).mean()


def category_similarity_loss(student: Tensor, teacher: Tensor, *, temperature: float = 4.0) -> Tensor:
    """Return the mean squared difference of the Gram matrices of the classes' distributions over space (CSD of DSD).

    Parameters
    ----------
    student, teacher
        Logits, B K H W; they are averaged over cells of 2 × 2 pixels first.
    temperature
        Softening of the distributions.
    """
    student_gram, teacher_gram = (_class_gram(logits, temperature) for logits in (student, teacher))
    return F.mse_loss(student_gram, teacher_gram)


def _class_gram(logits: Tensor, temperature: float) -> Tensor:
    pooled = F.avg_pool2d(logits, 2, ceil_mode=True).flatten(2)  # B K N
    share = (pooled / temperature).softmax(2)
    return share @ share.mT  # B K K


class AttentionTransfer(nn.Module):
    """AT over the matched stages."""

    def __init__(self, *, power: float) -> None:
        super().__init__()
        self.power = power

    def forward(self, student: Features, teacher: Features, target: Tensor) -> Tensor:
        """Return the mean over the stages."""
        with torch.autocast(student.logits.device.type, enabled=False):
            losses = [
                attention_transfer_loss(*same_grid(mine.float(), theirs.detach().float()), power=self.power)
                for mine, theirs in zip(student.stages, teacher.stages, strict=True)
            ]
            return torch.stack(losses).mean()


class DoubleSimilarity(nn.Module):
    """DSD: residual attention over the matched stages, and the Gram matrix of the classes."""

    def __init__(self, *, category: float) -> None:
        super().__init__()
        self.category = category

    def forward(self, student: Features, teacher: Features, target: Tensor) -> Tensor:
        """Return the weighted sum of both parts."""
        maps = [*student.stages, *(x.detach() for x in teacher.stages)]
        grid = (min(x.shape[2] for x in maps), min(x.shape[3] for x in maps))
        with torch.autocast(student.logits.device.type, enabled=False):
            pooled = [F.adaptive_avg_pool2d(x.float(), grid) for x in maps]
            pixels = pixel_similarity_loss(pooled[: len(student.stages)], pooled[len(student.stages) :])
            classes = category_similarity_loss(student.logits.float(), teacher.logits.detach().float())
            return pixels + self.category * classes
