"""Denoising by shrinking sub-bands: the classic use of contourlets, end to end."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rskd.contourlet.arrays import to_tensors
from rskd.contourlet.banks import noise_gains
from rskd.contourlet.extension import crop, extend, max_levels, plan_layout
from rskd.contourlet.subbands import ArrayT, Layout
from rskd.contourlet.transform import compose, decompose
from rskd.errors import ParameterError

LEVELS = (3, 3, 3, 2, 2)
WINDOW = 7.0
"""Standard deviation, in samples of the sub-band's own scale, of the window that the signal's power is measured in."""
MARGIN_PER_LEVEL = 2
"""The border is extended by this times `2**levels` pixels."""


def denoise(
    x: ArrayT,
    sigma: float | None = None,
    *,
    levels: Sequence[int] | None = None,
    pyramid: str = "9-7",
    directional: str = "dmaxflat4",
) -> ArrayT:
    """Remove white Gaussian noise from images.

    Every sub-band of the nonsubsampled contourlet transform is soft-thresholded with BayesShrink's threshold
    σ²/σₓ, where σ is the noise in that sub-band and σₓ the signal around each coefficient. The lowpass stays.

    Parameters
    ----------
    x
        (..., H, W), at least 2×2; each image is treated alone.
    sigma
        Standard deviation of the noise in units of `x`; None: estimated from the median magnitude of the finest level.
    levels
        As for `contourlet`; None: (3, 3, 3, 2, 2), or as many of these as leave a lowpass of 8 pixels.
    pyramid, directional
        Filters; `dmaxflat4` is close to orthogonal, which shrinkage profits from.

    Returns
    -------
    array
        Of the shape and type of `x`.

    References
    ----------
    .. [1] S. G. Chang, B. Yu, M. Vetterli, "Adaptive wavelet thresholding for image denoising and compression",
       IEEE Trans. Image Process. 9(9), 2000.
    .. [2] A. L. da Cunha, J. Zhou, M. N. Do, "The nonsubsampled contourlet transform: theory, design, and
       applications", IEEE Trans. Image Process. 15(10), 2006.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> rows, columns = np.mgrid[:64, :64] / 64
    >>> image = (rows + columns > 1).astype(float)
    >>> noisy = image + 0.1 * rng.standard_normal(image.shape)
    >>> bool(np.std(denoise(noisy, 0.1) - image) < 0.4 * np.std(noisy - image))
    True
    """
    if sigma is not None and sigma < 0:
        raise ParameterError(
            f"sigma={sigma} is negative: give the standard deviation of the noise, or None to estimate it"
        )
    (image,), restore = to_tensors((x,))
    layout = _padded_layout((image.shape[-2], image.shape[-1]), levels, pyramid, directional)
    bands, lowpass = decompose(extend(image, layout), layout)
    flat = [band for level in bands for band in level]
    gains = noise_gains(layout)[:-1]
    noise = _estimate_noise(bands[0], gains) if sigma is None else torch.as_tensor(sigma, dtype=image.dtype)
    shrunk = [
        _shrink(band, gain * noise.to(band), WINDOW * 2**info.level)
        for band, gain, info in zip(flat, gains, layout.describe(), strict=False)
    ]
    shrunk.append(lowpass)
    return restore(crop(compose(shrunk, layout), layout))


def _padded_layout(shape: tuple[int, int], levels: Sequence[int] | None, pyramid: str, directional: str) -> Layout:
    orders = LEVELS[: max(1, max_levels(shape) - 3)] if levels is None else tuple(levels)
    plan_layout(
        shape, orders, pyramid=pyramid, directional=directional, border="symmetric", nonsubsampled=True
    )  # checks the parameters
    margin = MARGIN_PER_LEVEL * 2 ** len(orders)
    rows, columns = (-(-(n + 2 * margin) // 16) * 16 for n in shape)  # lengths that the FFT is fast for
    return Layout(shape, (rows, columns), (margin, margin), orders, pyramid, directional, "symmetric", True)


def _estimate_noise(finest: Sequence[Tensor], gains: Sequence[float]) -> Tensor:
    """Estimate from the median magnitude, in the direction that holds least; (..., 1, 1)."""
    spread = [
        band.abs().flatten(-2).median(-1).values / (0.6745 * gain) for band, gain in zip(finest, gains, strict=False)
    ]
    return torch.stack(spread).amin(0)[..., None, None]


def _shrink(band: Tensor, noise: Tensor, window: float) -> Tensor:
    signal = (_smooth(band.square(), window) - noise.square()).clamp_min(0).sqrt()
    tiny = torch.finfo(band.dtype).tiny
    threshold = noise.square() / signal.clamp_min(tiny)
    return band.sign() * (band.abs() - threshold).clamp_min(0)


def _smooth(x: Tensor, deviation: float) -> Tensor:
    """Average over a Gaussian window, periodically."""
    rows, columns = x.shape[-2:]
    down = torch.fft.fftfreq(rows, dtype=x.dtype, device=x.device)[:, None]
    right = torch.fft.rfftfreq(columns, dtype=x.dtype, device=x.device)
    response = torch.exp(-2 * (torch.pi * deviation) ** 2 * (down**2 + right**2))
    smooth: Tensor = torch.fft.irfft2(torch.fft.rfft2(x) * response, s=(rows, columns))
    return smooth
