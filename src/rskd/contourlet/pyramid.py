"""The Laplacian pyramid: a low-pass at half the sampling rate and the residual it leaves.

    c = ↓2 (h ∗ x)        d = x − g ∗ ↑2 c        x = d + g ∗ ↑2 (c − ↓2 (h ∗ d))

The inverse is the dual-frame operator, which does not depend on c − ↓2(h ∗ d) being zero and so averages
noise in the sub-bands out.

Because the lattice of every directional sub-band lies inside that of `c`, "residual, then direction k" is
itself one filter followed by decimation: `residual_response` gives it.

References
----------
.. [1] M. N. Do, M. Vetterli, "Framing pyramids", IEEE Trans. Signal Process. 51(9), 2003.
"""

from __future__ import annotations

import numpy as np

from rskd.contourlet.filters import Taps, pyramid_pair


def pyramid_responses(shape: tuple[int, int], *, filters: str, dilation: int = 1) -> tuple[Taps, Taps]:
    """Sample the separable low-pass responses (analysis, synthesis) on the DFT grid; real and even.

    Examples
    --------
    >>> h, g = pyramid_responses((8, 8), filters="5-3")
    >>> float(round(h[0, 0], 12)), float(round(abs(g[4, 0]), 12))
    (2.0, 0.0)
    """
    pair = pyramid_pair(filters)
    return _separable(pair.analysis, shape, dilation), _separable(pair.synthesis, shape, dilation)


def _separable(taps: tuple[float, ...], shape: tuple[int, int], dilation: int) -> Taps:
    rows, columns = (_along_axis(taps, length, dilation) for length in shape)
    return rows[:, None] * columns


def _along_axis(taps: tuple[float, ...], length: int, dilation: int) -> Taps:
    steps = np.arange(len(taps)) - len(taps) // 2
    phase = np.outer(dilation * steps, np.arange(length)) % length  # whole steps keep the cosine exact
    response: Taps = np.asarray(taps) @ np.cos(2 * np.pi * phase / length)
    return response


def residual_response(response: Taps, shift: tuple[int, int], down: Taps, up: Taps) -> Taps:
    """Put the pyramid's residual before a filter that is followed by decimation.

    With `d = x − up · tile(fold(down · x))`, the filter `R exp(jω·s)` on `d`, decimated by at least two
    along both axes, equals the returned response times `exp(jω·s)` on `x`:

        R'(ω) = R(ω) − down(ω) / 4 · Σ_i (−1)^(s·i) R(ω + πi) up(ω + πi),        i ∈ {0, 1}²

    The dual (synthesis) side is the same with `down` and `up` exchanged.
    """
    rows, columns = (n // 2 for n in response.shape)
    product = response * up
    across = product + (-1) ** shift[0] * np.roll(product, rows, axis=0)
    folded = across + (-1) ** shift[1] * np.roll(across, columns, axis=1)
    residual: Taps = response - down * folded / 4
    return residual


def pyramid_reach(filters: str) -> tuple[int, int]:
    """Return how many pixels the analysis and the synthesis low-pass reach to either side."""
    pair = pyramid_pair(filters)
    return len(pair.analysis) // 2, len(pair.synthesis) // 2
