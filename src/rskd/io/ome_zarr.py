"""OME-Zarr 0.1 to 0.5: read lazily with its pyramid; written as 0.4, or as the image that labels are added to."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rskd.errors import FileError, ParameterError, ResourceError
from rskd.io.files import replacing
from rskd.io.lazy import LazyArray
from rskd.io.libraries import library
from rskd.scan import SPATIAL, Scan, move_axes

_ORDER = "tczyx"
_MARKS = ("zarr.json", ".zgroup", ".zattrs")
_UNITS = {"nanometer": "nm", "micrometer": "um", "millimeter": "mm", "centimeter": "cm", "meter": "m", "angstrom": "Å"}
_LARGEST_CHUNK = 2**31
_CHUNK = 512
_HALVED = 2048
"""Side of the parts in which a plane is made smaller."""
_SMALLEST = 256
"""Side of a plane from which on no smaller version of it is written."""
_OWN = "rskd"
"""Attribute with the orientation, for which OME-Zarr itself has no place."""
LABELS = "labels"


def is_ome_zarr(folder: Path) -> bool:
    """Whether a folder is a zarr group."""
    return any((folder / mark).is_file() for mark in _MARKS)


def image_of(labels: Path) -> Path | None:
    """Return the OME-Zarr image of which a path names labels."""
    inside = labels.parent.name == LABELS and is_ome_zarr(labels.parent.parent)
    return labels.parent.parent if inside else None


def recipe_in(folder: Path) -> Mapping[str, Any] | None:
    """Return what a result of this program says it was made with; ``None`` if a folder is something else."""
    if not is_ome_zarr(folder):
        return None
    own = dict(library("zarr").open_group(folder, mode="r").attrs).get(_OWN)
    recipe = own.get("recipe") if isinstance(own, dict) else None
    return recipe if isinstance(recipe, dict) else None


def read(folder: Path) -> Scan:
    """Read an image, or labels, without loading their voxels."""
    group = library("zarr").open_group(folder, mode="r")
    attributes = dict(group.attrs)
    ome = attributes.get("ome", attributes)
    if "plate" in ome or "well" in ome:
        raise FileError(f"{folder.name} is a plate of many images: open one of its fields, such as A/1/0.")
    if "bioformats2raw.layout" in ome and "multiscales" not in ome:
        group = group["0"]
        attributes = dict(group.attrs)
        ome = attributes.get("ome", attributes)
    if not ome.get("multiscales"):
        raise FileError(f"{folder.name} is zarr, but no OME-Zarr image: open the folder that holds its multiscales.")
    image = ome["multiscales"][0]
    levels = [_level(folder, group, entry) for entry in image["datasets"]]
    axes, units = _axes(folder, image, levels[0].ndim)
    scale, translation = _transform(image, 0)
    spatial = [place for place, axis in enumerate(axes) if axis in SPATIAL]
    spacing = tuple(float(scale[place]) for place in spatial) if scale else None
    affine, anatomical = _affine(attributes.get(_OWN), spacing, translation and [translation[p] for p in spatial])
    channels, window = _shown(ome, levels[0].shape[axes.index("c")] if "c" in axes else 1)
    return Scan(
        levels[0],
        axes,
        spacing=spacing if units or affine is not None else None,
        units=units,
        affine=affine,
        anatomical=anatomical,
        channels=channels if "c" in axes else (),
        pyramid=tuple(levels[1:]),
        levels=tuple(_place(image, level, axes) for level in range(1, len(levels))),
        window=window,
        meaning=LABELS if "image-label" in ome else None,
    )


def write(folder: Path, scan: Scan) -> None:
    """Write an image into a new folder."""
    _write(library("zarr").open_group(folder, mode="w", zarr_format=2), scan, {})


def write_labels(folder: Path, labels: Scan) -> None:
    """Write labels that stand alone into a new folder."""
    _write(library("zarr").open_group(folder, mode="w", zarr_format=2), labels, {"image-label": {"version": "0.4"}})


def add_labels(image: Path, name: str, labels: Scan) -> None:
    """Write labels into the labels group of an OME-Zarr image; those of the same name are replaced by whole ones.

    Raises
    ------
    FileError
        If the system refuses; labels of that name are then as they were.
    """
    zarr_format = library("zarr").open_group(image, mode="r+").metadata.zarr_format
    facts = {"image-label": {"version": "0.5" if zarr_format == 3 else "0.4", "source": {"image": "../../"}}}
    with replacing(image / LABELS / name) as partial:
        _write(library("zarr").open_group(partial, mode="w", zarr_format=zarr_format), labels, facts)
        enlist_labels(image, name)


def _level(folder: Path, group: Any, entry: Mapping[str, Any]) -> LazyArray:
    array = group[entry["path"]]
    if array.dtype.kind not in "biuf":
        raise FileError(f"{folder.name} holds {array.dtype} values, which are no intensities: save real numbers.")
    if math.prod(array.chunks) * array.dtype.itemsize > _LARGEST_CHUNK:
        raise ResourceError(f"{folder.name} is stored in blocks of more than 2 GB: save it in smaller ones.")
    return LazyArray(array, folder.name)


def _axes(folder: Path, image: Mapping[str, Any], count: int) -> tuple[str, str | None]:
    """Return the axes as the letters of a `Scan`, and the unit of all its spatial ones."""
    stated = image.get("axes") or list(_ORDER)
    entries = [axis if isinstance(axis, dict) else {"name": axis} for axis in stated]
    letters = "".join(str(axis["name"]).lower()[:1] for axis in entries)
    if len(letters) != count or len(set(letters)) != count or not set(letters) <= set(_ORDER):
        raise FileError(f"{folder.name} has {count} dimensions called {letters!r}: only t, c, z, y and x can be read.")
    units = {axis.get("unit") for axis, letter in zip(entries, letters, strict=True) if letter in SPATIAL}
    return letters, _UNITS.get(str(units.pop())) if len(units) == 1 else None


def _place(image: Mapping[str, Any], level: int, axes: str) -> dict[str, tuple[float, float]]:
    """Return step and start of a level along every spatial axis, in voxels of the picture; see `Scan.levels`."""
    (fine, origin), (coarse, start) = _transform(image, 0), _transform(image, level)
    if fine is None or coarse is None:
        return {}
    places = zip(axes, fine, coarse, origin or [0.0] * len(axes), start or [0.0] * len(axes), strict=True)
    return {axis: (c / f, (s - o) / f) for axis, f, c, o, s in places if axis in SPATIAL}


def _transform(image: Mapping[str, Any], level: int) -> tuple[list[float] | None, list[float] | None]:
    """Return scale and translation of a level, those of the whole pyramid applied after its own."""
    steps = [*(image["datasets"][level].get("coordinateTransformations") or [])]
    steps += image.get("coordinateTransformations") or []
    scale: NDArray[np.float64] | None = None
    translation: NDArray[np.float64] | None = None
    for step in steps:
        if step["type"] == "scale":
            factor = np.asarray(step["scale"], np.float64)
            scale = factor if scale is None else scale * factor
            translation = None if translation is None else translation * factor
        elif step["type"] == "translation":
            offset = np.asarray(step["translation"], np.float64)
            translation = offset if translation is None else translation + offset
    return None if scale is None else scale.tolist(), None if translation is None else translation.tolist()


def _affine(
    own: Any, spacing: Sequence[float] | None, translation: Sequence[float] | None
) -> tuple[NDArray[np.float64] | None, bool]:
    """Return the affine, and whether it leads into a patient."""
    if isinstance(own, dict) and "affine" in own:
        return np.array(own["affine"], np.float64), bool(own.get("anatomical"))
    if spacing is None or translation is None:
        return None, False
    affine = np.diag([*spacing, 1.0])
    affine[:-1, -1] = translation
    return affine, False


def _shown(ome: Mapping[str, Any], count: int) -> tuple[tuple[str, ...], tuple[float, float] | None]:
    """Return the names of the channels, and the range of values to show if it is the same for all."""
    entries = (ome.get("omero") or {}).get("channels") or []
    names = tuple(str(entry["label"]) for entry in entries if entry.get("label"))
    windows = {(float(e["window"]["start"]), float(e["window"]["end"])) for e in entries if "window" in e}
    window = windows.pop() if len(windows) == 1 else None
    return names if len(names) == count else (), window if window and window[0] < window[1] else None


def _write(group: Any, scan: Scan, facts: Mapping[str, Any]) -> None:
    order = stored_axes(scan)
    data = move_axes(scan.data, scan.axes, order)
    data = data.astype(np.uint8) if data.dtype == bool else data
    chunks = (*(1 for _ in data.shape[:-2]), *(min(_CHUNK, n) for n in data.shape[-2:]))
    _create(group, "0", data.shape, data.dtype, chunks)[...] = data
    _complete(group, scan, facts)


def stored_axes(scan: Scan) -> str:
    """Return the axes of a scan in the order in which OME-Zarr stores them.

    Raises
    ------
    ParameterError
        If its spatial axes are in another order.
    """
    order = "".join(axis for axis in _ORDER if axis in scan.axes)
    if [axis for axis in order if axis in SPATIAL] != list(scan.spatial_axes):
        raise ParameterError(f"axes={scan.axes!r}: OME-Zarr needs the spatial ones in the order z, y, x.")
    return order


def begin(
    folder: Path, shape: Sequence[int], dtype: np.dtype[Any], *, chunks: Sequence[int], beside: Path | None
) -> None:
    """Make a new folder with an empty array at full resolution, which `complete` turns into an image.

    Parameters
    ----------
    folder
        To be made; what is there is replaced.
    shape, dtype, chunks
        Of the array, over `stored_axes`.
    beside
        OME-Zarr image whose version is used; None = 0.4.
    """
    zarr = library("zarr")
    version = 2 if beside is None else zarr.open_group(beside, mode="r").metadata.zarr_format
    _create(zarr.open_group(folder, mode="w", zarr_format=version), "0", shape, dtype, tuple(chunks))


def full_resolution(folder: Path) -> Any:
    """Return the zarr array that `begin` made, to write into."""
    return library("zarr").open_group(folder, mode="r+")["0"]


def complete(folder: Path, scan: Scan, *, labels: bool, beside: bool = False, own: Mapping[str, Any]) -> None:
    """Make an image of a folder whose full resolution is there: build its pyramid and describe it.

    Parameters
    ----------
    folder
        Made by `begin`.
    scan
        Any data over the same axes, with the geometry.
    labels
        Whether these are labels.
    beside
        Whether they will belong to an image, in its labels group.
    own
        Attributes to add to our own.
    """
    group = library("zarr").open_group(folder, mode="r+")
    version = "0.5" if group.metadata.zarr_format == 3 else "0.4"
    facts = {"version": version, **({"source": {"image": "../../"}} if beside else {})}
    _complete(group, scan, {"image-label": facts} if labels else {})
    group.attrs[_OWN] = {**group.attrs.get(_OWN, {}), **own}


def enlist_labels(image: Path, name: str) -> None:
    """Add a name to the list of labels of an image."""
    root = library("zarr").open_group(image, mode="r+")
    modern = root.metadata.zarr_format == 3
    group = root.require_group(LABELS)
    known = group.attrs.get("ome", {}) if modern else group.attrs
    names = [*dict.fromkeys([*known.get(LABELS, []), name])]
    if modern:
        group.attrs["ome"] = {"version": "0.5", LABELS: names}
    else:
        group.attrs[LABELS] = names


def _complete(group: Any, scan: Scan, facts: Mapping[str, Any]) -> None:
    order = stored_axes(scan)
    sizes = dict(zip(scan.spatial_axes, scan.spacing or (), strict=False))
    offset = dict(zip(scan.spatial_axes, _offset(scan), strict=False))
    scale = [sizes.get(axis, 1.0) for axis in order]
    datasets: list[dict[str, Any]] = []
    factor = 1
    while True:
        steps: list[dict[str, Any]] = [
            {"type": "scale", "scale": [s * (factor if a in "yx" else 1) for s, a in zip(scale, order, strict=True)]}
        ]
        if offset:
            steps.append({"type": "translation", "translation": [offset.get(axis, 0.0) for axis in order]})
        datasets.append({"path": str(len(datasets)), "coordinateTransformations": steps})
        if max(group[str(len(datasets) - 1)].shape[-2:]) <= _SMALLEST:
            break
        _halve(group, len(datasets))
        factor *= 2
    _describe(group, scan, {"axes": _named(order, scan.units), "datasets": datasets}, facts)


def _halve(group: Any, level: int) -> None:
    """Store every second pixel of the level before, part by part."""
    finer = group[str(level - 1)]
    shape = (*finer.shape[:-2], *(-(-n // 2) for n in finer.shape[-2:]))
    chunks = (*finer.chunks[:-2], *(min(c, n) for c, n in zip(finer.chunks[-2:], shape[-2:], strict=True)))
    coarser = _create(group, str(level), shape, finer.dtype, chunks)
    steps = (*chunks[:-2], *(max(1, _HALVED // c) * c for c in chunks[-2:]))
    for corner in product(*(range(0, n, step) for n, step in zip(shape, steps, strict=True))):
        part = [slice(first, min(first + step, n)) for first, step, n in zip(corner, steps, shape, strict=True)]
        source = (*part[:-2], *(slice(2 * p.start, 2 * p.stop, 2) for p in part[-2:]))
        coarser[tuple(part)] = finer[source]


def _describe(group: Any, scan: Scan, image: dict[str, Any], facts: Mapping[str, Any]) -> None:
    modern = group.metadata.zarr_format == 3
    ome: dict[str, Any] = {"multiscales": [image if modern else {"version": "0.4", **image}], **facts}
    if scan.channels:
        ome["omero"] = {"channels": [{"label": name, "color": "FFFFFF", "active": True} for name in scan.channels]}
    group.attrs.update({"ome": {"version": "0.5", **ome}} if modern else ome)
    if scan.affine is not None:
        group.attrs[_OWN] = {"affine": scan.affine.tolist(), "anatomical": scan.anatomical}


def _named(order: Sequence[str], units: str | None) -> list[dict[str, str]]:
    kinds = {"t": "time", "c": "channel"}
    unit = {short: name for name, short in _UNITS.items()}.get(units or "")
    axes = [{"name": axis, "type": kinds.get(axis, "space")} for axis in order]
    return [{**axis, "unit": unit} if unit and axis["type"] == "space" else axis for axis in axes]


def _offset(scan: Scan) -> list[float]:
    """Return the translation of an image that lies along its axes; a turned one has none that means anything here."""
    if scan.affine is None or scan.spacing is None:
        return []
    upright = np.allclose(scan.affine[:-1, :-1], np.diag(scan.spacing), rtol=1e-6, atol=1e-9)
    return [float(value) for value in scan.affine[:-1, -1]] if upright else []


def _create(group: Any, name: str, shape: Sequence[int], dtype: Any, chunks: Sequence[int]) -> Any:
    options = {} if group.metadata.zarr_format == 3 else {"chunk_key_encoding": {"name": "v2", "separator": "/"}}
    return group.create_array(
        name, shape=tuple(shape), chunks=tuple(chunks), dtype=dtype, fill_value=0, overwrite=True, **options
    )
