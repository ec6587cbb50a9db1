"""Arrays in, arrays out: every public function takes torch tensors and numpy arrays alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rskd.contourlet.subbands import ArrayT
from rskd.errors import ParameterError


def to_tensors(arrays: Sequence[ArrayT]) -> tuple[list[Tensor], Callable[[Tensor], ArrayT]]:
    """Convert to tensors that can be computed with, and say how to get back to the type of the first one."""
    first = arrays[0]
    if isinstance(first, Tensor):
        dtype = first.dtype
        if not dtype.is_floating_point:
            raise ParameterError(f"a tensor of {dtype} cannot be transformed: convert it with .float() first")
        tensors = [array.to(torch.float64 if dtype == torch.float64 else torch.float32) for array in arrays]
        restore: Callable[[Tensor], Any] = lambda y: y.to(dtype)  # noqa: E731
    else:
        numbers = [_real_array(array) for array in arrays]
        kind = numbers[0].dtype
        tensors = [torch.from_numpy(number.astype(_working_dtype(kind), copy=False)) for number in numbers]
        restore = lambda y: y.detach().numpy().astype(kind, copy=False)  # noqa: E731
    if tensors[0].ndim < 2:
        raise ParameterError(f"an array of shape {tuple(first.shape)} is no image: give (..., rows, columns)")
    return tensors, restore


def _real_array(array: Any) -> NDArray[Any]:
    number = np.asarray(array)
    if number.dtype.kind not in "buif":
        raise ParameterError(f"an array of {number.dtype} cannot be transformed: give real numbers")
    return number if number.dtype.kind == "f" else number.astype(np.float64)


def _working_dtype(kind: np.dtype[Any]) -> type[np.floating[Any]]:
    return np.float64 if kind.itemsize > 4 else np.float32
