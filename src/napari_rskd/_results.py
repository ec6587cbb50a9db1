"""Results in the layer list: running again changes its own layers in place, never copies or those edited by hand."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from napari.layers import Labels
from qtpy.QtCore import QObject

from napari_rskd._job import aside
from napari_rskd._layers import class_colors
from napari_rskd._live import LiveLayers
from napari_rskd._source import MARK, LayerData, add_layer, is_edited

_SAME = ("image", "where", "model", "part")
"""What two layers have in common that show the same part of the same result."""


@cache
def warm_up_labels() -> None:
    """Let napari load and compile, aside and once, what it draws labels with: the first ones would stall the window."""
    aside(_make_labels)


def _make_labels() -> None:
    classes = [{"name": "background", "color": "black"}, {"name": "any", "color": "white"}]
    table = {"index": [0, 1], "class": [info["name"] for info in classes]}
    Labels(np.zeros((2, 2), np.uint8), colormap=class_colors(classes), features=table)


class ResultLayers(QObject):
    """Puts results into the layer list.

    Parameters
    ----------
    parent
        Widget it lives with.
    viewer
        Where the layers are.
    """

    def __init__(self, parent: QObject, viewer: Any) -> None:
        super().__init__(parent)
        self._viewer = viewer
        self._live = LiveLayers(self, viewer)
        self.last: Any = None
        """The labels that were shown last."""

    @property
    def busy(self) -> bool:
        """Whether there are layers still to be made."""
        return self._live.busy

    def show(self, layers: Sequence[LayerData]) -> bool:
        """Show a result; returns whether layers that were copied or edited by hand were kept beside it.

        Parameters
        ----------
        layers
            The labels first: they are there at once, the others soon after.
        """
        kept = False
        for number, data in enumerate(layers):
            key = identity(data[1]["metadata"])
            same = [layer for layer in self._viewer.layers if identity(layer.metadata) == key]
            unedited = [layer for layer in same if not is_edited(layer)]
            kept = kept or len(unedited) < len(same)
            self._live.hold(key, unedited[-1] if unedited else None)
            if number == 0 and not unedited:
                self._live.hold(key, add_layer(self._viewer, data))
            else:
                self._live.show(key, data)
        self.last = self._live.get(identity(layers[0][1]["metadata"]))
        return kept

    def image_of(self, layer: Any) -> Any:
        """Return the image that a result was made from, or the result itself where that is gone."""
        name = layer.metadata[MARK]["image"]
        return next((image for image in self._viewer.layers if str(image.unique_id) == name), layer)


def labels_beside(viewer: Any, layer: Any) -> list[Any]:
    """Return the labels of the result that a layer belongs to: several where classes overlap; empty = it is none.

    Where some were edited and kept beside new ones, those are meant that the layer itself is one of.

    Parameters
    ----------
    viewer
        Where the layers are.
    layer
        One of the result, ``None`` = none.
    """
    if layer is None or layer not in viewer.layers or not identity(layer.metadata):
        return []
    own = [other for other in viewer.layers if _beside(other, layer)]
    parts = {other.metadata[MARK]["part"]: other for other in own}  # the last of each
    if isinstance(layer, Labels):
        parts[layer.metadata[MARK]["part"]] = layer
    return list(parts.values())


def _beside(other: Any, layer: Any) -> bool:
    """Tell whether a layer is labels of the same result."""
    facts, own = other.metadata.get(MARK, {}), layer.metadata[MARK]
    return isinstance(other, Labels) and all(facts.get(name) == own[name] for name in _SAME[:-1])


def identity(metadata: dict[str, Any]) -> str:
    """Return what tells a part of a result from all others; empty = it is none of a segmentation."""
    facts = metadata.get(MARK, {})
    return "|".join(str(facts[name]) for name in _SAME) if all(name in facts for name in _SAME) else ""
