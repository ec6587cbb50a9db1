"""Parameters of looking into networks and pictures: token importance, sub-bands, feature maps and denoising."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from rskd.config_base import Config

PyramidFilter = Literal["9-7", "5-3", "burt"]
DirectionalFilter = Literal["pkva6", "pkva8", "pkva12", "dmaxflat4"]
ImportanceDefinition = Literal[
    "received", "cls", "cls_value", "received_value", "rollout", "feature_norm", "at", "grad"
]


def _splittable(order: int) -> int:
    if order == 1:
        raise ValueError("a level cannot be split into 2 directions on a rectangular grid: use 0 (none) or 2 (four)")
    return order


DirectionOrder = Annotated[int, Field(ge=0, le=5), AfterValidator(_splittable)]


class ContourletOptions(Config):
    """How an image is split into sub-bands."""

    levels: tuple[DirectionOrder, ...] = (3, 3, 2)
    """log2 of the number of directions for every pyramid level, finest first; (3, 2) = 8 directions, then 4."""
    pyramid: PyramidFilter = "9-7"
    """Filter of the Laplacian pyramid."""
    directional: DirectionalFilter = "pkva12"
    """Filter of the directional bank."""
    border: Literal["symmetric", "periodic"] = "symmetric"
    """How the image goes on beyond its edges."""
    nonsubsampled: bool = False
    """Keep every sub-band at full size: shift-invariant, but many times more data."""


class RankOptions(Config):
    """How token importance is read from a Vision Transformer."""

    definition: ImportanceDefinition = "received"
    """What counts as importance: attention received from all tokens, attention of the CLS token …"""
    block: Annotated[int, Field(ge=-64, le=63)] = -1
    """Transformer block, from 0; negative numbers count from the last one. Of two networks it is the student's; the
    teacher is looked at in the same depth."""
    head: Annotated[int | None, Field(ge=0, le=255)] = None
    """Attention head, from 0; None = the mean of all."""
    keep_ratio: Annotated[float, Field(gt=0, le=1)] = 0.25
    """Share of the tokens that counts as the top."""


class FeatureMapOptions(Config):
    """Which feature map of a network is split into sub-bands."""

    part: Literal["stem", "encoder"] = "stem"
    """stem = the fine maps at full, half, quarter … resolution; encoder = the maps of its blocks or stages."""
    level: Annotated[int, Field(ge=-64, le=63)] = 0
    """Which map of that part, from 0, shallow to deep; negative numbers count from the last one."""
    feature: Annotated[int | None, Field(ge=0, le=4095)] = None
    """Channel of the map, from 0; None = the mean of all."""


class DenoiseOptions(Config):
    """How noise is taken out of a picture."""

    noise: Annotated[float, Field(ge=0)] = 0.0
    """Standard deviation of the noise, in the intensities of the picture; 0 = estimated from the picture."""
