"""The few array operations that tiling needs, on torch or on NumPy, so that an exported network runs without torch.

Slicing and assigning are alike in both; what is not is here. `rskd.backend_torch` is the other implementation.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = Any
"""A torch tensor or a NumPy array."""


class Backend(Protocol):
    """What arrays are made of, and where they lie."""

    @property
    def device(self) -> str:
        """The device, in words."""

    @property
    def out_of_memory(self) -> type[Exception]:
        """What is raised where the memory does not suffice."""

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

    def strongest(self, values: Array) -> Array:
        """Return the index of the largest of K values (K, H, W) for every pixel."""

    def resize(self, values: Array, shape: tuple[int, int]) -> Array:
        """Return maps (C, H, W) at another size: bilinear, averaged where they get smaller."""

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
    out_of_memory = MemoryError

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

    def strongest(self, values: Array) -> NDArray[np.intp]:
        """See `Backend`."""
        highest, index = values[0], np.zeros(values.shape[1:], np.intp)
        for k in range(1, len(values)):  # a few times as fast as argmax over the first axis
            index[values[k] > highest] = k
            highest = np.maximum(highest, values[k])
        return index

    def resize(self, values: Array, shape: tuple[int, int]) -> NDArray[np.float32]:
        """See `Backend`."""
        rows, columns = (_resampling(n, m) for n, m in zip(values.shape[1:], shape, strict=True))
        resized: NDArray[np.float32] = rows @ values @ columns.T
        return resized

    def running(self) -> AbstractContextManager[object]:
        """See `Backend`."""
        return nullcontext()


def _resampling(length: int, wanted: int) -> NDArray[np.float32]:
    """Return the matrix (wanted, length) of linear interpolation, its triangle widened where pixels are averaged.

    Examples
    --------
    >>> (_resampling(4, 2) * 7).round(3)
    array([[3., 3., 1., 0.],
           [0., 1., 3., 3.]], dtype=float32)
    """
    step = length / wanted
    centres = (np.arange(wanted) + 0.5) * step - 0.5
    distance = np.abs(np.arange(length) - centres[:, None]) / max(step, 1.0)
    weights = np.clip(1 - distance, 0, None)
    weights /= weights.sum(1, keepdims=True)
    return np.asarray(weights, np.float32)


def backend_of(model: Any) -> Backend:
    """Return what a network's arrays are made of: what it says itself, or torch on the device of its parameters."""
    own: Backend | None = getattr(model, "backend", None)
    if own is not None:
        return own
    from rskd.backend_torch import TorchBackend

    return TorchBackend(next((parameter.device for parameter in model.parameters()), "cpu"))
