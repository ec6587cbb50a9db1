"""The losses on the logits: the task itself, and pixel-wise knowledge distillation."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def task_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Return cross-entropy plus soft Dice loss over the labelled pixels.

    Parameters
    ----------
    logits
        B K H W.
    target
        B H W, class index; negative = no label, which counts nowhere.

    Returns
    -------
    Tensor
        Scalar; 0 where no pixel is labelled. Dice is taken over the whole batch, per class that occurs.

    Examples
    --------
    >>> logits = torch.tensor([[[[50.0]], [[-50.0]]]])
    >>> round(task_loss(logits, torch.tensor([[[0]]])).item(), 6)
    0.0
    """
    labelled = target >= 0
    if not labelled.any():
        return logits.sum() * 0
    cross_entropy = F.cross_entropy(logits, target.clamp(min=-1), ignore_index=-1)
    return cross_entropy + soft_dice_loss(logits, target)


def soft_dice_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Return 1 − mean soft Dice over the classes that occur in the labelled pixels.

    Dice of a class is ``2 Σ p·t / (Σ p + Σ t)`` over the labelled pixels of the batch, the background left out where
    another class occurs.
    """
    labelled = (target >= 0)[:, None]  # B 1 H W
    truth = F.one_hot(target.clamp(min=0), logits.shape[1]).movedim(-1, 1) * labelled  # B K H W
    probability = logits.softmax(1) * labelled
    axes = (0, 2, 3)
    dice = 2 * (probability * truth).sum(axes) / ((probability + truth).sum(axes)).clamp(min=1e-6)
    occurs = truth.sum(axes) > 0
    if occurs[1:].any():
        occurs = occurs & (torch.arange(len(occurs), device=occurs.device) > 0)
    return 1 - dice[occurs].mean()


def logits_loss(student: Tensor, teacher: Tensor, *, temperature: float = 4.0) -> Tensor:
    """Return pixel-wise knowledge distillation: ``T² · mean_pixels KL(softmax(z_T / T) ‖ softmax(z_S / T))``.

    Parameters
    ----------
    student, teacher
        Logits, B K H W.
    temperature
        T > 0.

    Returns
    -------
    Tensor
        Scalar ≥ 0, zero where both say the same at every pixel.

    Examples
    --------
    >>> z = torch.randn(1, 3, 2, 2)
    >>> logits_loss(z, z).abs().item() < 1e-6
    True
    """
    log_student = F.log_softmax(student.float() / temperature, dim=1)
    log_teacher = F.log_softmax(teacher.detach().float() / temperature, dim=1)
    divergence = (log_teacher.exp() * (log_teacher - log_student)).sum(1)  # B H W
    return temperature**2 * divergence.mean()
