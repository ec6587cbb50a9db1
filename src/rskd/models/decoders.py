"""From the maps of an encoder to logits at full size.

Every decoder says which stages of the encoder it wants, and takes their maps, shallow to deep, with those of the stem.

Sources: feature pyramid, T.-Y. Lin et al., CVPR 2017, and its panoptic form, A. Kirillov et al., CVPR 2019; U-Net,
O. Ronneberger et al., MICCAI 2015; all-MLP decoder, E. Xie et al., "SegFormer", NeurIPS 2021; the pyramid from a plain
transformer, Y. Li et al., ECCV 2022.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rskd.config import ModelSpec
from rskd.errors import ModelError

GROUPS = 8
"""Most groups of a group norm."""


def convolution(in_channels: int, out_channels: int, *, norm: str, size: int = 3, stride: int = 1) -> nn.Sequential:
    """Return a convolution with batch or group norm (`ModelSpec.norm`) and ReLU."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, size, stride=stride, padding=size // 2, bias=False),
        nn.BatchNorm2d(out_channels) if norm == "batch" else nn.GroupNorm(math.gcd(GROUPS, out_channels), out_channels),
        nn.ReLU(inplace=True),
    )


def enlarge(x: Tensor, factor: int) -> Tensor:
    """Return `x` (B, C, H, W) enlarged by a whole number, bilinear."""
    return x if factor == 1 else F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)


def _width(block: nn.Module) -> int:
    """Return the channels that the last convolution of a block gives."""
    return [module.out_channels for module in block.modules() if isinstance(module, nn.Conv2d)][-1]


class DecoderMap(NamedTuple):
    """A map that a decoder makes on its way to the pixels."""

    stride: int
    """Pixels of the image per place."""
    width: int
    """Its channels."""
    module: nn.Module
    """Whose output it is, (B, width, H / stride, W / stride)."""


class Stem(nn.Module):
    """Plain convolutions at full, half, quarter … resolution; returns the map of every level."""

    def __init__(self, in_channels: int, widths: Sequence[int], *, norm: str = "batch") -> None:
        super().__init__()
        inputs = (in_channels, *widths[:-1])
        self.levels = nn.ModuleList(
            convolution(before, after, norm=norm, stride=1 if level == 0 else 2)
            for level, (before, after) in enumerate(zip(inputs, widths, strict=True))
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return maps (B, width_i, H / 2^i, W / 2^i), finest first."""
        maps = []
        for level in self.levels:
            images = level(images)
            maps.append(images)
        return maps


def doublings(spec: ModelSpec) -> int:
    """Return how often the deepest map is doubled to full size."""
    steps = spec.patch_size.bit_length() - 1
    if 2**steps != spec.patch_size or len(spec.stem_widths) > steps:
        raise ModelError(
            f"patch_size={spec.patch_size} with {len(spec.stem_widths)} stem levels: the patch size must be a "
            "power of two, with at most one stem level per factor of two."
        )
    return steps


class Decoder(nn.Module):
    """`upsample`: from the deepest map up by factors of two, joined by the stem's map where there is one."""

    def __init__(self, in_channels: int, spec: ModelSpec) -> None:
        super().__init__()
        steps = doublings(spec)
        self.project = nn.Conv2d(in_channels, spec.decoder_width, 1)
        self.joins = nn.ModuleList()
        channels = spec.decoder_width
        for level in reversed(range(steps)):
            detail = spec.stem_widths[level] if level < len(spec.stem_widths) else 0
            width = min(spec.decoder_width, 2 * detail) if detail else spec.decoder_width
            self.joins.append(convolution(channels + detail, width, norm=spec.norm))
            channels = width
        self.head = nn.Conv2d(channels, len(spec.outputs), 1)

    def forward(self, context: Tensor, details: Sequence[Tensor]) -> Tensor:
        """Return logits (B, K, H, W) from the deepest map (B, D, h, w) and the stem's maps, finest first."""
        joined = self.project(context)
        for join, level in zip(self.joins, reversed(range(len(self.joins))), strict=True):
            joined = F.interpolate(joined, scale_factor=2, mode="bilinear", align_corners=False)
            if level < len(details):
                joined = torch.cat([joined, details[level]], dim=1)
            joined = join(joined)
        return self.head(joined)  # type: ignore[no-any-return]

    def maps(self) -> list[DecoderMap]:
        """Return the maps after every doubling, coarse to fine."""
        levels = reversed(range(len(self.joins)))
        return [DecoderMap(2**level, _width(join), join) for level, join in zip(levels, self.joins, strict=True)]


class LinearDecoder(nn.Module):
    """`linear`: one weight per channel and class, then enlarged."""

    def __init__(self, widths: Sequence[int], strides: Sequence[int], spec: ModelSpec) -> None:
        super().__init__()
        self.stride = strides[-1]
        self.head = nn.Conv2d(widths[-1], len(spec.outputs), 1)

    def forward(self, maps: Sequence[Tensor], details: Sequence[Tensor]) -> Tensor:
        """Return logits (B, K, H, W) from the stages' maps; the stem is not used."""
        return enlarge(self.head(maps[-1]), self.stride)

    def maps(self) -> list[DecoderMap]:
        """Return nothing: there is no map between the encoder and the logits."""
        return []


class MLPDecoder(nn.Module):
    """`mlp`: every stage projected to one width and enlarged to the finest of them, then mixed (SegFormer)."""

    def __init__(self, widths: Sequence[int], strides: Sequence[int], spec: ModelSpec) -> None:
        super().__init__()
        self.strides = tuple(strides)
        self.projects = nn.ModuleList(nn.Conv2d(width, spec.decoder_width, 1) for width in widths)
        self.mix = convolution(len(widths) * spec.decoder_width, spec.decoder_width, norm=spec.norm, size=1)
        self.head = nn.Conv2d(spec.decoder_width, len(spec.outputs), 1)

    def forward(self, maps: Sequence[Tensor], details: Sequence[Tensor]) -> Tensor:
        """Return logits (B, K, H, W) from the stages' maps; the stem is not used."""
        finest = self.strides[0]
        levels = [
            enlarge(project(x), stride // finest)
            for project, x, stride in zip(self.projects, maps, self.strides, strict=True)
        ]
        return enlarge(self.head(self.mix(torch.cat(levels, dim=1))), finest)

    def maps(self) -> list[DecoderMap]:
        """Return the mixed map, at the size of the finest stage."""
        return [DecoderMap(self.strides[0], _width(self.mix), self.mix)]


class PyramidDecoder(nn.Module):
    """`fpn`: every stage added to what comes from below, smoothed, enlarged to the finest of them and added up."""

    def __init__(self, widths: Sequence[int], strides: Sequence[int], spec: ModelSpec) -> None:
        super().__init__()
        self.strides = tuple(strides)
        self.laterals = nn.ModuleList(nn.Conv2d(width, spec.decoder_width, 1) for width in widths)
        self.smooths = nn.ModuleList(
            convolution(spec.decoder_width, spec.decoder_width, norm=spec.norm) for _ in widths
        )
        self.head = nn.Conv2d(spec.decoder_width, len(spec.outputs), 1)

    def forward(self, maps: Sequence[Tensor], details: Sequence[Tensor]) -> Tensor:
        """Return logits (B, K, H, W) from the stages' maps; the stem is not used."""
        levels = [lateral(x) for lateral, x in zip(self.laterals, maps, strict=True)]
        for i in reversed(range(len(levels) - 1)):
            levels[i] = levels[i] + enlarge(levels[i + 1], self.strides[i + 1] // self.strides[i])
        finest = self.strides[0]
        smooth = [
            enlarge(smooth(level), stride // finest)
            for smooth, level, stride in zip(self.smooths, levels, self.strides, strict=True)
        ]
        return enlarge(self.head(torch.stack(smooth).sum(0)), finest)

    def maps(self) -> list[DecoderMap]:
        """Return the smoothed map of every stage, coarse to fine."""
        found = [DecoderMap(s, _width(smooth), smooth) for s, smooth in zip(self.strides, self.smooths, strict=True)]
        return found[::-1]


class UNetDecoder(nn.Module):
    """`unet`: from the deepest map up by factors of two, joined by every stage and level of the stem on the way."""

    def __init__(self, widths: Sequence[int], strides: Sequence[int], spec: ModelSpec) -> None:
        super().__init__()
        self.places = {stride: place for place, stride in enumerate(strides[:-1])}
        self.strides = tuple(2**level for level in reversed(range(doublings(spec))))
        self.joins = nn.ModuleList()
        channels = widths[-1]
        for level, stride in zip(reversed(range(len(self.strides))), self.strides, strict=True):
            detail = spec.stem_widths[level] if level < len(spec.stem_widths) else 0
            skip = widths[self.places[stride]] if stride in self.places else 0
            width = min(spec.decoder_width, 2 * detail) if detail else spec.decoder_width
            first = convolution(channels + skip + detail, width, norm=spec.norm)
            self.joins.append(nn.Sequential(first, convolution(width, width, norm=spec.norm)))
            channels = width
        self.head = nn.Conv2d(channels, len(spec.outputs), 1)

    def forward(self, maps: Sequence[Tensor], details: Sequence[Tensor]) -> Tensor:
        """Return logits (B, K, H, W) from the stages' maps and the stem's, finest first."""
        joined = maps[-1]
        for join, level, stride in zip(self.joins, reversed(range(len(self.strides))), self.strides, strict=True):
            skips = [maps[self.places[stride]]] if stride in self.places else []
            joined = join(torch.cat([enlarge(joined, 2), *skips, *details[level : level + 1]], dim=1))
        return self.head(joined)  # type: ignore[no-any-return]

    def maps(self) -> list[DecoderMap]:
        """Return the maps after every doubling, coarse to fine."""
        return [DecoderMap(s, _width(join), join) for s, join in zip(self.strides, self.joins, strict=True)]


class PlainPyramid(nn.Module):
    """Maps of a plain transformer brought to four times, twice and once the size of its grid (ViTDet)."""

    def __init__(self, width: int, factors: Sequence[int]) -> None:
        super().__init__()
        self.levels = nn.ModuleList(
            nn.Sequential(*(nn.ConvTranspose2d(width, width, 2, stride=2) for _ in range(factor.bit_length() - 1)))
            for factor in factors
        )

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return the maps at their new sizes."""
        return [level(x) for level, x in zip(self.levels, maps, strict=True)]


DECODERS: dict[str, type[LinearDecoder | MLPDecoder | PyramidDecoder | UNetDecoder]] = {
    "linear": LinearDecoder,
    "mlp": MLPDecoder,
    "fpn": PyramidDecoder,
    "unet": UNetDecoder,
}
"""Decoders on the maps of several stages; `upsample` takes the deepest alone."""
WITH_STEM = ("upsample", "unet")
PLAIN_FACTORS = {"linear": (1,), "mlp": (1, 1, 1, 1), "fpn": (4, 2, 1), "unet": (4, 2, 1)}
"""How much larger than its token grid each map of a plain transformer is, for every decoder."""
