"""SCCF: Space Channel Cascade Fusion, multi-stage feature-map distillation.

The student's stages are fused from deep to shallow. At every step a spatial gate (the attention-based fusion of
ReviewKD, arXiv:2104.09044) and a channel gate (the selective fusion of TransKD, arXiv:2202.13393) weigh the stage
against what came from below; each fused map is then compared with the teacher's map of that stage.
Only the student's side learns anything: with trainable layers on both sides, both could agree on a constant.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from rskd.config import FusionOptions
from rskd.distillation.refine import GROUPS, REFINEMENTS, Pointwise
from rskd.errors import ParameterError

POOLS = (4, 2, 1)
"""Sides of the pooled maps in the hierarchical context loss."""


def hierarchical_context_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean squared error at full size and on pooled maps, weighted 1, ½, ¼, ⅛ (HCL of ReviewKD).

    A pooled size that is not smaller than the map's shorter side is left out.

    Parameters
    ----------
    student, teacher
        Maps of the same shape (B, C, H, W).

    Returns
    -------
    Tensor
        Scalar ≥ 0, zero where both are equal.

    Examples
    --------
    >>> round(hierarchical_context_loss(torch.ones(1, 2, 8, 8), torch.zeros(1, 2, 8, 8)).item(), 6)
    1.0
    """
    dtype = torch.promote_types(student.dtype, torch.float32)
    with torch.autocast(student.device.type, enabled=False):
        loss: Tensor = _ContextLoss.apply(student.to(dtype) - teacher.to(dtype))
    return loss


class _ContextLoss(torch.autograd.Function):
    """The loss of a residual (B, C, H, W): pooling is linear, so that all sides come from it in two small products."""

    @staticmethod
    def forward(ctx: Any, residual: Tensor) -> Tensor:
        residual = residual.movedim(1, -1).contiguous()  # B H W C
        height, width, channels = residual.shape[1:]
        sides = [side for side in POOLS if side < min(height, width)]
        rows, columns = (_pooling(size, sides, residual) for size in (height, width))
        pooled = columns @ (rows @ residual.flatten(2)).view(len(residual), -1, width, channels)  # B S S C
        total: float = 2 - 0.5 ** len(sides)  # 1 + ½ + ¼ …
        blocks = [residual.new_full((side, side), 0.5**i / side**2) for i, side in enumerate(sides, start=1)]
        shares: Tensor = torch.block_diag(*blocks)[..., None]  # type: ignore[no-untyped-call]  # S S 1, 0 between sides
        shares = shares / (len(residual) * channels * total)
        full = ctx.full = 1 / (residual.numel() * total)
        ctx.save_for_backward(residual, rows, columns, shares * pooled)
        squares: Tensor = residual.flatten().dot(residual.flatten())
        return squares * full + (shares * pooled.square()).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        residual, rows, columns, pooled = ctx.saved_tensors
        spread = (columns.mT @ pooled).flatten(2)  # B S W·C
        total = torch.baddbmm(residual.flatten(2), rows.mT.expand(len(spread), -1, -1), spread, beta=ctx.full)
        return total.mul_(2 * grad).view_as(residual).movedim(-1, 1)


def _pooling(size: int, sides: Sequence[int], like: Tensor) -> Tensor:
    """Return the matrix (Σ sides, size) that pools an axis to every one of `sides`."""
    identity = torch.eye(size, dtype=like.dtype, device=like.device)
    return torch.cat([like.new_zeros(size, 0), *(F.adaptive_avg_pool1d(identity, side) for side in sides)], dim=1).mT


def channel_wise_loss(student: Tensor, teacher: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Return ``T² · mean over channels of KL(softmax_space(teacher / T) ‖ softmax_space(student / T))``, as in CWD."""
    log_student = F.log_softmax(student.flatten(2) / temperature, dim=2)
    log_teacher = F.log_softmax(teacher.flatten(2) / temperature, dim=2)
    return temperature**2 * (log_teacher.exp() * (log_teacher - log_student)).sum(2).mean()


def cosine_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean over pixels of 1 − the cosine between the two feature vectors."""
    return (1 - F.cosine_similarity(student, teacher, dim=1)).mean()


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "hcl": hierarchical_context_loss,
    "mse": F.mse_loss,
    "cwd": channel_wise_loss,
    "cosine": cosine_loss,
}


class Fusion(nn.Module):
    """One step of the cascade: this stage and what came from the deeper ones, gated in space and channel."""

    def __init__(self, channels: int, *, gate: str) -> None:
        super().__init__()
        self.space = Pointwise(2 * channels, 2) if gate != "channel" else None
        self.channel = ChannelGate(channels) if gate != "space" else None

    def forward(self, stage: Tensor, deeper: Tensor) -> Tensor:
        """Return the fused map of `stage` (B, C, H, W) and `deeper` (B, C, H, W)."""
        alpha = beta = a = b = torch.full((), 0.5, dtype=stage.dtype, device=stage.device)
        if self.space is not None:
            alpha, beta = torch.sigmoid(self.space(torch.cat([stage, deeper], dim=1))).chunk(2, dim=1)  # B 1 H W
        if self.channel is not None:
            a, b = self.channel(stage + deeper)  # B C 1 1
        return 2 * ((alpha * a) * stage + (beta * b) * deeper)


class ChannelGate(nn.Module):
    """Two weights per channel that add up to one, from the globally pooled sum (CSF of TransKD)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.squeeze = nn.Sequential(
            nn.Conv2d(channels, channels // 2, 1, bias=False), nn.GroupNorm(GROUPS, channels // 2), nn.ReLU()
        )
        self.excite = nn.Conv2d(channels // 2, 2 * channels, 1, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weights of this stage and of the deeper ones, each (B, C, 1, 1)."""
        both = self.excite(self.squeeze(x.mean((2, 3), keepdim=True)))
        first, second = both.unflatten(1, (2, -1)).softmax(1).unbind(1)
        return first, second


class FusionTerm(nn.Module):
    """The SCCF loss over matched stages.

    Parameters
    ----------
    student_channels, teacher_channels
        Channels of every stage, shallow to deep.
    options
        Gates, refinement, loss and width.

    Examples
    --------
    >>> term = FusionTerm([8, 8], [16, 16], FusionOptions(width=16))
    >>> student = [torch.randn(2, 8, 4, 4), torch.randn(2, 8, 2, 2)]
    >>> teacher = [torch.randn(2, 16, 4, 4), torch.randn(2, 16, 2, 2)]
    >>> term(student, teacher).shape
    torch.Size([])
    """

    def __init__(
        self, student_channels: Sequence[int], teacher_channels: Sequence[int], options: FusionOptions
    ) -> None:
        super().__init__()
        if len(student_channels) != len(teacher_channels):
            raise ParameterError(
                f"The student has {len(student_channels)} stages and the teacher {len(teacher_channels)}: match them."
            )
        if options.stage_weights and len(options.stage_weights) != len(student_channels):
            raise ParameterError(
                f"stage_weights names {len(options.stage_weights)} weights, {len(student_channels)} stages are "
                "matched: name one for each, shallow to deep."
            )
        self.weights = options.stage_weights[::-1]  # deep to shallow, as the losses are found
        width = options.width
        self.loss = LOSSES[options.loss]
        self.target = TARGETS[options.target]
        self.enter = nn.ModuleList(
            nn.Sequential(Pointwise(c, width, bias=False), nn.GroupNorm(GROUPS, width)) for c in student_channels
        )
        self.fusions = nn.ModuleList(Fusion(width, gate=options.gate) for _ in student_channels[:-1])
        refine = REFINEMENTS.get(options.refine)
        self.refinements = nn.ModuleList(refine(width) for _ in student_channels) if refine else None
        self.strengths = nn.Parameter(torch.zeros(len(student_channels))) if refine else None
        self.leave = nn.ModuleList(nn.Conv2d(width, c, 3, padding=1) for c in teacher_channels)

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """Return the weighted mean over the stages (B, C_i, H_i, W_i), shallow to deep; no gradient to the teacher."""
        losses = []
        deeper: Tensor | None = None
        for i in reversed(range(len(self.enter))):
            fused = self.enter[i](student[i])
            if deeper is not None:
                fused = self.fusions[i](fused, on_grid(deeper, fused))
            deeper = fused = self._refined(i, fused)
            losses.append(self.loss(*same_grid(self.leave[i](fused), self.target(teacher[i].detach()))))
        if not self.weights:
            return torch.stack(losses).mean()
        weighted = [weight * loss for weight, loss in zip(self.weights, losses, strict=True)]
        return torch.stack(weighted).sum() / sum(self.weights)

    def _refined(self, stage: int, fused: Tensor) -> Tensor:
        if self.refinements is None or self.strengths is None:
            return fused
        refined: Tensor = self.refinements[stage](fused)
        return fused + self.strengths[stage] * (refined - fused)


def channel_norm(x: Tensor) -> Tensor:
    """Return `x` (B, C, H, W) with mean 0 and variance 1 over the channels of every pixel; nothing is learnt."""
    return F.layer_norm(x.movedim(1, -1), x.shape[1:2]).movedim(-1, 1)


def unchanged(x: Tensor) -> Tensor:
    """Return `x`: ReviewKD compares with the teacher's maps as they are."""
    return x


TARGETS: dict[str, Callable[[Tensor], Tensor]] = {"standardised": channel_norm, "raw": unchanged}


def on_grid(deeper: Tensor, stage: Tensor) -> Tensor:
    """Return `deeper` on the grid of `stage`: enlarged by repetition, or pooled where it is the finer one.

    Examples
    --------
    >>> on_grid(torch.tensor([[[[1., 3.], [1., 3.]]]]), torch.zeros(1, 1, 1, 1))
    tensor([[[[2.]]]])
    """
    if deeper.shape[2] > stage.shape[2]:
        return F.adaptive_avg_pool2d(deeper, (stage.shape[2], stage.shape[3]))
    return F.interpolate(deeper, stage.shape[2:], mode="nearest")


def same_grid(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Pool the larger of both maps (B, C, H, W) to the grid of the smaller."""
    grid = (min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3]))
    return pool_to(student, grid), pool_to(teacher, grid)


def pool_to(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return `x` (B, C, H, W) averaged to a coarser grid, or as it is where it has that grid already."""
    return x if x.shape[2:] == grid else F.adaptive_avg_pool2d(x, grid)
