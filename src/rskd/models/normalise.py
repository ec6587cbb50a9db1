"""Bring the intensities of an image, whole or read in parts, into the range that a network was trained on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from rskd.config import ModelSpec

Range = tuple[float, float]
"""Centre and half-width of the intensities of a channel: they become 0 and ±1."""
Blocks = Callable[[], Iterable[NDArray[np.generic]]]
"""Gives the parts (C, h, w) of an image, in any cut and as often as it is called."""
Number = TypeVar("Number", bound=np.generic)
_PIECE = 1 << 20
"""Pixels measured at a time: few, so that an image of 100 megapixels needs no copies of itself."""
_PERCENTILES = (1, 99)
_HALF = 16
"""Bits of a float32 that one pass of the search for a percentile settles."""


def normalise(image: NDArray[np.generic], spec: ModelSpec) -> NDArray[np.float32]:
    """Return `image` with every channel in the common range that `spec.normalisation` names.

    Parameters
    ----------
    image
        Shape (C, H, W), any real dtype; values that are not finite count as 0.
    spec
        The network's description.

    Returns
    -------
    ndarray
        Shape (C, H, W), float32. A constant channel becomes 0.

    Examples
    --------
    >>> spec = ModelSpec(name="any")
    >>> normalise(np.array([[[0, 2]]]), spec)
    array([[[-1.,  1.]]], dtype=float32)
    """
    return scaled(image, measure(lambda: [image], spec))


def measure(blocks: Blocks, spec: ModelSpec) -> tuple[Range, ...]:
    """Return the range of every channel of an image that may be too large for the memory.

    Percentiles are exact, and do not depend on the cut of the image. Neither do mean and deviation of integers of at
    most 16 bits, which are added up exactly; of other numbers they agree to about 1e-12 of the deviation.

    Parameters
    ----------
    blocks
        Gives all parts of the image; called once for a mean, twice for percentiles.
    spec
        The network's description.

    Examples
    --------
    >>> image = np.arange(201).reshape(1, 3, 67)
    >>> measure(lambda: [image[:, :1], image[:, 1:]], ModelSpec(name="any", normalisation="percentile"))
    ((100.0, 98.0),)
    """
    return _MEASURES[spec.normalisation](blocks)


def scaled(image: NDArray[np.generic], ranges: Iterable[Range]) -> NDArray[np.float32]:
    """Return `image` (C, H, W) as float32 with the given range of every channel brought to -1 … 1.

    Examples
    --------
    >>> scaled(np.array([[[4, 6]]]), [(5, 2)])
    array([[[-0.5,  0.5]]], dtype=float32)
    """
    channels = np.array(image, np.float32, order="C")  # so that pieces are views
    known = tuple(ranges)
    if len(known) != len(channels):
        raise ValueError(f"{len(known)} ranges for {len(channels)} channels")
    whole = image.dtype.kind in "biu"  # such numbers are finite
    for number, values in _pieces(channels):  # in place: a large image leaves no room; in pieces: it stays in the cache
        centre, width = known[number]
        if not whole:
            np.nan_to_num(values, copy=False, posinf=0.0, neginf=0.0)
        values -= np.float32(centre)
        values *= np.float32(1 / width if width > 0 else 0)
    return channels


def _pieces(block: NDArray[Number]) -> Iterator[tuple[int, NDArray[Number]]]:
    """Yield the pixels of every channel in short flat pieces, with the number of the channel."""
    for number, channel in enumerate(block):
        rows = max(1, _PIECE // channel.shape[1])
        for first in range(0, len(channel), rows):
            yield number, channel[first : first + rows].reshape(-1)


# ------------------------------------------------------------------------------------------------- mean and deviation


def _zscore(blocks: Blocks) -> tuple[Range, ...]:
    found: dict[int, _Moments] = {}
    for block in blocks():
        for channel, values in _pieces(block):
            found[channel] = found.get(channel, _Moments()) + _Moments.of(values)
    return tuple(moments.range for _, moments in sorted(found.items()))


class _Moments:
    """Number, mean and summed squared deviation of values; of small integers the exact sums."""

    def __init__(self, count: int = 0, first: float = 0, second: float = 0, *, exact: bool = True) -> None:
        self._count, self._exact = count, exact
        self._first, self._second = first, second  # Σv and Σv² if exact, else the mean and Σ(v - mean)²

    @classmethod
    def of(cls, values: NDArray[np.generic]) -> _Moments:
        if values.dtype.kind in "biu" and values.dtype.itemsize <= 2:
            numbers = values.astype(np.float64)  # whole numbers: no sum of a piece reaches 2^53, so nothing is rounded
            return cls(values.size, int(numbers.sum()), int(_squares(numbers)))
        numbers = _finite(values).astype(np.float64)
        mean = float(numbers.mean())
        numbers -= mean
        return cls(values.size, mean, _squares(numbers), exact=False)

    def __add__(self, other: _Moments) -> _Moments:
        if not self._count:
            return other
        count = self._count + other._count
        if self._exact:
            return _Moments(count, self._first + other._first, self._second + other._second)
        step = other._first - self._first  # Chan, Golub & LeVeque 1983
        mean = self._first + step * other._count / count
        spread = self._second + other._second + step**2 * self._count * other._count / count
        return _Moments(count, mean, spread, exact=False)

    @property
    def range(self) -> Range:
        if not self._exact:
            return self._first, math.sqrt(self._second / self._count)
        spread = self._count * int(self._second) - int(self._first) ** 2
        return self._first / self._count, math.sqrt(spread / self._count**2)


def _squares(numbers: NDArray[np.float64]) -> float:
    """Return the sum of the squares, which take the numbers' place.

    Their product with themselves would wake the threads of OpenBLAS, each of which then spins on a core for 0.1 s.
    """
    return float(np.square(numbers, out=numbers).sum())


# --------------------------------------------------------------------------------------------------------- percentiles


def _percentile(blocks: Blocks) -> tuple[Range, ...]:
    """Return the range between the percentiles: counted first by the upper half of the bits, then by the lower."""
    upper: dict[int, NDArray[np.int64]] = {}
    for block in blocks():
        for channel, values in _pieces(block):
            counts = np.bincount(_ordered(values) >> _HALF, minlength=1 << _HALF)
            upper[channel] = upper.get(channel, 0) + counts
    searches = {channel: _Search(counts) for channel, counts in sorted(upper.items())}
    for block in blocks():
        for channel, values in _pieces(block):
            searches[channel].look_into(_ordered(values))
    return tuple(search.range for search in searches.values())


class _Search:
    """Looks for the values at a few places of a channel's sorted values, knowing how many share their upper bits."""

    def __init__(self, counts: NDArray[np.int64]) -> None:
        ends = np.cumsum(counts)
        positions = [percent / 100 * (int(ends[-1]) - 1) for percent in _PERCENTILES]
        self._positions = positions
        self._places = sorted({place for p in positions for place in (math.floor(p), math.ceil(p))})
        self._bins = {place: int(np.searchsorted(ends, place, side="right")) for place in self._places}
        self._before = {place: int(ends[b] - counts[b]) for place, b in self._bins.items()}
        self._lower = {b: np.zeros(1 << _HALF, np.int64) for b in self._bins.values()}

    def look_into(self, keys: NDArray[np.uint32]) -> None:
        """Count the lower bits of those values that share the upper bits of one that is looked for."""
        upper = keys >> _HALF
        for b, counts in self._lower.items():
            counts += np.bincount(keys[upper == b] & ((1 << _HALF) - 1), minlength=1 << _HALF)

    @property
    def range(self) -> Range:
        values = {place: self._value(place) for place in self._places}
        low, high = (
            values[math.floor(p)] + (values[math.ceil(p)] - values[math.floor(p)]) * (p - math.floor(p))
            for p in self._positions
        )
        return (high + low) / 2, (high - low) / 2

    def _value(self, place: int) -> float:
        b = self._bins[place]
        lower = int(np.searchsorted(np.cumsum(self._lower[b]), place - self._before[place], side="right"))
        return _value_of((b << _HALF) + lower)


def _ordered(values: NDArray[np.generic]) -> NDArray[np.uint32]:
    """Return whole numbers in the order of the values as float32 (negative floats count downwards in their bits)."""
    bits = _finite(values).view(np.uint32)
    return bits ^ (np.uint32(0x80000000) | (np.uint32(0) - (bits >> np.uint32(31))))


def _value_of(key: int) -> float:
    bits = key ^ 0x80000000 if key >> 31 else key ^ 0xFFFFFFFF
    return float(np.array(bits, np.uint32).view(np.float32))


def _finite(values: NDArray[np.generic]) -> NDArray[np.float32]:
    """Return a copy as float32 in which whatever is not finite is 0."""
    return np.nan_to_num(np.array(values, np.float32), copy=False, posinf=0.0, neginf=0.0)


_MEASURES: dict[str, Callable[[Blocks], tuple[Range, ...]]] = {"zscore": _zscore, "percentile": _percentile}
