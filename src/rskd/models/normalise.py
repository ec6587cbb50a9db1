"""Bring the intensities of an image into the range that a network was trained on."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rskd.config import ModelSpec


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
    values = np.nan_to_num(np.asarray(image, np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    if spec.normalisation == "zscore":
        centre = values.mean((1, 2), keepdims=True, dtype=np.float64)
        width = values.std((1, 2), keepdims=True, dtype=np.float64)
    else:
        low, high = np.percentile(values, (1, 99), axis=(1, 2), keepdims=True)
        centre, width = (high + low) / 2, (high - low) / 2
    scaled = (values - centre) / np.where(width > 0, width, 1)
    return np.where(width > 0, scaled, 0).astype(np.float32)
