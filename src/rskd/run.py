"""Do any job: one place that knows which task belongs to which job. torch is imported when the first one needs it."""

from __future__ import annotations

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
from rskd.io import check_place, guess_axes, ome_zarr, read_scan
from rskd.io.files import write_atomically
from rskd.io.names import companion
from rskd.jobs import (
    BatchJob,
    ContourletJob,
    DistillJob,
    EvaluateJob,
    ExportJob,
    InspectJob,
    Job,
    Outcome,
    PreflightJob,
    RankJob,
    ReportJob,
    ResumeJob,
    SegmentJob,
    TrainJob,
)
from rskd.networks import Networks
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

    def prepare(self) -> None:
        """Import what nearly every job needs; it takes seconds."""
        import rskd.contourlet
        import rskd.importance
        import rskd.segment  # noqa: F401

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
            case RankJob():
                return (yield from self._rank(job, arrays))
            case ContourletJob():
                return (yield from _contourlet(job, arrays))
            case EvaluateJob():
                from rskd.evaluate import evaluate

                return (yield from evaluate(job))
            case ExportJob():
                from rskd.export import export

                return (yield from export(job))
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

        scan = find_image(job, arrays)
        files = [path for path in (job.model, job.compare_with) if path is not None]
        model, *others = (self._networks.get(path, job.compute) for path in files)
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
            "model": model.spec.name,
        }
        found = {"labels": results.labels.data, **{name: map_.data for name, map_ in results.maps.items()}}
        return Outcome(value, {name: data for name, data in found.items() if isinstance(data, np.ndarray)})

    def _rank(self, job: RankJob, arrays: Arrays) -> Task[Outcome]:
        from rskd.models.exported import refuse_exported
        from rskd.rank import rank

        files = {role: path for role, path in (("teacher", job.teacher), ("student", job.student)) if path is not None}
        for path in files.values():
            refuse_exported(path)
        models = {role: self._networks.get(path, job.compute) for role, path in files.items()}
        if not models:
            raise ParameterError("There is no network to look into: name a teacher, a student, or both.")
        return (yield from rank(models, find_image(job, arrays), job.options, output=job.output))


def find_image(job: SegmentJob | RankJob | ContourletJob, arrays: Arrays) -> Scan:
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
    return Scan(image, job.axes or guess_axes(image.shape))


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


def _contourlet(job: ContourletJob, arrays: Arrays) -> Task[Outcome]:
    from rskd.compute import use_threads
    from rskd.decompose import decompose

    use_threads(ComputeOptions())
    return (yield from decompose(find_image(job, arrays), job.options, channel=job.channel, output=job.output))
