"""Bring planes to another number of pixels, whole or window by window, with the same result.

The filter is the triangle that torch's `interpolate` uses with ``mode="bilinear", antialias=True``. Its taps are
computed from the position in the whole plane, so that a window needs only the pixels under its taps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rskd.backend import Array, Backend


@dataclass(frozen=True, slots=True)
class AxisGrid:
    """An axis of `source` pixels that is seen as `target` pixels over the same length.

    Examples
    --------
    >>> AxisGrid(4, 2).under(slice(0, 1))
    slice(0, 4, None)
    """

    source: int
    target: int

    def under(self, wanted: slice) -> slice:
        """Return the source pixels that the wanted target pixels are made of, and perhaps one more."""
        if self.source == self.target:
            return wanted
        first, taps = self._taps(wanted)
        return slice(max(0, int(first[0])), min(self.source, int(first[-1]) + taps.shape[1]))

    def apply(self, values: Array, wanted: slice, backend: Backend) -> Array:
        """Return the wanted target pixels (…, n, m), along the last axis but one, from those `under` them."""
        if self.source == self.target:
            return values
        first, taps = self._taps(wanted)
        here = first - self.under(wanted).start
        result: Array = 0
        for number in range(taps.shape[1]):
            index = np.clip(here + number, 0, values.shape[-2] - 1)
            result += values[..., index, :] * backend.put(taps[:, number : number + 1])
        return result

    def _taps(self, wanted: slice) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
        """Return the first source pixel (n,) and the weights (n, T) of every wanted target pixel."""
        scale = self.source / self.target
        reach = max(scale, 1.0)
        centre = (np.arange(wanted.start, wanted.stop) + 0.5) * scale
        first = np.floor(centre - reach + 0.5).astype(np.intp)
        positions = first[:, None] + np.arange(math.ceil(2 * reach) + 1)
        weights = np.clip(1 - np.abs(positions + 0.5 - centre[:, None]) / reach, 0, None)
        weights[(positions < 0) | (positions >= self.source)] = 0
        return first, (weights / weights.sum(1, keepdims=True)).astype(np.float32)


@dataclass(frozen=True, slots=True)
class PlaneGrid:
    """A plane of H × W pixels that is seen at another height and width.

    Examples
    --------
    >>> from rskd.backend import NumpyBackend
    >>> grid = PlaneGrid.between((4, 4), (2, 4))
    >>> grid.apply(np.ones((1, 4, 4), np.float32), slice(0, 1), slice(0, 4), NumpyBackend())
    array([[[1., 1., 1., 1.]]], dtype=float32)
    """

    rows: AxisGrid
    columns: AxisGrid

    @classmethod
    def between(cls, source: tuple[int, int], target: tuple[int, int]) -> PlaneGrid:
        """Return the way from `source` (H, W) to `target` (H, W)."""
        return cls(AxisGrid(source[0], target[0]), AxisGrid(source[1], target[1]))

    @property
    def changes(self) -> bool:
        """Whether there is anything to do."""
        return self.rows.source != self.rows.target or self.columns.source != self.columns.target

    def under(self, rows: slice, columns: slice) -> tuple[slice, slice]:
        """Return the window of source pixels that a window of target pixels is made of."""
        return self.rows.under(rows), self.columns.under(columns)

    def apply(self, values: Array, rows: slice, columns: slice, backend: Backend) -> Array:
        """Return a window of target pixels (…, h, w) from the source pixels `under` it."""
        values = self.rows.apply(values, rows, backend).swapaxes(-1, -2)
        return self.columns.apply(values, columns, backend).swapaxes(-1, -2)
