"""Arrays that are read when they are sliced."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rskd.errors import FileError
from rskd.io.libraries import quiet
from rskd.io.memory import check_size


class LazyArray:
    """A stored array with the part of numpy's interface that slicing needs; a failure is one sentence.

    Parameters
    ----------
    stored
        Anything with `shape`, `dtype` and slicing, such as a zarr array.
    name
        Of the file, for messages.
    keeping
        What must stay alive as long as this does, such as an open file.

    Examples
    --------
    >>> lazy = LazyArray(np.arange(6).reshape(2, 3), "a.zarr")
    >>> lazy.shape, lazy[1, 1:], np.asarray(lazy).sum()
    ((2, 3), array([4, 5]), np.int64(15))
    """

    def __init__(self, stored: Any, name: str, *, keeping: object = None) -> None:
        self._stored, self._name, self._keeping = stored, name, keeping
        self.shape: tuple[int, ...] = tuple(map(int, stored.shape))
        self.dtype: np.dtype[Any] = np.dtype(stored.dtype)
        self.ndim: int = len(self.shape)
        self.chunks: Any = getattr(stored, "chunks", None)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> NDArray[Any]:
        try:
            with quiet():
                part = np.asarray(self._stored[index])
                return part.astype(part.dtype.newbyteorder("="), copy=False)
        except (IndexError, MemoryError):
            raise
        except Exception as error:
            raise FileError(
                f"{self._name} cannot be read to its end ({type(error).__name__}): it is damaged, copy it again."
            ) from None

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """Read everything, if there is memory for it."""
        size = math.prod(self.shape) * self.dtype.itemsize
        check_size(self._name, size, held=size)
        return np.asarray(self[...], dtype)
