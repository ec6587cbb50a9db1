"""Feature maps compared as they are: FitNets, and the plain control of the texture term.

Source: A. Romero et al., "FitNets: hints for thin deep nets", ICLR 2015, arXiv:1412.6550.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rskd.distillation.features import Features
from rskd.distillation.fusion import same_grid
from rskd.distillation.texture import standardise


def hint_loss(student: Tensor, teacher: Tensor, classes: Tensor | None = None) -> Tensor:
    """Return the mean squared difference of two maps (B, C, H, W).

    Examples
    --------
    >>> hint_loss(torch.ones(1, 2, 3, 3), torch.zeros(1, 2, 3, 3))
    tensor(1.)
    """
    return F.mse_loss(student, teacher)


class TextureControl(nn.Module):
    """The texture term without its transform: the same map, the same projector, the same standardised target."""

    def __init__(self, student_channels: int, teacher_channels: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(student_channels, teacher_channels, 1, bias=False)

    def forward(self, student: Features, teacher: Features, target: Tensor) -> Tensor:
        """Return the loss of the shallow maps."""
        maps = [side.texture for side in (student, teacher) if side.texture is not None]
        with torch.autocast(student.logits.device.type, enabled=False):
            mine, theirs = same_grid(self.project(maps[0].float()), maps[1].detach().float())
            return self.compare(mine, standardise(theirs))

    def compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the distance of two maps (B, C, H, W)."""
        return hint_loss(student, teacher)
