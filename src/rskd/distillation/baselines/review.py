"""ReviewKD is SCCF with the spatial gate alone, no refinement and the teacher's maps as they are.

Source: P. Chen et al., "Distilling knowledge via knowledge review", CVPR 2021, arXiv:2104.09044. Group norms stand in
for the batch norms of the paper, which fail for single images; the loss is the mean over the stages, not their sum.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rskd.config import FusionOptions
from rskd.distillation.features import Features
from rskd.distillation.fusion import FusionTerm


class Review(nn.Module):
    """ReviewKD over the matched stages."""

    def __init__(self, student_channels: tuple[int, ...], teacher_channels: tuple[int, ...], *, width: int) -> None:
        super().__init__()
        options = FusionOptions(gate="space", refine="none", loss="hcl", target="raw", width=width)
        self.fusion = FusionTerm(student_channels, teacher_channels, options)

    def forward(self, student: Features, teacher: Features, target: Tensor) -> Tensor:
        """Return the mean hierarchical context loss of the fused stages."""
        loss: Tensor = self.fusion(student.stages, teacher.stages)
        return loss if loss.dtype == torch.float64 else loss.float()
