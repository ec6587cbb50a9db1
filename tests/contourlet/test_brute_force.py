"""The transform against a second implementation: explicit upsampled 2-D filters and explicit sampling matrices.

Nothing is shared with the package but the ladder taps. Filters are dictionaries {(row, column): coefficient} with
`y[n] = Σ_k h[k] x[Mn − k]`; they are convolved, moved and upsampled one by one, as the toolbox's equations say.
"""

from collections import defaultdict
from functools import cache
from itertools import product

import numpy as np
import pytest
import pywt

from rskd.contourlet import contourlet, directional_bank, laplacian_pyramid

Filter = dict[tuple[int, int], float]

HALF = {
    "pkva6": [0.6261, -0.1794, 0.0688],
    "pkva8": [0.6302, -0.1924, 0.0930, -0.0403],
    "pkva12": [0.6300, -0.1930, 0.0972, -0.0526, 0.0272, -0.0144],
}
R1, R2 = np.array([[1, 1], [0, 1]]), np.array([[1, -1], [0, 1]])
R3, R4, D1, D2 = R1.T, R2.T, np.diag([2, 1]), np.diag([1, 2])
Q1, Q2 = np.array([[1, -1], [1, 1]]), np.array([[1, 1], [-1, 1]])
PARALLELOGRAMS = [(D1 @ R3, (1, 1)), (D1 @ R4, (1, 0)), (D2 @ R1, (1, 1)), (D2 @ R2, (0, 1))]


def convolve(one: Filter, other: Filter) -> Filter:
    result: Filter = defaultdict(float)
    for (i, j), a in one.items():
        for (k, m), b in other.items():
            result[i + k, j + m] += a * b
    return result


def combine(*terms: tuple[float, Filter]) -> Filter:
    result: Filter = defaultdict(float)
    for factor, taps in terms:
        for position, value in taps.items():
            result[position] += factor * value
    return result


def upsample(taps: Filter, matrix: np.ndarray) -> Filter:
    return {tuple(int(v) for v in matrix @ position): value for position, value in taps.items()}


def ladder(name: str, sampling: np.ndarray, coset: tuple[int, int]) -> tuple[Filter, Filter]:
    """H0 = (1 − F1 e)/√2 and H1 = −√2 e − F0 H0, with the ladder filters seen through `sampling`."""
    half = HALF[name]
    taps = np.array([*half[::-1], *half])
    taps[::2] *= -1
    n = len(half)
    f0 = upsample({(i - n, j - n): taps[i] * taps[j] for i in range(2 * n) for j in range(2 * n)}, sampling)
    f1 = convolve(f0, upsample({(1, 1): 1.0}, sampling))
    one: Filter = {(0, 0): 1.0}
    e: Filter = {(-coset[0], -coset[1]): 1.0}
    low = combine((2**-0.5, one), (-(2**-0.5), convolve(f1, e)))
    return low, combine((-(2**0.5), e), (-1.0, convolve(f0, low)))


@cache
def tree(name: str, order: int) -> list[tuple[Filter, np.ndarray]]:
    """Every direction's equivalent filter and its sampling matrix, backsampled to a diagonal one."""
    nodes: list[tuple[Filter, np.ndarray]] = [({(0, 0): 1.0}, np.eye(2, dtype=int))]
    for level in range(1, order + 1):
        children = []
        for k, (equivalent, cumulative) in enumerate(nodes):
            if level == 1:
                sampling, coset, first = Q1, (0, 1), 0
            elif level == 2:
                sampling, coset, first = Q2, (1, 0), 1
            else:
                (sampling, coset), first = PARALLELOGRAMS[k % 2 + (0 if k < len(nodes) / 2 else 2)], 1
            pair = [convolve(equivalent, upsample(h, cumulative)) for h in ladder(name, sampling, coset)]
            children += [(pair[first], cumulative @ sampling), (pair[1 - first], cumulative @ sampling)]
        nodes = children
    half = len(nodes) // 2
    if order > 2:
        for k, (equivalent, matrix) in enumerate(nodes):
            s = 2 * (k % half // 2 + 1) - (2 ** (order - 2) + 1)
            shear = np.array([[1, 0], [s, 1]]) if k < half else np.array([[1, s], [0, 1]])
            nodes[k] = equivalent, matrix @ shear
    return nodes[:half] + nodes[half:][::-1]


def filtered(x: np.ndarray, taps: Filter) -> np.ndarray:
    """Convolve on the torus, tap by tap."""
    y = np.zeros_like(x)
    wrapped: Filter = defaultdict(float)
    for (i, j), value in taps.items():
        wrapped[i % x.shape[0], j % x.shape[1]] += value
    for position, value in wrapped.items():
        y += value * np.roll(x, position, axis=(0, 1))
    return y


def sampled(y: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    rows, columns = np.abs(np.diag(matrix))
    result = np.empty((y.shape[0] // rows, y.shape[1] // columns))
    for n in product(*(range(size) for size in result.shape)):
        m = np.abs(matrix) @ n
        result[n] = y[m[0] % y.shape[0], m[1] % y.shape[1]]
    return result


def separable(taps: list[float]) -> Filter:
    middle = len(taps) // 2
    return {(i - middle, j - middle): a * b for i, a in enumerate(taps) for j, b in enumerate(taps)}


def pyramid_level(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One level with PyWavelets' 9-7 filters."""
    wavelet = pywt.Wavelet("bior4.4")
    h, g = (separable([float(t) for t in np.trim_zeros(taps)]) for taps in (wavelet.dec_lo, wavelet.rec_lo))
    coarse = filtered(x, h)[::2, ::2]
    up = np.zeros_like(x)
    up[::2, ::2] = coarse
    return coarse, x - filtered(up, g)


@pytest.mark.parametrize("shape", [(32, 32), (16, 40)])
@pytest.mark.parametrize(("name", "order"), [("pkva6", 2), ("pkva12", 2), ("pkva8", 3), ("pkva12", 3), ("pkva6", 4)])
def test_directional_bank_equals_explicit_filters_and_sampling(name: str, order: int, shape: tuple[int, int]) -> None:
    x = np.random.default_rng(0).standard_normal(shape)
    bands = directional_bank(x, order, directional=name)
    leaves = tree(name, order)
    assert len(bands) == len(leaves) == 2**order
    for k, (band, (taps, matrix)) in enumerate(zip(bands, leaves, strict=True)):
        assert matrix[0, 1] == matrix[1, 0] == 0
        np.testing.assert_allclose(band, sampled(filtered(x, taps), matrix), atol=1e-10, err_msg=f"direction {k}")


def test_contourlet_equals_pyramid_then_explicit_directions() -> None:
    x = np.random.default_rng(1).standard_normal((32, 48))
    subbands = contourlet(x, (3, 2))
    for level, order in enumerate((3, 2)):
        x, detail = pyramid_level(x)
        for k, (taps, matrix) in enumerate(tree("pkva12", order)):
            np.testing.assert_allclose(subbands.bands[level][k], sampled(filtered(detail, taps), matrix), atol=1e-10)
    np.testing.assert_allclose(subbands.lowpass, x, atol=1e-10)


def test_pyramid_equals_pywavelets() -> None:
    """The lowpass is PyWavelets' approximation (up to its index convention); the residual follows by its inverse."""
    x = np.random.default_rng(2).standard_normal((32, 24))
    ours = laplacian_pyramid(x, 1)
    approximation, _ = pywt.dwt2(x, "bior4.4", mode="periodization")
    matches = [np.roll(approximation, shift, (0, 1)) for shift in product((-1, 0, 1), repeat=2)]
    errors = [np.abs(candidate - ours.lowpass).max() for candidate in matches]
    assert min(errors) < 1e-10
    predicted = pywt.idwt2((approximation, (None, None, None)), "bior4.4", mode="periodization")
    np.testing.assert_allclose(ours.bands[0][0], x - predicted, atol=1e-10)
