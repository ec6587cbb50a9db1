"""How sure a segmentation is, and where two of them disagree: maps from 0 to 1."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from rskd.errors import DataError

_Probabilities = NDArray[np.floating]
"""Classes first; they add up to one in every voxel."""
Measure = Callable[..., NDArray[np.float32]]
"""From the probabilities of one segmentation, or of two, to a map."""
_PART = 2**20
"""Voxels that are worked on at a time: few, so that maps of many classes need no second copy."""


def entropy(probabilities: _Probabilities) -> NDArray[np.float32]:
    """Return the entropy of the classes in every voxel as a share of the largest possible, -Σ p ln p / ln K.

    0 = one class is certain; 1 = all classes are equally probable.

    Parameters
    ----------
    probabilities
        Shape (K, ...), K ≥ 2.

    Examples
    --------
    >>> entropy(np.array([[1.0, 0.5], [0.0, 0.5]]))
    array([0., 1.], dtype=float32)
    """
    found = np.empty(probabilities.shape[1:], np.float32)
    for part, target in _parts(probabilities, found):
        target[:] = _entropy(part) / np.log(len(probabilities))
    return np.clip(found, 0, 1, out=found)


def margin(probabilities: _Probabilities) -> NDArray[np.float32]:
    """Return by how much the most probable class is ahead of the second in every voxel.

    1 = one class is certain; 0 = the first two are equally probable.

    Parameters
    ----------
    probabilities
        Shape (K, ...), K ≥ 2.

    Examples
    --------
    >>> margin(np.array([[0.75, 0.5], [0.25, 0.5]]))
    array([0.5, 0. ], dtype=float32)
    """
    found = np.empty(probabilities.shape[1:], np.float32)
    for part, target in _parts(probabilities, found):
        first_two = np.partition(part, -2, axis=0)[-2:]
        target[:] = first_two[1] - first_two[0]
    return found


def divergence(first: _Probabilities, second: _Probabilities) -> NDArray[np.float32]:
    """Return the Jensen-Shannon divergence of two segmentations in every voxel, in bits: H(m) - (H(p) + H(q)) / 2.

    0 = they say the same; 1 = each is certain of another class. m = (p + q) / 2.

    Parameters
    ----------
    first, second
        Shape (K, ...).

    Raises
    ------
    DataError
        If the shapes differ.

    Examples
    --------
    >>> divergence(np.array([[1.0, 0.5], [0.0, 0.5]]), np.array([[0.0, 0.5], [1.0, 0.5]]))
    array([1., 0.], dtype=float32)
    """
    if first.shape != second.shape:
        raise DataError(
            f"Probabilities of the shapes {first.shape} and {second.shape} cannot be compared voxel by voxel."
        )
    found = np.empty(first.shape[1:], np.float32)
    others = (part for part, _ in _parts(second, found))
    for (p, target), q in zip(_parts(first, found), others, strict=True):
        target[:] = (_entropy((p + q) / 2) - (_entropy(p) + _entropy(q)) / 2) / np.log(2)
    return np.clip(found, 0, 1, out=found)


def of_every_class(measure: Measure) -> Measure:
    """Return a measure for classes that may overlap: for each of them, of its probability p and that of none, 1 - p.

    Parameters
    ----------
    measure
        One of those above; what is returned gives K maps (K, ...) for probabilities (K, ...).

    Examples
    --------
    >>> of_every_class(margin)(np.array([[0.75, 0.5], [0.0, 0.25]]))
    array([[0.5, 0. ],
           [1. , 0.5]], dtype=float32)
    """

    def measured(*sides: _Probabilities) -> NDArray[np.float32]:
        return np.stack([measure(*(np.stack([1 - p, p]) for p in both)) for both in zip(*sides, strict=True)])

    return measured


def _entropy(probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    logarithms = np.log(probabilities, out=np.zeros_like(probabilities), where=probabilities > 0)  # 0 ln 0 = 0
    total: NDArray[np.float64] = 0 - (probabilities * logarithms).sum(0)  # no -0
    return total


def _parts(
    probabilities: _Probabilities, target: NDArray[np.float32]
) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float32]]]:
    """Yield pieces (K, n) of the probabilities in double precision, and the places (n) of their results."""
    flat, places = probabilities.reshape(len(probabilities), -1), target.reshape(-1)
    for start in range(0, places.size, _PART):
        yield flat[:, start : start + _PART].astype(np.float64), places[start : start + _PART]
