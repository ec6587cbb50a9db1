"""Do any job: one place that knows which task belongs to which job. torch is imported when the first one needs it."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rskd.backend import backend_of
from rskd.config import ComputeOptions
from rskd.errors import ParameterError
from rskd.events import Task
from rskd.io import check_place, guess_axes, ome_zarr, read_scan, write_image
from rskd.io.files import write_atomically
from rskd.io.names import companion
from rskd.jobs import (
    AgreementJob,
    AttendJob,
    BatchJob,
    BenchJob,
    ContourletJob,
    DeletionJob,
    DenoiseJob,
    DistillJob,
    EvaluateJob,
    ExportJob,
    Geometry,
    InspectJob,
    Job,
    Outcome,
    PairJob,
    PlaneJob,
    PreflightJob,
    RankJob,
    ReconstructJob,
    ReportJob,
    ResumeJob,
    SegmentJob,
    SurveyJob,
    TextureJob,
    TrainJob,
)
from rskd.networks import Networks, runtime_name
from rskd.scan import Scan

if TYPE_CHECKING:
    from rskd.models.segmenter import Segmenter
    from rskd.results import Results

Arrays = Mapping[str, NDArray[Any]]
NOTHING: Arrays = MappingProxyType({})


def run(job: Job, arrays: Arrays = NOTHING) -> Task[Outcome]:
    """Do one job.

    Parameters
    ----------
    job
        What to do.
    arrays
        ``{"image": array}`` for a job whose `image` is None.

    Yields
    ------
    Event
        As the task of the job does.

    Returns
    -------
    Outcome
        Facts and arrays; with `output`, the files are written as well.

    Raises
    ------
    RskdError
        One sentence, for whatever the user can mend.

    Examples
    --------
    >>> import numpy as np
    >>> from rskd.config import ContourletOptions
    >>> from rskd.events import drain
    >>> job = ContourletJob(options=ContourletOptions(levels=(2,), border="periodic"))
    >>> outcome = drain(run(job, {"image": np.eye(32)}))
    >>> outcome.arrays["level1_band0"].shape, bool(outcome.value["reconstruction_error"] < 1e-12)
    ((16, 16), True)
    """
    return Session().run(job, arrays)


class Session:
    """Does jobs and keeps the networks they use, so that the second one starts at once.

    A network is read again when its file has changed.
    """

    def __init__(self) -> None:
        self._networks = Networks()
        self._subbands: tuple[Any, Any] | None = None

    def prepare(self) -> None:
        """Import what nearly every job needs; it takes seconds."""
        import rskd.contourlet
        import rskd.importance
        import rskd.segment
        import rskd.survey  # noqa: F401

    def run(self, job: Job, arrays: Arrays = NOTHING) -> Task[Outcome]:
        """Do one job; see `run`."""
        match job:
            case InspectJob():
                return (yield from _inspect(job))
            case SegmentJob():
                return (yield from self._segment(job, arrays))
            case BatchJob():
                from rskd.batch import batch

                return (yield from batch(job, self._networks))
            case RankJob() | SurveyJob() | AttendJob() | DeletionJob() | TextureJob():
                return (yield from self._look(job, arrays))
            case AgreementJob():
                return (yield from _compare(arrays))
            case ContourletJob() | ReconstructJob():
                return (yield from self._split(job, arrays))
            case DenoiseJob():
                return (yield from _denoise(job, arrays))
            case EvaluateJob():
                from rskd.evaluate import evaluate

                return (yield from evaluate(job))
            case ExportJob():
                from rskd.export import export

                return (yield from export(job))
            case BenchJob():
                from rskd.bench import bench

                return (yield from bench(job))
            case PreflightJob():
                from rskd.preflight import preflight

                return (yield from preflight(job))
            case ReportJob():
                from rskd.report import report

                return (yield from report(job))
            case TrainJob() | DistillJob() | ResumeJob():
                return (yield from self._train(job))

    def _train(self, job: TrainJob | DistillJob | ResumeJob) -> Task[Outcome]:
        from rskd import train

        self._networks.forget()  # a training needs the memory more
        self._subbands = None
        match job:
            case TrainJob():
                return (yield from train.train(job))
            case DistillJob():
                return (yield from train.distill(job))
            case ResumeJob():
                return (yield from train.resume(job))

    def _segment(self, job: SegmentJob, arrays: Arrays) -> Task[Outcome]:
        from rskd.measure import columns, features
        from rskd.results import segment_scan, write_results

        files = [path for path in (job.model, job.compare_with) if path is not None]
        if job.fastest and job.tta == "none":
            compute = yield from self._networks.fastest(files, job.compute, tile=job.options.tile)
            job = job.model_copy(update={"compute": compute})
        scan = find_image(job, arrays)
        model, *others = (self._networks.get(path, job.compute, tile=job.options.tile) for path in files)
        names = [info.name for info in model.spec.classes]
        began = time.perf_counter()
        if job.output is not None:
            check_place(job.output, scan, overlapping=model.spec.overlapping)
        if job.output is not None and _goes_to_disk(job):
            results = yield from _segment_to_disk(job, job.output, model, scan)
        else:
            results = yield from segment_scan(job, scan, model, *others)
            if job.output is not None:
                write_results(job.output, results, names[1:])
                write_atomically(companion(job.output, "recipe", ".json"), json.dumps(results.made_with).encode())
        seconds = time.perf_counter() - began
        value = {
            "classes": [{"name": info.name, "color": info.color} for info in model.spec.classes],
            "overlapping": model.spec.overlapping,
            "axes": results.labels.axes,
            "measurements": columns(results.measurements),
            "features": features(results.measurements, names),
            "made_with": results.made_with,
            "seconds": seconds,
            "device": backend_of(model).device,
            "runtime": runtime_name(model),
            "model": model.spec.name,
        }
        found = {"labels": results.labels.data, **{name: map_.data for name, map_ in results.maps.items()}}
        return Outcome(value, {name: data for name, data in found.items() if isinstance(data, np.ndarray)})

    def _look(self, job: RankJob | SurveyJob | AttendJob | DeletionJob | TextureJob, arrays: Arrays) -> Task[Outcome]:
        """Look into the networks of a job."""
        from rskd import rank, survey
        from rskd.compute import at_full_speed
        from rskd.feature_bands import feature_bands
        from rskd.models.exported import refuse_exported

        files = {role: path for role, path in (("teacher", job.teacher), ("student", job.student)) if path is not None}
        for path in files.values():
            refuse_exported(path)
        brief = isinstance(job, SurveyJob | AttendJob)  # else threads on busy cores would wait for each other, often
        compute = at_full_speed(job.compute) if brief else job.compute
        models = {role: self._networks.get(path, compute) for role, path in files.items()}
        if not models:
            raise ParameterError("There is no network to look into: name a teacher, a student, or both.")
        scan = find_image(job, arrays)
        match job:
            case RankJob():
                return (yield from rank.rank(models, scan, job.options, output=job.output))
            case SurveyJob():
                return (yield from survey.survey(models, scan, job.options))
            case AttendJob():
                return (yield from survey.attend(models, scan, job.at))
            case DeletionJob():
                count, seed = job.random_orders, job.seed
                return (yield from survey.check_deletion(models, scan, job.options, random_orders=count, seed=seed))
            case TextureJob():
                return (yield from feature_bands(models, scan, job.options, feature_map=job.feature_map))

    def _split(self, job: ContourletJob | ReconstructJob, arrays: Arrays) -> Task[Outcome]:
        """Split an image into sub-bands, or put it together again; the last sub-bands stay at hand."""
        from rskd.compute import use_threads
        from rskd.decompose import decompose, reconstruct, single_plane, split

        use_threads(ComputeOptions())
        scan = find_image(job, arrays)
        plane = single_plane(scan, channel=job.channel)
        key = (job.options, hashlib.blake2b(np.ascontiguousarray(plane).data).digest())
        if self._subbands is None or self._subbands[0] != key:
            self._subbands = None  # before there are new ones: they may be large
            self._subbands = key, split(plane, job.options)
        subbands = self._subbands[1]
        if isinstance(job, ReconstructJob):
            return Outcome({}, {"reconstruction": reconstruct(subbands, job.gains)})
        return (yield from decompose(scan, job.options, channel=job.channel, output=job.output, subbands=subbands))


def find_image(job: SegmentJob | PlaneJob | PairJob, arrays: Arrays) -> Scan:
    """Return the image of a job: from its file, or from the array that came with it.

    Raises
    ------
    ParameterError
        If there is neither, or its axes do not fit.
    FileError
        If the file cannot be read.
    """
    if job.image is not None:
        return read_scan(job.image, axes=job.axes)
    if "image" not in arrays:
        raise ParameterError("There is no image: name a file.")
    image = arrays["image"]
    axes = job.axes or guess_axes(image.shape)
    return _placed(image, axes, job.geometry) if isinstance(job, SegmentJob) else Scan(image, axes)


def _placed(image: NDArray[Any], axes: str, geometry: Geometry) -> Scan:
    affine = None if geometry.affine is None else np.array(geometry.affine)
    return Scan(image, axes, geometry.spacing, geometry.units, affine, anatomical=geometry.anatomical)


def _goes_to_disk(job: SegmentJob) -> bool:
    """Whether the labels go straight to OME-Zarr: nothing that needs them as a whole is asked for."""
    whole = job.uncertainty or job.compare_with or job.clean_up.active or job.tta != "none" or job.measure != "none"
    output = job.output or Path()
    zarr = output.name.lower().endswith(".zarr") or ome_zarr.image_of(output) is not None
    if job.spread.cluster is not None and (whole or not zarr or job.image is None):
        raise ParameterError(
            "A cluster segments image files into OME-Zarr: name an image and an output ending in .zarr, and leave "
            "clean-up, measurements and maps for later."
        )
    return zarr and not whole


def _segment_to_disk(job: SegmentJob, output: Path, model: Segmenter, scan: Scan) -> Task[Results]:
    from rskd.large import segment_into
    from rskd.results import Results

    if job.spread.cluster is not None and job.image is not None:
        from rskd.cluster import segment_on

        task = segment_on(job.spread, output, job.model, job.image, job.options, axes=job.axes, compute=job.compute)
    else:
        task = segment_into(output, model, scan, job.options)
    found = yield from task
    maps = {} if found.probabilities is None else {"probabilities": found.probabilities}
    return Results(found.labels, maps, (), found.recipe.model_dump(mode="json"))


def _inspect(job: InspectJob) -> Task[Outcome]:
    from rskd.networks import inspect

    passport = inspect(job.model)
    value = {
        "spec": passport.spec.model_dump(mode="json"),
        "card": dict(passport.card),
        "parameters": passport.parameters,
        "bytes": passport.bytes,
        "sha256": passport.sha256,
    }
    yield from ()
    return Outcome(value)


def _compare(arrays: Arrays) -> Task[Outcome]:
    from rskd.survey import compare

    yield from ()
    if not {"teacher", "student"} <= arrays.keys():
        raise ParameterError("Two maps are needed to compare: hand over the arrays 'teacher' and 'student'.")
    return compare(arrays["teacher"], arrays["student"])


def _denoise(job: DenoiseJob, arrays: Arrays) -> Task[Outcome]:
    from rskd.compute import use_threads
    from rskd.decompose import denoised

    use_threads(ComputeOptions())
    scan = find_image(job, arrays)
    picture = denoised(scan, job.options)
    if job.output is not None:
        spacing = dict(zip(scan.spatial_axes, scan.spacing, strict=True)) if scan.spacing else None
        size = None if spacing is None else (spacing["y"], spacing["x"])
        write_image(job.output, Scan(picture, "yxc"[: picture.ndim], spacing=size, units=scan.units))
    yield from ()
    return Outcome({}, {"denoised": picture})
