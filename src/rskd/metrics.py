"""How well a segmentation agrees with the truth, per class.

Dice and intersection over union are read from one confusion matrix, which adds up over slices and tiles. The two
measures of borders, the 95th percentile of the Hausdorff distance and the surface Dice, need a whole volume.

A border is made of the voxels of a class that have a face in common with a voxel of another one; what lies outside of
the image belongs to no class. Distances are between the centres of border voxels, and every border voxel counts alike,
also where spacing differs between axes. Where a class is in neither volume no measure has a value (NaN); where it is in
one of them alone, Dice, intersection over union and surface Dice are 0 and the distance is infinite.

Sources: percentile of the Hausdorff distance, D. P. Huttenlocher et al., IEEE TPAMI 1993, in the symmetric form of
A. A. Taha and A. Hanbury, BMC Medical Imaging 2015; surface Dice at a tolerance, S. Nikolov et al., J. Med. Internet
Res. 2021, arXiv:1809.04430, here with voxels instead of surface elements.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import binary_erosion, distance_transform_edt

from rskd.errors import DataError
from rskd.scan import SPATIAL, Scan

VOXEL = "voxel"
"""Unit of a distance where the size of a voxel is not known."""
PERCENTILE = 95
_ROUNDING = 1e-6
"""Share of a tolerance that a distance may lie beyond it: what is lost where a header stores spacing in 32 bits."""


def confusion_matrix(
    prediction: ArrayLike, truth: ArrayLike, classes: int, *, region: ArrayLike | None = None
) -> NDArray[np.int64]:
    """Count how often every true class was predicted as every class.

    Parameters
    ----------
    prediction, truth
        Class indices 0 … `classes` - 1, of the same shape.
    classes
        Number of classes, the background among them.
    region
        Non-zero where pixels count; ``None`` = everywhere.

    Returns
    -------
    ndarray
        Shape (classes, classes): row = truth, column = prediction.

    Raises
    ------
    DataError
        If the shapes differ or an index is outside of the classes.

    Examples
    --------
    >>> confusion_matrix([0, 1, 1], [0, 0, 1], 2)
    array([[1, 1],
           [0, 1]])
    """
    arrays = [np.asarray(prediction), np.asarray(truth)]
    if arrays[0].shape != arrays[1].shape or (region is not None and np.shape(region) != arrays[0].shape):
        shapes = ", ".join(str(np.shape(a)) for a in (*arrays, region) if a is not None)
        raise DataError(f"Prediction, truth and region must have the same shape, they have {shapes}.")
    counted = slice(None) if region is None else np.asarray(region) != 0
    predicted, true = (array[counted].ravel() for array in arrays)
    for name, values in (("prediction", predicted), ("truth", true)):
        if values.size and (values.min() < 0 or values.max() >= classes):
            raise DataError(
                f"The {name} has values {values.min()} … {values.max()}: {classes} classes allow 0 … {classes - 1}."
            )
    index = true.astype(np.int64) * classes + predicted
    return np.bincount(index, minlength=classes**2).reshape(classes, classes)


def dice(confusion: NDArray[np.integer]) -> NDArray[np.float64]:
    """Return the Dice score of every class, ``2|P ∩ T| / (|P| + |T|)``; NaN where a class is in neither.

    Examples
    --------
    >>> dice(np.array([[1, 1], [0, 1]])).round(3)
    array([0.667, 0.667])
    """
    both = np.diag(confusion)
    return _ratio(2 * both, confusion.sum(0) + confusion.sum(1))


def iou(confusion: NDArray[np.integer]) -> NDArray[np.float64]:
    """Return the intersection over union of every class, ``|P ∩ T| / |P ∪ T|``; NaN where a class is in neither.

    Examples
    --------
    >>> iou(np.array([[1, 1], [0, 1]]))
    array([0.5, 0.5])
    """
    both = np.diag(confusion)
    return _ratio(both, confusion.sum(0) + confusion.sum(1) - both)


def dice_per_class(
    prediction: ArrayLike, truth: ArrayLike, classes: int, *, region: ArrayLike | None = None
) -> NDArray[np.float64]:
    """Return the Dice score of every class; parameters as for `confusion_matrix`.

    Examples
    --------
    >>> dice_per_class([0, 1, 1], [0, 0, 1], 3).round(3)
    array([0.667, 0.667,   nan])
    """
    return dice(confusion_matrix(prediction, truth, classes, region=region))


def iou_per_class(
    prediction: ArrayLike, truth: ArrayLike, classes: int, *, region: ArrayLike | None = None
) -> NDArray[np.float64]:
    """Return the intersection over union of every class; parameters as for `confusion_matrix`.

    Examples
    --------
    >>> iou_per_class([0, 1, 1], [0, 0, 1], 3)
    array([0.5, 0.5, nan])
    """
    return iou(confusion_matrix(prediction, truth, classes, region=region))


@dataclass(frozen=True)
class VoxelSize:
    """How far neighbouring voxels lie apart.

    Parameters
    ----------
    spacing
        Distance along each axis, in the order z, y, x.
    unit
        What it is measured in; `VOXEL` where nothing is known.
    """

    spacing: tuple[float, ...]
    unit: str

    @classmethod
    def of(cls, scan: Scan) -> VoxelSize:
        """Return what is known about a scan: spacing counts only together with its unit, which is never guessed.

        Examples
        --------
        >>> VoxelSize.of(Scan(np.zeros((4, 6)), "xy", spacing=(0.5, 2.0), units="mm"))
        VoxelSize(spacing=(2.0, 0.5), unit='mm')
        >>> VoxelSize.of(Scan(np.zeros((4, 6)), "yx"))
        VoxelSize(spacing=(1.0, 1.0), unit='voxel')
        """
        axes = sorted(scan.spatial_axes, key=SPATIAL.index)
        if scan.spacing is None or scan.units is None:
            return cls((1.0,) * len(axes), VOXEL)
        known = dict(zip(scan.spatial_axes, scan.spacing, strict=True))
        return cls(tuple(known[axis] for axis in axes), scan.units)


@dataclass(frozen=True)
class BorderDistances:
    """How far the borders of a class lie apart in two volumes."""

    of_prediction: NDArray[np.float64]
    """From every border voxel of the prediction to the nearest one of the truth."""
    of_truth: NDArray[np.float64]
    """From every border voxel of the truth to the nearest one of the prediction."""

    def hausdorff(self, percentile: float = PERCENTILE) -> float:
        """Return the larger one of the percentiles of both sides, in the unit of the spacing.

        Examples
        --------
        >>> BorderDistances(np.array([0.0, 1.0]), np.array([3.0])).hausdorff(100)
        3.0
        """
        sides = [side for side in (self.of_prediction, self.of_truth) if side.size]
        if any(np.isinf(side).any() for side in sides):
            return math.inf
        return max((float(np.percentile(side, percentile)) for side in sides), default=math.nan)

    def surface_dice(self, tolerance: float) -> float:
        """Return the share of both borders that lies within `tolerance` of the other one.

        Examples
        --------
        >>> BorderDistances(np.array([0.0, 1.0]), np.array([3.0])).surface_dice(1)
        0.6666666666666666
        """
        distances = np.concatenate([self.of_prediction, self.of_truth])
        return float((distances <= tolerance * (1 + _ROUNDING)).mean()) if distances.size else math.nan


def border_distances(
    prediction: ArrayLike, truth: ArrayLike, *, spacing: Sequence[float] | None = None
) -> BorderDistances:
    """Measure how far the borders of a class lie apart.

    Parameters
    ----------
    prediction, truth
        Non-zero where the class is, of the same shape; one to three axes.
    spacing
        Distance between voxels along each axis; ``None`` = 1.

    Raises
    ------
    DataError
        If the shapes differ.

    Examples
    --------
    >>> found = border_distances([1, 1, 1, 0, 0], [1, 1, 1, 1, 1], spacing=[0.5])
    >>> found.of_prediction, found.of_truth
    (array([0., 1.]), array([0., 1.]))
    """
    masks = [np.asarray(prediction) != 0, np.asarray(truth) != 0]
    if masks[0].shape != masks[1].shape:
        raise DataError(f"Prediction and truth must have the same shape, they have {masks[0].shape}, {masks[1].shape}.")
    window = _bounding_box(masks[0] | masks[1])
    borders = [mask[window] & ~binary_erosion(mask[window]) for mask in masks]
    return BorderDistances(_distances(borders[0], borders[1], spacing), _distances(borders[1], borders[0], spacing))


def _bounding_box(mask: NDArray[np.bool_]) -> tuple[slice, ...]:
    """Return the smallest window that holds everything: no border and no shortest way leads out of it."""
    others = [tuple(axis for axis in range(mask.ndim) if axis != kept) for kept in range(mask.ndim)]
    places = [np.flatnonzero(mask.any(axis=axes)) for axes in others]
    return tuple(slice(found[0], found[-1] + 1) if found.size else slice(0) for found in places)


def _distances(
    source: NDArray[np.bool_], target: NDArray[np.bool_], spacing: Sequence[float] | None
) -> NDArray[np.float64]:
    if not target.any():
        return np.full(np.count_nonzero(source), np.inf)
    distances: NDArray[np.float64] = distance_transform_edt(~target, sampling=spacing)[source]
    return distances


@dataclass(frozen=True)
class SurfaceScores:
    """The two measures of borders, for every class but the background."""

    hd95: NDArray[np.float64]
    """95th percentile of the Hausdorff distance."""
    surface_dice: NDArray[np.float64]
    """Share of the borders within the tolerance."""


def surface_scores(
    prediction: NDArray[np.integer],
    truth: NDArray[np.integer],
    classes: int,
    *,
    spacing: Sequence[float],
    tolerance: float,
    region: NDArray[np.bool_] | None = None,
) -> SurfaceScores:
    """Measure the borders of every class but the background.

    Parameters
    ----------
    prediction, truth
        Class indices of one image or volume, of the same shape.
    classes
        Number of classes, the background among them.
    spacing
        Distance between voxels along each axis.
    tolerance
        Largest distance at which borders count as the same, in the unit of `spacing`.
    region
        True where voxels count; what lies outside of it is taken as background in both.

    Examples
    --------
    >>> scores = surface_scores(np.array([1, 1, 0, 0]), np.array([1, 1, 1, 0]), 3, spacing=(2.0,), tolerance=1.0)
    >>> scores.hd95.round(3), scores.surface_dice
    (array([1.9, nan]), array([0.5, nan]))
    """
    if region is not None:
        prediction, truth = prediction * region, truth * region
    found = [border_distances(prediction == k, truth == k, spacing=spacing) for k in range(1, classes)]
    return SurfaceScores(
        np.array([distances.hausdorff() for distances in found]),
        np.array([distances.surface_dice(tolerance) for distances in found]),
    )


def _ratio(part: NDArray[np.integer], whole: NDArray[np.integer]) -> NDArray[np.float64]:
    ratio: NDArray[np.float64] = np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole > 0)
    return ratio
