"""The few array operations that tiling needs, on torch or on NumPy, so that an exported network runs without torch.

Slicing and assigning are alike in both; what is not is here. `rskd.backend_torch` is the other implementation.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

Array = Any
"""A torch tensor or a NumPy array."""


class Backend(Protocol):
    """What arrays are made of, and where they lie."""

    @property
    def device(self) -> str:
        """The device, in words."""

    def put(self, array: NDArray[Any]) -> Array:
        """Return a NumPy array as one of this kind; on the CPU they share memory."""

    def get(self, array: Array) -> NDArray[Any]:
        """Return an array of this kind as a NumPy array; on the CPU they share memory."""

    def zeros(self, *shape: int) -> Array:
        """Return float32 zeros."""

    def blend(self, place: Array, tile: Array, rows: Array, columns: Array) -> None:
        """Add ``tile * rows[:, None] * columns`` to `place`, in place: K h w, K h w, h, w."""

    def softmax(self, values: Array) -> None:
        """Turn logits (K, H, W) into probabilities, in place."""

    def sigmoid(self, values: Array) -> None:
        """Turn logits into the probability of each by itself, in place."""

    def strongest(self, values: Array) -> Array:
        """Return the index of the largest of K values (K, H, W) for every pixel."""

    def running(self) -> AbstractContextManager[object]:
        """Return what a network runs in: nothing is recorded for gradients."""


class NumpyBackend:
    """Arrays of NumPy.

    Examples
    --------
    >>> values = np.array([[[0.0, 2.0]], [[1.0, 1.0]]], np.float32)
    >>> NumpyBackend().strongest(values)
    array([[1, 0]])
    >>> NumpyBackend().softmax(values)
    >>> values.sum(0)
    array([[1., 1.]], dtype=float32)
    """

    device = "cpu"

    def put(self, array: NDArray[Any]) -> NDArray[Any]:
        """See `Backend`."""
        return array

    def get(self, array: NDArray[Any]) -> NDArray[Any]:
        """See `Backend`."""
        return array

    def zeros(self, *shape: int) -> NDArray[np.float32]:
        """See `Backend`."""
        return np.zeros(shape, np.float32)

    def blend(self, place: Array, tile: Array, rows: Array, columns: Array) -> None:
        """See `Backend`."""
        place += tile * (rows[:, None] * columns)

    def softmax(self, values: Array) -> None:
        """See `Backend`."""
        values -= values.max(0)
        np.exp(values, out=values)
        values /= values.sum(0)

    def sigmoid(self, values: Array) -> None:
        """See `Backend`."""
        expit(values, out=values)

    def strongest(self, values: Array) -> NDArray[np.intp]:
        """See `Backend`."""
        highest, index = values[0], np.zeros(values.shape[1:], np.intp)
        for k in range(1, len(values)):  # a few times as fast as argmax over the first axis
            index[values[k] > highest] = k
            highest = np.maximum(highest, values[k])
        return index

    def running(self) -> AbstractContextManager[object]:
        """See `Backend`."""
        return nullcontext()


def backend_of(model: Any) -> Backend:
    """Return what a network's arrays are made of: what it says itself, or torch on the device of its parameters."""
    own: Backend | None = getattr(model, "backend", None)
    if own is not None:
        return own
    from rskd.backend_torch import TorchBackend

    return TorchBackend(next((parameter.device for parameter in model.parameters()), "cpu"))
