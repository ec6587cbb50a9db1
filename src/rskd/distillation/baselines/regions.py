"""The features of a class and its pixels: IFVD and the region affinity of EMKD.

Sources: Y. Wang et al., "Intra-class feature variation distillation for semantic segmentation", ECCV 2020;
D. Qin et al., "Efficient medical image segmentation based on knowledge distillation", TMI 2021, arXiv:2108.09987.
Where a pixel has no label, the class that the teacher gives it is taken.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from rskd.distillation.baselines.stages import classes_on_grid


def intra_class_loss(student: Tensor, teacher: Tensor, classes: Tensor) -> Tensor:
    """Return the mean squared difference of how alike each pixel and the centre of its class are.

    Parameters
    ----------
    student, teacher
        B C H W, of any number of channels.
    classes
        B h w, the class of every pixel, at any resolution.

    Examples
    --------
    >>> x = torch.randn(1, 3, 4, 4)
    >>> intra_class_loss(x, x, torch.zeros(1, 8, 8, dtype=torch.long))
    tensor(0.)
    """
    member = classes_on_grid(classes, student, int(classes.max()) + 1)  # B K N
    return F.mse_loss(_similarity_to_centre(student, member), _similarity_to_centre(teacher, member))


def _similarity_to_centre(x: Tensor, member: Tensor) -> Tensor:
    pixels = x.flatten(2)  # B C N
    centres = _class_means(pixels, member)  # B K C
    return F.cosine_similarity(pixels, centres.mT @ member, dim=1)  # B N


def _class_means(pixels: Tensor, member: Tensor) -> Tensor:
    """Return the mean feature of every class (B, K, C); 0 where it does not occur."""
    return member @ pixels.mT / member.sum(2, keepdim=True).clamp(min=1)


def region_affinity_loss(student: Tensor, teacher: Tensor, classes: Tensor) -> Tensor:
    """Return the mean squared difference of the cosines between the mean features of every two classes of an image.

    Parameters
    ----------
    student, teacher
        B C H W, of any number of channels.
    classes
        B h w, the class of every pixel, at any resolution.

    Returns
    -------
    Tensor
        Scalar; 0 where no image has two classes.

    Examples
    --------
    >>> x = torch.randn(1, 3, 4, 4)
    >>> region_affinity_loss(x, 0 * x, torch.zeros(1, 4, 4, dtype=torch.long)).item()
    0.0
    """
    count = int(classes.max()) + 1
    member = classes_on_grid(classes, student, count)  # B K N
    occurs = member.sum(2) > 0  # B K
    pairs = (occurs[:, :, None] & occurs[:, None]).triu(1)
    difference = _affinity(student, member) - _affinity(teacher, member)  # B K K
    return (difference.square() * pairs).sum() / pairs.sum().clamp(min=1)


def _affinity(x: Tensor, member: Tensor) -> Tensor:
    regions = F.normalize(_class_means(x.flatten(2), member), dim=2)
    affinity: Tensor = torch.bmm(regions, regions.mT)
    return affinity
