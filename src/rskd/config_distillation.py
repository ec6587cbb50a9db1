"""Parameters of distillation: its terms, their weights and how they rise."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from rskd.config_base import Config, Fraction, Weight
from rskd.config_data import CacheOptions
from rskd.config_looking import DirectionalFilter, DirectionOrder, ImportanceDefinition, PyramidFilter
from rskd.config_losses import BaselineOptions

RankingLoss = Literal[
    "topk_listmle", "listmle", "listnet", "kl_importance", "pairwise_hinge", "pairwise_logistic",
    "lambdarank", "approx_ndcg", "rankdistil", "soft_spearman",
]  # fmt: skip


class LogitsOptions(Config):
    """Pixel-wise knowledge distillation on the logits."""

    weight: Weight = 1.0
    """Weight of the term; 0 = off."""
    temperature: Annotated[float, Field(gt=0, le=100)] = 2.0
    """Softening of both outputs."""
    balanced: bool = True
    """The classes that the teacher sees in an image count alike, however few pixels they have; off = every pixel counts
    alike, as published, and a small student can lose a rare class for good."""


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
