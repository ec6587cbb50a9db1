"""Every parameter once: its default, range and meaning.

The same frozen models give the command line its flags, the window its forms, and a checkpoint its metadata.
A field's docstring is its help text.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from rskd.config_base import Config as Config
from rskd.config_base import Fraction as Fraction
from rskd.config_base import Weight as Weight
from rskd.config_data import AugmentOptions as AugmentOptions
from rskd.config_data import CacheOptions as CacheOptions
from rskd.config_data import SamplingOptions as SamplingOptions
from rskd.config_distillation import DistillOptions as DistillOptions
from rskd.config_distillation import FusionOptions as FusionOptions
from rskd.config_distillation import LogitsOptions as LogitsOptions
from rskd.config_distillation import RankingLoss as RankingLoss
from rskd.config_distillation import RankingOptions as RankingOptions
from rskd.config_distillation import TextureOptions as TextureOptions
from rskd.config_looking import ContourletOptions as ContourletOptions
from rskd.config_looking import DenoiseOptions as DenoiseOptions
from rskd.config_looking import DirectionalFilter as DirectionalFilter
from rskd.config_looking import DirectionOrder as DirectionOrder
from rskd.config_looking import FeatureMapOptions as FeatureMapOptions
from rskd.config_looking import ImportanceDefinition as ImportanceDefinition
from rskd.config_looking import PyramidFilter as PyramidFilter
from rskd.config_looking import RankOptions as RankOptions
from rskd.config_losses import BaselineOptions as BaselineOptions
from rskd.config_losses import TaskLossOptions as TaskLossOptions
from rskd.config_models import BACKGROUND as BACKGROUND
from rskd.config_models import ClassInfo as ClassInfo
from rskd.config_models import Color as Color
from rskd.config_models import ForeignSpec as ForeignSpec
from rskd.config_models import ModelSpec as ModelSpec
from rskd.config_results import CleanUpOptions as CleanUpOptions

Device = Literal["auto", "cpu", "cuda", "mps"]


class ComputeOptions(Config):
    """Where the work runs."""

    device: Device = "auto"
    """auto = the GPU where there is one, else the CPU."""
    threads: Annotated[int | None, Field(ge=1, le=256)] = None
    """CPU threads of a process; None = one less than there are cores, shared by the processes of a run (at least one):
    the window stays responsive. Token maps, done in a moment, take all idle cores; a worker of a cluster has one."""
    offline: bool = False
    """Refuse whatever would fetch something from the network; without it, too, nothing is fetched unasked."""


class InferenceOptions(ComputeOptions):
    """Where, and with which program, a network runs."""

    runtime: Literal["auto", "torch", "onnx", "openvino"] = "auto"
    """What runs the network: torch, ONNX Runtime or OpenVINO (extras `onnx` and `openvino`; on the CPU, often faster).
    Weights are exported for these two once, into your cache. auto = torch for weights, else what is installed."""

    @model_validator(mode="before")
    @classmethod
    def _of_any_work(cls, value: Any) -> Any:
        """Take what says where any work runs, too."""
        return value.model_dump() if type(value) is ComputeOptions else value


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
    preview: Annotated[int, Field(ge=0, le=16)] = 0
    """Validation images of which a picture is drawn after every round: teacher, student, mask and mistakes."""
    report: bool = True
    """Write a report (report.html) into the run folder at the end."""
