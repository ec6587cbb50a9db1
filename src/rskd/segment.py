"""Segment a scan of any size: plane by plane, tile by tile."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rskd.backend import Array, Backend, backend_of
from rskd.config import ModelSpec, SegmentOptions
from rskd.errors import ParameterError
from rskd.events import Progress, Task
from rskd.io.slices import Slices, frame_shape
from rskd.models.normalise import normalise
from rskd.scan import Scan
from rskd.tiling import Tiling, predict_tiled

if TYPE_CHECKING:  # a network is handed in; importing timm for its type alone would take seconds
    from rskd.models.segmenter import Segmenter

_ROWS = 64
"""Rows that are turned into labels at a time: few, so that no second map of the whole plane is needed."""
_DEFAULTS = SegmentOptions()


@dataclass(frozen=True)
class Segmentation:
    """Labels of a scan, in its world."""

    labels: Scan
    """Index of the most probable class, over the axes of the scan without c; unsigned integers."""
    probabilities: Scan | None
    """Probability of every class, c first, float32; only if asked for."""


def segment(model: Segmenter, scan: Scan, options: SegmentOptions = _DEFAULTS) -> Task[Segmentation]:
    """Segment every plane of a scan with overlapping tiles whose logits are blended smoothly.

    The task yields its progress after every batch of tiles; closing it cancels. The result does not depend on the
    batch size beyond the rounding of the network itself.

    Parameters
    ----------
    model
        The network, on the device where it shall run.
    scan
        What to segment: any axes, any size from one pixel on, lazy data allowed. Planes are stacked along every axis
        other than c, y and x. Where the spec has a `frame`, a plane is resized to it first and the probabilities back.
    options
        Tiles.

    Returns
    -------
    Segmentation
        Labels, and probabilities if asked for, with the geometry of `scan`.

    Raises
    ------
    ParameterError
        If the channels of scan and network differ, or the tile is no multiple of the patch size.
    ResourceError
        If the memory of the device does not suffice.

    Examples
    --------
    >>> from rskd.events import drain
    >>> import torch
    >>> class Bright(torch.nn.Module):
    ...     spec = ModelSpec(name="bright", image_size=32)
    ...     def forward(self, images):
    ...         return torch.cat([-images, images], 1)
    >>> scan = Scan(np.array([[0, 9, 9]]), "yx", spacing=(0.5, 0.5), units="mm")
    >>> result = drain(segment(Bright(), scan))
    >>> result.labels.data, result.labels.spacing
    (array([[0, 1, 1]], dtype=uint8), (0.5, 0.5))
    """
    planes = Slices(scan, model.spec)
    backend = backend_of(model)
    results = _Results(planes, model.spec, backend, probabilities=options.probabilities)
    tile = _tile_side(options, model.spec)
    tiling = Tiling.over(results.shape, tile=tile, overlap=options.overlap, backend=backend)
    inputs = (
        (_prepare(plane, model.spec, results.shape, backend), results.canvas(index))
        for index, plane in enumerate(planes)
    )
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        tiles = stored = 0
        for ran, finished in predict_tiled(model, inputs, tiling, batch_size=options.batch_size):
            for logits in finished:
                results.store(stored, logits)
                stored += 1
            tiles += ran
            yield Progress(tiles, len(planes) * len(tiling.grid), "tiles")
    finally:
        for module, training in modes.items():
            module.training = training
    return results.in_world_of(scan)


def _prepare(plane: NDArray[np.generic], spec: ModelSpec, shape: tuple[int, int], backend: Backend) -> Array:
    image = backend.put(normalise(plane, spec))
    return image if image.shape[1:] == shape else backend.resize(image, shape)


class _Results:
    """The labels and probabilities of all planes, filled plane by plane."""

    def __init__(self, planes: Slices, spec: ModelSpec, backend: Backend, *, probabilities: bool) -> None:
        self._planes, self._classes, self._backend = planes, len(spec.classes), backend
        self.shape = frame_shape(planes.plane_shape, spec.frame)
        """Height and width at which the network works."""
        size = (len(planes), *planes.plane_shape)
        self._labels = np.empty(size, np.min_scalar_type(self._classes - 1))
        self._probabilities = np.empty((self._classes, *size), np.float32) if probabilities else None

    @property
    def _framed(self) -> bool:
        return self.shape != self._planes.plane_shape

    @property
    def _in_place(self) -> bool:
        """Whether the maps of the network are the probabilities' own memory."""
        return self._probabilities is not None and not self._framed and self._backend.device == "cpu"

    def canvas(self, index: int) -> Array:
        """Return zeros (K, H, W) to blend into: the final place of the probabilities, where that is possible."""
        if self._probabilities is not None and self._in_place:
            place = self._backend.put(self._probabilities[:, index])
            place[...] = 0
            return place
        return self._backend.zeros(self._classes, *self.shape)

    def store(self, index: int, values: Array) -> None:
        """Turn the logits (K, H, W) of a plane into probabilities, in place, and these into labels."""
        backend = self._backend
        if self._framed or self._probabilities is not None:
            for start in range(0, values.shape[1], _ROWS):
                backend.softmax(values[:, start : start + _ROWS])
        if self._framed:
            values = backend.resize(values, self._planes.plane_shape)
        if self._probabilities is not None and not self._in_place:
            self._probabilities[:, index] = backend.get(values)
        for start in range(0, values.shape[1], _ROWS):
            rows = backend.strongest(values[:, start : start + _ROWS])
            self._labels[index, start : start + _ROWS] = backend.get(rows)

    def in_world_of(self, scan: Scan) -> Segmentation:
        """Return everything with the axes and the geometry of `scan`."""
        axes = scan.axes.replace("c", "")
        found = self._planes.stack_axes + "yx"
        order = [found.index(axis) for axis in axes]
        size = (*self._planes.stack_shape, *self._planes.plane_shape)
        labels = scan.like(self._labels.reshape(size).transpose(order), axes)
        if self._probabilities is None:
            return Segmentation(labels, None)
        stacked = self._probabilities.reshape(-1, *size).transpose(0, *(place + 1 for place in order))
        return Segmentation(labels, scan.like(stacked, "c" + axes))


def _tile_side(options: SegmentOptions, spec: ModelSpec) -> int:
    tile = options.tile or spec.image_size
    if tile % spec.patch_size:
        nearest = max(1, round(tile / spec.patch_size)) * spec.patch_size
        raise ParameterError(f"tile={tile} is no multiple of the patch size {spec.patch_size}: use {nearest}.")
    return tile
