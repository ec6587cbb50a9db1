"""A scan as the planes that a two-dimensional network takes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from rskd.config import ModelSpec
from rskd.errors import ParameterError
from rskd.scan import SPATIAL, Scan

PLANES = {"z": "yx", "y": "zx", "x": "zy"}
"""The plane across every axis."""
_MILLIMETRES = {"nm": 1e-6, "um": 1e-3, "mm": 1.0, "cm": 10.0, "m": 1e3, "Å": 1e-7}
_ALIKE = 0.05
"""Share by which two spacings, or their ratios, may differ and still count as the same."""
_SLAB = 1 << 28
"""Bytes that are read at once, at most, to unpack no block of a file more often than needed."""


class Slices:
    """The (C, H, W) planes of a scan along every axis but c and those of the plane; each is loaded when asked for.

    Parameters
    ----------
    scan
        Any scan; its data may be lazy (memmap, dask, zarr).
    spec
        The network: the number of its channels must be the scan's. A transparency channel is left out.
    plane
        Vertical and horizontal axis of a plane.

    Raises
    ------
    ParameterError
        If the channels do not fit, or the scan has no pixels.

    Examples
    --------
    >>> scan = Scan(np.zeros((5, 4, 6, 3), np.uint8), "zyxc")
    >>> planes = Slices(scan, ModelSpec(name="colour", in_channels=3))
    >>> len(planes), planes[0].shape, planes.stack_shape
    (5, (3, 4, 6), (5,))
    >>> Slices(scan, ModelSpec(name="colour", in_channels=3), plane="zx")[3].shape
    (3, 5, 6)
    """

    def __init__(self, scan: Scan, spec: ModelSpec, *, plane: str = "yx") -> None:
        if 0 in scan.data.shape or np.dtype(scan.data.dtype).kind not in "biuf":
            raise ParameterError(
                f"An image of shape {tuple(scan.data.shape)} and type {scan.data.dtype} has no intensities to work on: "
                "open another one."
            )
        self._scan = scan
        self.plane = plane
        """Vertical and horizontal axis of a plane."""
        self.channels = _usable_channels(scan, spec)
        """Number of channels without transparency."""
        self.stack_axes = "".join(axis for axis in scan.axes if axis not in "c" + plane)
        """The axes along which planes are stacked."""
        sizes = dict(zip(scan.axes, scan.data.shape, strict=True))
        self.stack_shape = tuple(int(sizes[axis]) for axis in self.stack_axes)
        """Number of planes along each of `stack_axes`."""
        self.plane_shape = (int(sizes[plane[0]]), int(sizes[plane[1]]))
        """Height and width of a plane."""

    def __len__(self) -> int:
        return math.prod(self.stack_shape)

    def __getitem__(self, index: int) -> NDArray[np.generic]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return next(self.windows([index], slice(None), slice(None)))

    def __iter__(self) -> Iterator[NDArray[np.generic]]:
        return self.windows(range(len(self)), slice(None), slice(None))

    def windows(self, indices: Sequence[int], rows: slice, columns: slice) -> Iterator[NDArray[np.generic]]:
        """Yield the same window (C, h, w) of several planes; planes that are stored in one block are read together.

        Parameters
        ----------
        indices
            Numbers of the planes, ascending.
        rows, columns
            The window.
        """
        deepest = max(1, _SLAB // max(1, self._bytes(rows, columns)))
        for _, group in groupby(indices, key=lambda index: index // self.depth):
            together = list(group)
            for first in range(0, len(together), deepest):
                part = together[first : first + deepest]
                yield from self._read(part, rows, columns)

    @property
    def depth(self) -> int:
        """How many planes in succession are stored in one block; of whole volumes in memory, 1."""
        stored = _block_sizes(self._scan.data)
        if not self.stack_axes or stored is None:
            return 1
        last = self.stack_axes[-1]
        size = stored[self._scan.axes.index(last)]
        return size if self.stack_shape[-1] % size == 0 or len(self.stack_shape) == 1 else 1

    def blocks(self, index: int) -> Iterator[NDArray[np.generic]]:
        """Yield a plane in parts (C, h, w) that together need little memory, along the blocks in which it is stored."""
        height, width = self.plane_shape
        stored = _block_sizes(self._scan.data)
        steps = [stored[self._scan.axes.index(axis)] if stored else 1 for axis in self.plane]
        row_bytes = max(1, self._bytes(slice(0, 1), slice(None)))
        rows = max(1, _SLAB // 4 // row_bytes // steps[0]) * steps[0]
        columns = width if rows * row_bytes <= _SLAB else max(1, _SLAB // 4 * width // (rows * row_bytes))
        columns = min(width, math.ceil(columns / steps[1]) * steps[1])
        for top in range(0, height, rows):
            for left in range(0, width, columns):
                yield from self.windows([index], slice(top, top + rows), slice(left, left + columns))

    def _bytes(self, rows: slice, columns: slice) -> int:
        shape = (len(range(n)[part]) for n, part in zip(self.plane_shape, (rows, columns), strict=True))
        return int(self._scan.channel_count * math.prod(shape) * np.dtype(self._scan.data.dtype).itemsize)

    def _read(self, indices: Sequence[int], rows: slice, columns: slice) -> Iterator[NDArray[np.generic]]:
        """Read planes that differ in the last stack axis alone."""
        places: dict[str, int | slice] = dict(
            zip(self.stack_axes, map(int, np.unravel_index(indices[0], self.stack_shape)), strict=True)
        )
        places |= {self.plane[0]: rows, self.plane[1]: columns}
        deep = self.stack_axes[-1:] if len(indices) > 1 else ""
        if deep:
            first = int(np.unravel_index(indices[0], self.stack_shape)[-1])
            places[deep] = slice(first, first + indices[-1] - indices[0] + 1)
        array = np.asarray(self._scan.data[tuple(places.get(axis, slice(None)) for axis in self._scan.axes)])
        left = [axis for axis in self._scan.axes if axis in "c" + self.plane + deep]
        array = array.transpose([left.index(axis) for axis in deep + "c" + self.plane if axis in left])
        for index in indices if deep else [0]:
            plane = array[index - indices[0]] if deep else array
            yield np.ascontiguousarray(plane.reshape(-1, *plane.shape[-2:])[: self.channels])


def millimetres(scan: Scan) -> dict[str, float]:
    """Return the spacing of every spatial axis in millimetres; empty where it is unknown.

    Examples
    --------
    >>> millimetres(Scan(np.zeros((4, 6)), "yx", spacing=(2, 3), units="um"))
    {'y': 0.002, 'x': 0.003}
    """
    unit = _MILLIMETRES.get(scan.units or "")
    if scan.spacing is None or unit is None:
        return {}
    return {axis: size * unit for axis, size in zip(scan.spatial_axes, scan.spacing, strict=True)}


def across(scan: Scan) -> str:
    """Return the axis across the planes whose pixels are most nearly square, of several such the finest.

    Spacings that differ by less than 5 % count as equal, and among equals the planes y-x come first.

    Examples
    --------
    >>> across(Scan(np.zeros((9, 9, 9)), "zyx", spacing=(1, 1, 5), units="mm"))
    'x'
    >>> across(Scan(np.zeros((9, 9, 9)), "zyx"))
    'z'
    """
    sizes = dict(zip(scan.spatial_axes, scan.spacing or (), strict=False))
    if not {*SPATIAL} <= {*sizes} or min(scan.spatial_shape) < 2:
        return "z"
    pairs = {axis: [sizes[a] for a in plane] for axis, plane in PLANES.items()}
    squarest = min(max(pair) / min(pair) for pair in pairs.values())
    square = {axis: pair for axis, pair in pairs.items() if max(pair) / min(pair) <= squarest * (1 + _ALIKE)}
    finest = min(math.prod(pair) for pair in square.values())
    return next(axis for axis, pair in square.items() if math.prod(pair) <= finest * (1 + _ALIKE))


def frame_shape(shape: tuple[int, int], frame: int | None) -> tuple[int, int]:
    """Return the height and width of a plane whose longer side is brought to `frame`; ``None`` leaves them.

    Examples
    --------
    >>> frame_shape((1000, 500), 64), frame_shape((1000, 500), None)
    ((64, 32), (1000, 500))
    """
    if frame is None:
        return shape
    factor = frame / max(shape)
    return max(1, round(shape[0] * factor)), max(1, round(shape[1] * factor))


def _block_sizes(data: object) -> tuple[int, ...] | None:
    """Return the size of the blocks in which an array is stored along every axis, if it says so (zarr, dask)."""
    chunks = getattr(data, "chunks", None)
    if not chunks:
        return None
    return tuple(int(max(chunk)) if isinstance(chunk, tuple) else int(chunk) for chunk in chunks)


def _usable_channels(scan: Scan, spec: ModelSpec) -> int:
    """Return how many channels are left without transparency, if they are as many as the network takes."""
    count = scan.channel_count
    transparent = scan.channels[-1:] == ("alpha",) or (not scan.channels and (count, spec.in_channels) == (4, 3))
    count -= transparent
    if count != spec.in_channels:
        wanted = f" ({', '.join(spec.channels)})" if spec.channels else ""
        raise ParameterError(
            f"The image has {_channels(count)}, {spec.name} was made for {_channels(spec.in_channels)}{wanted}: "
            "open an image of that kind or load another model."
        )
    return count


def _channels(count: int) -> str:
    return f"{count} channel" + "s" * (count != 1)
