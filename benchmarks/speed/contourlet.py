"""The contourlet transform against DTCWT, and against the floors: an FFT pair, one 3 x 3 depthwise convolution, a copy.

DTCWT (the dual-tree complex wavelet transform of `pytorch_wavelets`, six directions per scale, redundancy 4) is the
established directional transform in torch. It is not a dependency; for its columns, in an environment of their own:

    pip install pytorch_wavelets 'setuptools<82'
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import torch
from _timing import Times, Work, interleaved, median, peak_memory, ratio
from torch import Tensor
from torch.nn import functional as F

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


def report(times: Times) -> None:
    for name in times:
        print(
            f"    {name:<24}{median(times, name):9.2f} ms   contourlet / this {ratio(times, 'contourlet', name):8.2f}"
        )
    both = ratio(times, "contourlet + backward", "contourlet")
    print(f"    forward + backward = {both:.2f} x forward (<= 2.5)")
    if "dtcwt" in times:
        forward = ratio(times, "contourlet", "dtcwt")
        both = ratio(times, "contourlet + backward", "dtcwt + backward")
        print(f"    dtcwt: forward {forward:.2f} x (<= {TARGETS['forward']}),", end=" ")
        print(f"forward + backward {both:.2f} x (<= {TARGETS['forward + backward']})")


def memory() -> None:
    print("\npeak memory above the input, MiB (forward; forward + backward), one call in a fresh child")
    for shape, levels in CASES:
        work = candidates(shape, levels, "cpu")
        size = 4 * torch.Size(shape).numel() / 2**20
        names = [name for name in work if name.startswith(("contourlet", "dtcwt"))]
        figures = "   ".join(f"{name} {peak_memory(work[name]):.0f}" for name in names)
        print(f"  {'x'.join(map(str, shape)):<14}{levels!s:<12} input {size:.1f}   {figures}", flush=True)


def speed(device: str) -> None:
    for shape, levels in CASES:
        print(f"  {'x'.join(map(str, shape))}, levels {levels}", flush=True)
        report(interleaved(candidates(shape, levels, device), device=device))


def denoising() -> None:
    import numpy as np
    from skimage import data, restoration

    print("\ndenoising, sigma 25/255: PSNR in dB, the wavelet denoiser cycle-spun over 4 x 4 shifts")
    sigma = 25 / 255
    for name, image in {"camera": data.camera() / 255, "retina, green": data.retina()[..., 1] / 255}.items():
        noisy = image + sigma * np.random.default_rng(0).standard_normal(image.shape)
        wavelets = restoration.cycle_spin(
            noisy, func=restoration.denoise_wavelet, max_shifts=3, func_kw={"method": "BayesShrink", "sigma": sigma}
        )
        figures = {"noisy": noisy, "denoise_wavelet": wavelets, "contourlet": denoise(noisy, sigma)}
        psnr = {key: -10 * np.log10(((value - image) ** 2).mean()) for key, value in figures.items()}
        print(f"  {name:<14}" + "   ".join(f"{key} {value:.2f}" for key, value in psnr.items()), flush=True)


def on_gpu() -> None:
    if not torch.cuda.is_available():
        print("\nGPU: none here")
        return
    x = torch.randn(8, 16, 64, 64)
    pairs = zip(contourlet(x.cuda(), (3, 3, 2)).arrays(), contourlet(x, (3, 3, 2)).arrays(), strict=True)
    print(
        f"\nGPU: largest difference to the CPU {max(float((a.cpu() - b).abs().max()) for a, b in pairs):.1e} (<= 1e-5)"
    )
    speed("cuda")
    print("  under bfloat16 autocast (the transform stays in float32)")
    with torch.autocast("cuda", dtype=torch.bfloat16):
        speed("cuda")


if __name__ == "__main__":
    if dtcwt(1, "cpu") is None:
        print("pytorch_wavelets: not installed, no DTCWT columns (pip install pytorch_wavelets 'setuptools<82')")
    torch.set_num_threads(1)
    memory()
    print("\nCPU time of one thread, median of 9 interleaved rounds; ratios paired per round")
    speed("cpu")
    denoising()
    on_gpu()
