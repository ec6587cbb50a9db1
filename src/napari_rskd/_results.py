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
from napari_rskd._source import MARK, LayerData, is_edited

_SAME = ("image", "where", "model", "part")
"""What two layers have in common that show the same part of the same result."""


_CLASSES = ({"name": "background", "color": "black"}, {"name": "any", "color": "white"})


@cache
def warm_up_drawing() -> None:
    """Let napari compile, aside and once, what it draws labels with: the first ones would stall the window."""
    aside(_draw)


@cache
def warm_up_labels() -> None:
    """Let napari load, aside and once, what else it makes labels with.

    There must have been a layer: with the first one napari loads its units, which two threads cannot do at once (pint
    0.25), and the window would have an error instead of that layer.
    """
    aside(_make_labels)


def _draw() -> None:
    from vispy.visuals.line.dash_atlas import DashAtlas

    class_colors(_CLASSES).map(np.zeros((2, 2), np.uint8))
    DashAtlas()  # for the outline of the brush; its patterns are computed once


def _make_labels() -> None:
    table = {"index": [0, 1], "class": [info["name"] for info in _CLASSES]}
    Labels(np.zeros((2, 2), np.uint8), colormap=class_colors(_CLASSES), features=table)


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
        self._last = ""

    @property
    def last(self) -> Any:
        """The labels that were shown last; None = there are none, or not yet."""
        return self._live.get(self._last)

    @property
    def busy(self) -> bool:
        """Whether there are layers still to be made."""
        return self._live.busy

    def show(self, layers: Sequence[LayerData]) -> bool:
        """Show a result; returns whether layers that were copied or edited by hand were kept beside it.

        Parameters
        ----------
        layers
            The labels first: they are there soon, the others after them.
        """
        kept = False
        for data in layers:
            key = identity(data[1]["metadata"])
            same = [layer for layer in self._viewer.layers if identity(layer.metadata) == key]
            unedited = [layer for layer in same if not is_edited(layer)]
            kept = kept or len(unedited) < len(same)
            self._live.hold(key, unedited[-1] if unedited else None)
            self._live.show(key, data)
        self._last = identity(layers[0][1]["metadata"])
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
