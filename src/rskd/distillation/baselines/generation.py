"""Generate what the teacher sees from a part of what the student sees: MGD and ViTKD.

Sources: Z. Yang et al., "Masked generative distillation", ECCV 2022, arXiv:2205.01529;
Z. Yang et al., "ViTKD: practical guidelines for ViT feature knowledge distillation", 2022, arXiv:2209.02432.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rskd.distillation.features import Features
from rskd.distillation.fusion import same_grid


class HiddenPlaces(nn.Module):
    """Draws which places are hidden, a new set at every call; the count of calls is part of the checkpoint."""

    calls: Tensor

    def __init__(self, ratio: float) -> None:
        super().__init__()
        self.ratio = ratio
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, like: Tensor) -> Tensor:
        """Return 1 where `like` (B, C, H, W) is hidden and 0 elsewhere, (B, 1, H, W)."""
        generator = torch.Generator().manual_seed(int(self.calls))
        self.calls += 1
        shape = (like.shape[0], 1, *like.shape[2:])
        return (torch.rand(shape, generator=generator) < self.ratio).to(like)


def generator(channels: int) -> nn.Sequential:
    """Return the generation block of both papers: two 3 × 3 convolutions."""
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1)
    )


class MaskedGeneration(nn.Module):
    """MGD: hide places of the student's deepest map, generate the teacher's from the rest, compare everywhere."""

    def __init__(self, student_channels: int, teacher_channels: int, *, mask_ratio: float) -> None:
        super().__init__()
        self.project = nn.Conv2d(student_channels, teacher_channels, 1)
        self.hidden = HiddenPlaces(mask_ratio)
        self.generate = generator(teacher_channels)

    def forward(self, student: Features, teacher: Features, target: Tensor) -> Tensor:
        """Return the mean squared error of the generated map."""
        mine, theirs = same_grid(self.project(student.stages[-1]), teacher.stages[-1].detach())
        generated = self.generate(mine * (1 - self.hidden(mine)))
        error: Tensor = F.mse_loss(generated.float(), theirs.float())
        return error


class ShallowDeep(nn.Module):
    """ViTKD: copy the shallow blocks, and generate hidden tokens of the deepest one, compared where they were hidden.

    Parameters
    ----------
    student_channels, teacher_channels
        Channels of every observed block: the shallow ones, then the deepest.
    generation
        Weight of the generated block, relative to the copied ones.
    mask_ratio
        Share of the tokens that are hidden.
    """

    def __init__(
        self,
        student_channels: tuple[int, ...],
        teacher_channels: tuple[int, ...],
        *,
        generation: float,
        mask_ratio: float,
    ) -> None:
        super().__init__()
        self.project = nn.ModuleList(
            nn.Conv2d(mine, theirs, 1) for mine, theirs in zip(student_channels, teacher_channels, strict=True)
        )
        self.hidden = HiddenPlaces(mask_ratio)
        self.token = nn.Parameter(torch.zeros(1, teacher_channels[-1], 1, 1))
        self.generate = generator(teacher_channels[-1])
        self.generation = generation

    def forward(self, student: Features, teacher: Features, target: Tensor) -> Tensor:
        """Return the sum of the copied blocks' errors and the weighted error of the generated tokens."""
        pairs = [
            same_grid(project(mine), theirs.detach())
            for project, mine, theirs in zip(self.project, student.stages, teacher.stages, strict=True)
        ]
        *shallow, (deep, deep_target) = pairs
        hidden = self.hidden(deep)
        generated = self.generate(torch.where(hidden > 0, self.token.to(deep), deep))
        error = (generated.float() - deep_target.float()).square().mean(1, keepdim=True) * hidden
        loss: Tensor = self.generation * error.sum() / hidden.sum().clamp(min=1)
        for mine, theirs in shallow:
            loss = loss + F.mse_loss(mine.float(), theirs.float())
        return loss
