"""How a formula on feature maps becomes a term: which stages it sees, and what is learnt beside it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rskd.distillation.features import Features
from rskd.distillation.fusion import same_grid

Compare = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From the maps of student and teacher on one grid, and the class of every pixel, to a scalar."""


@dataclass(frozen=True)
class Widths:
    """Channels of what is observed of one network."""

    stages: tuple[int, ...] = ()
    texture: int = 0


class DeepestStage(nn.Module):
    """A formula on the deepest observed stage, in float32; the student's map is projected where the formula needs it.

    Parameters
    ----------
    compare
        The formula.
    channels
        Channels of student and teacher for a learnt 1 × 1 projection; ``None`` = the formula compares any widths.
    """

    def __init__(self, compare: Compare, *, channels: tuple[int, int] | None = None) -> None:
        super().__init__()
        self.compare = compare
        self.project = nn.Conv2d(*channels, 1) if channels else nn.Identity()

    def forward(self, student: Features, teacher: Features, target: Tensor) -> Tensor:
        """Return the loss of what was observed; `target` is B H W, or B K H W; negative = no label."""
        classes = labels_or_prediction(target, teacher.logits)
        with torch.autocast(student.logits.device.type, enabled=False):
            projected = self.project(student.stages[-1].float())
            return self.compare(*same_grid(projected, teacher.stages[-1].detach().float()), classes)


def labels_or_prediction(target: Tensor, logits: Tensor) -> Tensor:
    """Return the class of every pixel (B, H, W): its label, or what the teacher says where it has none.

    Where classes may overlap: what of each is there, (B, K, H, W).

    Examples
    --------
    >>> labels_or_prediction(torch.tensor([[[1, -1]]]), torch.tensor([[[[0., 0.]], [[9., 9.]], [[0., 99.]]]]))
    tensor([[[1, 2]]])
    """
    said = logits.detach()
    return torch.where(target >= 0, target, said.argmax(1) if target.ndim == 3 else (said >= 0).long())


def classes_on_grid(classes: Tensor, like: Tensor, count: int) -> Tensor:
    """Return which pixel of the grid of `like` belongs to which class, (B, count, H·W), by the nearest label."""
    nearest = F.interpolate(classes[:, None].float(), like.shape[2:], mode="nearest-exact").long()
    return F.one_hot(nearest.flatten(1), count).mT.to(like.dtype)  # B N K -> B K N
