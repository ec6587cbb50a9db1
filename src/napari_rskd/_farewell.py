"""What is done when Qt destroys a widget."""

from __future__ import annotations

from collections.abc import Callable
from weakref import ref

from qtpy.QtCore import QObject

_KEPT: set[Callable[..., None]] = set()
"""What Qt will call. Were it held by its widget alone, Python's collector, which runs in any thread, would empty it
with all that is left of a closed window; Qt destroys the widget later, in its own thread, and would call an empty
function, which ends the process (Python 3.11, PyQt 6)."""


def when_destroyed(thing: QObject, act: Callable[[], object]) -> None:
    """Call a function when Qt destroys an object, unless all of Python that it is about is gone by then.

    Parameters
    ----------
    thing
        A widget, or any other object of Qt; it holds the function.
    act
        What to do; the object itself cannot be used any more.
    """
    held: list[Callable[[], object]] = getattr(thing, "_farewells", [])
    held.append(act)
    thing._farewells = held
    known = ref(act)

    def farewell(*_: object) -> None:
        _KEPT.discard(farewell)
        still = known()
        if still is not None:
            still()

    _KEPT.add(farewell)
    thing.destroyed.connect(farewell)
