"""Where each class is: CWD on the logits; on a feature map it is `channel_wise_loss` of the deepest stage.

Source: C. Shu et al., "Channel-wise knowledge distillation for dense prediction", ICCV 2021, arXiv:2011.13256.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rskd.distillation.features import Features
from rskd.distillation.fusion import channel_wise_loss


class ChannelWiseLogits(nn.Module):
    """CWD on the logits."""

    def __init__(self, *, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, student: Features, teacher: Features, target: Tensor) -> Tensor:
        """Return the loss of both predictions."""
        with torch.autocast(student.logits.device.type, enabled=False):
            logits = student.logits.float(), teacher.logits.detach().float()
            return channel_wise_loss(*logits, temperature=self.temperature)
