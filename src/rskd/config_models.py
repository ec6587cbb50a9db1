"""What a network is: channels, classes, architecture."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from rskd.config_base import Config

Color = Annotated[str, Field(pattern=r"^#[0-9a-fA-F]{6}$")]


class ClassInfo(Config):
    """One class of a segmentation."""

    name: str
    """What it is, in words."""
    color: Color = "#e4572e"
    """Display colour, #rrggbb."""


BACKGROUND = ClassInfo(name="background", color="#000000")


class ModelSpec(Config):
    """Everything needed to build a segmentation network and to feed it; it travels inside the weight file."""

    name: str
    """Name for people."""
    encoder: str = "vit_tiny_patch16_224"
    """Name of a timm network; width, depth, heads and patches can be chosen for plain Vision Transformers (`vit_…`)."""
    embed_dim: Annotated[int | None, Field(ge=8, le=4096)] = None
    """Width of a token; None = as the encoder is published."""
    depth: Annotated[int | None, Field(ge=1, le=64)] = None
    """Number of transformer blocks; None = as the encoder is published."""
    num_heads: Annotated[int | None, Field(ge=1, le=64)] = None
    """Attention heads per block; None = as the encoder is published."""
    patch_size: Annotated[int, Field(ge=2, le=4096)] = 16
    """Side of a patch (one token) in pixels; of other networks, pixels per place of their deepest map."""
    image_size: Annotated[int, Field(ge=16, le=4096)] = 224
    """Side of the square tiles the network was trained on, in pixels; a multiple of the patch size."""
    in_channels: Annotated[int, Field(ge=1, le=64)] = 1
    """Number of image channels."""
    channels: tuple[str, ...] = ()
    """Names of the channels; empty = unnamed."""
    stem_widths: tuple[int, ...] = (8, 16, 32)
    """Channels of the convolutional stem at full, half, quarter … resolution."""
    decoder_width: Annotated[int, Field(ge=4, le=1024)] = 32
    """Channels of the decoder."""
    decoder: Literal["upsample", "linear", "mlp", "fpn", "unet"] = "upsample"
    """From the encoder to the pixels: the deepest map and the stem, the deepest map alone, or several stages."""
    norm: Literal["batch", "group"] = "batch"
    """How stem and decoder are normalised: over the batch, or every image by itself (for small batches, and for batches
    that several processes share)."""
    classes: tuple[ClassInfo, ...] = (BACKGROUND, ClassInfo(name="foreground"))
    """The classes; the first one is the background, the others are in the order of the network's outputs."""
    overlapping: bool = False
    """Classes may overlap: a pixel can belong to several of them, or to none. Every class but the background then has
    an output and a decision of its own (there from a probability of 0.5 on); the background has none."""
    normalisation: Literal["zscore", "percentile"] = "zscore"
    """How the intensities of every image and channel are brought to a common range: mean 0 and deviation 1,
    or 1st and 99th percentile to -1 and 1."""
    frame: Annotated[int | None, Field(ge=16)] = None
    """For pictures that always show the same field of view (fundus photographs): length of the longer side in pixels
    at training; other sizes are resized to it first. None = pixels are taken as they are."""
    spacing: Annotated[float | None, Field(gt=0, le=1000)] = None
    """Side of a pixel in mm at training; planes whose pixels are known to differ are resampled to it. None = unknown.
    A frame goes before it."""
    axis: Literal["z", "y", "x"] | None = None
    """Axis across the planes that it was trained on; None = unknown."""
    modality: str = ""
    """What the images are, in words: "colour fundus photograph", "cardiac cine MRI" …"""

    @model_validator(mode="after")
    def _consistent(self) -> ModelSpec:
        if self.image_size % self.patch_size:
            raise ValueError(
                f"image_size={self.image_size} is not a multiple of patch_size={self.patch_size}: "
                f"use {self.image_size // self.patch_size * self.patch_size or self.patch_size}"
            )
        if len(self.classes) < 2:
            raise ValueError(f"classes names {len(self.classes)} class: a background and at least one more are needed")
        if self.channels and len(self.channels) != self.in_channels:
            raise ValueError(f"channels names {len(self.channels)} channels, in_channels is {self.in_channels}")
        return self

    @property
    def outputs(self) -> tuple[ClassInfo, ...]:
        """The classes of the network's channels: all of them, or, where they may overlap, all but the background.

        Examples
        --------
        >>> [info.name for info in ModelSpec(name="net", overlapping=True).outputs]
        ['foreground']
        """
        return self.classes[1:] if self.overlapping else self.classes


class ForeignSpec(Config):
    """What a network from elsewhere takes and gives: the content of the JSON file beside it."""

    in_channels: Annotated[int, Field(ge=1, le=64)]
    """Number of image channels."""
    classes: tuple[ClassInfo, ...]
    """The classes in the order of its outputs, the background first; a name alone will do."""
    overlapping: bool = False
    """Its classes may overlap: it has an output for every class but the background; see `ModelSpec`."""
    image_size: Annotated[int, Field(ge=16, le=4096)]
    """Side of the square tiles that it takes, in pixels."""
    normalisation: Literal["zscore", "percentile"]
    """How it expects the intensities of every image and channel: see `ModelSpec`."""
    patch_size: Annotated[int, Field(ge=2, le=4096)] = 32
    """Sides of tiles must be a multiple of this, in pixels; the image size where no other is taken."""
    name: str = ""
    """Name for people; empty = that of the file."""
    channels: tuple[str, ...] = ()
    """Names of the channels; empty = unnamed."""
    frame: Annotated[int | None, Field(ge=16)] = None
    """See `ModelSpec`."""
    modality: str = ""
    """What the images are, in words."""
    architecture: str | None = None
    """Architecture of segmentation_models_pytorch ("Unet", "FPN" …), for a file of its weights; None = the file is a
    program."""
    encoder: str = "resnet34"
    """Encoder of that architecture."""
    trusted: bool = False
    """You trust the author of the program: it runs when it is loaded."""

    @field_validator("classes", mode="before")
    @classmethod
    def _named(cls, classes: object) -> object:
        if not isinstance(classes, list | tuple):
            return classes
        return [{"name": found} if isinstance(found, str) else found for found in classes]
