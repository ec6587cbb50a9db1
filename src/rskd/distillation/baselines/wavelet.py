"""The control of the texture term that has scales and three directions, but no contourlet: a separable Haar wavelet.

Source: S. Mallat, "A theory for multiresolution signal decomposition: the wavelet representation", TPAMI 1989.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rskd.distillation.baselines.hints import TextureControl


def haar(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return one level of the orthonormal Haar transform of maps with even sides.

    Parameters
    ----------
    x
        B C H W.

    Returns
    -------
    tuple
        The lowpass (B, C, H/2, W/2) and the details (B, 3, C, H/2, W/2): change over x, over y, over both.

    Examples
    --------
    >>> low, details = haar(torch.tensor([[[[4., 2.], [0., 0.]]]]))
    >>> low.flatten(), details.flatten()
    (tensor([3.]), tensor([1., 3., 1.]))
    """
    a, b, c, d = (x[..., i::2, j::2] for i in (0, 1) for j in (0, 1))
    details = torch.stack([a - b + c - d, a + b - c - d, a - b - c + d], dim=1)
    return (a + b + c + d) / 2, details / 2


def wavelet_loss(student: Tensor, teacher: Tensor, *, levels: int = 2) -> Tensor:
    """Return the mean over levels of the mean squared difference of the details; the lowpass is left out.

    Parameters
    ----------
    student, teacher
        B C H W; an odd last row or column is left out at every level.
    levels
        Levels of the transform; it ends earlier where a side is shorter than 2.

    Examples
    --------
    >>> x = torch.arange(16.).reshape(1, 1, 4, 4)
    >>> wavelet_loss(x + 5, x)
    tensor(0.)
    """
    losses: list[Tensor] = []
    low = student - teacher  # the transform is linear: once, on the difference
    while len(losses) < levels and min(low.shape[2:]) >= 2:
        low, details = haar(low[..., : low.shape[2] // 2 * 2, : low.shape[3] // 2 * 2])
        losses.append(details.square().mean())
    return torch.stack(losses).mean() if losses else low.sum() * 0


class WaveletControl(TextureControl):
    """The texture term with a separable wavelet in place of the contourlet."""

    def __init__(self, student_channels: int, teacher_channels: int, *, levels: int) -> None:
        super().__init__(student_channels, teacher_channels)
        self.levels = levels

    def compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the distance of the details of two maps (B, C, H, W)."""
        return wavelet_loss(student, teacher, levels=self.levels)
