"""Classes that a brush cannot touch: what a stroke did to them is taken back, the rest of it stays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from qtpy.QtCore import QTimer

from napari_rskd._source import Array


class Locks:
    """The locked classes of one Labels layer, for all legends that show it: two would take a stroke back twice.

    Parameters
    ----------
    layer
        The labels.
    """

    def __init__(self, layer: Any) -> None:
        self.locked: set[int] = set()
        self._legends: set[Callable[[Any, int], None]] = set()
        self._mending = False
        layer.events.paint.connect(self._painted)

    def join(self, refused: Callable[[Any, int], None]) -> None:
        """Keep the locks while a legend shows them.

        Parameters
        ----------
        refused
            Takes the layer and a class of it that a stroke would have changed.
        """
        self._legends.add(refused)

    def leave(self, refused: Callable[[Any, int], None]) -> None:
        """Let go of a legend; without one, nothing is locked."""
        self._legends.discard(refused)

    def _painted(self, event: Any) -> None:
        """Look at a stroke when it is done; napari tells of some strokes before they are written."""
        if self.locked and self._legends and not self._mending:
            layer, changes = event.source, [changed(atom) for atom in event.value]
            QTimer.singleShot(0, lambda: self._mend(layer, changes))

    def _mend(self, layer: Any, changes: list[tuple[tuple[Array, ...], Array, Array]]) -> None:
        """Undo the stroke if it touched a locked class, and do again what is allowed of it."""
        locked = [*self.locked]
        barred = [np.isin(before, locked) | np.isin(after, locked) for _, before, after in changes]
        if not any(part.any() for part in barred):
            return
        self._mending = True
        layer.undo()
        layer._redo_history.clear()  # or redo would bring it back; napari has no public way
        with layer.block_history():
            for (indices, _, after), part in zip(changes, barred, strict=True):
                layer.data_setitem(tuple(axis[~part] for axis in indices), list(after[~part]), refresh=False)
        self._mending = False
        layer.refresh()
        touched = np.concatenate([np.concatenate(change[1:]) for change in changes])
        label = int(next(label for label in touched if label in self.locked))
        for refused in [*self._legends]:
            refused(layer, label)


_LOCKS: WeakKeyDictionary[Any, Locks] = WeakKeyDictionary()


def locks_of(layer: Any) -> Locks:
    """Return the locks of a layer, the same ones for everybody."""
    if layer not in _LOCKS:
        _LOCKS[layer] = Locks(layer)
    return _LOCKS[layer]


def changed(atom: Any) -> tuple[tuple[Array, ...], Array, Array]:
    """Return the indices of the voxels that a step of napari's edit history changed, and their values before and after.

    Parameters
    ----------
    atom
        From the value of a Labels layer's `paint` event.
    """
    if not hasattr(atom, "slice_key"):
        indices, before, after = atom
        before = np.asarray(before)
        return tuple(map(np.asarray, indices)), before, np.broadcast_to(after, before.shape)
    shape = [part.stop - part.start for part in atom.slice_key]
    mask = np.ones(shape, bool) if atom.mask is None else atom.mask
    found = np.nonzero(mask)
    indices = tuple(at + part.start for at, part in zip(found, atom.slice_key, strict=True))
    before = np.asarray(atom.old_values).ravel()
    return indices, before, np.broadcast_to(atom.new_value, before.shape)
