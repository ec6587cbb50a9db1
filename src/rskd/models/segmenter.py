"""The segmentation network: context from a timm encoder, detail from a convolutional stem, and a decoder over both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from rskd.config import ModelSpec
from rskd.errors import ModelError, ParameterError
from rskd.models.decoders import DECODERS, PLAIN_FACTORS, WITH_STEM, Decoder, PlainPyramid, Stem
from rskd.models.encoders import build_encoder, is_plain, stage_maps, strides, widths


class Segmenter(nn.Module):
    """A timm encoder and a decoder, with a convolutional stem beside the encoder where the decoder uses one.

    Parameters
    ----------
    spec
        Description of the network; see `rskd.config.ModelSpec`.
    pretrained
        File with timm weights of the encoder, or `rskd.models.encoders.DOWNLOAD`; ``None`` = fresh weights.

    Raises
    ------
    ModelError
        If timm has no such encoder, or it cannot be built as described.

    Examples
    --------
    >>> import torch
    >>> from rskd.models.presets import fresh_spec
    >>> model = Segmenter(fresh_spec("rskd-nano", in_channels=1, classes=["organ"]))
    >>> model(torch.zeros(1, 1, 64, 96)).shape
    torch.Size([1, 2, 64, 96])
    """

    def __init__(self, spec: ModelSpec, *, pretrained: Path | None = None) -> None:
        super().__init__()
        self.spec = spec
        self.encoder: Any = build_encoder(spec, pretrained=pretrained)
        self.stem = Stem(spec.in_channels, spec.stem_widths, norm=spec.norm) if spec.decoder in WITH_STEM else None
        self.pyramid: PlainPyramid | None = None
        if spec.decoder == "upsample":
            self.stages: tuple[int, ...] = (len(widths(self.encoder)) - 1,)
            self.decoder: nn.Module = Decoder(self._context_width(), spec)
        else:
            self._decode_stages(spec)

    def _context_width(self) -> int:
        return int(self.encoder.num_features) if is_plain(self.encoder) else widths(self.encoder)[-1]

    def _decode_stages(self, spec: ModelSpec) -> None:
        """Build a decoder over several stages, and choose these."""
        found, sizes = widths(self.encoder), strides(self.encoder)
        factors = PLAIN_FACTORS[spec.decoder][-len(found) :] if len(set(sizes)) == 1 else ()
        if factors:
            self.stages = tuple(round((i + 1) * len(found) / len(factors)) - 1 for i in range(len(factors)))
            if spec.patch_size % max(factors):
                raise ModelError(
                    f"The decoder {spec.decoder!r} needs a patch size that is a multiple of {max(factors)}, it is "
                    f"{spec.patch_size}: choose 'mlp', 'linear' or 'upsample'."
                )
            self.pyramid = PlainPyramid(found[-1], factors) if max(factors) > 1 else None
            sizes = tuple(spec.patch_size // factor for factor in factors)
        else:
            self.stages = _coarser(sizes) if spec.decoder != "linear" else (len(found) - 1,)
            sizes = tuple(sizes[stage] for stage in self.stages)
        self.decoder = DECODERS[spec.decoder]([found[stage] for stage in self.stages], sizes, spec)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, K, H, W) for images (B, C, H, W); H and W are multiples of the patch size."""
        height, width = images.shape[-2:]
        patch = self.spec.patch_size
        if height % patch or width % patch:
            raise ParameterError(f"The image is {height} x {width} pixels: pad it to multiples of {patch}.")
        context = self._context(images, (height // patch, width // patch))
        logits: Tensor = self.decoder(context, self.stem(images) if self.stem is not None else [])
        return logits

    def _context(self, images: Tensor, grid: tuple[int, int]) -> Tensor | list[Tensor]:
        """Return what the decoder takes: the deepest map (B, D, h, w), or the maps of several stages."""
        if self.spec.decoder == "upsample" and is_plain(self.encoder):
            tokens = self.encoder.forward_features(images)[:, self.encoder.num_prefix_tokens :]  # B N D
            return tokens_to_map(tokens, grid)
        maps = stage_maps(self.encoder, images, self.stages)
        if self.spec.decoder == "upsample":
            return maps[0]
        return self.pyramid(maps) if self.pyramid is not None else maps


def tokens_to_map(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return patch tokens (B, N, D) as a map (B, D, h, w) over their grid.

    Examples
    --------
    >>> import torch
    >>> tokens_to_map(torch.zeros(2, 6, 8), (2, 3)).shape
    torch.Size([2, 8, 2, 3])
    """
    # transpose, since the ONNX exporter does not know .mT
    return tokens.transpose(1, 2).reshape(tokens.shape[0], tokens.shape[2], *grid)  # B N D -> B D h w


def _coarser(sizes: tuple[int, ...]) -> tuple[int, ...]:
    """Return the last stage of every stride, at most the four coarsest."""
    last = {size: stage for stage, size in enumerate(sizes)}
    return tuple(sorted(last.values()))[-4:]
