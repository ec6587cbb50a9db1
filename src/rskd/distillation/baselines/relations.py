"""Predictions that agree up to scale and shift: DIST.

Source: T. Huang et al., "Knowledge distillation from a stronger teacher", NeurIPS 2022, arXiv:2205.10536.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rskd.distillation.features import Features


def relation_loss(
    student: Tensor, teacher: Tensor, *, inter: float = 1.0, intra: float = 1.0, temperature: float = 1.0
) -> Tensor:
    """Return ``T² · (β (1 − ρ over the classes of a pixel) + γ (1 − ρ over the pixels of a class))``.

    Parameters
    ----------
    student, teacher
        Logits, B K H W.
    inter, intra
        β and γ. For two classes the first correlation is ±1 wherever it is defined: it says which class wins, and has
        no gradient.
    temperature
        T, softening of both outputs.

    Examples
    --------
    >>> z = torch.randn(1, 3, 2, 2)
    >>> relation_loss(z, z).abs().item() < 1e-5
    True
    """
    probabilities = [(z / temperature).softmax(1).movedim(1, -1).flatten(0, -2) for z in (student, teacher)]  # N K
    of_pixel = _correlation(*probabilities).mean()
    of_class = _correlation(*(p.mT for p in probabilities)).mean()
    return temperature**2 * (inter * (1 - of_pixel) + intra * (1 - of_class))


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    """Return Pearson's ρ of every row."""
    return F.cosine_similarity(a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True), dim=1)


class Relation(nn.Module):
    """DIST on the logits."""

    def __init__(self, *, inter: float, intra: float, temperature: float) -> None:
        super().__init__()
        self.options = {"inter": inter, "intra": intra, "temperature": temperature}

    def forward(self, student: Features, teacher: Features, target: Tensor) -> Tensor:
        """Return the loss of both predictions."""
        with torch.autocast(student.logits.device.type, enabled=False):
            return relation_loss(student.logits.float(), teacher.logits.detach().float(), **self.options)
