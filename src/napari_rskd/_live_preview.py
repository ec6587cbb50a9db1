"""Segment what is in view while the user scrolls, without ever falling behind: the latest slice wins."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from qtpy.QtCore import QObject, Signal

from napari_rskd._farewell import when_destroyed
from napari_rskd._job import Order, Work
from napari_rskd._layers import class_colors
from napari_rskd._live import Latest
from napari_rskd._picture import Picture, slice_picture
from napari_rskd._source import Array, Source, add_layer, axes_of, is_edited, made_by
from rskd.errors import RskdError
from rskd.jobs import Outcome, SegmentJob

NAME = "Live preview"
SLOW = 0.25
"""Seconds per slice from which on a preview cannot follow somebody who scrolls."""
_TELL_EVERY = 0.25
_WINDOW = 2.0
"""Seconds over which slices per second are counted."""


class Preview(QObject):
    """Labels of the slice in view, slice by slice, in a layer of their own; slices that were seen stay.

    A preview that was painted in is the user's: it stays as it is, and the next slice begins another one.

    Parameters
    ----------
    parent
        Widget it lives with.
    viewer
        Where the user scrolls.
    request
        Returns the image layer and the fields of a job beside the picture, None while there is nothing to do.
    """

    told = Signal(str)
    """How fast it is, or what went wrong, in words."""
    shown = Signal()
    """A slice has got its labels."""

    def __init__(
        self, parent: QObject, viewer: Any, request: Callable[[], tuple[Any, Mapping[str, Any]] | None]
    ) -> None:
        super().__init__(parent)
        self._viewer, self._request = viewer, request
        self._latest = Latest(self, lambda outcome: None, self._fail, at_once=2)
        self._on = False
        self._layer: Any = None
        self._asked: tuple[Any, Mapping[str, Any]] | None = None
        self._seen: set[str] = set()
        self._last_asked = "nothing"
        self._times: deque[float] = deque()
        self._last_told = 0.0
        events = (viewer.dims.events.current_step, viewer.dims.events.order)
        for event in events:
            event.connect(self._look)
        when_destroyed(parent, lambda: [event.disconnect(self._look) for event in events])

    @property
    def busy(self) -> bool:
        """Whether a slice is on its way."""
        return self._latest.busy

    def switch(self, on: bool) -> None:
        """Begin or end following the user."""
        self._on = on
        self._begin()

    def again(self) -> None:
        """Begin anew if the image, the network or the options are other ones."""
        if not self._on:
            return
        try:
            other = self._request() != self._asked
        except RskdError as error:  # a number that is half typed
            self._fail(error)
            return
        if other:
            self._begin()

    def _begin(self) -> None:
        self._asked = None
        self._last_asked = "nothing"
        self._seen.clear()
        self._times.clear()
        self.told.emit("")
        self._let_go()
        self._look()

    def _let_go(self) -> None:
        """Remove the preview unless somebody painted in it."""
        if self._layer is not None and self._layer in self._viewer.layers and not is_edited(self._layer):
            self._viewer.layers.remove(self._layer)
        self._layer = None

    def _look(self, event: object = None) -> None:
        """Ask for the slice in view unless it is there."""
        if not self._on:
            return
        try:
            self._asked = self._asked or self._request()
            if self._asked is None:
                return
            layer, fields = self._asked
            picture = slice_picture(layer, self._viewer.dims)
        except RskdError as error:
            self._fail(error)
            return
        if self._layer is not None and self._layer not in self._viewer.layers:  # it was deleted: all comes anew
            self._layer, self._last_asked = None, "nothing"
            self._seen.clear()
        if picture.where in self._seen or picture.where == self._last_asked:
            return
        self._last_asked = picture.where
        began: list[float] = []
        job = SegmentJob(axes=picture.axes, geometry=picture.geometry, fastest=True, **fields)

        def order() -> Order:
            began.append(time.perf_counter())
            return job, {"image": picture.pixels()}

        work = Work(order)
        work.returned.connect(partial(self._show, picture, self._asked, began))
        self._latest.ask(work)

    def _fail(self, error: RskdError) -> None:
        if self._on:
            self.told.emit(f"No preview: {error}")

    def _show(self, picture: Picture, asked: object, began: list[float], outcome: Outcome) -> None:
        """Put a slice into the preview, unless another image was chosen meanwhile."""
        if asked is not self._asked:
            return
        labels = flattened(outcome)
        if self._layer is None or self._layer not in self._viewer.layers or is_edited(self._layer):
            self._seen.clear()
            self._layer = add_layer(self._viewer, preview_layer(picture.layer, outcome.value["classes"]))
        source = picture.source.without_channel(picture.layer_axes)
        index: list[Any] = [slice(None)] * self._layer.ndim
        for axis, at in zip(source.sliced, source.slice_at, strict=True):
            index[axis] = at
        self._layer.data[tuple(index)] = labels
        self._layer.refresh(extent=False, thumbnail=False)
        self._seen.add(picture.where)
        self._tell(time.perf_counter() - began[0])
        self.shown.emit()

    def _tell(self, seconds: float) -> None:
        now = time.perf_counter()
        self._times.append(now)
        while now - self._times[0] > _WINDOW:
            self._times.popleft()
        if now - self._last_told >= _TELL_EVERY:
            self._last_told = now
            self.told.emit(speed_words(list(self._times), seconds))


def preview_layer(layer: Any, classes: Any) -> Any:
    """Return an empty preview of an image layer, as data for napari."""
    axes = axes_of(layer)
    shape = (layer.data[0] if layer.multiscale else layer.data).shape[: layer.ndim]
    kept = [n for n, axis in zip(shape, axes, strict=False) if axis != "c"]
    options = {
        "name": NAME,
        "colormap": class_colors(classes),
        "features": {"index": list(range(len(classes))), "class": [info["name"] for info in classes]},
        "metadata": made_by({"preview": True}),
        **Source.of(layer).without_channel(axes).place(),
    }
    return np.zeros(kept, np.uint8 if len(classes) < 256 else np.uint16), options, "labels"


def flattened(outcome: Outcome) -> Array:
    """Return one number per pixel: of classes that overlap, the last one that is there.

    Examples
    --------
    >>> flattened(Outcome({"overlapping": True}, {"labels": np.array([[[1, 1, 0]], [[0, 1, 0]]])}))
    array([[1, 2, 0]])
    """
    labels = np.asarray(outcome.arrays["labels"])
    if not outcome.value["overlapping"]:
        return labels
    numbers = np.arange(1, len(labels) + 1).reshape(-1, *(1,) * (labels.ndim - 1))
    found: Array = (labels * numbers).max(0)
    return found


def speed_words(times: list[float], seconds: float) -> str:
    """Return how fast slices come.

    Parameters
    ----------
    times
        When the last ones came, in seconds, ascending.
    seconds
        How long the last one took.

    Examples
    --------
    >>> speed_words([0.0, 0.05, 0.1], 0.05)
    '20 slices per second'
    >>> speed_words([0.0], 1.2)
    'One slice takes 1.2 s: too slow to follow you, the preview comes where you stop.'
    """
    if seconds >= SLOW:
        return f"One slice takes {seconds:.1f} s: too slow to follow you, the preview comes where you stop."
    if len(times) < 2:
        return f"One slice takes {1000 * seconds:.0f} ms"
    return f"{(len(times) - 1) / (times[-1] - times[0]):.0f} slices per second"
