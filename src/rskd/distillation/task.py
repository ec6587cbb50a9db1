"""The loss on the masks: a term on every pixel, one on every region, and one on the borders, added up.

Sources: focal loss, T.-Y. Lin et al., ICCV 2017, arXiv:1708.02002; Tversky loss, S. S. M. Salehi et al., MLMI 2017,
arXiv:1706.05721; boundary loss, H. Kervadec et al., MIDL 2019, arXiv:1812.07032.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor
from torch.nn import functional as F

from rskd.config import TaskLossOptions
from rskd.errors import ParameterError

DEFAULT = TaskLossOptions()


def task_loss(logits: Tensor, target: Tensor, options: TaskLossOptions = DEFAULT) -> Tensor:
    """Return the loss of a prediction over the labelled pixels.

    Parameters
    ----------
    logits
        B K H W.
    target
        Index of the class, B H W; or, where classes overlap, what of each class is there (0 or 1), B K H W: then every
        class is a decision of its own (sigmoid instead of softmax). Negative = no label, which counts nowhere.
    options
        Which terms.

    Returns
    -------
    Tensor
        Scalar; 0 where no pixel is labelled. With ``per_image`` the mean over all images, 0 for one without labels.

    Raises
    ------
    ParameterError
        If `options` weighs another number of classes.

    Examples
    --------
    >>> logits = torch.tensor([[[[50.0]], [[-50.0]]]])
    >>> round(task_loss(logits, torch.tensor([[[0]]])).item(), 6)
    0.0
    """
    if options.per_image:
        whole = options.model_copy(update={"per_image": False})
        images = zip(torch.split(logits, 1), torch.split(target, 1), strict=True)
        return torch.stack([task_loss(*image, whole) for image in images]).mean()
    _check_classes(options, logits.shape[1])
    if not (target >= 0).any():
        return logits.sum() * 0
    if target.ndim == 3 and options == DEFAULT:
        cross_entropy = F.cross_entropy(logits, target.clamp(min=-1), ignore_index=-1)
        return cross_entropy + soft_dice_loss(logits, target)
    with torch.autocast(logits.device.type, enabled=False):
        logits = logits if logits.dtype == torch.float64 else logits.float()
        loss = _pixel_term(logits, target, options) + _region_term(logits, target, options)
        if options.boundary:
            loss = loss + options.boundary * boundary_loss(logits, target)
        return loss


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


def _check_classes(options: TaskLossOptions, classes: int) -> None:
    if options.class_weights and len(options.class_weights) != classes:
        raise ParameterError(
            f"class_weights names {len(options.class_weights)} weights, the network has {classes} classes: name one "
            "for each, the background first (where classes may overlap it has none)."
        )


def _pixel_term(logits: Tensor, target: Tensor, options: TaskLossOptions) -> Tensor:
    if options.pixel == "none":
        return logits.sum() * 0
    gamma = options.focal_gamma if options.pixel == "focal" else 0.0
    weights = logits.new_tensor(options.class_weights or (1.0,) * logits.shape[1])
    return focal_loss(logits, target, gamma=gamma, weights=weights)


def focal_loss(logits: Tensor, target: Tensor, *, gamma: float, weights: Tensor) -> Tensor:
    """Return the weighted mean of ``−(1 − p)^γ log p`` over the labelled pixels, p = probability of the truth.

    Parameters
    ----------
    logits
        B K H W.
    target
        B H W or B K H W, as in `task_loss`.
    gamma
        γ; 0 = cross-entropy.
    weights
        Weight of every class, (K).
    """
    if target.ndim == 4:
        sign = (2 * target - 1).to(logits)  # of a labelled value: ±1
        log_true, weight = F.logsigmoid(logits * sign), weights[:, None, None].expand_as(logits)
    else:
        index = target.clamp(min=0)
        log_true, weight = logits.log_softmax(1).gather(1, index[:, None])[:, 0], weights[index]
    weight = weight * (target >= 0)
    losses = -((1 - log_true.exp()).clamp(min=0) ** gamma) * log_true if gamma else -log_true
    return (weight * losses).sum() / weight.sum().clamp(min=torch.finfo(weight.dtype).tiny)


def _region_term(logits: Tensor, target: Tensor, options: TaskLossOptions) -> Tensor:
    if options.region == "none":
        return logits.sum() * 0
    return tversky_loss(logits, target, false_alarms=0.5 if options.region == "dice" else options.false_alarms)


def tversky_loss(logits: Tensor, target: Tensor, *, false_alarms: float) -> Tensor:
    """Return 1 − the mean over classes of the soft ``TP / (TP + α FP + (1 − α) FN)`` over the labelled pixels.

    Parameters
    ----------
    logits
        B K H W.
    target
        B H W or B K H W, as in `task_loss`. With B H W the background is left out where another class occurs; classes
        that do not occur are left out.
    false_alarms
        α; 0.5 = soft Dice.
    """
    probability, truth = _soft_and_true(logits, target)
    axes = (0, 2, 3)
    hit = (probability * truth).sum(axes)
    wrong = false_alarms * (probability.sum(axes) - hit) + (1 - false_alarms) * (truth.sum(axes) - hit)
    occurs = truth.sum(axes) > 0
    if target.ndim == 3 and occurs[1:].any():
        occurs = occurs & (torch.arange(len(occurs), device=occurs.device) > 0)
    if not occurs.any():
        return logits.sum() * 0
    return 1 - (hit / (hit + wrong).clamp(min=1e-6))[occurs].mean()


def boundary_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Return the mean over the labelled pixels of probability × signed distance to the border of the class.

    The distance is negative inside of the class, in units of half the image's longer side, so that the term lies
    between −2 and 2 and is least where every class fills its region. A class that does not occur in an image has no
    border there and counts nowhere; the background is left out.

    Parameters
    ----------
    logits
        B K H W.
    target
        B H W or B K H W, as in `task_loss`.
    """
    probability, truth = _soft_and_true(logits, target)
    first = 1 if target.ndim == 3 else 0
    distance = _signed_distances(truth[:, first:]).to(probability)
    labelled = (target >= 0)[:, None] if target.ndim == 3 else target[:, first:] >= 0
    weight = labelled.expand_as(distance).sum().clamp(min=1)
    return (probability[:, first:] * distance * labelled).sum() / weight


def _signed_distances(truth: Tensor) -> Tensor:
    """Return the distance of every pixel to the border of each class (B, K, H, W), negative inside."""
    unit = max(truth.shape[2:]) / 2
    distances = np.zeros(truth.shape, np.float32)
    for place in np.ndindex(truth.shape[:2]):
        inside = truth[place].detach().cpu().numpy() > 0
        if inside.any() and not inside.all():
            distances[place] = (distance_transform_edt(~inside) - distance_transform_edt(inside)) / unit
    return torch.from_numpy(distances)


def _soft_and_true(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return the probability of every class and whether it is there, (B, K, H, W), both 0 where there is no label."""
    if target.ndim == 4:
        labelled = target >= 0
        return logits.sigmoid() * labelled, target.clamp(min=0).to(logits) * labelled
    labelled = (target >= 0)[:, None]
    truth = F.one_hot(target.clamp(min=0), logits.shape[1]).movedim(-1, 1).to(logits)
    return logits.softmax(1) * labelled, truth * labelled
