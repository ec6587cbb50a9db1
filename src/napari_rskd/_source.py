"""Where a layer lies, and how a result is laid upon it exactly, without a viewer.

napari maps a voxel index i to the world by ``affine (R·H·S·i + t)`` with rotation R, shear H, scale S and
translation t. A result whose index j means the source index ``offset + factor·j`` is placed without resampling by
the same R, H and affine, the scale ``S·factor`` and the translation ``t + R·H·S·offset``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rskd.errors import ParameterError

LayerData = tuple[Any, dict[str, Any], str]
Array = NDArray[Any]
MARK = "rskd"  # key in a layer's metadata
_GUESSED_AXES = {2: "yx", 3: "zyx", 4: "tzyx", 5: "tczyx"}
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
        Index along each leading axis, for a slice; empty = the whole layer.
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
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, layer: Any, *, slice_at: Sequence[int] = ()) -> Source:
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
            metadata=dict(layer.metadata),
        )

    def place(self, factor: ArrayLike = (), offset: ArrayLike = ()) -> dict[str, Any]:
        """Return the layer arguments that put a result onto this source.

        Parameters
        ----------
        factor
            Source pixels per result pixel along the last axes; leading axes count 1.
        offset
            Source index of the result's index 0 along the last axes; leading axes count 0, or the index of the slice.
        """
        ndim = len(self.scale)
        factors, offsets = np.ones(ndim), np.zeros(ndim)
        offsets[: len(self.slice_at)] = self.slice_at
        for whole, last in ((factors, np.asarray(factor)), (offsets, np.asarray(offset))):
            whole[ndim - len(last) :] = last
        return {
            "scale": self.scale * factors,
            "translate": self.translate + self._linear() @ offsets,
            "rotate": self.rotate,
            "shear": self.shear,
            "affine": self.affine,
            "units": self.units,
            "axis_labels": self.axis_labels,
        }

    def embed(self, plane: Array) -> Array:
        """Return a result of the slice with the source's number of axes."""
        return plane[(np.newaxis,) * len(self.slice_at)]

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


def visible_slice(layer: Any, point: Sequence[float]) -> tuple[Array, str, Source]:
    """Return the 2-D picture of a layer that is in view, its axes, and its place.

    Parameters
    ----------
    layer
        Image layer.
    point
        Position of the viewer's sliders in the world.
    """
    leading = layer.ndim - 2
    index = np.round(layer.world_to_data(tuple(point)))[:leading]
    slice_at = tuple(int(np.clip(i, 0, n - 1)) for i, n in zip(index, layer.data.shape, strict=False))
    level = layer.data[0] if layer.multiscale else layer.data
    return np.asarray(level[slice_at]), "yxc" if layer.rgb else "yx", Source.of(layer, slice_at=slice_at)


def whole(layer: Any) -> Array:
    """Return all pixels of a layer, at full resolution if it has several."""
    return np.asarray(layer.data[0] if layer.multiscale else layer.data)


def add_layer(viewer: Any, data: LayerData) -> Any:
    """Put a layer into a viewer; returns it."""
    from napari.layers import Layer

    return viewer.add_layer(Layer.create(*data))


def made_by(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return metadata that mark a layer as a result of RSKD."""
    return {MARK: dict(facts)}


def is_result(layer: Any) -> bool:
    """Tell whether a layer was made by RSKD, rather than opened."""
    return MARK in layer.metadata


def without_channel(place: dict[str, Any], axes: str) -> dict[str, Any]:
    """Drop the channel axis of a layer that keeps its channels along an axis of its own; RGB layers do not."""
    ndim = len(place["scale"])
    if "c" not in axes or len(axes) != ndim:
        return place
    keep = [i for i, letter in enumerate(axes) if letter != "c"]
    square, homogeneous = np.ix_(keep, keep), np.ix_([*keep, ndim], [*keep, ndim])
    return {
        "scale": place["scale"][keep],
        "translate": place["translate"][keep],
        "rotate": place["rotate"][square],
        "shear": _shear_matrix(place["shear"], ndim)[square],
        "affine": place["affine"][homogeneous],
        "units": tuple(place["units"][i] for i in keep),
        "axis_labels": tuple(place["axis_labels"][i] for i in keep),
    }


def _shear_matrix(shear: Array, ndim: int) -> Array:
    """Return the shear as a matrix; napari gives its upper triangle as a vector."""
    if shear.ndim == 2:
        return shear
    matrix = np.eye(ndim)
    matrix[np.triu_indices(ndim, 1)] = shear
    return matrix
