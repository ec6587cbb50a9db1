"""The segmentation network: global context from a Vision Transformer, fine detail from a convolutional stem."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rskd.config import ModelSpec
from rskd.errors import ModelError, ParameterError


class Segmenter(nn.Module):
    """A timm Vision Transformer, a convolutional stem beside it, and a decoder that joins both.

    Parameters
    ----------
    spec
        Description of the network; see `rskd.config.ModelSpec`.

    Raises
    ------
    ModelError
        If timm has no such encoder, or it is not a plain Vision Transformer.

    Examples
    --------
    >>> from rskd.models.presets import fresh_spec
    >>> model = Segmenter(fresh_spec("rskd-nano", in_channels=1, classes=["organ"]))
    >>> model(torch.zeros(1, 1, 64, 96)).shape
    torch.Size([1, 2, 64, 96])
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        self.encoder = _encoder(spec)
        self.stem = Stem(spec.in_channels, spec.stem_widths)
        self.decoder = Decoder(self.encoder.num_features, spec)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, K, H, W) for images (B, C, H, W); H and W are multiples of the patch size."""
        height, width = images.shape[-2:]
        patch = self.spec.patch_size
        if height % patch or width % patch:
            raise ParameterError(f"The image is {height} x {width} pixels: pad it to multiples of {patch}.")
        tokens = self.encoder.forward_features(images)[:, self.encoder.num_prefix_tokens :]  # B N D
        context = tokens_to_map(tokens, (height // patch, width // patch))  # B D h w
        return self.decoder(context, self.stem(images))  # type: ignore[no-any-return]


def tokens_to_map(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return patch tokens (B, N, D) as a map (B, D, h, w) over their grid.

    Examples
    --------
    >>> tokens_to_map(torch.zeros(2, 6, 8), (2, 3)).shape
    torch.Size([2, 8, 2, 3])
    """
    return tokens.mT.reshape(tokens.shape[0], tokens.shape[2], *grid)  # B N D -> B D h w


class Stem(nn.Module):
    """Plain convolutions at full, half, quarter … resolution; returns the map of every level."""

    def __init__(self, in_channels: int, widths: Sequence[int]) -> None:
        super().__init__()
        inputs = (in_channels, *widths[:-1])
        self.levels = nn.ModuleList(
            _convolution(before, after, stride=1 if level == 0 else 2)
            for level, (before, after) in enumerate(zip(inputs, widths, strict=True))
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return maps (B, width_i, H / 2^i, W / 2^i), finest first."""
        maps = []
        for level in self.levels:
            images = level(images)
            maps.append(images)
        return maps


class Decoder(nn.Module):
    """From the token grid up to the pixels by factors of two, joined by the stem's map where there is one."""

    def __init__(self, in_channels: int, spec: ModelSpec) -> None:
        super().__init__()
        steps = spec.patch_size.bit_length() - 1
        if 2**steps != spec.patch_size or len(spec.stem_widths) > steps:
            raise ModelError(
                f"patch_size={spec.patch_size} with {len(spec.stem_widths)} stem levels: the patch size must be a "
                "power of two, with at most one stem level per factor of two."
            )
        self.project = nn.Conv2d(in_channels, spec.decoder_width, 1)
        self.joins = nn.ModuleList()
        channels = spec.decoder_width
        for level in reversed(range(steps)):
            detail = spec.stem_widths[level] if level < len(spec.stem_widths) else 0
            width = min(spec.decoder_width, 2 * detail) if detail else spec.decoder_width
            self.joins.append(_convolution(channels + detail, width))
            channels = width
        self.head = nn.Conv2d(channels, len(spec.classes), 1)

    def forward(self, context: Tensor, details: Sequence[Tensor]) -> Tensor:
        """Return logits (B, K, H, W) from the token map (B, D, h, w) and the stem's maps, finest first."""
        joined = self.project(context)
        for join, level in zip(self.joins, reversed(range(len(self.joins))), strict=True):
            joined = F.interpolate(joined, scale_factor=2, mode="bilinear", align_corners=False)
            if level < len(details):
                joined = torch.cat([joined, details[level]], dim=1)
            joined = join(joined)
        return self.head(joined)  # type: ignore[no-any-return]


def _convolution(in_channels: int, out_channels: int, *, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


def _encoder(spec: ModelSpec) -> timm.models.VisionTransformer:
    sizes: dict[str, Any] = {"embed_dim": spec.embed_dim, "depth": spec.depth, "num_heads": spec.num_heads}
    try:
        encoder = timm.create_model(
            spec.encoder,
            pretrained=False,
            num_classes=0,
            in_chans=spec.in_channels,
            img_size=spec.image_size,
            patch_size=spec.patch_size,
            dynamic_img_size=True,
            **{name: size for name, size in sizes.items() if size is not None},
        )
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        raise ModelError(f"The encoder {spec.encoder!r} cannot be built as described: {error}.") from error
    if not isinstance(encoder, timm.models.VisionTransformer):
        raise ModelError(f"{spec.encoder!r} is no plain Vision Transformer: use a timm name that begins with vit_.")
    return encoder
