"""Results to layers with exact geometry: pure functions, no viewer needed.

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


# ------------------------------------------------------------------------------------------------------ segmentation


def segmentation_layers(
    arrays: Mapping[str, Array],
    classes: Sequence[Mapping[str, str]],
    source: Source,
    *,
    by: str,
    axes: str,
    overlapping: bool = False,
) -> list[LayerData]:
    """Return the labels, and the probability of every class but the background if there are any.

    Parameters
    ----------
    arrays
        `labels` over the source's axes without channels, and perhaps `probabilities` with the classes first; of classes
        that may overlap, the labels have them first as well.
    classes
        `name` and `color` of every class, background first.
    source
        Where the image lies.
    by
        Who made it, for the layer's name: "teacher", "student".
    axes
        Axes of the image that was segmented.
    overlapping
        Whether classes may overlap: each then has a layer of its own.
    """
    place = _without_channel(source.place(), axes)
    metadata = {**source.metadata, **made_by({"by": by})}
    foreground = [c["name"] for c in classes[1:]]
    parts = [(arrays["labels"], classes)]
    if overlapping:
        parts = [(plane, (classes[0], own)) for plane, own in zip(arrays["labels"], classes[1:], strict=True)]
    layers: list[LayerData] = []
    for volume, shown in parts:
        title = shown[1]["name"].capitalize() if len(shown) == 2 else "Segmentation"
        labels = {
            "name": f"{title} ({by})",
            "colormap": class_colors(shown),
            "features": {"index": list(range(len(shown))), "class": [c["name"] for c in shown]},
            "metadata": metadata,
            **place,
        }
        layers.append((np.asarray(volume), labels, "labels"))
    if "probabilities" in arrays:
        for name, volume in zip(foreground, arrays["probabilities"][-len(foreground) :], strict=True):
            style = {"colormap": "magma", "blending": "additive", "visible": False, "contrast_limits": (0, 1)}
            options = {"name": f"Probability of {name} ({by})", "rgb": False, "metadata": metadata, **style, **place}
            layers.append((np.asarray(volume), options, "image"))
    return layers


def class_colors(classes: Sequence[Mapping[str, str]]) -> Any:
    """Return the colours of the classes; the background and unknown labels are transparent."""
    from napari.utils.colormaps import DirectLabelColormap

    colors: dict[int | None, str] = {index: c["color"] for index, c in enumerate(classes) if index}
    return DirectLabelColormap(color_dict={None: "transparent", 0: "transparent", **colors})


def _without_channel(place: dict[str, Any], axes: str) -> dict[str, Any]:
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


# ---------------------------------------------------------------------------------------------------- token importance


def importance_layers(
    role: str, facts: Mapping[str, Any], importance: Array, order: Array, source: Source
) -> list[LayerData]:
    """Return a network's token importance as an image on the token grid, and its top tokens as numbered points.

    Parameters
    ----------
    role
        "teacher" or "student".
    facts
        `token`: image pixels per token along y and x; `top`: how many tokens count as the top; `definition`; `block`.
    importance
        Map on the token grid, shape (rows, columns).
    order
        Token numbers, row by row, most important first.
    source
        Where the picture lies.
    """
    token = np.asarray(facts["token"], dtype=float)
    place = source.place(token, (token - 1) / 2)  # the middle of the first token
    map_options = {
        "name": f"Token importance ({role})",
        "rgb": False,
        "colormap": "inferno" if role == "teacher" else "viridis",
        "blending": "translucent",
        "opacity": 0.6,
        "interpolation2d": "nearest",
        "contrast_limits": _limits(importance),
        "metadata": made_by({"definition": facts["definition"], "block": facts["block"]}),
        **place,
    }
    top = np.asarray(order)[: facts["top"]]
    rows, columns = np.unravel_index(top, importance.shape)
    lead = np.zeros((len(top), len(source.slice_at)))
    point_options = {
        "name": f"Top tokens ({role})",
        "features": {"rank": np.arange(1, len(top) + 1), "importance": importance[rows, columns]},
        "size": 0.5,
        "symbol": "disc",
        "face_color": "white",
        "border_color": "black",
        "opacity": 0.9,
        "text": {"string": "{rank}", "size": 7, "color": "black"},
        "visible": False,
        **place,
    }
    return [
        (source.embed(np.asarray(importance)), map_options, "image"),
        (np.column_stack([lead, rows, columns]), point_options, "points"),
    ]


# ---------------------------------------------------------------------------------------------------------- contourlet


def subband_layers(bands: Sequence[Mapping[str, Any]], arrays: Mapping[str, Array], source: Source) -> list[LayerData]:
    """Return one image per sub-band, coarse to fine; only the directional one with the most energy is shown at first.

    Parameters
    ----------
    bands
        `array` (key into `arrays`), `name`, `level`, `scale` and `translate` in image pixels along y and x, `energy`,
        and for directional bands `edge_angle` in degrees.
    arrays
        The coefficients.
    source
        Where the picture lies.
    """
    directional = [band for band in bands if band.get("edge_angle") is not None]
    strongest = max(directional, key=lambda band: band["energy"], default=None)
    layers: list[LayerData] = []
    for band in bands:
        coefficients = np.asarray(arrays[band["array"]])
        options = {
            "name": subband_name(band),
            "rgb": False,
            "interpolation2d": "nearest",
            "visible": band is strongest,
            "blending": "translucent",
            "colormap": signed_colors() if band in directional else "gray",
            "metadata": made_by({key: band.get(key) for key in ("level", "direction", "edge_angle", "energy")}),
            **source.place(band["scale"], band["translate"]),
        }
        if band in directional:
            limit = float(np.quantile(np.abs(coefficients), 0.995)) or 1.0
            options["contrast_limits"] = (-limit, limit)
        layers.append((source.embed(coefficients), options, "image"))
    return layers


def signed_colors() -> Any:
    """Return a colormap for coefficients to be laid over an image: negative blue, zero clear, positive orange."""
    from napari.utils import Colormap

    return Colormap([[0.1, 0.45, 1, 1], [0.5, 0.5, 0.5, 0], [1, 0.65, 0, 1]], name="blue, clear, orange")


def subband_name(band: Mapping[str, Any]) -> str:
    """Return a sub-band's name as short as a layer list needs it.

    Examples
    --------
    >>> subband_name({"level": 1, "edge_angle": 67.5, "name": "level 1 (fine), edges at 68°"})
    'Edges at 68° (level 1)'
    """
    if band.get("edge_angle") is None:
        return str(band["name"]).capitalize()
    return f"Edges at {band['edge_angle']:.0f}° (level {band['level']})"


def feature_band_layers(value: Mapping[str, Any], arrays: Mapping[str, Array], source: Source) -> list[LayerData]:
    """Return a network's feature map and its sub-bands, per role; only the map is shown at first.

    Parameters
    ----------
    value
        By role: `map` (`scale`, `translate`) and `bands`, as `rskd.feature_bands` gives them.
    arrays
        `{role}_map` and `{role}_{band}`.
    source
        Where the picture lies.
    """
    layers: list[LayerData] = []
    for role, facts in value.items():
        own = {name.removeprefix(f"{role}_"): array for name, array in arrays.items() if name.startswith(f"{role}_")}
        place = source.place(facts["map"]["scale"], facts["map"]["translate"])
        options = {
            "name": f"Feature map ({role})",
            "rgb": False,
            "colormap": "viridis",
            "blending": "translucent",
            "metadata": made_by({"where": facts["where"]}),
            **place,
        }
        layers.append((source.embed(own["map"]), options, "image"))
        for data, band_options, kind in subband_layers(facts["bands"], own, source):
            layers.append((data, {**band_options, "name": f"{band_options['name']}, {role}", "visible": False}, kind))
    return layers


def _limits(importance: Array) -> tuple[float, float]:
    """Return the range of the colours; a constant map has one as well."""
    low, high = float(importance.min()), float(importance.max())
    return (low, high) if high > low else (low, low + 1.0)


def rank_order(importance: Array) -> Array:
    """Return the numbers of the tokens, row by row, the most important first; ties keep their order.

    Examples
    --------
    >>> rank_order(np.array([[0.1, 0.4], [0.4, 0.1]])).tolist()
    [1, 2, 0, 3]
    """
    return np.argsort(-importance.ravel(), kind="stable")


def kept_layer(role: str, facts: Mapping[str, Any], importance: Array, order: Array, source: Source) -> LayerData:
    """Return an image that darkens every token but the top ones; arguments as of `importance_layers`."""
    from napari.utils import Colormap

    token = np.asarray(facts["token"], dtype=float)
    hidden = np.ones(importance.size, np.float32)
    hidden[order[: facts["top"]]] = 0
    options = {
        "name": f"Outside of the top ({role})",
        "rgb": False,
        "colormap": Colormap([[0, 0, 0, 0], [0, 0, 0, 0.8]], name="clear to dark"),
        "contrast_limits": (0, 1),
        "blending": "translucent",
        "interpolation2d": "nearest",
        "metadata": made_by({"by": role}),
        **source.place(token, (token - 1) / 2),
    }
    return source.embed(hidden.reshape(importance.shape)), options, "image"


def attention_layer(role: str, facts: Mapping[str, Any], row: Array, source: Source) -> LayerData:
    """Return what one token attends to as an image on the token grid; arguments as of `importance_layers`."""
    token = np.asarray(facts["token"], dtype=float)
    options = {
        "name": f"Attention of one token ({role})",
        "rgb": False,
        "colormap": "magma",
        "contrast_limits": (0, float(row.max()) or 1.0),
        "blending": "additive",
        "interpolation2d": "nearest",
        "metadata": made_by({"by": role}),
        **source.place(token, (token - 1) / 2),
    }
    return source.embed(np.asarray(row)), options, "image"
