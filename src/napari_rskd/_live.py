"""What follows a slider: the latest request wins, and layers change in place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from qtpy.QtCore import QObject

from napari_rskd._job import Work
from napari_rskd._layers import LayerData, add_layer
from rskd.errors import RskdError
from rskd.jobs import Outcome


class Latest(QObject):
    """Runs one job at a time in the background; of those asked for meanwhile only the last one follows.

    Parameters
    ----------
    parent
        Widget it lives with.
    show
        Takes the outcome.
    fail
        Takes the error.
    """

    def __init__(self, parent: QObject, show: Callable[[Outcome], None], fail: Callable[[RskdError], None]) -> None:
        super().__init__(parent)
        self._show, self._fail = show, fail
        self._running: Work | None = None
        self._waiting: Work | None = None

    @property
    def busy(self) -> bool:
        """Whether anything is on its way."""
        return self._running is not None

    def ask(self, work: Work) -> None:
        """Run this job as soon as the one that runs has ended."""
        if self._running is not None:
            self._waiting = work
            return
        self._running = work
        work.returned.connect(self._show)
        work.failed.connect(self._fail)
        work.ended.connect(self._next)
        work.start()

    def _next(self) -> None:
        work, self._running, self._waiting = self._waiting, None, None
        if work is not None:
            self.ask(work)


class LiveLayers:
    """Layers by key: made once, then changed in place, so that what the user set on them stays."""

    def __init__(self, viewer: Any) -> None:
        self._viewer = viewer
        self._layers: dict[str, Any] = {}

    def get(self, key: str) -> Any:
        """Return the layer, None if there is none or it was removed."""
        layer = self._layers.get(key)
        return layer if layer is not None and layer in self._viewer.layers else None

    def show(self, key: str, data: LayerData) -> Any:
        """Put data into the layer of this key; it is made if there is none; returns it."""
        layer = self.get(key)
        array, options, _ = data
        if layer is None or layer.ndim != len(options["scale"]):
            self.drop(key)
            layer = self._layers[key] = add_layer(self._viewer, data)
            return layer
        layer.data = array
        for name in ("scale", "translate", "contrast_limits", "features", "metadata"):
            if name in options:
                setattr(layer, name, options[name])
        return layer

    def drop(self, key: str) -> None:
        """Remove a layer, if it is there."""
        layer = self.get(key)
        if layer is not None:
            self._viewer.layers.remove(layer)
        self._layers.pop(key, None)

    def drop_all(self) -> None:
        """Remove every layer."""
        for key in list(self._layers):
            self.drop(key)
