"""The jobs: what the window sends, the command line parses, and a run folder records.

A job names a task and its parameters. Jobs that look at an image take it from a file (`image`) or, with ``image=None``,
from an array that is handed over with the job (an open layer).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, TypeAdapter, model_validator

from rskd.config import (
    CaseOptions,
    CleanUpOptions,
    ClusterOptions,
    ComputeOptions,
    Config,
    ContourletOptions,
    DataOptions,
    DenoiseOptions,
    DistillOptions,
    FeatureMapOptions,
    InferenceOptions,
    RankOptions,
    ScoreOptions,
    SegmentOptions,
    TileOptions,
    TrainOptions,
)


class InspectJob(Config):
    """What is in a weight file: the passport."""

    kind: Literal["inspect"] = "inspect"
    model: Path
    """Weight file, or the name of a bundled network."""


Measured = Literal["none", "classes", "slices"]


class Segmenting(Config):
    """What is done to every image that is segmented."""

    model: Path
    """Weight file of the network, or the name of a bundled one."""
    axes: str | None = None
    """Axes of the image, one letter each out of t, c, z, y, x; left out: as the file says, or guessed."""
    tta: Literal["none", "flips", "rotations"] = "none"
    """Test-time augmentation: the mean over 4 flipped versions of every tile, or over 8 flipped and turned ones; as
    many times the work."""
    uncertainty: tuple[Literal["entropy", "margin"], ...] = ()
    """Maps of how sure the network is: entropy (1 = all classes alike); margin between the first two (0 = even)."""
    compare_with: Path | None = None
    """Weight file of a second network of the same classes, such as the teacher: maps of where their labels differ, and
    of the Jensen-Shannon divergence of their probabilities."""
    measure: Measured = "none"
    """Measure volume, place, extent and intensity of every class, on request in every slice too."""
    options: SegmentOptions = SegmentOptions()
    """Tiles."""
    clean_up: CleanUpOptions = CleanUpOptions()
    """What is done to the labels afterwards."""
    compute: InferenceOptions = InferenceOptions()
    """Device, threads and runtime."""


class Geometry(Config):
    """Where an image lies that is handed over as an array; fields as those of `rskd.scan.Scan`."""

    spacing: tuple[float, ...] | None = None
    """Distance between voxels along each spatial axis."""
    units: str | None = None
    """Unit of the spacing and of the world."""
    affine: tuple[tuple[float, ...], ...] | None = None
    """Rows of the matrix from voxel index to world coordinate."""
    anatomical: bool = False
    """Whether the world is the patient's."""


class SegmentJob(Segmenting):
    """Segment an image."""

    kind: Literal["segment"] = "segment"
    image: Path | None = None
    """Image file; left out where an open layer is handed over."""
    geometry: Geometry = Geometry()
    """Where an open layer lies; a file says so itself."""
    output: Path | None = None
    """File to write the labels to; maps and measurements are written beside it. To a name ending in .zarr, or into an
    OME-Zarr image, labels of any size are written region by region, and gone on with after an interruption."""
    spread: ClusterOptions = ClusterOptions()
    """Other processes that help; the labels must go to OME-Zarr."""
    fastest: bool = False
    """Where the runtime is auto and the work is done on the CPU, try out on one tile whether ONNX Runtime is faster
    than torch, and take it if it is; torch remains where a network cannot be exported faithfully, and for `tta`."""


class BatchJob(Segmenting):
    """Segment every image in a folder and in those inside of it."""

    kind: Literal["batch"] = "batch"
    images: Path
    """Folder with images of any kind; a DICOM series and an OME-Zarr are one image each."""
    output: Path
    """Folder for the results, which get the names of their images, and for the tables. What is already done there, with
    this recipe, is not done again."""
    pattern: str = "*"
    """Only images whose name matches, such as "scan?.nii.gz"."""
    format: Literal["source", "nifti", "dicom", "nrrd", "mha", "tiff", "png", "zarr", "npy"] = "source"
    """File format of the labels; source = that of the image where it holds labels: DICOM SEG for DICOM, PNG for
    photographs."""
    measure: Measured = "classes"
    """Measure volume, place, extent and intensity of every class, on request in every slice too."""
    spread: ClusterOptions = ClusterOptions()
    """Other processes that do images at the same time."""


class PlaneJob(Config):
    """What jobs have in common that look at one picture."""

    image: Path | None = None
    """Image file (2-D); left out where an open layer is handed over."""
    axes: str | None = None
    """Axes of the image; left out: as the file says, or guessed."""


class PairJob(Config):
    """What jobs have in common that look at what networks make of one picture."""

    teacher: Path | None = None
    """Weight file of the teacher, or the name of a bundled one."""
    student: Path | None = None
    """Weight file of the student, or the name of a bundled one."""
    image: Path | None = None
    """Image file (2-D); left out where an open layer is handed over."""
    axes: str | None = None
    """Axes of the image; left out: as the file says, or guessed."""
    compute: ComputeOptions = ComputeOptions()
    """Device and threads."""


class RankJob(PairJob):
    """Token importance of a teacher, a student, or both, on one image."""

    kind: Literal["rank"] = "rank"
    output: Path | None = None
    """Folder to write maps, table and figure to."""
    options: RankOptions = RankOptions()
    """Which importance."""


class SurveyJob(PairJob):
    """Token importance at every block and head of a teacher, a student, or both."""

    kind: Literal["survey"] = "survey"
    options: RankOptions = RankOptions()
    """Which importance."""


class AttendJob(PairJob):
    """What the token at one place attends to, at every block and head."""

    kind: Literal["attend"] = "attend"
    at: tuple[float, float]
    """Place in the image: row and column in pixels."""


class DeletionJob(PairJob):
    """Whether a ranking tells the truth: delete its first tokens, and as many random ones."""

    kind: Literal["deletion"] = "deletion"
    options: RankOptions = RankOptions()
    """Which importance, where."""
    random_orders: Annotated[int, Field(ge=1, le=100)] = 8
    """Random orders to compare with."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seed of the random orders."""


class TextureJob(PairJob):
    """Contourlet sub-bands of a feature map of a teacher, a student, or both."""

    kind: Literal["texture"] = "texture"
    feature_map: FeatureMapOptions = FeatureMapOptions()
    """Which map."""
    options: ContourletOptions = ContourletOptions()
    """Levels and filters."""


class AgreementJob(Config):
    """How far two maps of token importance agree, handed over as arrays `teacher` and `student`."""

    kind: Literal["agreement"] = "agreement"


class ContourletJob(PlaneJob):
    """Contourlet sub-bands of one image."""

    kind: Literal["contourlet"] = "contourlet"
    channel: int | None = None
    """Channel to transform, from 0; None = the mean of all."""
    output: Path | None = None
    """Folder to write the sub-bands to."""
    options: ContourletOptions = ContourletOptions()
    """Levels and filters."""


class ReconstructJob(PlaneJob):
    """Put an image together from its contourlet sub-bands, some of them weaker or stronger."""

    kind: Literal["reconstruct"] = "reconstruct"
    channel: int | None = None
    """Channel, from 0; None = the mean of all."""
    gains: dict[str, float] = Field(default_factory=dict)
    """Factor of every sub-band by the name of its array; one that is not named keeps its strength."""
    options: ContourletOptions = ContourletOptions()
    """Levels and filters."""


class DenoiseJob(PlaneJob):
    """Take the noise out of an image, all its channels."""

    kind: Literal["denoise"] = "denoise"
    output: Path | None = None
    """File to write the picture to (TIFF)."""
    options: DenoiseOptions = DenoiseOptions()
    """How much noise."""


class EvaluateJob(Config):
    """Compare segmentations with masks, per case and class: Dice, IoU, and distances of borders on request."""

    kind: Literal["evaluate"] = "evaluate"
    model: Path
    """Weight file of the network, or the name of a bundled one."""
    data: CaseOptions
    """Images, masks and regions."""
    output: Path | None = None
    """CSV file for the table."""
    scores: ScoreOptions = ScoreOptions()
    """What is measured."""
    options: TileOptions = TileOptions()
    """Tiles."""
    compute: InferenceOptions = InferenceOptions()
    """Device, threads and runtime."""


DOWNLOAD = Path("download")
"""In the place of a file with weights: fetch those that timm publishes."""


def _check_reach(pretrained: Path | None, compute: ComputeOptions) -> None:
    if compute.offline and pretrained == DOWNLOAD:
        raise ValueError("pretrained='download' needs the network, and offline is set: name a file instead")


class TrainJob(Config):
    """Train a network on masks alone."""

    kind: Literal["train"] = "train"
    model: str
    """Weight file or bundled network to start from, name of a network to start fresh (`rskd doctor` lists them),
    or a JSON file that describes one."""
    pretrained: Path | None = None
    """File with timm weights for the encoder of a network that starts fresh; "download" fetches those that timm
    publishes for it."""
    data: DataOptions
    """Images and masks."""
    run: Path
    """New folder for everything the run writes."""
    classes: tuple[str, ...] = ()
    """Names of the classes without the background, for a fresh network; left out: one class, "foreground"."""
    overlapping: bool = False
    """The classes of a fresh network may overlap: a pixel can belong to several of them."""
    training: TrainOptions = TrainOptions()
    """The loop."""
    compute: ComputeOptions = ComputeOptions()
    """Device and threads."""

    @model_validator(mode="after")
    def _reachable(self) -> Self:
        _check_reach(self.pretrained, self.compute)
        return self


class _Distillation(Config):
    """A pair, its data, and how it learns."""

    teacher: Path
    """Weight file of the teacher, or the name of a bundled one."""
    student: str
    """Weight file or bundled network to start from, name of a network to start fresh (`rskd doctor` lists them),
    or a JSON file that describes one."""
    pretrained: Path | None = None
    """File with timm weights for the encoder of a network that starts fresh; "download" fetches those that timm
    publishes for it."""
    data: DataOptions
    """Images and masks."""
    training: TrainOptions = TrainOptions()
    """The loop."""
    distillation: DistillOptions = DistillOptions()
    """The objective."""
    compute: ComputeOptions = ComputeOptions()
    """Device and threads."""

    @model_validator(mode="after")
    def _reachable(self) -> Self:
        _check_reach(self.pretrained, self.compute)
        return self

    @model_validator(mode="after")
    def _cacheable(self) -> Self:
        if self.distillation.cache.use == "on" and self.training.views is None:
            raise ValueError(
                "the teacher's answers can be kept only for a fixed pool of views: set views, for example to 1000, or "
                "the cache to auto"
            )
        return self


class DistillJob(_Distillation):
    """Train a small student from a large teacher."""

    kind: Literal["distill"] = "distill"
    run: Path
    """New folder for everything the run writes."""


class PreflightJob(_Distillation):
    """Look at the data of a distillation, and at what it would cost, before it starts."""

    kind: Literal["preflight"] = "preflight"


class ExportJob(Config):
    """Write a network as ONNX, to be run without torch."""

    kind: Literal["export"] = "export"
    model: Path
    """Weight file of the network, or the name of a bundled one."""
    output: Path
    """ONNX file to write."""
    size: Annotated[int | None, Field(ge=16, le=8192)] = None
    """Side of the tiles it will take, in pixels; None = the size the network was trained at."""
    precision: Literal["fp32", "fp16", "int8"] = "fp32"
    """fp32 = as trained; fp16 = half the file, the same speed; int8 = a third of the file, work in 8-bit integers,
    which needs `calibration` and changes the answers a little."""
    calibration: Path | None = None
    """Folder with images of the kind the network will meet (or one image), whose range the integers are laid over; not
    those it is tested on."""
    image: Path | None = None
    """Image that the written network is checked with; left out: an image of the calibration or of the test, or drawn
    vessels and noise."""
    axes: str | None = None
    """Axes of the images to check and to calibrate with; left out: as the files say, or guessed, as it is with those to
    test with."""
    test_images: Path | None = None
    """Folder with images on which Dice is measured before and after (or one image)."""
    test_masks: Path | None = None
    """Folder with their masks; a mask belongs to the image of the same name or the same number."""
    test_regions: Path | None = None
    """Folder with regions of interest (non-zero = counts); paired like the masks."""

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.precision == "int8" and self.calibration is None:
            raise ValueError("int8 needs images to calibrate with: name a folder with --calibration")
        if (self.test_images is None) != (self.test_masks is None):
            raise ValueError("Dice needs images and masks: name both --test-images and --test-masks")
        return self


class BenchJob(Config):
    """How fast networks are on this computer, in every runtime that is installed, and what they need."""

    kind: Literal["bench"] = "bench"
    models: Annotated[tuple[Path, ...], Field(min_length=1)]
    """Weight files, or names of bundled networks or of networks to start fresh; the first is what the others are
    compared with."""
    sizes: Annotated[tuple[Annotated[int, Field(ge=32, le=4096)], ...], Field(min_length=1)] = (256, 512)
    """Sides of the square image, in pixels."""
    rounds: Annotated[int, Field(ge=3, le=10_000)] = 50
    """How often every network runs; they take turns."""
    seconds: Annotated[float, Field(gt=0, le=3600)] = 60.0
    """After so long per size no new round begins, once there were three."""
    memory: bool = True
    """Measure the peak memory of a process that does nothing else, for every network and runtime; takes longer."""
    output: Path | None = None
    """JSON file for the figures."""
    figure: Path | None = None
    """SVG or PNG file for a figure."""
    compute: ComputeOptions = ComputeOptions()
    """Device (of torch) and threads."""


class ResumeJob(Config):
    """Go on with an interrupted run."""

    kind: Literal["resume"] = "resume"
    run: Path
    """Run folder."""


class ReportJob(Config):
    """Write the report of a run, finished or not."""

    kind: Literal["report"] = "report"
    run: Path
    """Run folder."""
    output: Path | None = None
    """HTML file; left out: report.html in the run folder."""
    pictures: bool = True
    """Segment and show validation images, if the data is still where it was."""
    compute: ComputeOptions = ComputeOptions()
    """Device and threads."""


Job = Annotated[
    InspectJob
    | SegmentJob
    | BatchJob
    | RankJob
    | SurveyJob
    | AttendJob
    | AgreementJob
    | DeletionJob
    | ContourletJob
    | ReconstructJob
    | TextureJob
    | DenoiseJob
    | EvaluateJob
    | ExportJob
    | BenchJob
    | TrainJob
    | DistillJob
    | PreflightJob
    | ResumeJob
    | ReportJob,
    Field(discriminator="kind"),
]
JOB: TypeAdapter[Job] = TypeAdapter(Job)
"""Validates any job from a dictionary or JSON."""


@dataclass(frozen=True)
class Outcome:
    """What a job returns: facts that fit into JSON, and arrays by name."""

    value: Mapping[str, Any]
    arrays: Mapping[str, NDArray[np.generic]] = field(default_factory=dict)
