"""Results to layers: pure functions, no viewer needed; where each lies is told by `napari_rskd._source`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from napari_rskd._source import Array, LayerData, Source, made_by

# ------------------------------------------------------------------------------------------------------ segmentation


MAPS = {
    "entropy": "Uncertainty",
    "margin": "Lead of the likeliest class",
    "disagreement": "Where the networks differ",
    "divergence": "How far the networks are apart",
}
"""Names of the layers of the maps that a segmentation may bring along."""
SEEN = ("entropy", "disagreement")
"""Those that are visible at first; all of them over each other would show nothing."""


def segmentation_layers(
    arrays: Mapping[str, Array],
    classes: Sequence[Mapping[str, str]],
    source: Source,
    *,
    by: str,
    axes: str,
    overlapping: bool = False,
    features: Mapping[str, Sequence[Any]] | None = None,
    made_from: Mapping[str, Any] | None = None,
) -> list[LayerData]:
    """Return the labels, and what else there is: the probability of every class but the background, and maps.

    Parameters
    ----------
    arrays
        `labels` over what was segmented without channels, and perhaps `probabilities` with the classes first, and
        `MAPS`; of classes that may overlap, the labels and maps have them first as well.
    classes
        `name` and `color` of every class, background first.
    source
        Where the image, or its slice, lies.
    by
        Who made it, for the layers' names: "teacher", "student".
    axes
        Axes of the image.
    overlapping
        Whether classes may overlap: each then has a layer of its own.
    features
        What was measured of every class, background first; ``None`` = nothing.
    made_from
        What tells this result from others; every layer keeps it in its metadata, with its own `part`.
    """
    source = source.without_channel(axes)
    made = {"by": by, **(made_from or {})}
    table = features or {"index": list(range(len(classes))), "class": [c["name"] for c in classes]}
    parts = [(arrays["labels"], list(range(len(classes))))]
    if overlapping:
        parts = [(plane, [0, number]) for number, plane in enumerate(arrays["labels"], 1)]
    layers: list[LayerData] = []
    for volume, numbers in parts:
        shown = [classes[number] for number in numbers]
        title = shown[1]["name"].capitalize() if len(shown) == 2 else "Segmentation"
        own = {name: [column[number] for number in numbers] for name, column in table.items()}
        labels = {
            "name": f"{title} ({by})",
            "colormap": class_colors(shown),
            "features": {**own, "index": list(range(len(shown)))},
            **_belonging(source, made, f"labels {title}"),
        }
        layers.append((source.embed(np.asarray(volume)), labels, "labels"))
    return layers + _map_layers(arrays, [c["name"] for c in classes[1:]], source, made, overlapping=overlapping)


def _map_layers(
    arrays: Mapping[str, Array],
    foreground: Sequence[str],
    source: Source,
    made: Mapping[str, Any],
    *,
    overlapping: bool,
) -> list[LayerData]:
    """Return maps from 0 to 1 over the image; most are hidden at first."""
    maps: dict[str, tuple[Array, bool]] = {}
    if "probabilities" in arrays:
        volumes = arrays["probabilities"][-len(foreground) :]
        maps |= {f"Probability of {n}": (v, False) for n, v in zip(foreground, volumes, strict=True)}
    for name in (name for name in MAPS if name in arrays):
        seen = name in SEEN
        if overlapping:
            maps |= {f"{MAPS[name]}, {n}": (v, seen) for n, v in zip(foreground, arrays[name], strict=True)}
        else:
            maps[MAPS[name]] = (arrays[name], seen)
    layers: list[LayerData] = []
    for title, (volume, visible) in maps.items():
        style = {"colormap": "magma", "blending": "additive", "visible": visible, "contrast_limits": (0, 1)}
        options = {"name": f"{title} ({made['by']})", "rgb": False, **style, **_belonging(source, made, title)}
        layers.append((source.embed(np.asarray(volume)), options, "image"))
    return layers


def _belonging(source: Source, made: Mapping[str, Any], part: str) -> dict[str, Any]:
    """Return the layer arguments that say where a part of a result lies and what it is."""
    return {"metadata": {**source.metadata, **made_by({**made, "part": part})}, **source.place()}


def class_colors(classes: Sequence[Mapping[str, str]]) -> Any:
    """Return the colours of the classes; the background and unknown labels are transparent."""
    from napari.utils.colormaps import DirectLabelColormap

    colors: dict[int | None, str] = {index: c["color"] for index, c in enumerate(classes) if index}
    return DirectLabelColormap(color_dict={None: "transparent", 0: "transparent", **colors})


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
        (source.embed_points(np.column_stack([rows, columns])), point_options, "points"),
    ]


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
