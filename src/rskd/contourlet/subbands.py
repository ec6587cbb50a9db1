"""What a contourlet transform returns: sub-bands, and what each of them stands for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import atan2, degrees
from typing import Any, Generic, TypeVar

from numpy.typing import NDArray
from torch import Tensor

from rskd.contourlet.directional import directions

ArrayT = TypeVar("ArrayT", Tensor, NDArray[Any])
OtherT = TypeVar("OtherT", Tensor, NDArray[Any])


@dataclass(frozen=True)
class Subband:
    """Facts about one sub-band.

    Angles are in degrees as seen on a screen whose row 0 is on top: 0 is horizontal, counter-clockwise,
    in [0, 180). They are `None` for the lowpass and for a level without directional split.
    """

    name: str
    """For people: `level 1 (fine), edges at 126°`."""
    level: int
    """0 = finest; the lowpass has the number of levels."""
    direction: int | None
    """Index within its level."""
    wave_angle: float | None
    """Direction in which the intensity oscillates: the middle of the sub-band's wedge."""
    edge_angle: float | None
    """Direction along which the edges run that this sub-band answers to: `wave_angle` + 90°."""
    wedge: tuple[float, float] | None
    """Wave angles at which the wedge starts and ends; the end may exceed 180."""
    frequency: tuple[float, float]
    """Passband in cycles per pixel of the input, of the larger one of the two frequency components."""
    decimation: tuple[int, int]
    """Pixels of the input per sample along rows and columns."""
    origin: tuple[int, int]
    """Pixel (row, column) of the input on which sample [0, 0] stands; negative where the border was extended."""
    shape: tuple[int, int]
    """Rows and columns of the sub-band."""


@dataclass(frozen=True)
class Layout:
    """How an image was transformed: everything that the inverse and a viewer need besides the coefficients."""

    shape: tuple[int, int]
    """Rows and columns of the input."""
    extended: tuple[int, int]
    """Rows and columns that were transformed."""
    before: tuple[int, int]
    """Of these, how many rows were put above and columns to the left of the input."""
    levels: tuple[int, ...]
    """log2 of the directions per pyramid level, finest first."""
    pyramid: str
    directional: str
    border: str
    nonsubsampled: bool = False

    def describe(self) -> tuple[Subband, ...]:
        """Describe every sub-band: level by level from fine to coarse, the lowpass last."""
        bands = [band for level, order in enumerate(self.levels) for band in self._describe_level(level, order)]
        depth = len(self.levels)
        step = 1 if self.nonsubsampled else 2**depth
        lowpass = Subband(
            name="lowpass",
            level=depth,
            direction=None,
            wave_angle=None,
            edge_angle=None,
            wedge=None,
            frequency=(0.0, 0.5 ** (depth + 1)),
            decimation=(step, step),
            origin=self._origin((0, 0)),
            shape=self._divided((step, step)),
        )
        return (*bands, lowpass)

    def _describe_level(self, level: int, order: int) -> Iterator[Subband]:
        name = f"level {level + 1}"
        if len(self.levels) > 1 and level in (0, len(self.levels) - 1):
            name += " (fine)" if level == 0 else " (coarse)"
        for k in range(2**order):
            decimation, shift = _sampling(level, order, k, self.nonsubsampled)
            wedge = wedge_angles(order, k) if order else None
            wave = sum(wedge) / 2 % 180 if wedge else None
            edge = (wave + 90) % 180 if wave is not None else None
            yield Subband(
                name=f"{name}, edges at {edge:.0f}°" if edge is not None else f"{name}, all directions",
                level=level,
                direction=k if order else None,
                wave_angle=wave,
                edge_angle=edge,
                wedge=wedge,
                frequency=(0.5 ** (level + 2), 0.5 ** (level + 1)),
                decimation=decimation,
                origin=self._origin(shift),
                shape=self._divided(decimation),
            )

    def _origin(self, shift: tuple[int, int]) -> tuple[int, int]:
        return shift[0] - self.before[0], shift[1] - self.before[1]

    def _divided(self, steps: tuple[int, int]) -> tuple[int, int]:
        return self.extended[0] // steps[0], self.extended[1] // steps[1]

    @cached_property
    def coefficients(self) -> int:
        """How many numbers the transform returns per image."""
        return sum(band.shape[0] * band.shape[1] for band in self.describe())

    @property
    def redundancy(self) -> float:
        """Coefficients per pixel of the input."""
        return self.coefficients / (self.shape[0] * self.shape[1])


def _sampling(level: int, order: int, k: int, nonsubsampled: bool) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return step and position of the first sample in pixels of the extended input."""
    if nonsubsampled:
        return (1, 1), (0, 0)
    step = 2**level
    if order == 0:
        return (step, step), (0, 0)
    leaf = directions(order)[k]
    return (
        (step * leaf.decimation[0], step * leaf.decimation[1]),
        (step * leaf.shift[0], step * leaf.shift[1]),
    )


def wedge_angles(order: int, k: int) -> tuple[float, float]:
    """Return the wave angles (degrees, on screen) between which direction k of `2**order` lies.

    The wedges cut the square spectrum at equal steps of the slope, not of the angle.

    Examples
    --------
    >>> [wedge_angles(2, k) for k in range(4)]
    [(0.0, 45.0), (135.0, 180.0), (90.0, 135.0), (45.0, 90.0)]
    """
    half = 2 ** (order - 1)
    first, last = (2 * (k % half + end) / half - 1 for end in (0, 1))  # slopes −1 … 1
    if k < half:  # mostly horizontal waves: slope = row frequency / column frequency, rows pointing down
        low, high = degrees(atan2(-last, 1)), degrees(atan2(-first, 1))
    else:  # mostly vertical waves: slope = −column frequency / row frequency
        low, high = degrees(atan2(1, last)), degrees(atan2(1, first))
    width = high - low
    low %= 180
    return low, low + width


@dataclass(frozen=True)
class Subbands(Generic[ArrayT]):
    """Coefficients of a contourlet transform.

    Attributes
    ----------
    lowpass
        (..., h, w): what is left of the image after the coarsest level.
    bands
        `bands[level][direction]`, each (..., h, w), finest level first; a level without directional
        split has one entry.
    layout
        How the image was transformed.

    Examples
    --------
    >>> import torch
    >>> from rskd.contourlet import contourlet
    >>> subbands = contourlet(torch.zeros(64, 48), (3, 2))
    >>> [len(level) for level in subbands.bands], tuple(subbands.lowpass.shape)
    ([8, 4], (16, 12))
    >>> subbands.describe()[0].name
    'level 1 (fine), edges at 126°'
    """

    lowpass: ArrayT
    bands: tuple[tuple[ArrayT, ...], ...]
    layout: Layout

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the image."""
        return self.layout.shape

    @property
    def levels(self) -> tuple[int, ...]:
        """log2 of the directions per pyramid level, finest first."""
        return self.layout.levels

    def describe(self) -> tuple[Subband, ...]:
        """Describe every sub-band, in the order of `arrays`."""
        return self.layout.describe()

    def arrays(self) -> tuple[ArrayT, ...]:
        """Return all sub-bands in one row: level by level from fine to coarse, the lowpass last."""
        flat: list[ArrayT] = [band for level in self.bands for band in level]
        flat.append(self.lowpass)
        return tuple(flat)

    def items(self) -> Iterator[tuple[Subband, ArrayT]]:
        """Pair every sub-band with its description."""
        return zip(self.describe(), self.arrays(), strict=True)

    def energy(self) -> tuple[ArrayT, ...]:
        """Sum the squares of every sub-band over its rows and columns, in the order of `arrays`."""
        return tuple((array**2).sum((-2, -1)) for array in self.arrays())

    def map(self, function: Callable[[ArrayT], OtherT]) -> Subbands[OtherT]:
        """Apply a function to every sub-band; it must keep rows and columns.

        Examples
        --------
        >>> import torch
        >>> from rskd.contourlet import contourlet
        >>> contourlet(torch.ones(16, 16), (2,)).map(torch.Tensor.numpy).lowpass.dtype
        dtype('float32')
        """
        bands = tuple(tuple(function(band) for band in level) for level in self.bands)
        return Subbands(function(self.lowpass), bands, self.layout)

    def with_arrays(self, arrays: Sequence[OtherT]) -> Subbands[OtherT]:
        """Put other coefficients in, given in the order of `arrays`."""
        rest = iter(arrays)
        bands = [tuple([next(rest) for _ in level]) for level in self.bands]
        return Subbands(next(rest), tuple(bands), self.layout)
