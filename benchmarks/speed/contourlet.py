"""The contourlet transform against DTCWT, and against the floors: an FFT pair, one 3 x 3 depthwise convolution, a copy.

DTCWT (the dual-tree complex wavelet transform of `pytorch_wavelets`, six directions per scale, redundancy 4) is the
established directional transform in torch. It is not a dependency; for its columns, in an environment of their own:

    pip install pytorch_wavelets 'setuptools<82'
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.speed._sheet import Sheet
from benchmarks.speed._timing import Times, Work, interleaved, median, peak_memory, ratio
from rskd.contourlet import contourlet, denoise, icontourlet

CASES: list[tuple[tuple[int, int, int, int], tuple[int, ...]]] = [
    ((1, 1, 512, 512), (3, 3, 2)),
    ((8, 16, 64, 64), (3,)),
    ((8, 16, 64, 64), (3, 3, 2)),
    ((8, 64, 64, 64), (3, 3, 2)),
    ((8, 96, 56, 56), (3, 2)),
]
TARGETS = {"forward": 0.4, "forward + backward": 0.5}
"""Times DTCWT that ours may take."""


def dtcwt(scales: int, device: str) -> Callable[[Tensor], list[Tensor]] | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it imports pkg_resources, which is deprecated
            from pytorch_wavelets import DTCWTForward
    except ImportError:
        return None
    transform = DTCWTForward(J=scales).to(device)

    def run(x: Tensor) -> list[Tensor]:
        low, high = transform(x)
        return [low, *high]

    return run


def there_and_back(transform: Callable[[Tensor], Sequence[Tensor]], x: Tensor) -> Work:
    x = x.clone().requires_grad_()
    ones = [torch.ones_like(y) for y in transform(x)]

    def run() -> object:
        return torch.autograd.grad(list(transform(x)), x, ones)

    return run


def candidates(shape: tuple[int, int, int, int], levels: tuple[int, ...], device: str) -> dict[str, Work]:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)
    kernel = torch.randn(shape[1], 1, 3, 3, device=device)
    subbands = contourlet(x, levels)

    def ours(x: Tensor) -> Sequence[Tensor]:
        return contourlet(x, levels).arrays()

    work: dict[str, Work] = {
        "contourlet": lambda: ours(x),
        "contourlet + backward": there_and_back(ours, x),
        "inverse": lambda: icontourlet(subbands),
        "rfft2 + irfft2": lambda: torch.fft.irfft2(torch.fft.rfft2(x)),
        "3x3 depthwise": lambda: F.conv2d(x, kernel, padding=1, groups=shape[1]),
        "copy": lambda: x.clone(),
    }
    if theirs := dtcwt(len(levels), device):
        work |= {"dtcwt": lambda: theirs(x), "dtcwt + backward": there_and_back(theirs, x)}
    return work


def report(sheet: Sheet, title: str, times: Times) -> None:
    sheet.table(title, "ms|.2f", "contourlet / this|.2f")
    for name in times:
        sheet.row(name, median(times, name), ratio(times, "contourlet", name))
    both = ratio(times, "contourlet + backward", "contourlet")
    sheet.note(f"forward + backward = {both:.2f} x forward (target <= 2.5)")
    if "dtcwt" in times:
        forward = ratio(times, "contourlet", "dtcwt")
        both = ratio(times, "contourlet + backward", "dtcwt + backward")
        words = f"x dtcwt: forward {forward:.2f} (target <= {TARGETS['forward']}), forward + backward {both:.2f}"
        sheet.note(f"{words} (target <= {TARGETS['forward + backward']})")


def memory(sheet: Sheet) -> None:
    title = "peak memory above the input, one call in a fresh child"
    sheet.table(title, "input MiB|.1f", "forward|.0f", "and backward|.0f", "DTCWT forward|.0f", "and backward|.0f")
    for shape, levels in CASES:
        work = candidates(shape, levels, "cpu")
        size = 4 * torch.Size(shape).numel() / 2**20
        names = ("contourlet", "contourlet + backward", "dtcwt", "dtcwt + backward")
        figures = [peak_memory(work[name]) if name in work else None for name in names]
        sheet.row(f"{'x'.join(map(str, shape))}, levels {levels}", size, *figures)


def speed(sheet: Sheet, device: str) -> None:
    for shape, levels in CASES:
        title = f"{'x'.join(map(str, shape))}, levels {levels}, {device}"
        times = interleaved(candidates(shape, levels, device), rounds=sheet.rounds(9), device=device)
        report(sheet, title, times)


def denoising(sheet: Sheet) -> None:
    import numpy as np
    from skimage import data, restoration

    title = "denoising, sigma 25/255: PSNR, the wavelet denoiser cycle-spun over 4 x 4 shifts"
    sheet.table(title, "noisy, dB|.2f", "denoise_wavelet, dB|.2f", "contourlet, dB|.2f")
    sigma = 25 / 255
    for name, image in {"camera": data.camera() / 255, "retina, green": data.retina()[..., 1] / 255}.items():
        noisy = image + sigma * np.random.default_rng(0).standard_normal(image.shape)
        wavelets = restoration.cycle_spin(
            noisy, func=restoration.denoise_wavelet, max_shifts=3, func_kw={"method": "BayesShrink", "sigma": sigma}
        )
        results = (noisy, wavelets, denoise(noisy, sigma))
        sheet.row(name, *(float(-10 * np.log10(((value - image) ** 2).mean())) for value in results))


def on_gpu(sheet: Sheet) -> None:
    if not torch.cuda.is_available():
        sheet.note("GPU: none here")
        return
    x = torch.randn(8, 16, 64, 64)
    pairs = zip(contourlet(x.cuda(), (3, 3, 2)).arrays(), contourlet(x, (3, 3, 2)).arrays(), strict=True)
    largest = max(float((a.cpu() - b).abs().max()) for a, b in pairs)
    sheet.note(f"GPU: largest difference to the CPU {largest:.1e} (target <= 1e-5)")
    speed(sheet, "cuda")
    sheet.note("under bfloat16 autocast (the transform stays in float32)")
    with torch.autocast("cuda", dtype=torch.bfloat16):
        speed(sheet, "cuda")


def main(sheet: Sheet) -> None:
    torch.set_num_threads(1)
    memory(sheet)
    speed(sheet, "cpu")
    denoising(sheet)
    on_gpu(sheet)
    sheet.note(f"CPU time of one thread, medians of {sheet.rounds(9)} interleaved rounds; ratios paired per round.")
