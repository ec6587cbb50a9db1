"""A small cache of operators that is bounded by the memory it holds."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock

from rskd.contourlet.bank import Operators

MAX_BYTES = 512 * 2**20


class OperatorCache:
    """Keeps the operators used last, up to `limit` bytes in all.

    Operators that are larger than the limit are built anew for every call.
    """

    def __init__(self, limit: int = MAX_BYTES) -> None:
        self.limit = limit
        self._entries: OrderedDict[Hashable, Operators] = OrderedDict()
        self._lock = Lock()

    def get(self, key: Hashable, build: Callable[[], Operators]) -> Operators:
        """Return what belongs to this key, building it if it is not there."""
        with self._lock:
            if key in self._entries:
                self._entries.move_to_end(key)
                return self._entries[key]
        operators = build()
        with self._lock:
            self._entries[key] = operators
            while self.nbytes > self.limit:
                self._entries.popitem(last=False)
        return operators

    @property
    def nbytes(self) -> int:
        """Bytes of all matrices held."""
        return sum(op.nbytes for operators in self._entries.values() for op in operators)

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._entries.clear()

    def __len__(self) -> int:
        return len(self._entries)
