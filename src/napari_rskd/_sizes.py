"""How large the classes of a Labels layer are by now, at the time in view, counted off the window's thread."""

from __future__ import annotations

from concurrent.futures import Future
from contextlib import suppress
from typing import Any

import numpy as np
from qtpy.QtCore import QObject, QTimer, Signal

from napari_rskd._job import aside
from napari_rskd._measured import size_words
from napari_rskd._source import Array
from napari_rskd._writers import scan_of_labels
from rskd.scan import Scan
from rskd.voxels import Grid

_PAUSE = 300
"""Milliseconds without a stroke after which it is counted again."""


class Sizes(QObject):
    """Follows one Labels layer.

    Parameters
    ----------
    parent
        Widget it lives with.
    layer
        The labels.
    """

    counted = Signal(list)
    """Voxels of the labels 0, 1, 2 …"""

    def __init__(self, parent: QObject, layer: Any) -> None:
        super().__init__(parent)
        self._layer = layer
        self._timer = QTimer(self, singleShot=True)
        self._timer.timeout.connect(self._count)
        self._seen = (layer._slice_input, self._moment())
        for event, react in self._events():
            event.connect(react)
        self._timer.start(0)

    def release(self) -> None:
        """Let go of the layer; it may be called when Qt has deleted this."""
        for event, react in self._events():
            event.disconnect(react)

    def _events(self) -> list[tuple[Any, Any]]:
        events = self._layer.events
        return [(events.paint, self._changed), (events.data, self._changed), (events.set_data, self._drawn)]

    def words(self, voxels: int) -> str:
        """Return a number of voxels as volume or area; there is none where all times are seen at once."""
        scan = scan_of_labels(self._layer)
        return "–" if "t" in scan.axes and self._moment() is None else extent_words(voxels, scan)

    def _moment(self) -> tuple[int, int] | None:
        """Return the axis of time and the place on it that is in view, if there is one."""
        axis = scan_of_labels(self._layer).axes.find("t")
        if axis < 0 or np.isnan(point := self._layer._data_slice.point[axis]):
            return None
        return axis, min(max(round(point), 0), self._layer.data.shape[axis] - 1)

    def _changed(self, event: object = None) -> None:
        self._timer.start(_PAUSE)

    def _drawn(self, event: object) -> None:
        """Count again unless just another slice was drawn: undo and redo tell no more than this, nor does a preview."""
        before, self._seen = self._seen, (self._layer._slice_input, self._moment())
        if before == self._seen or before[1] != self._seen[1]:
            self._changed()

    def _count(self) -> None:
        data = self._layer.data
        if (moment := self._moment()) is not None:
            axis, place = moment
            data = data[(slice(None),) * axis + (place,)]
        aside(count, data).add_done_callback(self._counted)

    def _counted(self, future: Future[list[int]]) -> None:
        with suppress(RuntimeError):  # the legend was closed meanwhile
            self.counted.emit(future.result())


def count(labels: Any) -> list[int]:
    """Return how many voxels of each label there are, from 0 up to the largest.

    Examples
    --------
    >>> count(np.array([[0, 2], [2, 0]], np.uint8))
    [2, 0, 2]
    """
    total: Array = np.zeros(1, np.int64)
    for plane in labels:  # small pieces: bincount copies them, and the window wants its turn
        found = np.bincount(np.asarray(plane).ravel())
        longer = max(len(found), len(total))
        total = np.pad(total, (0, longer - len(total))) + np.pad(found, (0, longer - len(found)))
    return [int(number) for number in total]


def extent_words(voxels: int, scan: Scan) -> str:
    """Return the volume, or of a picture or one slice the area, that so many voxels of a scan have.

    Examples
    --------
    >>> slice_ = Scan(np.zeros((1, 4, 4)), "zyx", spacing=(5.0, 0.5, 0.5), units="mm")
    >>> extent_words(100, slice_)
    '25 mm²'
    """
    lengths = dict(zip(scan.spatial_axes, scan.spatial_shape, strict=True))
    axes = "".join(axis for axis, length in lengths.items() if length > 1)
    size, unit = Grid.of(scan).size(axes if len(axes) > 1 else scan.spatial_axes)
    return size_words(voxels * size, unit)
