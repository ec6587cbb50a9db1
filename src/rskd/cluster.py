"""Segment with the processes of a dask.distributed cluster, on this computer or on many.

The workers read the image and write the regions themselves; this process keeps the ledger. What a lost worker had in
hand is given to another one; a region that is in the ledger is never done again.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from rskd.backend import backend_of
from rskd.box import run_box
from rskd.config import ClusterOptions, InferenceOptions, SegmentOptions
from rskd.errors import EngineError, ResourceError, RskdError
from rskd.events import Message, Progress, Task, drain
from rskd.io import read_scan
from rskd.io.libraries import library
from rskd.large import result_of, room_for, take_up
from rskd.ledger import Ledger, Place, Store
from rskd.models.normalise import Range, measure
from rskd.networks import open_network, place
from rskd.plan import Box, Known, Plan
from rskd.recipe import Setting, fingerprint
from rskd.segment import Segmentation, announce, recipe_of

if TYPE_CHECKING:
    from rskd.models.segmenter import Segmenter

Answer = TypeVar("Answer")
_PATIENCE = 0.5
"""Seconds between two looks at whether the work is to be closed."""


def segment_on(
    cluster: ClusterOptions,
    output: Path,
    model: Path,
    image: Path,
    options: SegmentOptions,
    *,
    axes: str | None = None,
    compute: InferenceOptions | None = None,
) -> Task[Segmentation]:
    """Segment an image region by region with the workers of a cluster.

    Parameters
    ----------
    cluster
        Which one.
    output
        As for `rskd.large.segment_into`.
    model, image
        Files that every worker can read under the same name.
    options
        As for `segment`.
    axes
        Axes of the image, where the file's are missing or wrong.
    compute
        Device, threads and runtime of every worker; None = the CPU. Where it states no threads, each has one.

    Returns
    -------
    Segmentation
        As of `segment_into`.

    Raises
    ------
    ResourceError
        If dask.distributed is not installed, or the cluster does not answer.
    """
    compute = compute or InferenceOptions(device="cpu")
    compute = compute.model_copy(update={"threads": compute.threads or 1})
    network = open_network(model, compute.runtime, tile=options.tile).eval()
    scan = read_scan(image, axes=axes)
    plan = Plan.of(scan, network.spec, options)
    ledger = Ledger(Place.of(output, scan.source), plan)
    setting = Setting(Setting.chosen(options, network.spec, "cpu").tile, 0, "")  # the workers choose the rest
    with ledger.opened(), connected(cluster) as client:
        yield from announce(plan)
        yield from take_up(ledger, network, setting)
        job = _Job(
            str(model.resolve() if model.exists() else model),
            str(image.resolve()),
            axes,
            options.model_dump_json(),
            compute.model_dump_json(),
            fingerprint(network),
            ledger.store,
        )
        yield from _measure_on(client, cluster, job, ledger)
        while ledger.left:
            yield from _fill_on(client, cluster, job, ledger)
        recipe = recipe_of(network, plan, ledger.setting)
        ledger.finish({"recipe": recipe.model_dump(mode="json")})
    return result_of(ledger.place, plan, recipe)


@contextmanager
def connected(options: ClusterOptions) -> Iterator[Any]:
    """Connect to a cluster, or start a local one for as long.

    Raises
    ------
    ResourceError
        If dask.distributed is not installed, or nothing answers at the address.
    """
    try:
        distributed = library("distributed")
    except ImportError as error:
        raise ResourceError(
            "A cluster needs dask.distributed, which is not installed: pip install 'napari-rskd[cluster]'."
        ) from error
    if options.cluster == "local":
        with (
            library("dask").config.set({"distributed.scheduler.allowed-failures": options.retries}),
            distributed.LocalCluster(
                n_workers=options.workers, threads_per_worker=1, dashboard_address=None, memory_limit=0, silence_logs=50
            ) as local,
            distributed.Client(local) as client,
        ):
            yield client
        return
    try:
        client = distributed.Client(options.cluster, timeout=10)
    except (OSError, ValueError) as error:
        raise ResourceError(
            f"No cluster answers at {options.cluster}: check the address of its scheduler, such as tcp://host:8786."
        ) from error
    with client:
        yield client


def spread(
    client: Any, retries: int, work: Callable[..., Answer], parts: Sequence[tuple[Any, ...]]
) -> Generator[tuple[int, Answer] | None, None, None]:
    """Have the workers of a cluster do parts of a work; closing it cancels what is left.

    Parameters
    ----------
    client
        Of `connected`.
    retries
        How often a part is tried again that fails.
    work
        What to do; it must be importable on the workers.
    parts
        Its arguments, part by part.

    Yields
    ------
    tuple of int and answer, or None
        Number of a part and what came of it, as they are finished; None from time to time when nothing was.
    """
    wait = library("distributed").wait
    futures = {client.submit(work, *part, retries=retries, pure=False): number for number, part in enumerate(parts)}
    try:
        while futures:
            try:
                finished = wait(list(futures), timeout=_PATIENCE, return_when="FIRST_COMPLETED").done
            except TimeoutError:
                yield None
                continue
            for future in finished:
                number = futures.pop(future)
                try:
                    answer = future.result()
                except RskdError:
                    raise
                except Exception as error:
                    if type(error).__name__ == "KilledWorker":
                        raise EngineError(
                            "Workers of the cluster died again and again over the same part: look into their logs; "
                            "where their memory did not suffice, make --region smaller."
                        ) from error
                    raise EngineError(f"A worker of the cluster failed {retries + 1} times: {error}.") from error
                yield number, answer
    finally:
        client.cancel(list(futures))


# -------------------------------------------------------------------------------------------------- regions of an image


class _Job(NamedTuple):
    """What a worker needs to know; small, since it travels with every part."""

    model: str
    image: str
    axes: str | None
    options: str
    compute: str
    weights: str
    """Fingerprint of the network."""
    store: Store
    """Where values go; another one, if anything changes that they depend on."""


@dataclass
class _Opened:
    """What a worker keeps from part to part."""

    network: Segmenter
    plan: Plan
    setting: Setting
    """How it runs the network, as its own memory allows."""


@lru_cache(maxsize=2)
def _opened(job: _Job) -> _Opened:
    """Open network and image of a job; a worker does it once."""
    options = SegmentOptions.model_validate_json(job.options)
    compute = InferenceOptions.model_validate_json(job.compute)
    network = open_network(Path(job.model), compute.runtime, tile=options.tile)
    if fingerprint(network) != job.weights:
        raise ResourceError(
            "A worker of the cluster finds other weights than this process: start its workers anew, and let the name "
            "of the weight file mean the same everywhere."
        )
    network = place(network, compute).eval()
    plan = Plan.of(read_scan(job.image, axes=job.axes), network.spec, options)
    return _Opened(network, plan, Setting.chosen(options, network.spec, backend_of(network).device))


def _measure_plane(job: _Job, view: int, plane: int) -> tuple[Range, ...]:
    """On a worker: measure the range of a plane."""
    plan = _opened(job).plan
    return measure(lambda: plan.views[view].slices.blocks(plane), plan.spec)


def _segment_box(job: _Job, box: Box, tile: int, known: Known) -> tuple[Setting, Known]:
    """On a worker: segment a box and write its values, unless the tile has to change; only new setbacks are told."""
    opened, known = _opened(job), dict(known)
    plan, setting = opened.plan, replace(opened.setting, tile=tile, setbacks=())
    room = room_for(plan, box)
    opened.setting = after = drain(run_box(opened.network, plan, box, setting, known, room, 0, 0))
    if after.tile == tile:
        job.store.write(box, room.labels, room.probabilities)
    return after, known


def _measure_on(client: Any, cluster: ClusterOptions, job: _Job, ledger: Ledger) -> Task[None]:
    """Measure the planes that several boxes share, each once."""
    plan, wanted = ledger.plan, []
    for number, view in enumerate(plan.views):
        shared: dict[int, int] = {}
        for box in ledger.boxes:
            for plane in view.part(box, plan.axes).indices:
                shared[plane] = shared.get(plane, 0) + 1
        wanted += [(number, p) for p, n in shared.items() if n > 1 and (view.axis, p) not in ledger.known]
    done = 0
    for answer in spread(client, cluster.retries, _measure_plane, [(job, *part) for part in wanted]):
        if answer is not None:
            view_number, plane = wanted[answer[0]]
            ledger.know({(plan.views[view_number].axis, plane): answer[1]})
            done += 1
        yield Progress(done, len(wanted), "planes measured")


def _fill_on(client: Any, cluster: ClusterOptions, job: _Job, ledger: Ledger) -> Task[None]:
    """Have the boxes done that are left, until the tile has to change and all are left again."""
    tile, left = ledger.setting.tile, ledger.left
    job = job._replace(store=ledger.store)
    parts = [(job, ledger.boxes[number], tile, _needed(ledger, number)) for number in left]
    work = spread(client, cluster.retries, _segment_box, parts)
    try:
        for answer in work:
            if answer is not None:
                number, (after, known) = answer
                yield from _tell(ledger, after)
                if after.tile != tile:
                    break
                ledger.know(known)
                ledger.check_off(left[number])
            yield Progress(len(ledger.done), len(ledger.boxes), "regions")
        else:
            return
    finally:
        work.close()
    ledger.change(replace(ledger.setting, tile=after.tile))


def _tell(ledger: Ledger, theirs: Setting) -> Task[None]:
    """Tell and record how a worker ran the network, as far as it is new."""
    ours = ledger.setting
    setbacks = tuple(text for text in theirs.setbacks if text not in ours.setbacks)
    devices = {*filter(None, ours.device.split(", ")), theirs.device}
    together = replace(
        ours,
        batch_size=min(ours.batch_size or theirs.batch_size, theirs.batch_size),
        device=", ".join(sorted(devices)),
        setbacks=(*ours.setbacks, *setbacks),
    )
    if together != ours:
        ledger.change(together)
    for text in setbacks:
        yield Message(text, warning=True)


def _needed(ledger: Ledger, number: int) -> Known:
    """Return the ranges of the planes that a box is made of."""
    parts = [(view.axis, view.part(ledger.boxes[number], ledger.plan.axes)) for view in ledger.plan.views]
    keys = [(axis, plane) for axis, part in parts for plane in part.indices]
    return {key: ledger.known[key] for key in keys if key in ledger.known}
