"""A scan as the planes that a two-dimensional network takes."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from rskd.config import ModelSpec
from rskd.errors import ParameterError
from rskd.scan import Scan

_PLANE = "cyx"


class Slices:
    """The (C, H, W) planes of a scan along every axis but c, y and x; each is loaded when it is asked for.

    Parameters
    ----------
    scan
        Any scan; its data may be lazy (memmap, dask, zarr).
    spec
        The network: the number of its channels must be the scan's. A transparency channel is left out.

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
    """

    def __init__(self, scan: Scan, spec: ModelSpec) -> None:
        if 0 in scan.data.shape or np.dtype(scan.data.dtype).kind not in "biuf":
            raise ParameterError(
                f"An image of shape {tuple(scan.data.shape)} and type {scan.data.dtype} has no intensities to work on: "
                "open another one."
            )
        self._scan = scan
        self._channels = _usable_channels(scan, spec)
        self.stack_axes = "".join(axis for axis in scan.axes if axis not in _PLANE)
        """The axes along which planes are stacked."""
        sizes = dict(zip(scan.axes, scan.data.shape, strict=True))
        self.stack_shape = tuple(int(sizes[axis]) for axis in self.stack_axes)
        """Number of planes along each of `stack_axes`."""
        self.plane_shape = (int(sizes["y"]), int(sizes["x"]))
        """Height and width of a plane."""

    def __len__(self) -> int:
        return math.prod(self.stack_shape)

    def __getitem__(self, index: int) -> NDArray[np.generic]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        place = dict(zip(self.stack_axes, map(int, np.unravel_index(index, self.stack_shape)), strict=True))
        plane = np.asarray(self._scan.data[tuple(place.get(axis, slice(None)) for axis in self._scan.axes)])
        left = [axis for axis in self._scan.axes if axis not in place]
        plane = plane.transpose([left.index(axis) for axis in _PLANE if axis in left])
        return np.ascontiguousarray(plane.reshape(-1, *self.plane_shape)[: self._channels])

    def __iter__(self) -> Iterator[NDArray[np.generic]]:
        return (self[index] for index in range(len(self)))


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
