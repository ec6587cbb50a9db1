"""What follows a slider: the latest request wins, and layers change in place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from qtpy.QtCore import QObject, QTimer, Signal

from napari_rskd._farewell import when_destroyed
from napari_rskd._job import Work
from napari_rskd._record import Record, record_of
from napari_rskd._source import BREATH, PAUSE, LayerData, make_layer, put_in
from rskd.errors import RskdError
from rskd.jobs import Outcome

PLACE = {"scale", "translate", "rotate", "shear", "affine", "units", "axis_labels"}
FOLLOWS = {*PLACE, "name", "contrast_limits", "features", "metadata"}
"""What of a layer changes with its data; all else is the user's."""
TABLES = {"features", "metadata"}
"""Those that are set in any case."""


def _same(one: Any, other: Any) -> bool:
    """Tell whether a layer lies as it did: napari draws it again for every attribute that is set, equal or not."""
    before, after = (np.asarray(getattr(value, "affine_matrix", value)) for value in (one, other))
    return bool(np.array_equal(before, after))


def after_drawing(parent: QObject, act: Callable[[], object]) -> None:
    """Do something a moment later, when what was just changed is drawn, unless its widget is gone by then."""
    timer = QTimer(parent, singleShot=True)
    timer.timeout.connect(act)
    timer.timeout.connect(timer.deleteLater)
    timer.start(PAUSE)


class Latest(QObject):
    """Runs jobs in the background; of those asked for meanwhile only the last one follows.

    Parameters
    ----------
    parent
        Widget it lives with; in a panel its jobs are recorded.
    show
        Takes the outcome.
    fail
        Takes the error.
    at_once
        Jobs that are on their way at most. The engine does one after the other; with 2 it need not wait for the window
        to show the first.
    """

    def __init__(
        self,
        parent: QObject,
        show: Callable[[Outcome], None],
        fail: Callable[[RskdError], None],
        *,
        at_once: int = 1,
    ) -> None:
        super().__init__(parent)
        self._show, self._fail = show, fail
        self._record = record_of(parent.viewer) if hasattr(parent, "viewer") else Record()
        self._at_once = at_once
        self._running: list[Work] = []
        self._waiting: Work | None = None
        when_destroyed(parent, self.cancel)

    @property
    def busy(self) -> bool:
        """Whether anything is on its way."""
        return bool(self._running)

    def ask(self, work: Work) -> None:
        """Run this job as soon as one of those that run has ended."""
        if len(self._running) >= self._at_once:
            self._waiting = work
            return
        self._running.append(work)
        self._record.follow(work)
        work.returned.connect(self._show)
        work.failed.connect(self._fail)
        work.ended.connect(lambda: self._next(work))
        work.start()

    def cancel(self) -> None:
        """End what runs, and forget what waits."""
        self._waiting = None
        for work in self._running:
            work.cancel()

    def _next(self, ended: Work) -> None:
        self._running.remove(ended)
        work, self._waiting = self._waiting, None
        if work is not None:
            self.ask(work)


class LiveLayers(QObject):
    """Layers by key: made once, then changed in place, so that what the user set on them stays.

    They are made and removed one at a time, with a drawing in between: a layer costs napari a good part of the 0.1 s
    after which people feel a window stall, so it is made, put into the viewer and selected one after the other. And
    where two are removed and one is added without a drawing in between, the OpenGL of some systems ends napari (0.9.2;
    napari issues 6472 and 7345).

    Parameters
    ----------
    parent
        Widget it lives with.
    viewer
        Where the layers are.
    """

    made = Signal()
    """All layers that were asked for are there."""

    def __init__(self, parent: QObject, viewer: Any) -> None:
        super().__init__(parent)
        self._viewer = viewer
        self._layers: dict[str, Any] = {}
        self._waiting: dict[str, LayerData] = {}
        self._unseen: dict[str, LayerData] = {}
        self._made: tuple[LayerData, Any] | None = None  # the next one of those that wait
        self._put_in: Any = None  # the last one, to be selected
        self._leaving: list[Any] = []
        self._timer = QTimer(self, interval=PAUSE)
        self._timer.timeout.connect(self._change_one)

    @property
    def busy(self) -> bool:
        """Whether there are layers still to be made, changed or removed, or the last one still to be drawn."""
        return bool(self._timer.isActive() or self._unseen)

    def get(self, key: str) -> Any:
        """Return the layer, None if there is none or it was removed."""
        layer = self._layers.get(key)
        return layer if layer is not None and layer in self._viewer.layers else None

    def hold(self, key: str, layer: Any) -> None:
        """Take a layer that is there for the one of this key; None = let go of it, whatever becomes of it."""
        self._layers.pop(key, None)
        if layer is not None:
            self._layers[key] = layer

    def show(self, key: str, data: LayerData) -> None:
        """Put data into the layer of this key; it is made soon if there is none."""
        layer = self.get(key)
        array, options, _ = data
        if layer is None or layer.ndim != len(options["scale"]):
            self._drop(key)
            self._waiting[key] = data
            return
        layer.data = array
        for name in FOLLOWS.intersection(options):
            if name in TABLES or not _same(getattr(layer, name), options[name]):
                setattr(layer, name, options[name])

    def show_all(self, layers: Mapping[str, LayerData]) -> None:
        """Show these layers and no other ones; what the user does not see follows when the others are drawn."""
        for key in {*self._layers, *self._waiting}.difference(layers):
            self._drop(key)
        self._unseen = {key: data for key, data in layers.items() if not getattr(self.get(key), "visible", True)}
        for key, data in layers.items():
            if key not in self._unseen:
                self.show(key, data)
        if self._unseen:
            after_drawing(self, self._show_unseen)

    def _show_unseen(self) -> None:
        unseen, self._unseen = self._unseen, {}
        for key, data in unseen.items():
            self.show(key, data)

    def layers(self) -> list[Any]:
        """Return the layers that are there."""
        return [layer for key in self._layers if (layer := self.get(key)) is not None]

    def _drop(self, key: str) -> None:
        self._leaving.append(self._layers.pop(key, None))
        self._waiting.pop(key, None)
        self._timer.start(PAUSE)

    def _change_one(self) -> None:
        self._timer.setInterval(PAUSE)
        if self._leaving:
            self._remove_one()
        elif not self._waiting:
            self._finish()
        elif self._made is None or self._made[0] is not next(iter(self._waiting.values())):
            data = next(iter(self._waiting.values()))
            self._made = data, make_layer(data)
            self._timer.setInterval(BREATH)
        else:
            key, made = next(iter(self._waiting)), self._made[1]
            self._put_in = self._layers[key] = put_in(self._viewer, made, select=False)
            del self._waiting[key]
            self._timer.setInterval(PAUSE // 2)  # what was held back of it comes after a whole one

    def _remove_one(self) -> None:
        while self._leaving:
            layer = self._leaving.pop()
            if layer is not None and layer in self._viewer.layers:
                self._viewer.layers.remove(layer)
                return
        self._change_one()

    def _finish(self) -> None:
        layer, self._put_in, self._made = self._put_in, None, None
        if layer is not None and layer in self._viewer.layers:
            self._viewer.layers.selection.active = layer
        self._timer.stop()
        self._layers = {key: layer for key, layer in self._layers.items() if layer in self._viewer.layers}
        self.made.emit()
