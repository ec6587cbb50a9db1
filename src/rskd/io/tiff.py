"""TIFF in its dialects: plain, BigTIFF, ImageJ hyperstack, OME-TIFF, tiled pyramids, Aperio SVS."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rskd.errors import FileError, ResourceError
from rskd.io.lazy import LazyArray
from rskd.io.libraries import library
from rskd.scan import SPATIAL, Scan, move_axes

_CENTIMETRE = 3
_UNITS = {
    "µm": "um", "μm": "um", "um": "um", "micron": "um", "microns": "um", "micrometer": "um", "\\u00B5m": "um",
    "nm": "nm", "nanometer": "nm", "mm": "mm", "millimeter": "mm", "cm": "cm", "m": "m", "Å": "Å",
}  # fmt: skip
_LETTERS = {"X": "x", "Y": "y", "Z": "z", "T": "t", "C": "c", "S": "c"}
LAZY_FROM = 2**28
"""Bytes from which on a pyramid is read when it is sliced."""
_UNNAMED = "QIRVLEHAMP"
"""Dimensions without a meaning here (a plain stack of pages, a series …): taken as z, then as t."""


def read(path: Path) -> Scan:
    """Read the first image of a TIFF as it is seen: a palette as colours, 'white is zero' turned round."""
    return _read(path, colours=True)


def read_indices(path: Path) -> Scan:
    """Read a mask: a palette gives its indices."""
    return _read(path, colours=False)


def write(path: Path, scan: Scan) -> None:
    """Write an OME-TIFF, packed without loss, with axes, spacing and unit; TIFF has no place for an orientation."""
    import tifffile

    order = "tzcyx" if scan.axes[-1] != "c" else "tzyxc"
    data = move_axes(scan.data, scan.axes, [axis for axis in order if axis in scan.axes])
    data = data.astype(np.uint8) if data.dtype == bool else data
    letters = "".join(axis for axis in order if axis in scan.axes).upper()
    colours = letters.endswith("C") and data.shape[-1] in (3, 4) and data.dtype in (np.uint8, np.uint16)
    if colours:
        letters = letters[:-1] + "S"
    elif letters.endswith("C"):
        data, letters = np.moveaxis(data, -1, -3), letters[:-3] + "CYX"
    unit = {"um": "µm"}.get(scan.units or "", scan.units)
    sizes = dict(zip(scan.spatial_axes, scan.spacing or (), strict=False)) if unit else {}
    physical = {f"PhysicalSize{axis.upper()}": size for axis, size in sizes.items()}
    units = {f"{name}Unit": unit for name in physical}
    channels = {"Channel": {"Name": list(scan.channels)}} if scan.channels and "C" in letters else {}
    tifffile.imwrite(
        path,
        data,
        ome=True,
        bigtiff=data.nbytes > 2**31,
        photometric="rgb" if colours else "minisblack",
        compression="zlib",
        metadata={"axes": letters, **physical, **units, **channels},
    )


def _read(path: Path, *, colours: bool) -> Scan:
    import tifffile

    with tifffile.TiffFile(path, _multifile=False) as file:
        if not file.series:
            raise FileError(f"{path.name} is a TIFF without an image: export it again.")
        series = file.series[0]
        if _is_large_pyramid(series):
            return _read_lazily(path)
        _check_whole(path, file, series)
        data = series.asarray()
        spacing_of, units = _spacing(file)
        names = _channel_names(file)
        slide = file.is_svs
        data, letters = _photometric(series.keyframe, data, series.axes, colours=colours)
    data, axes = _name_axes(path, data, letters)
    spatial = [axis for axis in axes if axis in SPATIAL]
    spacing = tuple(spacing_of[a] for a in spatial) if all(a in spacing_of for a in spatial) else None
    count = data.shape[axes.index("c")] if "c" in axes else 0
    return Scan(
        np.ascontiguousarray(data, data.dtype.newbyteorder("=")),
        axes,
        spacing=spacing,
        units=units if spacing else None,
        channels=names if len(names) == count else _colour_names(letters, count),
        modality="SM" if slide else None,
    )


def _is_large_pyramid(series: Any) -> bool:
    """Whether the pixels are better left in the file until they are asked for, and mean what they say."""
    letters = [_LETTERS.get(letter) for letter in series.axes]
    plain = series.keyframe.photometric in (1, 2, 6) and series.dtype.kind in "uif"
    return series.is_pyramidal and plain and series.nbytes > LAZY_FROM and None not in letters and 1 not in series.shape


def _read_lazily(path: Path) -> Scan:
    import tifffile

    file = tifffile.TiffFile(path, _multifile=False)  # stays open as long as the arrays do
    series = file.series[0]
    open_zarr = library("zarr").open_array
    levels = [
        LazyArray(open_zarr(series.aszarr(level=number), mode="r"), path.name, keeping=file)
        for number, level in enumerate(series.levels)
        if level.axes == series.axes
    ]
    axes = "".join(_LETTERS[letter] for letter in series.axes)
    sizes, units = _spacing(file)
    spacing = tuple(sizes[a] for a in axes if a in SPATIAL) if all(a in sizes for a in axes if a in SPATIAL) else None
    names = _channel_names(file)
    count = levels[0].shape[axes.index("c")] if "c" in axes else 0
    return Scan(
        levels[0],
        axes,
        spacing=spacing,
        units=units if spacing else None,
        channels=names if len(names) == count else _colour_names(series.axes, count),
        modality="SM" if file.is_svs else None,
        pyramid=tuple(levels[1:]),
    )


def _check_whole(path: Path, file: Any, series: Any) -> None:
    """Refuse pages whose data lie outside of the file, which would be read as zeros, and sizes no memory can hold."""
    from psutil import virtual_memory

    free = virtual_memory().available
    if series.nbytes > free:
        size = series.nbytes / 1e9
        raise ResourceError(f"{path.name} is {size:.1f} GB unpacked, {free / 1e9:.1f} GB of memory are free: crop it.")
    end = file.filehandle.size
    for page in series.pages:
        if page is None:
            raise FileError(f"{path.name} lacks some of its pages: it belongs to a set of files, or is cut off.")
        segments = zip(page.dataoffsets, page.databytecounts, strict=True)
        expected = math.prod(page.chunked) if page.chunked else 1
        if any(offset + count > end for offset, count in segments) or len(page.dataoffsets) < expected:
            raise FileError(f"{path.name} ends before its last pixel: it is cut off, copy it again.")


def _photometric(page: Any, data: NDArray[Any], letters: str, *, colours: bool) -> tuple[NDArray[Any], str]:
    """Return the pixels as they are seen, and their axes; `page` says how they are stored."""
    if data.dtype == bool:
        data = data.astype(np.uint8) * 255
    if page.photometric == 0 and data.dtype.kind == "u":  # white is zero
        return np.iinfo(data.dtype).max - data, letters
    if page.photometric == 3 and page.colormap is not None and colours:
        palette = (page.colormap >> 8).astype(np.uint8).T  # colours × RGB
        return palette[data], letters + "S"
    if data.dtype.kind not in "iuf":
        raise FileError(f"{data.dtype} pixels are no intensities: save real numbers instead.")
    return data, letters


def _name_axes(path: Path, data: NDArray[Any], letters: str) -> tuple[NDArray[Any], str]:
    """Drop dimensions of length one (but y and x) and name the others with the letters of a `Scan`."""
    kept = [i for i, letter in enumerate(letters) if data.shape[i] > 1 or letter in "YX"]
    axes = ""
    for letter in (letters[i] for i in kept):
        name = _LETTERS.get(letter) or next((free for free in "zt" if letter in _UNNAMED and free not in axes), None)
        if name is None or name in axes:
            raise FileError(f"{path.name} has the dimensions {letters} {data.shape}, which are too many: split it.")
        axes += name
    return data.reshape([data.shape[i] for i in kept]), axes


def _colour_names(letters: str, count: int) -> tuple[str, ...]:
    names = ("red", "green", "blue", "alpha")[:count]
    return names if "S" in letters and count in (3, 4) else ()


def _spacing(file: Any) -> tuple[dict[str, float], str | None]:
    """Return the size of a voxel per axis and the unit, as far as the file states both."""
    if file.is_ome:
        found = _ome_spacing(_first_pixels(file))
    elif file.is_imagej:
        found = _imagej_spacing(file)
    elif file.is_svs:
        found = _svs_spacing(file)
    else:
        found = _resolution(file.pages[0], unit_of_tag=True)
    sizes, unit = found
    known = _UNITS.get(unit or "")
    return ({axis: size for axis, size in sizes.items() if 0 < size < math.inf}, known) if known else ({}, None)


def _first_pixels(file: Any) -> Mapping[str, Any]:
    import tifffile

    images = tifffile.xml2dict(file.ome_metadata)["OME"]["Image"]
    pixels: Mapping[str, Any] = (images[0] if isinstance(images, list) else images)["Pixels"]
    return pixels


def _ome_spacing(pixels: Mapping[str, Any]) -> tuple[dict[str, float], str | None]:
    names = {axis: f"PhysicalSize{axis.upper()}" for axis in SPATIAL}
    sizes = {axis: float(pixels[name]) for axis, name in names.items() if name in pixels}
    units = {str(pixels.get(f"{names[axis]}Unit", "µm")) for axis in sizes}
    return (sizes, units.pop()) if len(units) == 1 else ({}, None)


def _imagej_spacing(file: Any) -> tuple[dict[str, float], str | None]:
    metadata = file.imagej_metadata or {}
    sizes, _ = _resolution(file.pages[0], unit_of_tag=False)
    if "spacing" in metadata:
        sizes["z"] = abs(float(metadata["spacing"]))
    return sizes, str(metadata.get("unit", ""))


def _svs_spacing(file: Any) -> tuple[dict[str, float], str | None]:
    """Return the micrometres per pixel that Aperio's description states; the rest of it may name a patient."""
    stated = re.search(r"\|\s*MPP\s*=\s*([0-9.]+)", file.pages[0].description)
    size = float(stated[1]) if stated else 0.0
    return {"y": size, "x": size}, "um"


def _resolution(page: Any, *, unit_of_tag: bool) -> tuple[dict[str, float], str | None]:
    """Return pixel sizes from the resolution tags. Inches are the dots of a printer, not a measurement: no unit."""
    sizes = {}
    for axis, name in (("x", "XResolution"), ("y", "YResolution")):
        tag = page.tags.get(name)
        if tag is not None and tag.value[0] > 0 and tag.value[1] > 0:
            sizes[axis] = tag.value[1] / tag.value[0]
    unit = page.tags.get("ResolutionUnit")
    return sizes, "cm" if unit_of_tag and unit is not None and unit.value == _CENTIMETRE else None


def _channel_names(file: Any) -> tuple[str, ...]:
    if not file.is_ome:
        return ()
    channels = _first_pixels(file).get("Channel", [])
    channels = channels if isinstance(channels, list) else [channels]
    names = [str(channel["Name"]) for channel in channels if channel.get("Name")]
    return tuple(names) if len(names) == len(channels) else ()
