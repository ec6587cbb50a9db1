"""What of an open image is looked at: all of it, or its slice in view, with everything that a job has to know."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from napari_rskd._source import Array, Source, axes_of, slice_of, slice_source, whole
from napari_rskd._writers import scan_for
from rskd.jobs import Geometry
from rskd.scan import Scan


@dataclass(frozen=True)
class Picture:
    """An image layer, or its slice in view.

    Parameters
    ----------
    layer
        The layer.
    axes
        Of the pixels, one letter each.
    layer_axes
        Of the layer.
    source
        Where it lies.
    geometry
        The same, for a job.
    pixels
        Returns the pixels; it may take a while.
    """

    layer: Any
    axes: str
    layer_axes: str
    source: Source
    geometry: Geometry
    pixels: Callable[[], Array]

    @property
    def where(self) -> str:
        """Which slice it is, for people; empty = the whole layer."""
        sliced = [
            (self.layer_axes[axis], at) for axis, at in zip(self.source.sliced, self.source.slice_at, strict=True)
        ]
        return ", ".join(f"{letter}={at}" for letter, at in sliced if letter != "c")


def whole_picture(layer: Any) -> Picture:
    """Return all of an image layer.

    Parameters
    ----------
    layer
        The layer.

    Raises
    ------
    ParameterError
        If it has more axes than a scan can have.
    """
    axes, source = axes_of(layer), Source.of(layer)
    scan = _scan_of(layer, axes)
    rows = None if scan.affine is None else tuple(map(tuple, scan.affine.tolist()))
    geometry = Geometry(spacing=scan.spacing, units=scan.units, affine=rows, anatomical=scan.anatomical)
    return Picture(layer, axes, axes, source, geometry, lambda: whole(layer))


def slice_picture(layer: Any, dims: Any) -> Picture:
    """Return the slice of an image layer that is in view, with all of its channels.

    Parameters
    ----------
    layer
        The layer.
    dims
        The viewer's sliders and the axes that it shows.

    Raises
    ------
    ParameterError
        If it has more axes than a scan can have.
    """
    letters, source = axes_of(layer), slice_source(layer, dims)
    channel = next((axis for axis in source.sliced if letters[axis] == "c"), None)
    names = {source.shown[0]: "y", source.shown[1]: "x", layer.ndim: "c", channel: "c"}
    axes = "".join(names[axis] for axis in range(layer.ndim + layer.rgb) if axis in names)
    scan = _scan_of(layer, letters)
    sizes = dict(zip(scan.spatial_axes, scan.spacing or (), strict=False))
    spacing = tuple(sizes[letters[axis]] for axis in source.shown if letters[axis] in sizes)
    geometry = Geometry(spacing=spacing, units=scan.units) if len(spacing) == 2 else Geometry()
    return Picture(layer, axes, letters, source, geometry, lambda: slice_of(layer, source, keep=channel))


def _scan_of(layer: Any, axes: str) -> Scan:
    """Return a scan without voxels that lies where labels of the whole layer would."""
    sizes = dict(zip(axes, (layer.data[0] if layer.multiscale else layer.data).shape, strict=True))
    letters = axes.replace("c", "")
    place = Source.of(layer).without_channel(axes).place()
    attributes = {**place, "axis_labels": tuple(letters), "metadata": layer.metadata}
    return scan_for(tuple(sizes[letter] for letter in letters), attributes)
