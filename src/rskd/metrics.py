"""How well a segmentation agrees with the truth, per class.

Every measure is read from one confusion matrix, which adds up over slices and tiles.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rskd.errors import DataError


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


def _ratio(part: NDArray[np.integer], whole: NDArray[np.integer]) -> NDArray[np.float64]:
    ratio: NDArray[np.float64] = np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole > 0)
    return ratio
