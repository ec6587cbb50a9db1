"""Segment a folder of images: one after the other, past those that cannot be read, without doing anything twice.

The results mirror the folder. Beside them lie three tables: ``measurements.csv`` and ``failures.csv`` call an image by
`rskd.cases.case_id`, since file names are often patients' names; ``files.csv`` alone says which file that is.
``.rskd`` holds a record of every finished image: with which recipe it was made, and from which state of its file.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from rskd.errors import FileError, ParameterError, RskdError
from rskd.events import Command, Event, Message, Progress, Task, retold
from rskd.folder import Item, find_items, holds_images
from rskd.io import read_scan, read_scans
from rskd.io.files import write_atomically
from rskd.io.names import split_name
from rskd.io.state import state_of_files
from rskd.jobs import BatchJob, Outcome
from rskd.measure import columns, joined, write_table
from rskd.models.passport import identity
from rskd.networks import Networks
from rskd.results import Results, segment_scan, write_results
from rskd.scan import Scan

_ENDINGS = {"nifti": ".nii.gz", "dicom": ".dcm", "tiff": ".tif"}
"""Of the formats whose ending is not their name."""
_OF_SOURCE = {
    ".nhdr": ".nrrd", ".mhd": ".mha", ".tiff": ".tif", ".svs": ".tif", ".ome.tif": ".ome.tif", ".ome.tiff": ".ome.tif",
    ".jpg": ".png", ".jpeg": ".png", ".bmp": ".png", ".gif": ".png", ".ome.zarr": ".zarr",
}  # fmt: skip
"""Where the labels of an image end in something else than the image itself."""
_RECORDS = ".rskd"
_NOT_IN_RECIPE = {"kind", "images", "output", "pattern", "compute", "spread"}
_NOT_IN_OPTIONS = ("batch_size", "region")
"""What is left of the recipe since it changes nothing but the time."""


@dataclass(frozen=True)
class Record:
    """What became of one image."""

    name: str
    """Of the image, in its folder."""
    case: str
    """Twelve digits that stand for its content; any, if that cannot be read."""
    recipe: str = ""
    state: str = ""
    """Of the files it was read from, by size and time."""
    outputs: tuple[str, ...] = ()
    """Files, in the folder of the results, the labels first."""
    measurements: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    made_with: Mapping[str, Any] = field(default_factory=dict)
    """All that the labels depend on besides the image."""
    seconds: float = 0.0
    error: str = ""
    """Why there is nothing, in one sentence that names neither file nor folder; empty = all went well."""


def batch(job: BatchJob, networks: Networks | None = None) -> Task[Outcome]:
    """Segment every image of a folder.

    Parameters
    ----------
    job
        Network, folders, and what to do to every image.
    networks
        Networks that are in memory already.

    Yields
    ------
    Progress
        Over the images; also while one is worked on.
    Message
        For every image that fails, and where results of another recipe are made again.

    Returns
    -------
    Outcome
        `value` is ``{"images", "done", "skipped", "failed", "stopped", "output"}``, the first four as numbers.

    Raises
    ------
    FileError
        If there is no such folder, no image in it, or no weight file.
    ParameterError
        If results could replace images.
    ResourceError
        If there is no such cluster.
    """
    items = find_items(job.images, without=job.output, pattern=job.pattern)
    recipe = recipe_of(job)
    _check_output(job)
    networks = networks or Networks()
    records = {item: record for item in items if (record := _finished(job, item, recipe)) is not None}
    skipped = len(records)
    outdated = sum(_record_file(job, item).is_file() for item in items if item not in records)
    if outdated:
        yield Message(f"{outdated} results were made with another recipe or from other files: they are made again.")
    left = [item for item in items if item not in records]
    if job.spread.cluster is None:
        new = yield from _one_by_one(job, left, recipe, networks, of=len(items))
    else:
        new = yield from _together(job, left, recipe, of=len(items))
    records |= new
    found = [records[item] for item in items if item in records]
    _write_tables(job.output, found)
    failed = sum(bool(record.error) for record in found)
    counts = {"images": len(items), "done": len(found) - skipped - failed, "skipped": skipped, "failed": failed}
    return Outcome({**counts, "stopped": len(new) < len(left), "output": str(job.output)})


def _one_by_one(
    job: BatchJob, left: Sequence[Item], recipe: str, networks: Networks, *, of: int
) -> Task[dict[Item, Record]]:
    """Do the images that are left in this process, until it is to stop; `of` = how many there are in all."""
    found: dict[Item, Record] = {}
    for item in left:
        progress = Progress(of - len(left) + len(found), of, "images")
        record = yield from _heeding_stop(segment_item(job, item, recipe, networks), progress)
        if record is None:
            break
        found[item] = record
        yield from _told(record)
        yield replace(progress, done=progress.done + 1)
    return found


def _together(job: BatchJob, left: Sequence[Item], recipe: str, *, of: int) -> Task[dict[Item, Record]]:
    """Do the images that are left with the workers of a cluster, until it is to stop."""
    from rskd.cluster import connected, spread

    found: dict[Item, Record] = {}
    parts = [(_for_workers(job), replace(item, files=tuple(map(Path.resolve, item.files))), recipe) for item in left]
    with connected(job.spread) as client, closing(spread(client, job.spread.retries, _item_on_worker, parts)) as work:
        for answer in work:
            if answer is not None:
                number, (record, messages) = answer
                found[left[number]] = record
                yield from messages
                yield from _told(record)
            if (yield Progress(of - len(left) + len(found), of, "images")) is Command.STOP:
                break
    return found


def _for_workers(job: BatchJob) -> BatchJob:
    """Return a job that means the same in the folder of another process, and takes one thread."""
    fields: dict[str, Any] = {name: getattr(job, name) for name in ("images", "output", "model", "compare_with")}
    places = {name: path.resolve() for name, path in fields.items() if path is not None and path.exists()}
    compute = job.compute.model_copy(update={"threads": job.compute.threads or 1})
    return job.model_copy(update={**places, "compute": compute})


def _item_on_worker(job: BatchJob, item: Item, recipe: str) -> tuple[Record, list[Message]]:
    """On a worker: do one image; returns what there is to say about it as well."""
    messages: list[Message] = []
    task = segment_item(job, item, recipe, _kept())
    while True:
        try:
            event = next(task)
        except StopIteration as end:
            return end.value, messages
        if isinstance(event, Message):
            messages.append(event)


@cache
def _kept() -> Networks:
    """Return the networks of a worker, which stay in its memory from image to image."""
    return Networks()


def _told(record: Record) -> Iterator[Message]:
    if record.error:
        yield Message(f"Image {record.case} is left out: {record.error}", warning=True)


def segment_item(job: BatchJob, item: Item, recipe: str, networks: Networks) -> Task[Record]:
    """Do one image of a batch: read, segment, write, and record it. What fails is told in the record, never raised.

    Job, item, recipe and record can be pickled, so that another process can do it.

    Parameters
    ----------
    job
        The batch.
    item
        One of `rskd.folder.find_items`.
    recipe
        From `recipe_of`.
    networks
        Networks that are in memory already.
    """
    began = time.perf_counter()
    case, state = secrets.token_hex(6), ""  # what it is called as long as its content cannot be read
    try:
        state = state_of_files(item.files)
        case = _case(item)
        model, *others = (networks.get(path, job.compute, tile=job.options.tile) for path in _weight_files(job))
        scan = _read(item, job.axes)
        results = yield from retold(segment_scan(job, scan, model, *others), _about(case))
        names = [info.name for info in model.spec.classes[1:]]
        _record_file(job, item).unlink(missing_ok=True)  # what it speaks of is replaced now
        written = yield from _write(job, item, case, replace(results, measurements=()), names)
    except RskdError as error:
        return Record(item.name, case, error=_nameless(str(error), job, item, case))
    except Exception as error:  # a library that stumbles over one file must not keep the others from being done
        sentence = f"It cannot be segmented ({type(error).__name__}): look at it on its own with `rskd segment`."
        return Record(item.name, case, error=sentence)
    record = Record(
        item.name,
        case,
        recipe=recipe,
        state=state,
        outputs=tuple(path.relative_to(job.output).as_posix() for path in written),
        measurements=columns(results.measurements),
        made_with=results.made_with,
        seconds=round(time.perf_counter() - began, 3),
    )
    write_atomically(_record_file(job, item), json.dumps(asdict(record)).encode())
    return record


def recipe_of(job: BatchJob) -> str:
    """Return the SHA-256 of all that the results depend on besides the images: weights, options, and the program.

    Raises
    ------
    FileError
        If a weight file cannot be read.
    """
    fields = job.model_dump(mode="json", exclude=_NOT_IN_RECIPE)
    for name in _NOT_IN_OPTIONS:
        fields["options"].pop(name, None)
    fields["program"] = version("napari-rskd")
    fields["model"], *fields["compare_with"] = map(_digest_of_weights, _weight_files(job))
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def _check_output(job: BatchJob) -> None:
    """Refuse a folder of images that no batch made, and mark it as one of results."""
    records = job.output / _RECORDS
    same = job.output.exists() and job.output.samefile(job.images)
    if same or (not records.is_dir() and holds_images(job.output)):
        raise ParameterError(f"{job.output} holds images that are no results: choose an empty folder for these.")
    try:
        records.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"{job.output} cannot be written to: {error.strerror}.") from error


def _weight_files(job: BatchJob) -> list[Path]:
    return [path for path in (job.model, job.compare_with) if path is not None]


def _digest_of_weights(path: Path) -> str:
    try:
        return identity(path)
    except OSError as error:
        raise FileError(f"There is no weight file {path}: check the name, or choose another file.") from error


# -------------------------------------------------------------------------------------------------------- one image


def _heeding_stop(task: Task[Record], progress: Progress) -> Task[Record | None]:
    """Run the task of one image, which does not listen, and close it when it is to stop; then there is no record."""
    try:
        while True:
            try:
                event = next(task)
            except StopIteration as end:
                record: Record = end.value
                return record
            if (yield event if isinstance(event, Message) else progress) is Command.STOP:
                return None
    finally:
        task.close()


def _about(case: str) -> Callable[[Event], Event]:
    """Return what puts the number of an image before every message about it."""
    return lambda event: Message(f"Image {case}: {event.text}", event.warning) if isinstance(event, Message) else event


def _read(item: Item, axes: str | None) -> Scan:
    if len(item.files) == 1:
        return read_scan(item.files[0], axes=axes)
    return read_scans(*item.files)[0]


def _write(job: BatchJob, item: Item, case: str, results: Results, names: Sequence[str]) -> Task[list[Path]]:
    """Write the results; where the format of the source cannot hold them, as NIfTI."""
    ending = _ending(job, item, results.labels)
    target = job.output / f"{item.target}{ending}"
    try:
        return write_results(target, results, names)
    except ParameterError as error:
        if job.format != "source" or ending != ".dcm":
            raise
        reason = _nameless(str(error), job, item, case)
        yield Message(f"No DICOM SEG can be made of image {case}, NIfTI is written: {reason}")
        return write_results(target.with_name(f"{target.name.removesuffix(ending)}.nii.gz"), results, names)


def _ending(job: BatchJob, item: Item, labels: Scan) -> str:
    """Return the ending of the file for labels."""
    if job.format != "source":
        return _ENDINGS.get(job.format, f".{job.format}")
    own = split_name(item.files[0].name)[1]
    if item.dicom:
        return ".dcm"
    ending = _OF_SOURCE.get(own, own) or (".nii.gz" if labels.anatomical else ".tif")
    return ".tif" if ending == ".png" and labels.axes != "yx" else ending


def _case(item: Item) -> str:
    """Return what `rskd.cases.case_id` calls an image, without reading it."""
    several = item.files if len(item.files) > 1 else ()
    digest = Scan(np.empty((1, 1)), "yx", source=item.files[0], files=several).digest
    assert digest is not None  # noqa: S101 - it has a source
    return digest[:12]


def _nameless(sentence: str, job: BatchJob, item: Item, case: str) -> str:
    """Put the number of a case where a sentence names its files or folders."""
    target = job.output / item.target
    folders = {target.parent, *(path.parent for path in item.files)}
    words = {str(path) for path in (*item.files, *folders)} | {path.name for path in (*item.files, Path(item.name))}
    if item.dicom:  # messages about a series name its folder
        words |= {path.parent.name for path in item.files}
    for word in sorted(words, key=len, reverse=True):
        sentence = re.sub(rf"(?<!\w){re.escape(word)}(?!\w)", case, sentence)
    own = rf"(?<!\w){re.escape(target.name)}(?:_[a-z]+)?\.\w[\w.]*\w"  # a file of its results
    sentence = re.sub(own, case, sentence)
    return sentence


# ------------------------------------------------------------------------------------------------- records and tables


def _record_file(job: BatchJob, item: Item) -> Path:
    return job.output / _RECORDS / f"{item.target}.json"


def _finished(job: BatchJob, item: Item, recipe: str) -> Record | None:
    """Return the record of an image if it was done with this recipe, from these files, and all of it is still there."""
    try:
        record = Record(**json.loads(_record_file(job, item).read_bytes()))
        current = (record.name, record.recipe, record.state) == (item.name, recipe, state_of_files(item.files))
    except (OSError, ValueError, TypeError):
        return None
    there = all((job.output / name).exists() for name in record.outputs)
    return replace(record, outputs=tuple(record.outputs)) if current and there else None


def _write_tables(output: Path, records: Sequence[Record]) -> None:
    write_table(output / "measurements.csv", joined("case", ((r.case, r.measurements) for r in records)))
    failed = [record for record in records if record.error]
    write_table(output / "failures.csv", {"case": [r.case for r in failed], "reason": [r.error for r in failed]})
    table: dict[str, list[Any]] = {
        "case": [record.case for record in records],
        "file": [record.name for record in records],
        "labels": [record.outputs[0] if record.outputs else None for record in records],
        "seconds": [record.seconds if record.outputs else None for record in records],
    }
    write_table(output / "files.csv", table)
