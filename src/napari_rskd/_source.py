"""Where a layer lies, and how a result is laid upon it exactly, without a viewer.

napari maps a voxel index i to the world by ``affine (R·H·S·i + t)`` with rotation R, shear H, scale S and
translation t. A result whose index j means the source index ``offset + factor·j`` is placed without resampling by
the same R, H and affine, the scale ``S·factor`` and the translation ``t + R·H·S·offset``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakSet

import numpy as np
from numpy.typing import ArrayLike, NDArray
from qtpy.QtCore import QTimer

from rskd.errors import ParameterError
from rskd.io.memory import check_size

LayerData = tuple[Any, dict[str, Any], str]
Array = NDArray[Any]
MARK = "rskd"  # key in a layer's metadata
_GUESSED_AXES = {2: "yx", 3: "zyx", 4: "tzyx", 5: "tczyx"}
_ADDED: WeakSet[Any] = WeakSet()
"""Layers that were added here; copies that napari makes of them have the same metadata and are not among them."""
PAUSE = 50
"""Milliseconds for a drawing between two things that would stall the window together."""
BREATH = 10
"""Milliseconds for the window to answer between two such things of which the first changes nothing to be seen."""
_LETTERS = {"time": "t", "channel": "c", "depth": "z", "height": "y", "width": "x"}


@dataclass(frozen=True)
class Source:
    """Where an image layer, or its visible slice, lies in the world.

    Parameters
    ----------
    name
        Name of the layer.
    scale, translate, rotate, shear, affine, units, axis_labels
        As the layer has them, over its n axes.
    slice_at
        Index along each axis that is not shown, for a slice; empty = the whole layer.
    shown
        Axes that a slice runs along, ascending; empty = those after the sliced ones.
    metadata
        What the reader knew about the file; writers need it for the orientation.
    """

    name: str
    scale: Array
    translate: Array
    rotate: Array
    shear: Array
    affine: Array
    units: tuple[Any, ...]
    axis_labels: tuple[str, ...]
    slice_at: tuple[int, ...] = ()
    shown: tuple[int, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, layer: Any, *, slice_at: Sequence[int] = (), shown: Sequence[int] = ()) -> Source:
        """Read the geometry of a layer."""
        return cls(
            name=layer.name,
            scale=np.array(layer.scale),
            translate=np.array(layer.translate),
            rotate=np.array(layer.rotate),
            shear=np.array(layer.shear),
            affine=np.array(layer.affine.affine_matrix),
            units=tuple(layer.units),
            axis_labels=tuple(layer.axis_labels),
            slice_at=tuple(slice_at),
            shown=tuple(shown),
            metadata=dict(layer.metadata),
        )

    def place(self, factor: ArrayLike = (), offset: ArrayLike = ()) -> dict[str, Any]:
        """Return the layer arguments that put a result onto this source.

        Parameters
        ----------
        factor
            Source pixels per result pixel along the last axes that are shown; the others count 1.
        offset
            Source index of the result's index 0 along these; the others count 0, or the index of the slice.
        """
        ndim = len(self.scale)
        factors, offsets = np.ones(ndim), np.zeros(ndim)
        offsets[list(self.sliced)] = self.slice_at
        shown = [axis for axis in range(ndim) if axis not in self.sliced]
        for whole, last in ((factors, np.asarray(factor)), (offsets, np.asarray(offset))):
            whole[shown[len(shown) - len(last) :]] = last
        return {
            "scale": self.scale * factors,
            "translate": self.translate + self._linear() @ offsets,
            "rotate": self.rotate,
            "shear": self.shear,
            "affine": self.affine,
            "units": self.units,
            "axis_labels": self.axis_labels,
        }

    @property
    def sliced(self) -> tuple[int, ...]:
        """The axes that a slice does not run along."""
        if not self.shown:
            return tuple(range(len(self.slice_at)))
        return tuple(axis for axis in range(len(self.scale)) if axis not in self.shown)

    def embed(self, plane: Array) -> Array:
        """Return a result of the slice with the source's number of axes."""
        return np.expand_dims(plane, self.sliced)

    def embed_points(self, points: Array) -> Array:
        """Return points (N, 2) of the slice with the source's number of axes."""
        return np.insert(points, [axis - n for n, axis in enumerate(self.sliced)], 0, axis=1)

    def without_channel(self, axes: str) -> Source:
        """Drop the channel axis of a layer that keeps its channels along an axis of its own; RGB layers do not.

        Parameters
        ----------
        axes
            Of the layer.
        """
        ndim = len(self.scale)
        if "c" not in axes or len(axes) != ndim:
            return self
        channel = axes.index("c")
        keep = [axis for axis in range(ndim) if axis != channel]
        square, homogeneous = np.ix_(keep, keep), np.ix_([*keep, ndim], [*keep, ndim])
        return replace(
            self,
            scale=self.scale[keep],
            translate=self.translate[keep],
            rotate=self.rotate[square],
            shear=_shear_matrix(self.shear, ndim)[square],
            affine=self.affine[homogeneous],
            units=tuple(self.units[axis] for axis in keep),
            axis_labels=tuple(self.axis_labels[axis] for axis in keep),
            slice_at=tuple(at for axis, at in zip(self.sliced, self.slice_at, strict=True) if axis != channel),
            shown=tuple(axis - (axis > channel) for axis in self.shown),
        )

    def _linear(self) -> Array:
        """Return R·H·S."""
        from napari.utils.transforms import Affine

        return np.asarray(Affine(scale=self.scale, rotate=self.rotate, shear=self.shear).linear_matrix)


def axes_of(layer: Any) -> str:
    """Return the axes of an image layer's data, one letter each, from its labels or else by their number.

    Raises
    ------
    ParameterError
        If it has more axes than a scan can have.
    """
    letters = tuple(_LETTERS.get(label.lower(), label.lower()) for label in layer.axis_labels)
    spatial = layer.ndim
    if set(letters) <= set("tczyx") and len(set(letters)) == spatial and {"y", "x"} <= set(letters):
        axes = "".join(letters)
    elif spatial in _GUESSED_AXES:
        axes = _GUESSED_AXES[spatial]
    else:
        raise ParameterError(f"'{layer.name}' has {spatial} axes; an image with 2 to 5 can be used.")
    return axes + "c" if layer.rgb else axes


def visible_slice(layer: Any, dims: Any) -> tuple[Array, str, Source]:
    """Return the 2-D picture of a layer that is in view, its axes, and its place.

    Parameters
    ----------
    layer
        Image layer.
    dims
        The viewer's sliders and the axes that it shows. In 3-D, the slice is that which 2-D would show.
    """
    source = slice_source(layer, dims)
    return slice_of(layer, source), "yxc" if layer.rgb else "yx", source


def slice_source(layer: Any, dims: Any) -> Source:
    """Return the place of the slice of a layer that is in view."""
    shown = shown_axes(layer, dims)
    sliced = [axis for axis in range(layer.ndim) if axis not in shown]
    sizes = np.array((layer.data[0] if layer.multiscale else layer.data).shape)
    index = np.round(_slider_index(layer, np.array(dims.point[-layer.ndim :]), sliced))
    slice_at = np.clip(index, 0, sizes[sliced] - 1).astype(int)
    return Source.of(layer, slice_at=slice_at.tolist(), shown=shown)


def _slider_index(layer: Any, point: Array, sliced: Sequence[int]) -> Array:
    """Return where a point lies along the sliced axes; the others have no part in it, as napari has it.

    It makes a difference where a layer is rotated out of the slice.
    """
    if not sliced:
        return np.zeros(0)
    origin = np.asarray(layer.world_to_data(np.zeros(layer.ndim)))
    steps = np.stack([layer.world_to_data(unit) - origin for unit in np.eye(layer.ndim)[list(sliced)]], axis=1)
    return np.asarray(steps[list(sliced)] @ point[list(sliced)] + origin[list(sliced)])


def slice_of(layer: Any, source: Source, *, keep: int | None = None) -> Array:
    """Return the picture at a place, all of the axis `keep` with it; raises as `whole` does."""
    at = dict(zip(source.sliced, source.slice_at, strict=True))
    index = tuple(slice(None) if axis == keep else at.get(axis, slice(None)) for axis in range(layer.ndim))
    return _loaded(layer.name, (layer.data[0] if layer.multiscale else layer.data)[index])


def shown_axes(layer: Any, dims: Any) -> tuple[int, int]:
    """Return the two axes of a layer that 2-D shows, ascending; its last two where it lacks one of them."""
    before = dims.ndim - layer.ndim  # a layer with fewer axes than the viewer has the last ones
    first, second = sorted(axis - before for axis in dims.order[-2:])
    return (first, second) if first >= 0 else (layer.ndim - 2, layer.ndim - 1)


def whole(layer: Any) -> Array:
    """Return all pixels of a layer, at full resolution if it has several.

    Raises
    ------
    ResourceError
        If they are not in memory yet, and less of it is free.
    """
    return _loaded(layer.name, layer.data[0] if layer.multiscale else layer.data)


def _loaded(name: str, pixels: Any) -> Array:
    if not isinstance(pixels, np.ndarray):  # it may be a slide that is read when it is looked at
        size = math.prod(pixels.shape) * np.dtype(pixels.dtype).itemsize
        check_size(f"'{name}'", size, held=size)
    return np.asarray(pixels)


def add_layer(viewer: Any, data: LayerData) -> Any:
    """Put a layer into a viewer; returns it."""
    return put_in(viewer, make_layer(data))


def make_layer(data: LayerData) -> Any:
    """Return a layer that is in no viewer yet."""
    from napari.layers import Layer

    return Layer.create(*data)


def put_in(viewer: Any, made: Any, *, select: bool = True) -> Any:
    """Put a layer that was made into a viewer; returns it.

    Parameters
    ----------
    viewer
        Where to.
    made
        The layer.
    select
        Select it as well, as napari does by itself: a third of the time that it takes.
    """
    from napari.layers import Labels

    aids = _held_back(made)
    layers = itself(viewer.layers)
    selects = layers._activate_on_insert  # napari (0.9.2) has no public way
    layers._activate_on_insert = selects and select
    try:
        layer = viewer.add_layer(made)
    finally:
        layers._activate_on_insert = selects
    _bring_back(layer, viewer, aids)
    _ADDED.add(itself(layer))
    if isinstance(layer, Labels) and is_result(layer):
        for change in (layer.events.paint, layer.events.data):
            change.connect(_remember_edit)
    return layer


def _held_back(layer: Any) -> list[Any]:
    """Hide what a layer draws for its tools, such as the outline of a brush, and return it.

    napari (0.9.2) makes it together with the layer, which takes as long as half of the layer and stalls the window.
    """
    aids = [aid for aid in layer._overlays.values() if aid.visible]  # napari has no public way
    for aid in aids:
        aid.visible = False
    return aids


def _bring_back(layer: Any, viewer: Any, aids: list[Any]) -> None:
    """Show again what was held back, one after the other, with drawings in between."""

    def show_next() -> None:
        if aids and layer in viewer.layers:
            aids.pop().visible = True
            QTimer.singleShot(PAUSE, show_next)

    QTimer.singleShot(PAUSE, show_next)


def itself(thing: Any) -> Any:
    """Return the viewer or layer behind the proxies that napari hands to panels; those come and go."""
    return getattr(thing, "__wrapped__", thing)


def _remember_edit(event: Any) -> None:
    layer = event.source
    layer.metadata = {**layer.metadata, **made_by({**layer.metadata[MARK], "edited": True})}


def is_edited(layer: Any) -> bool:
    """Tell whether a layer is the user's by now: labels that were painted on or got other data, and every copy.

    Results in place of others start anew.
    """
    return itself(layer) not in _ADDED or bool(layer.metadata.get(MARK, {}).get("edited"))


def made_by(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return metadata that mark a layer as a result of RSKD."""
    return {MARK: dict(facts)}


def is_result(layer: Any) -> bool:
    """Tell whether a layer was made by RSKD, rather than opened."""
    return MARK in layer.metadata


def _shear_matrix(shear: Array, ndim: int) -> Array:
    """Return the shear as a matrix; napari gives its upper triangle as a vector."""
    if shear.ndim == 2:
        return shear
    matrix = np.eye(ndim)
    matrix[np.triu_indices(ndim, 1)] = shear
    return matrix
