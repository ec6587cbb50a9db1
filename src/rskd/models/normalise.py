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
    channels = np.array(image, np.float32)
    for channel in channels:  # in place and one at a time: an image of 100 megapixels has no room for copies
        np.nan_to_num(channel, copy=False, posinf=0.0, neginf=0.0)
        centre, width = _RANGES[spec.normalisation](channel)
        channel -= np.float32(centre)
        channel *= np.float32(1 / width if width > 0 else 0)
    return channels


def _zscore(channel: NDArray[np.float32]) -> tuple[float, float]:
    return float(channel.mean(dtype=np.float64)), float(channel.std(dtype=np.float64))


def _percentile(channel: NDArray[np.float32]) -> tuple[float, float]:
    low, high = np.percentile(channel, (1, 99))
    return float(high + low) / 2, float(high - low) / 2


_RANGES = {"zscore": _zscore, "percentile": _percentile}
