"""How large voxels are, where they lie in the world, and which of them hang together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from rskd.scan import Scan

METRES = {"m": 1.0, "cm": 1e-2, "mm": 1e-3, "um": 1e-6, "nm": 1e-9, "Å": 1e-10}
"""Length of the units that a spacing can have."""
_COUNTED = {1: "voxels", 2: "pixels", 3: "voxels"}
_LARGE = "mm"
"""Sizes in this unit and coarser ones are given in mm2 and ml, in finer ones in um2 and um3."""


@dataclass(frozen=True)
class Grid:
    """The voxels of a scan in its world.

    Parameters
    ----------
    axes
        The spatial axes, in the order of the scan.
    matrix
        Its columns are the steps from one voxel to the next along each axis, in `unit`.
    origin
        Where the middle of the first voxel lies.
    unit
        A key of `METRES`; ``None`` = unknown: everything is then counted in voxels.

    Examples
    --------
    >>> Grid.of(Scan(np.zeros((2, 4, 5)), "zyx", spacing=(2.0, 0.5, 0.5), units="mm")).size("zyx")
    (0.0005, 'ml')
    >>> Grid.of(Scan(np.zeros((4, 5)), "yx")).size("yx")
    (1.0, 'pixels')
    """

    axes: str
    matrix: NDArray[np.float64]
    origin: NDArray[np.float64]
    unit: str | None

    @classmethod
    def of(cls, scan: Scan) -> Grid:
        """Return the grid of a scan. A patient's world without a stated unit is taken as millimetres, as NIfTI is."""
        count = len(scan.spatial_axes)
        unit = scan.units or ("mm" if scan.anatomical else None)
        if unit in METRES and scan.affine is not None:
            affine = np.asarray(scan.affine, np.float64)
            return cls(scan.spatial_axes, affine[:-1, :-1], affine[:-1, -1], unit)
        if unit in METRES and scan.spacing is not None:
            return cls(scan.spatial_axes, np.diag(scan.spacing).astype(np.float64), np.zeros(count), unit)
        return cls(scan.spatial_axes, np.eye(count), np.zeros(count), None)

    def size(self, axes: str) -> tuple[float, str]:
        """Return the volume, or the area, that a voxel has over some of the axes, and its unit.

        The unit is ml or mm2; of microscopes um3 or um2; where the size is unknown, voxels or pixels are counted.
        """
        if self.unit is None:
            return 1.0, _COUNTED[len(axes)]
        large = METRES[self.unit] >= METRES[_LARGE]
        name = "mm" if large else "um"
        size = self.size_in(name, axes)
        return (size / 1000, "ml") if large and len(axes) == 3 else (size, f"{name}{len(axes)}")

    def size_in(self, unit: str, axes: str) -> float:
        """Return the size of a voxel over some axes in `unit` to the power of their number; oblique grids are right."""
        steps = self.matrix[:, [self.axes.index(axis) for axis in axes]]
        length = METRES[self.unit or unit] / METRES[unit]
        if len(axes) == len(self.axes):  # the root below would lose half of the digits
            return float(abs(np.linalg.det(steps)) * length ** len(axes))
        return float(np.sqrt(np.linalg.det(steps.T @ steps)) * length ** len(axes))

    def world(self, indices: ArrayLike) -> NDArray[np.float64]:
        """Return the places (…, n) in the world of voxel indices (…, n)."""
        places: NDArray[np.float64] = np.asarray(indices, np.float64) @ self.matrix.T + self.origin
        return places

    def box(self, indices: NDArray[np.integer]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the lower and upper corner of the smallest upright box of the world around whole voxels (N, n)."""
        middles = self.world(indices)
        reach = np.abs(self.matrix).sum(1) / 2  # from the middle of a voxel to its outermost corner
        return middles.min(0) - reach, middles.max(0) + reach


def components(mask: NDArray[np.bool_]) -> tuple[NDArray[np.int32], int]:
    """Return the connected components of a mask, numbered from 1: voxels that share a face, an edge or a corner.

    Examples
    --------
    >>> components(np.eye(3, dtype=bool))[1]
    1
    """
    numbered, count = ndimage.label(mask, np.ones((3,) * mask.ndim, bool))
    return numbered, int(count)
