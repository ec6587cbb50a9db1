"""The parameters of the training patches: where they are cut, how they are changed, what is kept."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from rskd.config_base import Config, Fraction


class SamplingOptions(Config):
    """Where the training patches are cut."""

    foreground: Fraction = 0.5
    """Share of the patches that are cut around a pixel of some class other than the background."""
    class_balance: Fraction = 1.0
    """How evenly these look for the classes: 1 = for a rare class as often as for a common one, 0 = for each as often
    as it has pixels."""
    labelled: Fraction = 0.5
    """Share of the patches that come from images with a mask, where there are images without one as well."""
    even_cases: bool = True
    """Draw every image alike, however many planes it has; off = draw every plane alike."""


class AugmentOptions(Config):
    """How the training patches are changed at random, image and mask together."""

    flip: bool = True
    """Mirror half of the patches left to right, and half of them top to bottom."""
    rotation: Annotated[float, Field(ge=0, le=180)] = 180.0
    """Largest turn in degrees, either way; 0 = never turn, where up and down mean something."""
    scale: Annotated[float, Field(ge=1, le=4)] = 1.33
    """Largest factor by which a patch is magnified or shrunk; 1 = never."""
    brightness: Annotated[float, Field(ge=0, le=2)] = 0.15
    """Standard deviation of an offset on every channel, where the image itself has about 1."""
    contrast: Annotated[float, Field(ge=1, le=4)] = 1.25
    """Largest factor on every channel, up or down; 1 = never."""
    noise: Annotated[float, Field(ge=0, le=2)] = 0.1
    """Largest standard deviation of noise on every pixel."""
    elastic: Annotated[float, Field(ge=0, le=0.05)] = 0.04
    """Largest shift of an elastic deformation, as a share of the patch; 0 = never."""
    blur: Annotated[float, Field(ge=0, le=8)] = 1.0
    """Largest standard deviation of a blur in pixels; 0 = never."""
    low_resolution: Annotated[float, Field(ge=1, le=8)] = 2.0
    """Largest factor by which detail is taken away, as if the pixels had been larger; 1 = never."""
    share: Fraction = 0.1
    """Share of the patches that are bent, that are blurred, that lose detail; the other changes meet every patch."""


class CacheOptions(Config):
    """Whether the teacher's answers are kept on disk instead of being computed anew in every step."""

    use: Literal["off", "auto", "on"] = "auto"
    """A fixed teacher says the same on the same view, so with a fixed number of `views` it needs to be asked only once
    per view: later steps cost hardly more than training without a teacher, and the disk holds the answers, rounded to
    half precision. With endless views there is nothing to keep. auto = on where the views are fixed and the answers
    fit; on = refuse to start if they do not."""
    gigabytes: Annotated[float, Field(gt=0, le=100_000)] = 10.0
    """Largest size of the answers on disk, inside the run folder; they are deleted when the run is finished."""
