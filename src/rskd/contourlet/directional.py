"""The directional filter bank: the tree of quincunx splits, written as one response per direction.

Every node splits its part of the frequency plane by a fan filter seen through the node's cumulative
sampling matrix `M` (noble identity), so that a leaf's response on the input grid is a product of
prototype polynomials of `t(Mᵀω)`: a real, even function times a pure shift `exp(jω·s)`. Nothing is
resampled on the way, which is what makes the bank exact at the border and on grids that are not square.

The tree is that of Do and Vetterli's contourlet toolbox, in its order of the directions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from rskd.contourlet.filters import Taps, directional_pair, fan_kernel

Matrix = NDArray[np.int64]
Path = tuple[tuple[tuple[int, ...], int, bool], ...]

_I = np.eye(2, dtype=np.int64)
_R1, _R2 = np.array([[1, 1], [0, 1]]), np.array([[1, -1], [0, 1]])
_Q1, _Q2 = np.array([[1, -1], [1, 1]]), np.array([[1, 1], [-1, 1]])
_PARALLELOGRAMS = ((_R1, _Q1), (_R2, _Q2), (_R1.T, _Q2), (_R2.T, _Q1))
"""Resampling and quincunx matrix of the four splits below level 2."""


@dataclass(frozen=True)
class Direction:
    """One leaf of the tree.

    Attributes
    ----------
    decimation
        Sampling step along rows and columns.
    shift
        Pixel (row, column) of the input on which the sub-band's sample [0, 0] stands.
    path
        The splits that lead here, each: sampling matrix the fan kernel is seen through (row by row),
        sign of the kernel, whether this is the high-pass child.
    """

    decimation: tuple[int, int]
    shift: tuple[int, int]
    path: Path


@dataclass(frozen=True)
class _Node:
    sampling: Matrix
    shift: Matrix
    path: Path

    def split(self, resampling: Matrix, quincunx: Matrix) -> tuple[_Node, _Node]:
        """Return the low-pass and the high-pass child."""
        seen = self.sampling @ resampling
        sign, coset = (1, np.array([0, 1])) if quincunx is _Q1 else (-1, np.array([1, 0]))
        key = tuple(int(v) for v in seen.ravel())
        low = _Node(seen @ quincunx, self.shift, (*self.path, (key, sign, False)))
        high = _Node(seen @ quincunx, self.shift + seen @ coset, (*self.path, (key, sign, True)))
        return low, high


@cache
def directions(order: int) -> tuple[Direction, ...]:
    """Walk the tree of `2**order` directions; order ≥ 2.

    Examples
    --------
    >>> [leaf.decimation for leaf in directions(2)]
    [(2, 2), (2, 2), (2, 2), (2, 2)]
    >>> [leaf.decimation for leaf in directions(3)][::4]
    [(4, 2), (2, 4)]
    """
    low, high = _Node(_I, np.zeros(2, dtype=np.int64), ()).split(_I, _Q1)
    nodes = [child for node in (low, high) for child in reversed(node.split(_I, _Q2))]
    for _ in range(2, order):
        half = len(nodes) // 2
        splits = [_PARALLELOGRAMS[k % 2 + 2 * (k >= half)] for k in range(len(nodes))]
        nodes = [
            child for node, matrices in zip(nodes, splits, strict=True) for child in reversed(node.split(*matrices))
        ]
    half, step = len(nodes) // 2, 2 ** (order - 1)
    tall = [_leaf(node, (step, 2)) for node in nodes[:half]]
    wide = [_leaf(node, (2, step)) for node in reversed(nodes[half:])]
    return (*tall, *wide)


def _leaf(node: _Node, decimation: tuple[int, int]) -> Direction:
    # The cumulative matrix differs from diag(decimation) by a unimodular factor: the same lattice, other indices.
    return Direction(decimation, (int(node.shift[0]), int(node.shift[1])), node.path)


def _fan(name: str, shape: tuple[int, int], matrix: tuple[int, ...], dilation: int) -> Taps:
    """Sample the fan response `t(dilation · Mᵀω)` on the DFT grid of this shape."""
    positions, values = fan_kernel(name)
    positions = dilation * positions @ np.reshape(matrix, (2, 2)).T % np.array(shape)
    taps = np.zeros(shape)
    np.add.at(taps, tuple(positions.T), values)
    return np.fft.fft2(taps).real


def directional_responses(
    order: int, shape: tuple[int, int], *, filters: str, dilation: int = 1
) -> tuple[list[Taps], list[Taps]]:
    """Sample every direction's response on the DFT grid.

    Parameters
    ----------
    order
        log2 of the number of directions, ≥ 2.
    shape
        Rows and columns of the grid.
    filters
        Name of the directional filters.
    dilation
        Evaluate at `dilation · ω`, as the nonsubsampled transform does at coarse levels.

    Returns
    -------
    analysis, synthesis
        Real, even responses of shape `shape`, one per direction. The full analysis response is this
        times `exp(jω·shift)`, the full synthesis response is this times `exp(−jω·shift)`.
    """
    pair = directional_pair(filters)
    seen: dict[Path, tuple[Taps, Taps]] = {(): (np.ones(shape), np.ones(shape))}

    def walk(path: Path) -> tuple[Taps, Taps]:
        if path not in seen:
            (matrix, sign, high), (analysis, synthesis) = path[-1], walk(path[:-1])
            fan = sign * _fan(filters, shape, matrix, dilation)
            if high:
                seen[path] = (
                    analysis * -_polynomial(pair.synthesis, -fan),
                    synthesis * -_polynomial(pair.analysis, -fan),
                )
            else:
                seen[path] = analysis * _polynomial(pair.analysis, fan), synthesis * _polynomial(pair.synthesis, fan)
        return seen[path]

    responses = [walk(leaf.path) for leaf in directions(order)]
    return [analysis for analysis, _ in responses], [synthesis for _, synthesis in responses]


def _polynomial(coefficients: Sequence[float], x: Taps) -> Taps:
    value = np.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        value = value * x + coefficient
    return value


def directional_reach(order: int, filters: str) -> tuple[int, int]:
    """Return how many pixels up/down and left/right the longest analysis filter of the bank reaches."""
    positions, _ = fan_kernel(filters)
    pair = directional_pair(filters)
    reach = np.zeros(2, dtype=np.int64)
    for leaf in directions(order):
        total = np.abs(leaf.shift)
        for matrix, _, high in leaf.path:
            degree = len(pair.synthesis if high else pair.analysis) - 1
            total = total + degree * np.abs(positions @ np.reshape(matrix, (2, 2)).T).max(0)
        reach = np.maximum(reach, total)
    return int(reach[0]), int(reach[1])
