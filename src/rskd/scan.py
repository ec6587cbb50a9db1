"""A picture or volume with the geometry it was recorded in."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rskd.errors import ParameterError

SPATIAL = "zyx"
AXES = "tc" + SPATIAL


@dataclass(frozen=True)
class Scan:
    """An array with named axes and its place in the world.

    Parameters
    ----------
    data
        Any array-like that has `shape`, `dtype` and slicing (numpy, memmap, dask, zarr).
    axes
        One letter per dimension: `t` time, `c` channel, `z`, `y`, `x`; for example ``"yx"``, ``"yxc"``, ``"zyx"``.
    spacing
        Distance between voxels along each *spatial* axis, in the order of `axes`, in `units`; ``None`` = unknown.
    units
        Unit of `spacing` and of the world: ``"mm"``, ``"um"`` …; ``None`` = unknown.
    affine
        Voxel index to world coordinate over the spatial axes, in the order of `axes`, shape (n + 1, n + 1);
        ``None`` = only the spacing is known.
    channels
        Names of the channels; empty = unnamed.
    source
        File or folder it was read from.
    files
        Its files where they are several, in the order of the planes; empty = `source` alone.
    modality
        What made it, as DICOM abbreviates it: ``"CT"``, ``"MR"`` …; ``None`` = unknown.
    meaning
        What the values are: ``"HU"``, ``"stored values"``, ``"Gy"`` …; ``None`` = unknown.
    anatomical
        Whether the world of `affine` is the patient's: x grows to the right hand, y to the front, z to the head, as
        in NIfTI. The rows of `affine` are in the order z, y, x all the same.
    pyramid
        The same picture at lower and lower resolution, lazy, over the same axes; empty = none is stored.
    levels
        Where the pyramid lies, if the file says so: for each of its arrays, by spatial axis, how many voxels of the
        picture one of its own is long, and which voxel of the picture, in fractions, its first one lies on; empty =
        every array covers the whole picture.
    window
        Lowest and highest value to show, as the file suggests; ``None`` = it suggests none.
    notes
        What is unusual about the file, one sentence each, without anything that its header says about a person.

    Examples
    --------
    >>> scan = Scan(np.zeros((4, 6, 3), np.uint8), "yxc")
    >>> scan.spatial_shape, scan.channel_count
    ((4, 6), 3)
    """

    data: Any
    axes: str
    spacing: tuple[float, ...] | None = None
    units: str | None = None
    affine: NDArray[np.float64] | None = None
    channels: tuple[str, ...] = ()
    source: Path | None = None
    files: tuple[Path, ...] = ()
    modality: str | None = None
    meaning: str | None = None
    anatomical: bool = False
    pyramid: tuple[Any, ...] = ()
    levels: tuple[Mapping[str, tuple[float, float]], ...] = ()
    window: tuple[float, float] | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse axes that do not describe the array."""
        if len(set(self.axes)) != len(self.axes) or not set(self.axes) <= set(AXES):
            raise ParameterError(f"axes={self.axes!r} must be different letters out of {AXES!r}.")
        if len(self.axes) != len(self.data.shape):
            raise ParameterError(
                f"axes={self.axes!r} names {len(self.axes)} dimensions, the image has {len(self.data.shape)}: "
                f"shape {tuple(self.data.shape)}."
            )
        if "y" not in self.axes or "x" not in self.axes:
            raise ParameterError(f"axes={self.axes!r} must contain y and x.")
        spatial = len(self.spatial_axes)
        if self.spacing is not None and (len(self.spacing) != spatial or not all(0 < n < inf for n in self.spacing)):
            raise ParameterError(f"spacing={self.spacing} must be {spatial} positive numbers, for {self.spatial_axes}.")
        if self.affine is not None and self.affine.shape != (spatial + 1, spatial + 1):
            raise ParameterError(
                f"affine has shape {self.affine.shape}, {spatial} spatial axes need {(spatial + 1,) * 2}."
            )

    @property
    def spatial_axes(self) -> str:
        """The spatial letters in the order of `axes`."""
        return "".join(axis for axis in self.axes if axis in SPATIAL)

    @property
    def spatial_shape(self) -> tuple[int, ...]:
        """Number of voxels along each spatial axis."""
        return tuple(n for n, axis in zip(self.data.shape, self.axes, strict=True) if axis in SPATIAL)

    @property
    def channel_count(self) -> int:
        """Number of channels; 1 without a channel axis."""
        return int(self.data.shape[self.axes.index("c")]) if "c" in self.axes else 1

    @cached_property
    def digest(self) -> str | None:
        """SHA-256 of the files it was read from, as hexadecimal digits; ``None`` without a source.

        It is computed when it is first asked for. What it names does not tell who the patient is.
        """
        if self.source is None:
            return None
        files = self.files or sorted(p for p in [self.source, *self.source.rglob("*")] if p.is_file())
        total = hashlib.sha256()
        for path in files:
            with open(path, "rb") as file:
                own = hashlib.file_digest(file, "sha256")
            total.update(own.digest())
        return own.hexdigest() if len(files) == 1 else total.hexdigest()

    def at_level(self, level: int) -> Scan:
        """Return the same picture at a lower resolution, out of its pyramid, lying where it does.

        Parameters
        ----------
        level
            From 0, the picture itself.

        Raises
        ------
        ParameterError
            If there is no such level.

        Examples
        --------
        >>> scan = Scan(np.zeros((4, 6)), "yx", spacing=(1, 1), pyramid=(np.zeros((2, 3)),))
        >>> scan.at_level(1).spacing
        (2.0, 2.0)
        """
        if level == 0:
            return self
        if level > len(self.pyramid):
            raise ParameterError(
                f"level={level} does not exist: the image is stored at {len(self.pyramid) + 1} resolutions, "
                f"use at most {len(self.pyramid)}."
            )
        data = self.pyramid[level - 1]
        sizes = zip(self.axes, self.data.shape, data.shape, strict=True)
        places = {axis: (n / less, (n / less - 1) / 2) for axis, n, less in sizes}  # on their middle
        places |= self.levels[level - 1] if self.levels else {}
        factors, offsets = np.array([places[axis] for axis in self.spatial_axes]).T
        spacing, affine = self.spacing, self.affine
        if spacing is not None:
            spacing = tuple(float(s * f) for s, f in zip(spacing, factors, strict=True))
        if affine is not None:
            step = np.diag([*factors, 1.0])
            step[:-1, -1] = offsets
            affine = affine @ step
        return replace(self, data=data, spacing=spacing, affine=affine, pyramid=(), levels=())

    def like(self, data: Any, axes: str) -> Scan:
        """Return `data` in this scan's world.

        Parameters
        ----------
        data
            Array over (some of) the same axes.
        axes
            Its axes; its spatial ones must be this scan's.
        """
        return replace(self, data=data, axes=axes, channels=(), meaning=None, window=None, pyramid=(), levels=())


def move_axes(data: Any, axes: str, order: Sequence[str]) -> NDArray[Any]:
    """Return `data` with its axes in `order`; axes it lacks get length one.

    Examples
    --------
    >>> move_axes(np.zeros((4, 6, 3)), "yxc", "zcyx").shape
    (1, 3, 4, 6)
    """
    array = np.asarray(data)
    present = [axis for axis in order if axis in axes]
    if len(present) != len(axes):
        raise ParameterError(f"axes {axes!r} cannot be brought into the order {''.join(order)!r}.")
    array = array.transpose([axes.index(axis) for axis in present])
    return np.expand_dims(array, [i for i, axis in enumerate(order) if axis not in axes])
