"""Parameters of looking into networks and pictures: feature maps and denoising."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from rskd.config_base import Config


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
