"""Pixel-wise knowledge distillation on the logits."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def logits_loss(
    student: Tensor, teacher: Tensor, *, temperature: float = 4.0, overlapping: bool = False, balanced: bool = False
) -> Tensor:
    """Return pixel-wise knowledge distillation: ``T² · mean_pixels KL(softmax(z_T / T) ‖ softmax(z_S / T))``.

    Where classes may overlap, each is a decision of its own, between p = sigmoid(z / T) and 1 - p; the divergences of
    these pairs are averaged over pixels and classes. For one class this is the same as the softmax of (0, z).

    Balanced, the mean over the pixels of an image is the mean over the classes that are the teacher's strongest
    anywhere in it, of the mean over the pixels where they are. Pixels that count alike are nearly all background, and
    what pulls a small student towards the teacher there can silence a rare class before it is learned.

    Parameters
    ----------
    student, teacher
        Logits, B K H W.
    temperature
        T > 0.
    overlapping
        Whether classes may overlap.
    balanced
        Whether the teacher's classes count alike, rather than pixels.

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
    student, teacher = student.float() / temperature, teacher.detach().float() / temperature
    if overlapping:
        divergence = _binary_divergence(student, teacher).flatten(0, 1)  # B·K H W
        labels = (teacher > 0).flatten(0, 1).long()
    else:
        log_student, log_teacher = F.log_softmax(student, dim=1), F.log_softmax(teacher, dim=1)
        divergence = (log_teacher.exp() * (log_teacher - log_student)).sum(1)  # B H W
        labels = teacher.argmax(1)
    if not balanced:
        return temperature**2 * divergence.mean()
    return temperature**2 * (class_shares(labels) * divergence).sum((1, 2)).mean()


def class_shares(labels: Tensor) -> Tensor:
    """Return a weight for every pixel of label images (B, H, W), so that the classes in an image have the same sum.

    Examples
    --------
    >>> import torch
    >>> class_shares(torch.tensor([[[0, 0], [0, 2]]]))
    tensor([[[0.1667, 0.1667],
             [0.1667, 0.5000]]])
    """
    flat = labels.flatten(1)
    counts = F.one_hot(flat).sum(1)  # B K
    shares = 1 / counts.gather(1, flat) / (counts > 0).sum(1, keepdim=True)
    return shares.view_as(labels)


def _binary_divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """Return ``KL(Bernoulli(σ(z_T)) ‖ Bernoulli(σ(z_S)))`` of every logit."""
    there = teacher.sigmoid() * (F.logsigmoid(teacher) - F.logsigmoid(student))
    absent = (-teacher).sigmoid() * (F.logsigmoid(-teacher) - F.logsigmoid(-student))
    return there + absent
