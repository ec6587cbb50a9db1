"""Filters of the two stages, in one place.

Pyramid: a biorthogonal pair of symmetric low-pass filters, used separably.

Directional: a *fan kernel* `t` (a zero-phase 2-D filter that is about +1 where the horizontal frequency
is the smaller one and −1 where it is the larger) and a *prototype*, two polynomials `h`, `g` with
`h(x) g(x) + h(−x) g(−x) = 2`. Because every kernel here satisfies `t(ω + (π, π)) = −t(ω)`, the
two-channel quincunx bank

    analysis   h(t), −e g(−t)        synthesis   g(t), −e* h(−t)        e = exp(jω₂)

reconstructs perfectly. The ladder (lifting) structure of Phoong et al. is the prototype
`h = (1 + x)/√2`, `g = (1 + x)(2 − x)/√2` with a separable kernel on the two diagonals.

References
----------
.. [1] M. N. Do, M. Vetterli, "The contourlet transform", IEEE Trans. Image Process. 14(12), 2005.
.. [2] S.-M. Phoong, C. W. Kim, P. P. Vaidyanathan, R. Ansari, "A new class of two-channel biorthogonal
   filter banks and wavelet bases", IEEE Trans. Signal Process. 43(3), 1995: the `pkva` ladder.
.. [3] A. L. da Cunha, J. Zhou, M. N. Do, "The nonsubsampled contourlet transform", IEEE Trans. Image
   Process. 15(10), 2006: maximally flat kernels through the McClellan transformation.
.. [4] A. Cohen, I. Daubechies, J.-C. Feauveau, "Biorthogonal bases of compactly supported wavelets",
   Comm. Pure Appl. Math. 45, 1992: the 9-7 and 5-3 filters. P. J. Burt, E. H. Adelson, "The Laplacian
   pyramid as a compact image code", IEEE Trans. Commun. 31(4), 1983: Burt's filter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from math import comb, sqrt

import numpy as np
from numpy.typing import NDArray

from rskd.errors import ParameterError

Taps = NDArray[np.float64]


@dataclass(frozen=True)
class PyramidPair:
    """Analysis and synthesis low-pass: odd, symmetric, each summing to √2, `(h * g)[2n] = δ[n]`."""

    analysis: tuple[float, ...]
    synthesis: tuple[float, ...]


@dataclass(frozen=True)
class DirectionalPair:
    """A fan kernel and the two prototype polynomials (coefficients of 1, x, x², …)."""

    kernel: Callable[[], Taps]
    """Centred taps, odd size along both axes; non-zero only where the two indices sum to an odd number."""
    analysis: tuple[float, ...]
    synthesis: tuple[float, ...]


def _symmetric(*half: float) -> tuple[float, ...]:
    return (*half, *half[-2::-1])


def _scaled(factor: float, taps: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(factor * tap for tap in taps)


PYRAMID_FILTERS: Mapping[str, PyramidPair] = {
    "9-7": PyramidPair(
        _symmetric(0.037828455506995, -0.023849465019380, -0.11062440441842, 0.37740285561265, 0.85269867900940),
        _symmetric(-0.064538882628938, -0.040689417609558, 0.41809227322221, 0.78848561640566),
    ),
    "5-3": PyramidPair(
        _scaled(1 / (4 * sqrt(2)), _symmetric(-1, 2, 6)),
        _scaled(1 / (2 * sqrt(2)), _symmetric(1, 2)),
    ),
    "burt": PyramidPair(
        _scaled(sqrt(2), _symmetric(-0.05, 0.25, 0.6)),
        _scaled(sqrt(2), _symmetric(-3 / 280, -3 / 56, 73 / 280, 17 / 28)),
    ),
}


def _ladder_kernel(half: tuple[float, ...]) -> Taps:
    """Build `b(ω₁ + ω₂) b(ω₂ − ω₁)` with the odd square wave `b(ν) = 2 Σ (−1)ⁱ vᵢ sin((i + ½) ν)`.

    The product of two sines is a difference of cosines whose frequencies are whole numbers of ω₁ and ω₂,
    so that the half-sample delays of the even-length ladder filter cancel.
    """
    waves = [(-1) ** i * v for i, v in enumerate(half)]
    reach = 2 * len(half) - 1
    taps = np.zeros((2 * reach + 1, 2 * reach + 1))
    for i, u in enumerate(waves):
        for j, v in enumerate(waves):
            for sign in (1, -1):
                taps[reach + sign * (i + j + 1), reach + sign * (i - j)] += u * v
                taps[reach + sign * (i - j), reach + sign * (i + j + 1)] -= u * v
    return taps


def _maximally_flat_kernel(order: int) -> Taps:
    """Turn the maximally flat diamond half-band filter of this order by π into a fan.

    Bernstein form: with x = (1 − cos ω)/2 the diamond is Σ f(i, j) B_i(x₁) B_j(x₂), where f is 1, ½ or 0
    below, on and above the line i + j = order. This is the published `dmaxflat` table (d = 0) in closed
    form; the table's well-known misprint at order 6 (44 for 444, in units of 2⁻²⁰) does not arise.
    """
    high, low = np.array([-0.25, 0.5, -0.25]), np.array([0.25, 0.5, 0.25])

    def bernstein(i: int) -> Taps:
        taps = np.array([float(comb(order, i))])
        for factor in [high] * i + [low] * (order - i):
            taps = np.convolve(taps, factor)
        return taps

    diamond = np.zeros((2 * order + 1, 2 * order + 1))
    for i in range(order + 1):
        for j in range(order + 1 - i):
            diamond += (0.5 if i + j == order else 1.0) * np.outer(bernstein(i), bernstein(j))
    kernel = 2 * diamond
    kernel[order, order] -= 1
    odd = np.add.outer(np.arange(2 * order + 1), np.arange(2 * order + 1)) % 2 == 1
    kernel = np.where(odd, kernel, 0.0)  # the others are zero but for rounding
    return kernel * (-1.0) ** np.arange(-order, order + 1)


_LADDER = (1 / sqrt(2), 1 / sqrt(2)), (sqrt(2), 1 / sqrt(2), -1 / sqrt(2))  # (1 + x)/√2, (1 + x)(2 − x)/√2
_A, _B = 1 - sqrt(2), 1 / sqrt(2)
_MCCLELLAN = (1.0, _B, _A * _B), (1.0, -2 * _A, _A * _B, -_A * _A * _B)  # the 5/7-tap pair of [3] in x = cos ω

_PKVA = {
    "pkva6": (0.6261, -0.1794, 0.0688),
    "pkva8": (0.6302, -0.1924, 0.0930, -0.0403),
    "pkva12": (0.6300, -0.1930, 0.0972, -0.0526, 0.0272, -0.0144),
}

DIRECTIONAL_FILTERS: Mapping[str, DirectionalPair] = {
    **{name: DirectionalPair(partial(_ladder_kernel, half), *_LADDER) for name, half in _PKVA.items()},
    **{f"dmaxflat{n}": DirectionalPair(partial(_maximally_flat_kernel, n), *_MCCLELLAN) for n in range(1, 8)},
}


def pyramid_pair(name: str) -> PyramidPair:
    """Look a pyramid filter up.

    Examples
    --------
    >>> round(sum(pyramid_pair("burt").analysis) ** 2, 12)
    2.0
    """
    if name not in PYRAMID_FILTERS:
        raise ParameterError(f"pyramid={name!r} is not a filter: use one of {', '.join(PYRAMID_FILTERS)}")
    return PYRAMID_FILTERS[name]


def directional_pair(name: str) -> DirectionalPair:
    """Look a directional filter up."""
    if name not in DIRECTIONAL_FILTERS:
        raise ParameterError(f"directional={name!r} is not a filter: use one of {', '.join(DIRECTIONAL_FILTERS)}")
    return DIRECTIONAL_FILTERS[name]


@cache
def fan_kernel(name: str) -> tuple[NDArray[np.int64], Taps]:
    """Return the non-zero taps of a fan kernel: positions (row, column) of shape (n, 2) and their values."""
    taps = directional_pair(name).kernel()
    positions = np.argwhere(taps != 0)
    values = taps[tuple(positions.T)]
    return positions - np.array(taps.shape) // 2, values
