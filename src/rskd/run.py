"""Do any job: one place that knows which task belongs to which job. torch is imported when the first one needs it."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from rskd.backend import backend_of
from rskd.config import ComputeOptions
from rskd.errors import FileError, ParameterError
from rskd.events import Task
from rskd.io import guess_axes, read_scan, write_image, write_labels
from rskd.jobs import (
    ContourletJob,
    DistillJob,
    EvaluateJob,
    ExportJob,
    InspectJob,
    Job,
    Outcome,
    PreflightJob,
    RankJob,
    ResumeJob,
    SegmentJob,
    TrainJob,
)
from rskd.scan import Scan

if TYPE_CHECKING:
    from rskd.models.segmenter import Segmenter

Arrays = Mapping[str, NDArray[Any]]
NOTHING: Arrays = MappingProxyType({})
KEPT = 4
"""Networks that stay in memory."""


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
        self._models: OrderedDict[tuple[Path, int, int], Segmenter] = OrderedDict()

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
            case TrainJob() | DistillJob() | ResumeJob():
                return (yield from self._train(job))

    def _train(self, job: TrainJob | DistillJob | ResumeJob) -> Task[Outcome]:
        from rskd import train

        self._models.clear()  # a training needs the memory more
        match job:
            case TrainJob():
                return (yield from train.train(job))
            case DistillJob():
                return (yield from train.distill(job))
            case ResumeJob():
                return (yield from train.resume(job))

    def _segment(self, job: SegmentJob, arrays: Arrays) -> Task[Outcome]:
        from rskd.segment import segment

        scan = find_image(job, arrays)
        model = self._model(job.model, job.compute)
        began = time.perf_counter()
        result = yield from segment(model, scan, job.options)
        seconds = time.perf_counter() - began
        if job.output is not None:
            names = [info.name for info in model.spec.classes[1:]]
            write_labels(job.output, result.labels.data, scan, names=names)
        found = {"labels": result.labels.data}
        if result.probabilities is not None:
            found["probabilities"] = result.probabilities.data
            if job.output is not None:
                name = f"{job.output.name.partition('.')[0]}_probabilities.tif"
                write_image(job.output.with_name(name), result.probabilities)
        value = {
            "classes": [{"name": info.name, "color": info.color} for info in model.spec.classes],
            "axes": result.labels.axes,
            "seconds": seconds,
            "device": backend_of(model).device,
            "model": model.spec.name,
        }
        return Outcome(value, found)

    def _rank(self, job: RankJob, arrays: Arrays) -> Task[Outcome]:
        from rskd.models.exported import refuse_exported
        from rskd.rank import rank

        files = {role: path for role, path in (("teacher", job.teacher), ("student", job.student)) if path is not None}
        for path in files.values():
            refuse_exported(path)
        models = {role: self._model(path, job.compute) for role, path in files.items()}
        if not models:
            raise ParameterError("There is no network to look into: name a teacher, a student, or both.")
        return (yield from rank(models, find_image(job, arrays), job.options, output=job.output))

    def _model(self, path: Path, compute: ComputeOptions) -> Segmenter:
        """Return the network in a file, from memory if the file is the one that was read."""
        from rskd.models.presets import weight_file
        from rskd.networks import open_network, place

        path = weight_file(path)
        try:
            facts = path.stat()
        except OSError as error:
            raise FileError(f"There is no weight file {path}: check the name, or choose another file.") from error
        key = (path.resolve(), facts.st_mtime_ns, facts.st_size)
        model = self._models.pop(key, None) or open_network(path)
        self._models[key] = model
        while len(self._models) > KEPT:
            self._models.popitem(last=False)
        return place(model, compute)


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
