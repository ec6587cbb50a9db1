"""Segment 20,000 x 20,000 pixels within 2 GiB: killed in the middle and resumed, and on a cluster that loses a worker.

    python benchmarks/large/huge.py FOLDER [SIDE]

The picture is generated, the network is small and fast. Every run is a process of its own, whose peak of resident
memory is printed; the results are compared with that of an uninterrupted run.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import torch
import zarr

from rskd.config import ClusterOptions, SegmentOptions
from rskd.events import Message, Task
from rskd.io import ome_zarr, read_scan
from rskd.large import segment_into
from rskd.models import weights
from rskd.models.presets import fresh_spec
from rskd.models.segmenter import Segmenter
from rskd.scan import Scan
from rskd.segment import Segmentation

BLOCK = 2000
LIMIT = 2 * 2**30


def make(folder: Path, side: int) -> None:
    """Write the picture, block by block, and the network."""
    ome_zarr.begin(folder / "image.zarr", (side, side), np.dtype(np.uint8), chunks=(512, 512), beside=None)
    array = ome_zarr.full_resolution(folder / "image.zarr")
    rng = np.random.default_rng(0)
    for top in range(0, side, BLOCK):
        y, x = np.ogrid[top : min(top + BLOCK, side), :side]
        waves = 60 * np.sin(y / 97.0) * np.sin(x / 131.0) + 120
        array[top : top + BLOCK] = (waves + rng.integers(0, 40, waves.shape, np.uint8)).astype(np.uint8)
    scan = Scan(array, "yx", spacing=(0.5, 0.5), units="um")
    ome_zarr.complete(folder / "image.zarr", scan, labels=False, own={})
    torch.manual_seed(0)
    spec = fresh_spec("rskd-nano", in_channels=1, classes=["cell"]).model_copy(
        update={
            "embed_dim": 16,
            "depth": 1,
            "num_heads": 1,
            "stem_widths": (4, 8),
            "decoder_width": 4,
            "image_size": 256,
        }
    )
    model = Segmenter(spec).eval()
    with torch.no_grad():  # both classes shall occur
        background, cell = model(torch.randn(1, 1, 256, 256))[0]
        head = [module for module in model.modules() if isinstance(module, torch.nn.Conv2d)][-1]
        head.bias[1] -= (cell - background).median()
    weights.save(folder / "net.safetensors", model, card={})


def task_of(folder: Path, name: str) -> Task[Segmentation]:
    model, scan = weights.load(folder / "net.safetensors"), read_scan(folder / "image.zarr")
    if name != "cluster":
        return segment_into(folder / f"{name}.zarr", model, scan, SegmentOptions())
    from rskd.cluster import segment_on

    return segment_on(
        ClusterOptions(cluster="local", workers=2),
        folder / "cluster.zarr",
        folder / "net.safetensors",
        folder / "image.zarr",
        SegmentOptions(),
    )


def work(folder: Path, name: str) -> None:
    """Do one run in this process and print what it took."""
    torch.set_num_threads(1)
    began = time.perf_counter()
    for event in task_of(folder, name):
        if isinstance(event, Message):
            print(f"  {event.text}", flush=True)
    status = Path("/proc/self/status").read_text()  # getrusage would begin with the peak of the process that made this
    peak = 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    print(
        f"  {time.perf_counter() - began:.0f} s, peak {peak / 2**20:.0f} MiB"
        + (f", largest worker {children / 2**20:.0f} MiB" if name == "cluster" else "")
        + f": {'within' if max(peak, children) <= LIMIT else 'ABOVE'} 2 GiB",
        flush=True,
    )


def regions_done(folder: Path, name: str) -> int:
    ledger = folder / f".{name}.zarr.growing" / "ledger.jsonl"
    return ledger.read_text("utf-8").count('"box"') if ledger.exists() else 0


def run(folder: Path, name: str, *, kill: str = "") -> None:
    """Run in a process; after a third of the regions, kill it ("all") or one of its workers ("worker")."""
    print(f"{name}{f', {kill} killed in the middle' if kill else ''}", flush=True)
    process = subprocess.Popen([sys.executable, __file__, "--work", str(folder), name])
    while kill and process.poll() is None and regions_done(folder, name) < 8:
        time.sleep(0.1)
    if kill == "all":
        process.send_signal(signal.SIGKILL)
    elif kill:
        workers = [
            child
            for child in psutil.Process(process.pid).children(recursive=True)
            if "spawn_main" in " ".join(child.cmdline())
        ]
        workers[0].kill()
        print(f"  killed worker {workers[0].pid} of {len(workers)}", flush=True)
    process.wait()


def compare(folder: Path, name: str) -> None:
    ours, whole = (zarr.open_group(folder / f"{n}.zarr", mode="r")["0"] for n in (name, "whole"))
    differing = sum(int((ours[t : t + BLOCK] != whole[t : t + BLOCK]).sum()) for t in range(0, whole.shape[0], BLOCK))
    share = np.mean([float(whole[t : t + BLOCK].mean()) for t in range(0, whole.shape[0], BLOCK)])
    print(f"{name}: {differing} of {whole.size} labels differ from the uninterrupted run ({share:.0%} foreground)")


def main() -> None:
    if sys.argv[1] == "--work":
        work(Path(sys.argv[2]), sys.argv[3])
        return
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    folder, side = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 20_000
    folder.mkdir(parents=True, exist_ok=True)
    make(folder, side)
    run(folder, "whole")
    run(folder, "resumed", kill="all")
    run(folder, "resumed")
    run(folder, "cluster", kill="worker")
    for name in ("resumed", "cluster"):
        compare(folder, name)


if __name__ == "__main__":
    main()
