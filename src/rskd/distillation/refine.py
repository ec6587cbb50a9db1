"""Redundancy refinement of a feature map: SCConv (SRU then CRU), scSE and CBAM.

Sources: SCConv, CVPR 2023, doi:10.1109/CVPR52729.2023.00596; scSE, MICCAI 2018, arXiv:1803.02579;
CBAM, ECCV 2018, arXiv:1807.06521.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

GROUPS = 4


class Pointwise(nn.Conv2d):
    """A 1 × 1 convolution, computed as one product with its matrix: several times faster on a CPU.

    Examples
    --------
    >>> layer, x = Pointwise(3, 2), torch.randn(1, 3, 4, 4)
    >>> torch.allclose(layer(x), F.conv2d(x, layer.weight, layer.bias), atol=1e-6)
    True
    """

    def __init__(self, in_channels: int, out_channels: int, *, bias: bool = True) -> None:
        super().__init__(in_channels, out_channels, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return the map (B, C', H, W) of `x` (B, C, H, W)."""
        return F.linear(x.movedim(1, -1), self.weight.flatten(1), self.bias).movedim(-1, 1)


class SpatialRefinement(nn.Module):
    """SRU: separate what is informative by the scale of a group norm, and reconstruct by crossing the halves."""

    def __init__(self, channels: int, *, threshold: float = 0.5) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, channels)
        self.threshold = threshold

    def forward(self, x: Tensor) -> Tensor:
        """Return the refined map, same shape (B, C, H, W)."""
        normed = self.norm(x)
        scale = self.norm.weight.abs()  # a scale can train below zero; its size is what informs
        weight = torch.sigmoid(normed * (scale / (scale.sum() + 1e-6))[:, None, None])
        informative = (weight > self.threshold).to(x.dtype)  # 0 or 1: products are several times faster than a choice
        weak = weight * (1 - informative)
        strong = weak + informative  # 1 where it informs, else its weight
        return strong * x + (weak * x).roll(x.shape[1] // 2, dims=1)  # each half with the other one's weak part


class ChannelRefinement(nn.Module):
    """CRU: split the channels, transform the rich half and reuse the other, fuse by a two-way softmax per channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half, squeezed = channels // 2, channels // 4
        self.squeeze_rich = Pointwise(half, squeezed, bias=False)
        self.squeeze_plain = Pointwise(half, squeezed, bias=False)
        self.groupwise = nn.Conv2d(squeezed, channels, 3, padding=1, groups=2)
        self.pointwise_rich = Pointwise(squeezed, channels, bias=False)
        self.pointwise_plain = Pointwise(squeezed, channels - squeezed, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the refined map, same shape (B, C, H, W)."""
        rich, plain = x.chunk(2, dim=1)
        rich, plain = self.squeeze_rich(rich), self.squeeze_plain(plain)
        transformed = self.groupwise(rich) + self.pointwise_rich(rich)
        reused = torch.cat([self.pointwise_plain(plain), plain], dim=1)
        means = [x.mean((2, 3), keepdim=True) for x in (transformed, reused)]
        share = torch.sigmoid(means[0] - means[1])  # the softmax of two
        refined: Tensor = reused + share * (transformed - reused)
        return refined


class ConcurrentExcitation(nn.Module):
    """scSE: squeeze in space to excite channels and squeeze channels to excite space, the larger response wins."""

    def __init__(self, channels: int, *, reduction: int = 2) -> None:
        super().__init__()
        self.channel = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, channels // reduction, 1),
            nn.ReLU(),
            nn.Conv2d(channels // reduction, channels, 1),
            nn.Sigmoid(),
        )
        self.space = nn.Sequential(Pointwise(channels, 1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        """Return the refined map, same shape (B, C, H, W)."""
        return torch.maximum(self.channel(x) * x, self.space(x) * x)


class AttentionRefinement(nn.Module):
    """CBAM: a channel gate from average and maximum, then a spatial gate from a 7 × 7 convolution of both."""

    def __init__(self, channels: int, *, reduction: int = 2) -> None:
        super().__init__()
        self.channel = nn.Sequential(
            nn.Conv2d(channels, channels // reduction, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(channels // reduction, channels, 1, bias=False),
        )
        self.space = nn.Conv2d(2, 1, 7, padding=3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the refined map, same shape (B, C, H, W)."""
        pooled = self.channel(x.mean((2, 3), keepdim=True)) + self.channel(x.amax((2, 3), keepdim=True))
        x = torch.sigmoid(pooled) * x
        summary = torch.cat([x.amax(1, keepdim=True), x.mean(1, keepdim=True)], dim=1)
        return torch.sigmoid(self.space(summary)) * x


def _scconv(channels: int) -> nn.Module:
    return nn.Sequential(SpatialRefinement(channels), ChannelRefinement(channels))


REFINEMENTS: dict[str, Callable[[int], nn.Module]] = {
    "scconv": _scconv,
    "scse": ConcurrentExcitation,
    "cbam": AttentionRefinement,
}
