"""Files to layers: what the file says about geometry, colours and contrast is what the layer gets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rskd.io import can_read, read_scans
from rskd.io.lazy import LazyArray
from rskd.scan import SPATIAL, Scan

LayerData = tuple[Any, dict[str, Any], str]
SCAN = "scan"
"""Key in a layer's metadata: the scan without its voxels, for whoever writes results."""
_COLOURS = (("red", "green", "blue"), ("red", "green", "blue", "alpha"))
_UNITS = {"Å": "angstrom"}
_DIGITS = 6


def get_reader(path: str | Sequence[str]) -> Callable[[str | Sequence[str]], list[LayerData]] | None:
    """Return a reader for files or folders of a kind that RSKD reads, else None.

    Parameters
    ----------
    path
        One or several; their content decides, not their names.
    """
    paths = [path] if isinstance(path, str) else list(path)
    return read_layers if paths and all(can_read(each) for each in paths) else None


def read_layers(path: str | Sequence[str]) -> list[LayerData]:
    """Read scans into layers: an image or labels for each; where there are channels, an image or labels for each.

    Parameters
    ----------
    path
        As `get_reader` got it. The files of a DICOM series become one layer.
    """
    from napari.utils.notifications import show_info

    scans = read_scans(*([path] if isinstance(path, str) else path))
    for note in (note for scan in scans for note in scan.notes):
        show_info(note)
    return [layer_of(part) for scan in scans for part in by_class(scan)]


def by_class(scan: Scan) -> list[Scan]:
    """Return labels of classes that may overlap as labels of each, called by its name; any other scan as it is."""
    if scan.meaning != "labels" or "c" not in scan.axes:
        return [scan]
    at, axes = scan.axes.index("c"), scan.axes.replace("c", "")
    planes = [(*(slice(None) for _ in range(at)), number) for number in range(scan.channel_count)]
    levels = [_lazily(level) for level in (scan.data, *scan.pyramid)]
    return [
        replace(
            scan,
            data=levels[0][plane],
            axes=axes,
            channels=scan.channels[number : number + 1],
            pyramid=tuple(level[plane] for level in levels[1:]),
        )
        for number, plane in enumerate(planes)
    ]


def layer_of(scan: Scan) -> LayerData:
    """Return a scan as a layer that lies where the scan lies.

    For the body's own directions the layer's world is the one of DICOM, to the left, the back and the head: the way in
    which radiologists look at a slice. The scan in the layer's metadata keeps them as they are.

    Parameters
    ----------
    scan
        From `rskd.io`.
    """
    options = {"name": name_of(scan), "metadata": {SCAN: without_voxels(scan)}, **place(scan)}
    if scan.meaning == "labels":
        options["name"] = " ".join([name_of(scan), *scan.channels])
        return _shown(scan), options, "labels"
    options["rgb"] = scan.channels in _COLOURS and scan.axes.endswith("c")
    if "c" in scan.axes and not options["rgb"]:
        options["channel_axis"] = scan.axes.index("c")
        options["name"] = [f"{options['name']} {part}" for part in scan.channels or range(scan.channel_count)]
        del options["rgb"]
    if scan.window is not None and not options.get("rgb"):
        options["contrast_limits"] = scan.window
    if scan.pyramid:
        options["multiscale"] = True
    return _shown(scan), options, "image"


def name_of(scan: Scan) -> str:
    """Return the name of a layer: for DICOM what made it and the beginning of its hash, else the file's own name.

    The names of DICOM files and folders, like their headers, may say who the patient is.
    """
    if scan.files:
        return f"{scan.modality or 'DICOM'} {(scan.digest or '')[:_DIGITS]}"
    return scan.source.name.split(".")[0] if scan.source is not None else "Scan"


def place(scan: Scan) -> dict[str, Any]:
    """Return the layer arguments for a scan's geometry, over its axes without channels."""
    letters = scan.axes.replace("c", "")
    sizes = dict(zip(scan.spatial_axes, scan.spacing or (), strict=False))
    found: dict[str, Any] = {"axis_labels": tuple(letters), "scale": tuple(sizes.get(axis, 1.0) for axis in letters)}
    if scan.units and sizes:
        unit = _UNITS.get(scan.units, scan.units)
        found["units"] = tuple(unit if axis in SPATIAL else "pixel" for axis in letters)
    if scan.affine is not None:
        inner = scan.affine @ np.diag([*(1 / size for size in scan.spacing or ()), 1.0])
        found["affine"] = _embed(towards_viewer(scan) @ inner, letters)
    return found


def towards_viewer(scan: Scan) -> NDArray[np.float64]:
    """Return the turn from the scan's world to the viewer's; its own inverse."""
    turn = np.eye(len(scan.spatial_axes) + 1)
    if scan.anatomical:
        for index, axis in enumerate(scan.spatial_axes):
            turn[index, index] = 1.0 if axis == "z" else -1.0
    return turn


def without_voxels(scan: Scan) -> Scan:
    """Return a scan that knows its shape and geometry and takes no memory."""
    nothing = np.broadcast_to(np.zeros((), scan.data.dtype), scan.data.shape)
    return replace(scan, data=nothing, pyramid=())


def _embed(affine: NDArray[np.float64], letters: str) -> NDArray[np.float64]:
    whole = np.eye(len(letters) + 1)
    used = [*(index for index, axis in enumerate(letters) if axis in SPATIAL), len(letters)]
    whole[np.ix_(used, used)] = affine
    return whole


def _shown(scan: Scan) -> Any:
    levels = [_lazily(level) for level in (scan.data, *scan.pyramid)]
    return levels if scan.pyramid else levels[0]


def _lazily(data: Any) -> Any:
    """Return stored arrays as dask ones, which napari reads in the background and in parts."""
    if not isinstance(data, LazyArray):
        return data
    from dask.array import from_array

    return from_array(data, chunks=data.chunks or "auto", name=False)  # type: ignore[no-untyped-call, unused-ignore]
