"""The parameters of the task loss and of the published methods that RSKD is compared with."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from rskd.config_base import Config, Fraction, Weight


class TaskLossOptions(Config):
    """The loss on the masks: a term on every pixel and one on every region, added up."""

    pixel: Literal["cross_entropy", "focal", "none"] = "cross_entropy"
    """Term on every pixel; focal = pixels that are right already count less."""
    region: Literal["dice", "tversky", "none"] = "dice"
    """Term on every class: soft Dice, or Tversky with its own price for false alarms and misses."""
    focal_gamma: Annotated[float, Field(ge=0, le=10)] = 2.0
    """Focal: exponent that quiets the easy pixels; 0 = cross-entropy."""
    false_alarms: Fraction = 0.3
    """Tversky: weight of a false alarm; a miss weighs 1 minus this. 0.5 = Dice."""
    boundary: Weight = 0.0
    """Weight of the boundary term, which counts a wrong pixel by its distance to the border of its class; 0 = off."""
    class_weights: tuple[Annotated[float, Field(ge=0)], ...] = ()
    """Weight of every class in the term on pixels, background first; empty = all alike. Where classes may overlap the
    background has none."""

    per_image: bool = False
    """Compute the loss of every image by itself and take the mean: a batch in parts, or on several processes, then
    counts exactly as a whole one. Otherwise regions are those of the batch, which is steadier for small structures."""

    @field_validator("class_weights")
    @classmethod
    def _some_weight(cls, weights: tuple[float, ...]) -> tuple[float, ...]:
        if weights and not any(weights):
            raise ValueError("class_weights are all 0: give at least one class a weight")
        return weights


class TermOptions(Config):
    """A published method."""

    weight: Annotated[float, Field(ge=0, le=100_000)] = 0.0
    """Weight of the term; 0 = off. `rskd.distillation.baselines.table` names the published one."""


class AttentionTransferOptions(TermOptions):
    """AT: where the feature maps are large."""

    power: Annotated[float, Field(ge=1, le=8)] = 2.0
    """Exponent of the activations."""


class PairwiseOptions(TermOptions):
    """SKD, the pair-wise part: how alike the places of an image are."""

    pool: Annotated[int, Field(ge=1, le=64)] = 2
    """Side, in tokens, of the cells whose maximum stands for them."""


class ChannelWiseOptions(TermOptions):
    """CWD: where each channel is active."""

    temperature: Annotated[float, Field(gt=0, le=100)] = 4.0
    """Softening of the distributions over space."""


class DoubleSimilarityOptions(TermOptions):
    """DSD: how attention changes between stages, and how alike the classes are."""

    category: Weight = 40.0
    """Weight of the part on classes, relative to the part on pixels."""


class CrossImageOptions(TermOptions):
    """CIRKD, the mini-batch part: how alike the places of different images are."""

    temperature: Annotated[float, Field(gt=0, le=10)] = 0.1
    """Divides the similarities."""
    pool: Annotated[int, Field(ge=1, le=64)] = 1
    """Side, in tokens, of the cells that are averaged first."""


class MaskedGenerationOptions(TermOptions):
    """MGD: generate the teacher's map from a part of the student's."""

    mask_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.65
    """Share of the places that are hidden."""


class RelationOptions(TermOptions):
    """DIST: correlation instead of equality of the predictions."""

    inter: Weight = 1.0
    """Weight of the correlation between the classes of a pixel; it is ±1, without gradient, for two classes."""
    intra: Weight = 1.0
    """Weight of the correlation between the pixels of a class."""
    temperature: Annotated[float, Field(gt=0, le=100)] = 1.0
    """Softening of both outputs."""


class ReviewOptions(TermOptions):
    """ReviewKD: stages fused from deep to shallow, compared with the teacher's as they are."""

    width: Annotated[int, Field(ge=16, le=1024, multiple_of=8)] = 64
    """Channels inside the cascade."""


class ShallowDeepOptions(TermOptions):
    """ViTKD: copy the first two blocks, generate the last."""

    generation: Weight = 0.05
    """Weight of the generated block, relative to the copied ones."""
    mask_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Share of the tokens that are hidden and generated."""


class WaveletOptions(TermOptions):
    """Control of CDM: the details of a separable wavelet instead of contourlet sub-bands."""

    levels: Annotated[int, Field(ge=1, le=6)] = 2
    """Levels of the transform; fewer where the map is too small."""


class BaselineOptions(Config):
    """Published methods and controls, each off unless it has a weight."""

    fitnets: TermOptions = TermOptions()
    """FitNets: the deepest feature map, projected."""
    at: AttentionTransferOptions = AttentionTransferOptions()
    """AT, attention transfer."""
    skd: PairwiseOptions = PairwiseOptions()
    """SKD, pair-wise similarity."""
    ifvd: TermOptions = TermOptions()
    """IFVD, intra-class feature variation."""
    cwd: ChannelWiseOptions = ChannelWiseOptions()
    """CWD on the logits."""
    cwd_features: ChannelWiseOptions = ChannelWiseOptions()
    """CWD on the deepest feature map."""
    dsd: DoubleSimilarityOptions = DoubleSimilarityOptions()
    """DSD, double similarity."""
    cirkd: CrossImageOptions = CrossImageOptions()
    """CIRKD, similarity across the images of a batch."""
    mgd: MaskedGenerationOptions = MaskedGenerationOptions()
    """MGD, masked generation."""
    dist: RelationOptions = RelationOptions()
    """DIST, correlation of the predictions."""
    reviewkd: ReviewOptions = ReviewOptions()
    """ReviewKD, knowledge review."""
    vitkd: ShallowDeepOptions = ShallowDeepOptions()
    """ViTKD, shallow and deep blocks of transformers."""
    emkd: TermOptions = TermOptions()
    """EMKD, region affinity."""
    feature_mse: TermOptions = TermOptions()
    """Control of CDM: the same shallow map, compared as it is."""
    wavelet: WaveletOptions = WaveletOptions()
    """Control of CDM: the same shallow map, by wavelets."""
