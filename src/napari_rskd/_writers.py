"""Labels to files, with the geometry of the scan they were made on, whoever opened it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_rskd._readers import SCAN, place, towards_viewer
from rskd.errors import ParameterError
from rskd.io import write_labels as write_file
from rskd.scan import SPATIAL, Scan

_AXES = {2: "yx", 3: "zyx", 4: "tzyx"}
_PLACE = ("scale", "translate", "rotate", "shear", "affine", "units", "axis_labels", "metadata")
_UNITS = {
    "millimeter": "mm", "micrometer": "um", "micron": "um", "nanometer": "nm", "centimeter": "cm", "meter": "m",
    "angstrom": "Å",
}  # fmt: skip


def write_labels(path: str, data: Any, attributes: dict[str, Any]) -> list[str]:
    """Write a labels layer; the ending of the name decides on the format.

    Parameters
    ----------
    path
        Ending in .nii, .nii.gz, .dcm (DICOM SEG), .ome.tif or .zarr.
    data
        The labels.
    attributes
        Of the layer, as napari hands them to writers.

    Returns
    -------
    list of str
        What was written.
    """
    labels = np.asarray(data[0] if attributes.get("multiscale") else data)
    write_file(path, labels, scan_for(labels.shape, attributes), names=class_names(attributes))
    return [path]


def scan_of_labels(layer: Any) -> Scan:
    """Return the scan that the labels of a layer belong to, as they lie now; raises as `scan_for` does."""
    return scan_for(layer.data.shape, {name: getattr(layer, name) for name in _PLACE})


def scan_for(shape: tuple[int, ...], attributes: dict[str, Any]) -> Scan:
    """Return the scan that labels belong to: that of their metadata if they still lie on it, else as their layer lies.

    Parameters
    ----------
    shape
        Of the labels.
    attributes
        Of their layer.

    Raises
    ------
    ParameterError
        If the layer has more axes than a file can have.
    """
    known = attributes.get("metadata", {}).get(SCAN)
    known = known if isinstance(known, Scan) else None
    world = _world(len(shape), attributes)
    if known is not None:
        own = tuple(n for n, axis in zip(known.data.shape, known.axes, strict=True) if axis != "c")
        if own == shape and np.allclose(_world(len(shape), place(known)), world, rtol=1e-5, atol=1e-5):
            return known
    return _from_layer(shape, attributes, world, known)


def _from_layer(
    shape: tuple[int, ...], attributes: dict[str, Any], world: NDArray[np.float64], known: Scan | None
) -> Scan:
    labels = "".join(attributes.get("axis_labels") or ())
    axes = labels if len(labels) == len(shape) and {"y", "x"} <= set(labels) <= set("tzyx") else _AXES.get(len(shape))
    if axes is None:
        raise ParameterError(f"Labels with {len(shape)} axes cannot be written, 2 to 4 can: split them.")
    used = [*(index for index, axis in enumerate(axes) if axis in SPATIAL), len(axes)]
    affine = world[np.ix_(used, used)]
    nothing = np.broadcast_to(np.zeros((), np.uint8), shape)
    units = {_UNITS.get(str(attributes["units"][index])) for index in used[:-1]} if attributes.get("units") else {None}
    unit = units.pop() if len(units) == 1 else None
    if unit is None and np.allclose(affine, np.eye(len(used))):
        return Scan(nothing, axes)
    spacing = tuple(map(float, np.linalg.norm(affine[:-1, :-1], axis=0)))
    anatomical = (
        known is not None and known.anatomical and known.spatial_axes == "".join(a for a in axes if a in SPATIAL)
    )
    if known is not None and anatomical:
        affine = towards_viewer(known) @ affine
    return Scan(nothing, axes, spacing=spacing, units=unit, affine=affine, anatomical=anatomical)


def _world(count: int, attributes: dict[str, Any]) -> NDArray[np.float64]:
    """Return voxel index to world for a layer's attributes."""
    from napari.utils.transforms import Affine

    own = {
        name: attributes[name] for name in ("scale", "translate", "rotate", "shear") if attributes.get(name) is not None
    }
    outer = attributes.get("affine")
    matrix = np.eye(count + 1) if outer is None else np.asarray(getattr(outer, "affine_matrix", outer), np.float64)
    return np.asarray(matrix @ Affine(ndim=count, **own).affine_matrix, np.float64)


def class_names(attributes: dict[str, Any]) -> tuple[str, ...]:
    """Return the class names of the labels 1, 2 … that RSKD's own layers carry in their features."""
    features = attributes.get("features")
    if features is None or "class" not in features or "index" not in features:
        return ()
    named = dict(zip(features["index"], features["class"], strict=True))
    return tuple(str(named.get(index, f"Label {index}")) for index in range(1, max(named, default=0) + 1))
