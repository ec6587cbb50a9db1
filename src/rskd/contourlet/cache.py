"""A small cache of filter banks that is bounded by the memory it holds."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock

from rskd.contourlet.bank import Bank

MAX_BYTES = 512 * 2**20


class BankCache:
    """Keeps the banks used last, up to `limit` bytes of responses in all.

    A bank that is larger than the limit is built anew for every call.
    """

    def __init__(self, limit: int = MAX_BYTES) -> None:
        self.limit = limit
        self._banks: OrderedDict[Hashable, Bank] = OrderedDict()
        self._lock = Lock()

    def get(self, key: Hashable, build: Callable[[], Bank]) -> Bank:
        """Return the bank of this key, building it if it is not there."""
        with self._lock:
            if key in self._banks:
                self._banks.move_to_end(key)
                return self._banks[key]
        bank = build()
        with self._lock:
            self._banks[key] = bank
            while self.nbytes > self.limit:
                self._banks.popitem(last=False)
        return bank

    @property
    def nbytes(self) -> int:
        """Bytes of all responses held."""
        return sum(bank.nbytes for bank in self._banks.values())

    def clear(self) -> None:
        """Forget every bank."""
        with self._lock:
            self._banks.clear()

    def __len__(self) -> int:
        return len(self._banks)
