"""Pixel-wise knowledge distillation on the logits."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def logits_loss(student: Tensor, teacher: Tensor, *, temperature: float = 4.0, overlapping: bool = False) -> Tensor:
    """Return pixel-wise knowledge distillation: ``T² · mean_pixels KL(softmax(z_T / T) ‖ softmax(z_S / T))``.

    Where classes may overlap, each is a decision of its own, between p = sigmoid(z / T) and 1 - p; the divergences of
    these pairs are averaged over pixels and classes. For one class this is the same as the softmax of (0, z).

    Parameters
    ----------
    student, teacher
        Logits, B K H W.
    temperature
        T > 0.
    overlapping
        Whether classes may overlap.

    Returns
    -------
    Tensor
        Scalar ≥ 0, zero where both say the same at every pixel.

    Examples
    --------
    >>> import torch
    >>> z = torch.randn(1, 3, 2, 2)
    >>> logits_loss(z, z).abs().item() < 1e-6
    True
    """
    if overlapping:
        scale = temperature**2
        return scale * _binary_divergence(student.float() / temperature, teacher.detach().float() / temperature).mean()
    log_student = F.log_softmax(student.float() / temperature, dim=1)
    log_teacher = F.log_softmax(teacher.detach().float() / temperature, dim=1)
    divergence = (log_teacher.exp() * (log_teacher - log_student)).sum(1)  # B H W
    return temperature**2 * divergence.mean()


def _binary_divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """Return ``KL(Bernoulli(σ(z_T)) ‖ Bernoulli(σ(z_S)))`` of every logit."""
    there = teacher.sigmoid() * (F.logsigmoid(teacher) - F.logsigmoid(student))
    absent = (-teacher).sigmoid() * (F.logsigmoid(-teacher) - F.logsigmoid(-student))
    return there + absent
