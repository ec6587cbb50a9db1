"""How fast networks are on this computer, in every runtime that is installed, and what they need."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
from numpy.typing import NDArray

from rskd.backend import backend_of
from rskd.bench_words import check_figure, draw
from rskd.config import ComputeOptions, ModelSpec
from rskd.errors import ModelError, ParameterError, ResourceError
from rskd.events import Message, Progress, Task
from rskd.io.files import write_atomically
from rskd.jobs import BenchJob, Outcome
from rskd.models.exported import SUFFIX, available_runtimes
from rskd.models.normalise import normalise
from rskd.models.passport import Passport
from rskd.models.presets import PRESETS, fresh_spec, weight_file
from rskd.networks import inspect, open_network, place
from rskd.phantom import vessel_phantom

if TYPE_CHECKING:
    from rskd.models.segmenter import Segmenter

PIPELINE = "one image: normalise, run, strongest class"
"""What is timed."""
WARM_UP = 2
"""Rounds that do not count."""
LEAST = 3
"""Rounds that are measured, however long they take."""
_PATIENCE = 600
"""Seconds after which a process that measures memory is given up."""
Image = NDArray[np.uint8]
Labels = NDArray[np.generic]


@dataclass
class Candidate:
    """A network in a runtime, for images of one size."""

    model: str
    source: Path
    """File that a process opens it from."""
    runtime: str
    size: int
    network: Segmenter
    wall: list[float] = field(default_factory=list)
    """Milliseconds of every round."""
    cpu: list[float] = field(default_factory=list)
    """Milliseconds of the processor, all threads together."""

    def place(self, compute: ComputeOptions) -> ComputeOptions:
        """Return where it runs: the device is torch's, the other runtimes have the processor alone."""
        return compute if self.runtime == "torch" else ComputeOptions(threads=compute.threads)

    def run(self, image: Image) -> None:
        """Segment an image once more, and note how long it took."""
        wall, cpu = time.perf_counter(), time.process_time()
        labels_of(self.network, image)
        self.cpu.append(1e3 * (time.process_time() - cpu))
        self.wall.append(1e3 * (time.perf_counter() - wall))


def bench(job: BenchJob) -> Task[Outcome]:
    """Measure networks beside each other: they take turns, image by image, so that a busy computer is as bad for all.

    Parameters
    ----------
    job
        Networks, sizes, rounds, and what is written. A network to start fresh sees three channels.

    Yields
    ------
    Message
        What cannot be measured.
    Progress
        Rounds that are done.

    Returns
    -------
    Outcome
        ``{"pipeline", "computer", "threads", "networks", "rows"}``. A network has `parameters`, `bytes`, and by size
        its `gmacs`, 10⁹ multiply-adds (None for exported files and for networks from elsewhere). A row is a `network`
        in a `runtime` at a `size`: `p50` and `p95` (wall milliseconds of an image), `fps` (1000 / p50), `cpu` (median
        of the processor's milliseconds), `ratio` (median over the rounds of its CPU time to that of the first network
        in this runtime), `rounds`, and `peak_mib`, the memory of a process that does nothing else (None = not
        measured).

    Raises
    ------
    FileError, ModelError, ParameterError, ResourceError
        If a network cannot be opened, or takes no images of such a size.
    """
    threads = job.compute.threads or max(1, (os.cpu_count() or 1) - 1)
    compute = job.compute.model_copy(update={"threads": threads})
    names = names_of(job.models)
    networks: dict[str, dict[str, Any]] = {}
    rows: list[dict[str, Any]] = []
    if job.figure is not None:
        check_figure(job.figure)
    with TemporaryDirectory(prefix="rskd-bench-") as folder:
        for number, size in enumerate(job.sizes):
            candidates: list[Candidate] = []
            for place_of_copies, (name, path) in enumerate(zip(names, job.models, strict=True)):
                copies = Path(folder) / str(place_of_copies)
                copies.mkdir(exist_ok=True)
                source = _with_weights(path, copies)
                opened = yield from _candidates(source, name, size, compute, copies)
                facts = networks.setdefault(name, _facts(inspect(source)))
                facts["gmacs"][str(size)] = _gmacs(opened)
                candidates += opened
            yield from _take_turns(candidates, job, Progress(number * job.rounds, len(job.sizes) * job.rounds))
            peaks = [_peak_alone(c, compute) if job.memory else None for c in candidates]
            rows += [_row(c, candidates, peak) for c, peak in zip(candidates, peaks, strict=True)]
    if not rows:
        raise ParameterError("None of these networks takes images of such a size: name the size of an exported file.")
    value = {"pipeline": PIPELINE, "computer": computer(), "threads": threads, "networks": networks, "rows": rows}
    if job.output is not None:
        write_atomically(job.output, json.dumps(value, indent=2).encode())
    if job.figure is not None:
        draw(value, job.figure)
    return Outcome(value)


def labels_of(network: Segmenter, image: Image) -> Labels:
    """Return the labels of an image (C, H, W) of the network's size: all that has to be done, from pixels to labels.

    Returns
    -------
    ndarray
        Class indices (H, W); where classes may overlap, a plane of booleans for each, (K, H, W).
    """
    backend = backend_of(network)
    with backend.running():
        logits = network(backend.put(normalise(image, network.spec))[None])[0]  # K H W
        labels: Labels = backend.get(logits > 0 if network.spec.overlapping else backend.strongest(logits))
    return labels


def multiply_adds(model: Segmenter, size: int) -> float:
    """Return the multiply-adds, in 10⁹, of a network of torch on one square image."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    images = torch.zeros(1, model.spec.in_channels, size, size, device=next(model.parameters()).device)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model(images)
    return float(counter.get_total_flops()) / 2e9


def peak_memory() -> float:
    """Return the most memory that this process has had, in MiB."""
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage would count what the parent had
        return int(next(line for line in status.read_text().splitlines() if "VmHWM" in line).split()[1]) / 2**10
    memory = psutil.Process().memory_info()
    if hasattr(memory, "peak_wset"):  # Windows
        return float(memory.peak_wset) / 2**20
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def computer() -> dict[str, Any]:
    """Return what this computer is and which versions run on it."""
    versions = {}
    for name in ("torch", "onnxruntime", "openvino"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": versions,
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = (line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line)
        return next(names, platform.machine())
    return platform.processor() or platform.machine()


# -------------------------------------------------------------------------------------------------------- candidates


def names_of(models: Sequence[Path]) -> list[str]:
    """Return a name for every network: that of its file, with the folders in front that tell it from the others.

    Examples
    --------
    >>> names_of([Path("a/best.safetensors"), Path("b/best.safetensors"), Path("retina-student")])
    ['a/best', 'b/best', 'retina-student']
    """
    parts = [(*path.parent.parts, path.name.removesuffix(".safetensors")) for path in models]

    def told(own: tuple[str, ...], length: int) -> str:
        return "/".join(own[-length:])

    def length_of(own: tuple[str, ...]) -> int:
        lengths = range(1, len(own) + 1)
        return next((n for n in lengths if sum(told(other, n) == told(own, n) for other in parts) == 1), len(own))

    return [told(own, length_of(own)) for own in parts]


def _with_weights(path: Path, folder: Path) -> Path:
    """Return the weight file; that of a network to start fresh is written first."""
    if path.exists() or str(path) not in PRESETS:
        return weight_file(path)
    fresh = folder / f"{path}.safetensors"
    if not fresh.exists():
        from rskd.models import weights
        from rskd.models.segmenter import Segmenter

        weights.save(fresh, Segmenter(fresh_spec(str(path), in_channels=3, classes=["foreground"])), card={})
    return fresh


def _candidates(source: Path, name: str, size: int, compute: ComputeOptions, folder: Path) -> Task[list[Candidate]]:
    """Open a network in every runtime that can run it at this size."""
    own = inspect(source).spec.image_size
    exported = source.suffix.lower() == SUFFIX
    if exported and own != size:
        yield Message(f"{name} takes images of {own} pixels alone: it is left out at {size}.", warning=True)
        return []
    runtimes = available_runtimes()
    found = []
    if not exported:
        found.append(Candidate(name, source, "torch", size, place(open_network(source, "torch"), compute)))
        try:
            copy = _exported(source, size, folder) if runtimes else source
        except ModelError as error:
            yield Message(f"{name} runs in torch alone. {error}", warning=True)
            return found
    for runtime in runtimes:
        network = place(open_network(source if exported else copy, runtime), ComputeOptions(threads=compute.threads))
        found.append(Candidate(name, source, runtime, size, network))
    return found


def _exported(source: Path, size: int, folder: Path) -> Path:
    from rskd.models import weights
    from rskd.models.foreign import refuse_foreign
    from rskd.onnx_export import export_onnx

    model = weights.load(source)
    refuse_foreign(model, source)
    copy = folder / f"{source.stem}-{size}{SUFFIX}"
    export_onnx(model, copy, size=size)
    return copy


def _facts(passport: Passport) -> dict[str, Any]:
    return {"parameters": passport.parameters, "bytes": passport.bytes, "gmacs": {}}


def _gmacs(candidates: Sequence[Candidate]) -> float | None:
    for candidate in candidates:
        if candidate.runtime == "torch":
            return multiply_adds(candidate.network, candidate.size) or None
    return None


# --------------------------------------------------------------------------------------------------------- measuring


def _take_turns(candidates: Sequence[Candidate], job: BenchJob, before: Progress) -> Task[None]:
    """Run every candidate once per round."""
    images = {id(c): _picture(c.network.spec, c.size) for c in candidates}
    began = time.perf_counter()
    for done in range(WARM_UP + job.rounds):
        for candidate in candidates:
            candidate.run(images[id(candidate)])
            yield Progress(before.done + max(0, done - WARM_UP), before.total, "rounds")
        if done + 1 >= WARM_UP + LEAST and time.perf_counter() - began > job.seconds:
            break


def _picture(spec: ModelSpec, size: int) -> Image:
    """Return an image (C, size, size) of drawn vessels."""
    drawn = vessel_phantom(np.random.default_rng(0), size)[0].transpose(2, 0, 1)
    return np.ascontiguousarray(drawn[np.arange(spec.in_channels) % 3])


def _row(candidate: Candidate, candidates: Sequence[Candidate], peak: float | None) -> dict[str, Any]:
    wall, cpu = candidate.wall[WARM_UP:], candidate.cpu[WARM_UP:]
    first = next(c for c in candidates if c.runtime == candidate.runtime)
    p50, p95 = np.percentile(wall, [50, 95])
    return {
        "network": candidate.model,
        "runtime": candidate.runtime,
        "size": candidate.size,
        "p50": float(p50),
        "p95": float(p95),
        "fps": 1e3 / float(p50),
        "cpu": statistics.median(cpu),
        "ratio": statistics.median(mine / its for mine, its in zip(cpu, first.cpu[WARM_UP:], strict=True)),
        "rounds": len(wall),
        "peak_mib": peak,
    }


def _peak_alone(candidate: Candidate, compute: ComputeOptions) -> float:
    """Return the peak memory of a process that opens the network and segments one image, libraries included."""
    network: Any = candidate.network
    path = getattr(network, "path", candidate.source)
    code = "import sys; from rskd.bench import _run_alone; _run_alone(*sys.argv[1:])"
    where = candidate.place(compute).model_dump_json()
    command = [sys.executable, "-P", "-c", code, str(path), candidate.runtime, str(candidate.size), where]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE, check=True)  # noqa: S603
    except subprocess.SubprocessError as error:
        raise ResourceError(
            f"{candidate.model} could not be run in a process of its own, to measure its memory: use --no-memory."
        ) from error
    return float(done.stdout)


def _run_alone(path: str, runtime: str, size: str, where: str) -> None:
    network = place(open_network(Path(path), runtime), ComputeOptions.model_validate_json(where))
    labels_of(network, _picture(network.spec, int(size)))
    print(peak_memory())


def fastest(value: Mapping[str, Any], network: str, size: int) -> dict[str, Any] | None:
    """Return the row of the runtime in which a network is fastest, from what `bench` returned.

    Examples
    --------
    >>> rows = [{"network": "a", "size": 256, "p50": p50, "runtime": name} for name, p50 in (("torch", 9), ("onnx", 4))]
    >>> fastest({"rows": rows}, "a", 256)["runtime"]
    'onnx'
    """
    own = [row for row in value["rows"] if (row["network"], row["size"]) == (network, size)]
    return min(own, key=lambda row: row["p50"], default=None)
