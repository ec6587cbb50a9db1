"""Classes that a brush cannot touch: what a stroke did to them is taken back, the rest of it stays."""

from __future__ import annotations

from typing import Any

import numpy as np
from qtpy.QtCore import QObject, QTimer, Signal

from napari_rskd._source import Array


class Locks(QObject):
    """The locked classes of one Labels layer.

    Parameters
    ----------
    parent
        Widget it lives with.
    layer
        The labels.
    """

    refused = Signal(int)
    """A stroke would have changed this class."""

    def __init__(self, parent: QObject, layer: Any) -> None:
        super().__init__(parent)
        self.locked: set[int] = set()
        self.layer = layer
        self._mending = False
        layer.events.paint.connect(self._painted)

    def release(self) -> None:
        """Let go of the layer."""
        self.layer.events.paint.disconnect(self._painted)

    def _painted(self, event: Any) -> None:
        """Look at a stroke when it is done; napari tells of some strokes before they are written."""
        if self.locked and not self._mending:
            changes = [changed(atom) for atom in event.value]
            QTimer.singleShot(0, lambda: self._mend(changes))

    def _mend(self, changes: list[tuple[tuple[Array, ...], Array, Array]]) -> None:
        """Undo the stroke if it touched a locked class, and do again what is allowed of it."""
        locked = [*self.locked]
        barred = [np.isin(before, locked) | np.isin(after, locked) for _, before, after in changes]
        if not any(part.any() for part in barred):
            return
        self._mending = True
        self.layer.undo()
        self.layer._redo_history.clear()  # or redo would bring it back; napari has no public way
        with self.layer.block_history():
            for (indices, _, after), part in zip(changes, barred, strict=True):
                self.layer.data_setitem(tuple(axis[~part] for axis in indices), list(after[~part]), refresh=False)
        self._mending = False
        self.layer.refresh()
        touched = np.concatenate([np.concatenate(change[1:]) for change in changes])
        self.refused.emit(int(next(label for label in touched if label in self.locked)))


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
