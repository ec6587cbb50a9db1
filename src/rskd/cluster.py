"""Segment with the processes of a dask.distributed cluster, on this computer or on many.

The workers read the image and write the regions themselves; this process keeps the ledger. What a lost worker had in
hand is given to another one; a region that is in the ledger is never done again.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from rskd.config import ClusterOptions, ComputeOptions, SegmentOptions
from rskd.errors import EngineError, ResourceError, RskdError
from rskd.events import Message, Progress, Task, drain
from rskd.io import read_scan
from rskd.io.libraries import library
from rskd.large import result_of, room_for, take_up
from rskd.ledger import Ledger, Place
from rskd.models.normalise import Range, measure
from rskd.networks import open_network, place
from rskd.plan import Known, Plan
from rskd.recipe import Setting
from rskd.segment import Segmentation, announce, in_use, recipe_of, run_box

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
    compute: ComputeOptions | None = None,
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
        Device and threads of every worker; None = the CPU with one thread.

    Returns
    -------
    Segmentation
        As of `segment_into`.

    Raises
    ------
    ResourceError
        If dask.distributed is not installed, or the cluster does not answer.
    """
    compute = compute or ComputeOptions(device="cpu", threads=1)
    network = place(open_network(model), compute)
    scan = read_scan(image, axes=axes)
    plan = Plan.of(scan, network.spec, options)
    ledger = Ledger(Place.of(output, scan.source), plan)
    job = _Job(model.resolve() if model.exists() else model, image.resolve(), axes, options, compute, output.resolve())
    with ledger.opened(), in_use(network) as backend, connected(cluster) as client:
        yield from announce(plan)
        yield from take_up(ledger, network, Setting.chosen(options, network.spec, backend.device))
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
        How often a part is tried again.
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
                    raise EngineError(f"A worker of the cluster failed {retries + 1} times: {error}.") from error
                yield number, answer
    finally:
        client.cancel(list(futures))


# -------------------------------------------------------------------------------------------------- regions of an image


class _Job:
    """What a worker needs to know; small, since it travels with every part."""

    def __init__(
        self, model: Path, image: Path, axes: str | None, options: SegmentOptions, compute: ComputeOptions, output: Path
    ) -> None:
        self.model, self.image, self.axes, self.output = str(model), str(image), axes, str(output)
        self.options, self.compute = options.model_dump_json(), compute.model_dump_json()

    @property
    def key(self) -> tuple[str, str, str | None, str, str, str]:
        return self.model, self.image, self.axes, self.options, self.compute, self.output


@lru_cache(maxsize=2)
def _opened(
    model: str, image: str, axes: str | None, options: str, compute: str, output: str
) -> tuple[Any, Plan, Ledger]:
    """Return network, plan and ledger of a job; a worker opens them once."""
    network = place(open_network(Path(model)), ComputeOptions.model_validate_json(compute)).eval()
    scan = read_scan(image, axes=axes)
    plan = Plan.of(scan, network.spec, SegmentOptions.model_validate_json(options))
    return network, plan, Ledger(Place.of(Path(output), scan.source), plan)


def _measure_plane(job: _Job, view: int, plane: int) -> tuple[Range, ...]:
    """On a worker: measure the range of a plane."""
    _, plan, _ = _opened(*job.key)
    return measure(lambda: plan.views[view].slices.blocks(plane), plan.spec)


def _segment_box(job: _Job, box: Any, setting: Setting, known: Known) -> tuple[Setting, Known]:
    """On a worker: segment a box and write its values, unless the tile has to change."""
    network, plan, ledger = _opened(*job.key)
    room, known = room_for(plan, box), dict(known)
    after = drain(run_box(network, plan, box, setting, known, room, 0, 0))
    if after.tile == setting.tile:
        ledger.write(box, room.labels, room.probabilities)
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
    for done, answer in enumerate(spread(client, cluster.retries, _measure_plane, [(job, *part) for part in wanted])):
        if answer is not None:
            view_number, plane = wanted[answer[0]]
            ledger.know({(plan.views[view_number].axis, plane): answer[1]})
        yield Progress(min(done, len(wanted)), len(wanted), "planes measured")


def _fill_on(client: Any, cluster: ClusterOptions, job: _Job, ledger: Ledger) -> Task[None]:
    """Have the boxes done that are left, until the tile has to change and all are left again."""
    setting, left = ledger.setting, ledger.left
    parts = [(job, ledger.boxes[number], setting, _needed(ledger, number)) for number in left]
    work = spread(client, cluster.retries, _segment_box, parts)
    try:
        for answer in work:
            if answer is not None:
                after, known = answer[1]
                if after.tile != setting.tile:
                    ledger.change(after)
                    yield Message(after.setbacks[-1], warning=True)
                    return
                ledger.know(known)
                ledger.check_off(left[answer[0]])
            yield Progress(len(ledger.done), len(ledger.boxes), "regions")
    finally:
        work.close()


def _needed(ledger: Ledger, number: int) -> Known:
    """Return the ranges of the planes that a box is made of."""
    parts = [(view.axis, view.part(ledger.boxes[number], ledger.plan.axes)) for view in ledger.plan.views]
    keys = [(axis, plane) for axis, part in parts for plane in part.indices]
    return {key: ledger.known[key] for key in keys if key in ledger.known}
