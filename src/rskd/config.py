"""Every parameter once: its default, range and meaning.

The same frozen models give the command line its flags, the window its forms, and a checkpoint its metadata.
A field's docstring is its help text.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from rskd.config_base import Config as Config
from rskd.config_base import Fraction as Fraction
from rskd.config_base import Weight as Weight
from rskd.config_data import AugmentOptions as AugmentOptions
from rskd.config_data import CacheOptions as CacheOptions
from rskd.config_data import SamplingOptions as SamplingOptions
from rskd.config_looking import DenoiseOptions as DenoiseOptions
from rskd.config_looking import FeatureMapOptions as FeatureMapOptions
from rskd.config_losses import BaselineOptions as BaselineOptions
from rskd.config_losses import TaskLossOptions as TaskLossOptions
from rskd.config_results import CleanUpOptions as CleanUpOptions

PyramidFilter = Literal["9-7", "5-3", "burt"]
DirectionalFilter = Literal["pkva6", "pkva8", "pkva12", "dmaxflat4"]
ImportanceDefinition = Literal[
    "received", "cls", "cls_value", "received_value", "rollout", "feature_norm", "at", "grad"
]
RankingLoss = Literal[
    "topk_listmle", "listmle", "listnet", "kl_importance", "pairwise_hinge", "pairwise_logistic",
    "lambdarank", "approx_ndcg", "rankdistil", "soft_spearman",
]  # fmt: skip


def _splittable(order: int) -> int:
    if order == 1:
        raise ValueError("a level cannot be split into 2 directions on a rectangular grid: use 0 (none) or 2 (four)")
    return order


DirectionOrder = Annotated[int, Field(ge=0, le=5), AfterValidator(_splittable)]
Color = Annotated[str, Field(pattern=r"^#[0-9a-fA-F]{6}$")]


# ---------------------------------------------------------------------------------------------------------- models


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


# ------------------------------------------------------------------------------------------------------- inference

Device = Literal["auto", "cpu", "cuda", "mps"]


class ComputeOptions(Config):
    """Where the work runs."""

    device: Device = "auto"
    """auto = the GPU where there is one, else the CPU."""
    threads: Annotated[int | None, Field(ge=1, le=256)] = None
    """CPU threads of a process; None = one less than there are cores, shared by the processes of a run (at least one):
    the window stays responsive. A worker of a cluster has one."""


class ClusterOptions(Config):
    """Several processes, on this computer or on many, that share the work."""

    cluster: str | None = None
    """Address of the scheduler of a dask.distributed cluster (tcp://…), or "local" for processes on this computer;
    None = this process alone. All must see the same files."""
    workers: Annotated[int, Field(ge=1, le=1024)] = 2
    """Processes of a local cluster."""
    retries: Annotated[int, Field(ge=0, le=100)] = 3
    """How often a part is tried again that fails, or whose worker dies; how often a worker may die is decided by the
    scheduler, where the cluster is not local (`distributed.scheduler.allowed-failures`, 3 by default)."""


class TileOptions(Config):
    """How an image is cut into tiles and put together again."""

    tile: Annotated[int | None, Field(ge=16, le=8192)] = None
    """Side of a tile in pixels; None = the size the model was trained at."""
    overlap: Annotated[float, Field(ge=0, le=0.9)] = 0.25
    """Share of a tile that it has in common with its neighbour."""
    batch_size: Annotated[int | None, Field(ge=1, le=256)] = None
    """Tiles run together; None = as many as half of the free memory holds at 1 KiB per pixel, at most 4 on the CPU
    and 32 on a GPU."""


class SegmentOptions(TileOptions):
    """How an image is segmented."""

    axis: Literal["auto", "z", "y", "x", "all"] = "auto"
    """Axis along which a volume is cut into planes; auto = that of the training, or, where the network does not tell,
    the one across the planes with the most nearly square, then the finest pixels (z where the spacing is unknown);
    all = the mean of the probabilities along all three."""
    resample: bool = True
    """Resample to the pixel size the model was trained at, and the result back, where both sizes are known."""
    level: Annotated[int, Field(ge=0, le=32)] = 0
    """Level of an image that is stored at several resolutions, from 0 = the finest."""
    skip_flat: Annotated[float | None, Field(ge=0)] = None
    """Take a tile for background if no channel varies in it by more than this, in the image's own intensities;
    0 = constant tiles, None = look at every tile."""
    skip_dark: float | None = None
    """Take a tile for background if no channel exceeds this in it, in the image's own intensities; None = look at
    every tile."""
    region: Annotated[int, Field(ge=32, le=65536)] = 4096
    """Side in pixels, at most, of the regions in which an image is worked on that is too large to be done at once."""
    probabilities: bool = False
    """Return the probability of every class as well."""


class ScoreOptions(Config):
    """How a segmentation is compared with a mask, beside Dice and intersection over union."""

    surface: bool = False
    """Measure borders as well: 95th percentile of the Hausdorff distance, and surface Dice; takes longer."""
    tolerance: Annotated[float, Field(ge=0)] = 1.0
    """Largest distance at which two borders count as the same for surface Dice, in the unit of the image's spacing;
    in voxels where that is unknown."""


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


# -------------------------------------------------------------------------------------------------------- training


class CaseOptions(Config):
    """Which images, and what belongs to them."""

    images: Path
    """Folder with the images (or one image file)."""
    masks: Path | None = None
    """Folder with the masks; a mask belongs to the image of the same name or the same number."""
    regions: Path | None = None
    """Folder with regions of interest (non-zero = counts); paired like the masks."""


class DataOptions(CaseOptions):
    """Which images and masks are trained on."""

    unlabelled: bool = False
    """Images without a mask in the folder of masks count as unlabelled, instead of being refused."""
    skip_unreadable: bool = False
    """Leave out images that cannot be read or do not fit, with a warning; otherwise the first one ends the run."""
    validation: tuple[str, ...] = ()
    """Names of the images kept for validation; empty = `validation_share` of them, drawn by the seed."""
    validation_share: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of the images kept for validation where none are named."""


class TrainOptions(Config):
    """The training loop."""

    epochs: Annotated[int, Field(ge=1, le=100_000)] = 30
    """Rounds, each followed by a validation."""
    steps_per_epoch: Annotated[int, Field(ge=1, le=100_000)] = 50
    """Optimiser steps in a round."""
    batch_size: Annotated[int, Field(ge=1, le=1024)] = 8
    """Patches per step, over all processes together."""
    accumulate: Annotated[int, Field(ge=1, le=1024)] = 1
    """Parts in which the batch is worked through, one after the other: less memory, and nearly the same step; exactly
    the same with group norm and losses of every image by itself."""
    patch: Annotated[int | None, Field(ge=16, le=4096)] = None
    """Side of a training patch in pixels; None = the model's image size."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 1e-3
    """Highest learning rate (AdamW; warm-up, then cosine)."""
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.01
    """Weight decay of AdamW."""
    warmup: Fraction = 0.05
    """Share of the steps over which the learning rate rises."""
    clip: Annotated[float, Field(gt=0)] = 1.0
    """Largest gradient norm."""
    precision: Literal["32", "bf16-mixed", "16-mixed"] = "32"
    """Numbers that the networks compute with; mixed = the weights stay in 32 bits. Pays on a GPU."""
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Decay of the running mean of the student's weights, which is then what is validated and kept: 0.99 = over about
    the last 100 steps; 0 = no mean."""
    patience: Annotated[int | None, Field(ge=1, le=100_000)] = None
    """Rounds without a better validation after which the run ends; None = it never ends early."""
    augment: bool = True
    """Change the patches at random, as `augmentation` says; off = only their place is random."""
    augmentation: AugmentOptions = AugmentOptions()
    """What may happen to a patch."""
    sampling: SamplingOptions = SamplingOptions()
    """Where the patches are cut."""
    views: Annotated[int | None, Field(ge=1, le=10_000_000)] = None
    """Size of a fixed pool of patches that are drawn once and then met again in every round, in another order, so that
    the teacher's answers can be kept; None = every patch is new, which teaches more per step."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seed of everything random."""
    checkpoint_minutes: Annotated[float, Field(ge=0, le=600)] = 2.0
    """A checkpoint is written at every epoch, and within one at least this often; 0 = after every step."""
    loss: TaskLossOptions = TaskLossOptions()
    """The loss on the masks."""
    report: bool = True
    """Write a report (report.html) into the run folder at the end."""


class LogitsOptions(Config):
    """Pixel-wise knowledge distillation on the logits."""

    weight: Weight = 1.0
    """Weight of the term; 0 = off."""
    temperature: Annotated[float, Field(gt=0, le=100)] = 4.0
    """Softening of both outputs."""


class RankingOptions(Config):
    """TIRD: the teacher's top-k order of token importance."""

    weight: Weight = 0.1
    """Weight of the term; 0 = off."""
    definition: ImportanceDefinition = "received"
    """What counts as importance."""
    loss: RankingLoss = "topk_listmle"
    """The ranking loss."""
    keep_ratio: Annotated[float, Field(gt=0, le=1)] = 0.25
    """k as a share of the tokens."""
    temperature: Annotated[float, Field(gt=0, le=10)] = 0.2
    """Divides the standardised scores."""
    position_weights: Literal["uniform", "dcg", "teacher"] = "uniform"
    """How much each of the k places counts."""
    layers: Annotated[int, Field(ge=1, le=64)] = 3
    """Number of matched blocks: the last of each equal part of the depth."""


class TextureOptions(Config):
    """CDM: contourlet sub-bands of shallow feature maps."""

    weight: Weight = 1.0
    """Weight of the term; 0 = off."""
    loss: Literal["mse", "energy", "cosine", "cwd"] = "mse"
    """How sub-bands are compared."""
    levels: tuple[DirectionOrder, ...] | None = None
    """log2 of the directions per pyramid level, finest first; None = as the grid allows, at most (3, 2)."""
    nonsubsampled: bool = False
    """Shift-invariant transform."""
    lowpass: bool = False
    """Compare the lowpass as well; with it the term is little else than plain feature matching."""
    per_image: bool = False
    """Standardise the teacher's map of every image by itself, not over the batch: a batch in parts, or on several
    processes, then counts exactly as a whole one."""
    pyramid: PyramidFilter = "9-7"
    """Filter of the Laplacian pyramid."""
    directional: DirectionalFilter = "pkva12"
    """Filter of the directional bank."""


class FusionOptions(Config):
    """SCCF: multi-stage feature maps, fused from deep to shallow in space and channel."""

    weight: Weight = 1.0
    """Weight of the term; 0 = off."""
    gate: Literal["space", "channel", "both"] = "both"
    """Which gates the cascade has."""
    refine: Literal["scconv", "scse", "cbam", "none"] = "scconv"
    """Redundancy refinement, behind a scalar that starts at zero."""
    loss: Literal["hcl", "mse", "cwd", "cosine"] = "hcl"
    """How a fused map is compared with the teacher's."""
    width: Annotated[int, Field(ge=16, le=1024)] = 64
    """Channels inside the cascade; a multiple of 8."""
    stages: Annotated[int, Field(ge=1, le=12)] = 4
    """Number of encoder stages."""
    target: Literal["standardised", "raw"] = "standardised"
    """The teacher's maps: mean 0 and deviation 1 over the channels of every pixel, or as they are."""
    student_stages: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """Stages of the student to match, from 0, shallow to deep; empty = spread evenly over the depth."""
    teacher_stages: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """The teacher's stage for each of these; empty = at the same depth."""
    decoder_maps: Annotated[int, Field(ge=0, le=6)] = 0
    """Maps of the decoders to match as well, where both have one of the same resolution, from the coarsest on."""
    stage_weights: tuple[Annotated[float, Field(ge=0)], ...] = ()
    """Weight of every matched map, as the cascade ends and begins: the decoder's from the finest on, then the
    encoder's, shallow to deep; empty = all alike."""

    @field_validator("width")
    @classmethod
    def _even(cls, width: int) -> int:
        if width % 8:
            raise ValueError(f"width={width} must be a multiple of 8: use {width // 8 * 8}")
        return width

    @model_validator(mode="after")
    def _paired(self) -> FusionOptions:
        if len(self.student_stages) != len(self.teacher_stages):
            raise ValueError(
                f"student_stages names {len(self.student_stages)} stages and teacher_stages "
                f"{len(self.teacher_stages)}: name as many of each"
            )
        if self.stage_weights and not any(self.stage_weights):
            raise ValueError("stage_weights are all 0: give at least one stage a weight")
        return self


class DistillOptions(Config):
    """The distillation objective: L = L_seg + Σ weight · term."""

    logits: LogitsOptions = LogitsOptions()
    """Pixel-wise distillation of the logits."""
    ranking: RankingOptions = RankingOptions()
    """TIRD, token importance ranking distillation."""
    texture: TextureOptions = TextureOptions()
    """CDM, contourlet decomposition module."""
    fusion: FusionOptions = FusionOptions()
    """SCCF, space channel cascade fusion."""
    task: Weight = 1.0
    """Weight of the segmentation loss on the masks; 0 = learn from the teacher alone."""
    ramp: Fraction = 0.1
    """Share of the steps over which the three feature terms and the baselines rise to their weight."""
    teacher_bfloat16: bool = False
    """Run the teacher in bfloat16: faster where the hardware has it, its answers change in the third digit."""
    baselines: BaselineOptions = BaselineOptions()
    """Published methods to compare with."""
    calibrate: Annotated[float, Field(ge=0, le=100)] = 0.0
    """Set the weights once, at the first step after 100 that has a label, so that the gradient of every distillation
    term is this many times that of the task; its own weight is a factor on top. 0 = weights are taken as they are."""
    cache: CacheOptions = CacheOptions()
    """Whether the teacher's answers are kept."""
