"""Tiled inference against a bare loop over the same tiles, and against MONAI's `sliding_window_inference`.

Times are CPU times of one thread, so that a busy machine does not blur them; ratios are medians over paired repeats.
The bare loop cuts, runs and overwrites, without any blending; "one buffer" is the same loop with its input tensor
allocated once, as ours has it. The null network (a 16 x 16 convolution of stride 16, enlarged again) shows the frame
alone, the real one is a small Segmenter with random weights.
"""

from __future__ import annotations

import importlib.util
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np
import psutil
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.speed._sheet import Sheet
from rskd.backend_torch import TorchBackend
from rskd.config import ModelSpec, SegmentOptions
from rskd.events import drain
from rskd.models.presets import fresh_spec
from rskd.models.segmenter import Segmenter
from rskd.scan import Scan
from rskd.segment import segment
from rskd.tiling import Tiling, predict_tiled

TILE, BATCH, CLASSES = 256, 4, 2
Method = Callable[[nn.Module, Tensor, float], Tensor]


class Null(nn.Module):
    """The cheapest network that still looks at every pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.spec = ModelSpec(name="null", in_channels=3, image_size=TILE)
        self.convolution = nn.Conv2d(3, CLASSES, 16, 16)

    def forward(self, images: Tensor) -> Tensor:
        return F.interpolate(self.convolution(images), scale_factor=16)


def starts(image: Tensor, overlap: float) -> list[tuple[int, int]]:
    grid = Tiling.over((image.shape[1], image.shape[2]), tile=TILE, overlap=overlap).grid
    return [(row.start, column.start) for row, column in grid]


def net_alone(network: nn.Module, image: Tensor, overlap: float) -> Tensor:
    batch = torch.zeros(BATCH, 3, TILE, TILE)
    with torch.inference_mode():
        for first in range(0, (count := len(starts(image, overlap))), BATCH):
            result = network(batch[: count - first])
    return result


def bare(network: nn.Module, image: Tensor, overlap: float) -> Tensor:
    canvas = torch.empty(CLASSES, *image.shape[1:])
    places = starts(image, overlap)
    with torch.inference_mode():
        for first in range(0, len(places), BATCH):
            part = places[first : first + BATCH]
            logits = network(torch.stack([image[:, y : y + TILE, x : x + TILE] for y, x in part]))
            for (y, x), tile in zip(part, logits, strict=True):
                canvas[:, y : y + TILE, x : x + TILE] = tile
    return canvas


def bare_one_buffer(network: nn.Module, image: Tensor, overlap: float) -> Tensor:
    canvas = torch.empty(CLASSES, *image.shape[1:])
    places = starts(image, overlap)
    buffer = torch.empty(BATCH, 3, TILE, TILE)
    with torch.inference_mode():
        for first in range(0, len(places), BATCH):
            part = places[first : first + BATCH]
            for slot, (y, x) in zip(buffer, part, strict=False):
                slot.copy_(image[:, y : y + TILE, x : x + TILE])
            for (y, x), tile in zip(part, network(buffer[: len(part)]), strict=True):
                canvas[:, y : y + TILE, x : x + TILE] = tile
    return canvas


def ours(network: nn.Module, image: Tensor, overlap: float) -> Tensor:
    canvas = torch.zeros(CLASSES, *image.shape[1:])
    shape = (image.shape[1], image.shape[2])
    tiling = Tiling.over(shape, tile=TILE, overlap=overlap, backend=TorchBackend())
    for _ in predict_tiled(network, [(image, canvas)], tiling, batch_size=BATCH):
        pass
    return canvas


def monai(network: nn.Module, image: Tensor, overlap: float) -> Tensor:
    from monai.inferers import sliding_window_inference

    with torch.inference_mode():
        result = sliding_window_inference(image[None], TILE, BATCH, network, overlap=overlap, mode="gaussian")
    return result[0]


METHODS: dict[str, Method] = {
    "net calls only": net_alone,
    "bare loop": bare,
    "bare loop, one buffer": bare_one_buffer,
    "ours": ours,
}
if importlib.util.find_spec("monai"):
    METHODS["MONAI gaussian"] = monai


def cpu_times(network: nn.Module, image: Tensor, overlap: float, *, repeats: int) -> dict[str, list[float]]:
    """Time all methods side by side, in another order each time, so that each repeat is a pair with the others."""
    times: dict[str, list[float]] = {name: [] for name in METHODS}
    order = np.random.default_rng(0)
    for repeat in range(repeats + 1):
        for name in order.permutation(list(METHODS)):
            method = METHODS[name]
            began = time.thread_time()
            method(network, image, overlap)
            if repeat:  # the first round warms up
                times[name].append(time.thread_time() - began)
    return times


def compare(
    sheet: Sheet, title: str, network: nn.Module, image: Tensor, overlaps: Sequence[float], *, repeats: int
) -> None:
    heads = [f"{head} at {overlap:g}" for overlap in overlaps for head in ("CPU ms", "x bare loop")]
    formats = [".0f", ".2f"] * len(overlaps)
    where = f"{image.shape[1]} x {image.shape[2]}, tile {TILE}, batch {BATCH}, one thread"
    tiles = ", ".join(f"{len(starts(image, overlap))} tiles at overlap {overlap:g}" for overlap in overlaps)
    sheet.table(f"{title}, {where}; {tiles}", *(f"{head}|{form}" for head, form in zip(heads, formats, strict=True)))
    times = [cpu_times(network, image, overlap, repeats=repeats) for overlap in overlaps]
    for name in METHODS:
        figures: list[float] = []
        for found in times:
            ratio = float(np.median(np.divide(found[name], found["bare loop"])))
            figures += [1e3 * float(np.median(found[name])), ratio]
        sheet.row(name, *figures)


def memory(sheet: Sheet, size: int) -> None:
    """Peak resident memory above the image, each method in a process of its own."""
    sheet.table(f"peak memory above the image, null network, {size} x {size}, overlap 0.25", "MiB|.0f")
    sheet.row("the map alone", CLASSES * size**2 * 4 / 2**20)
    for name in ("bare loop", "ours", *(["MONAI gaussian"] if "MONAI gaussian" in METHODS else [])):
        code = (
            "import sys; from benchmarks.speed.tiling import *; print(peak_above_image(sys.argv[1], int(sys.argv[2])))"
        )
        command = [sys.executable, "-c", code, name, str(size)]
        sheet.row(name, float(subprocess.run(command, capture_output=True, text=True, check=True).stdout))


def peak_above_image(name: str, size: int) -> float:
    """Return MiB; the network runs once before, so that its own buffers are there."""
    torch.set_num_threads(1)
    network = Null().eval()
    METHODS[name](network, torch.rand(3, 2 * TILE, 2 * TILE), 0.25)
    image = torch.rand(3, size, size)
    before = psutil.Process().memory_info().rss
    METHODS[name](network, image, 0.25)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before) / 2**20


def scaling(sheet: Sheet, sizes: Sequence[int]) -> None:
    """Whole `segment` (normalise, tiles, labels) with the null network: time per megapixel.

    The first of four runs warms up: what it costs to get memory from the system is no property of the program.
    """
    sheet.table("segment() with the null network, overlap 0.25, 8-bit RGB in, labels out", "CPU ms per Mpx|.1f")
    for size in sizes:
        image = np.random.default_rng(0).integers(0, 255, (size, size, 3), dtype=np.uint8)
        times = []
        for _ in range(4):
            began = time.thread_time()
            drain(segment(Null().eval(), Scan(image, "yxc"), SegmentOptions(batch_size=BATCH)))
            times.append(time.thread_time() - began)
        sheet.row(f"{size**2 / 1e6:.1f} Mpx", 1e9 * float(np.median(times[1:])) / size**2)


def empty_tiles(sheet: Sheet, size: int, share: float) -> None:
    """Whole `segment` of a picture that is empty but for a square, with and without a look at its empty tiles."""
    torch.manual_seed(0)
    spec = fresh_spec("rskd-nano", in_channels=1, classes=["cell"]).model_copy(update={"image_size": TILE})
    network = Segmenter(spec).eval()
    image = np.full((size, size), 255, np.uint8)
    side = int(size * share**0.5)
    image[:side, :side] = np.random.default_rng(0).integers(0, 255, (side, side))
    title = f"{size} x {size}, {1 - share:.0%} of it empty, rskd-nano, overlap 0.25"
    sheet.table(title, "CPU ms|.0f", "times faster|.1f")
    times = []
    for name, options in (("every tile", SegmentOptions()), ("empty tiles skipped", SegmentOptions(skip_flat=0))):
        began = time.thread_time()
        drain(segment(network, Scan(image, "yx"), options))
        times.append(time.thread_time() - began)
        sheet.row(name, 1e3 * times[-1], times[0] / times[-1])


def main(sheet: Sheet) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    sides = (1024, 2048, (1000, 2000)) if sheet.quick else (2048, 6144, (1000, 2000, 4000, 10000))
    null = Null().eval()
    compare(sheet, "null network", null, torch.rand(3, sides[0], sides[0]), (0.0, 0.25, 0.5), repeats=sheet.rounds(11))
    spec = fresh_spec("rskd-small", in_channels=3, classes=["vessel"]).model_copy(update={"image_size": TILE})
    real = Segmenter(spec).eval()
    compare(sheet, "real network (rskd-small)", real, torch.rand(3, 448, 448), (0.25,), repeats=sheet.rounds(25))
    memory(sheet, sides[1])
    scaling(sheet, sides[2])
    empty_tiles(sheet, sides[0], 0.1)
    image = torch.rand(CLASSES, 1001, 777)
    error = (ours(nn.Identity(), image, 0.25) - image).abs().max()
    sheet.note(f"Largest error on an identity network, 1001 x 777: {error:.1e}.")
