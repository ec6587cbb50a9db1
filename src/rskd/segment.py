"""Segment a scan of any size: plane by plane, tile by tile."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from rskd.config import ModelSpec, SegmentOptions
from rskd.errors import ParameterError, ResourceError
from rskd.events import Progress, Task
from rskd.io.slices import Slices, frame_shape
from rskd.models.normalise import normalise
from rskd.scan import Scan
from rskd.tiling import Canvas, Span, cut, spans

if TYPE_CHECKING:  # a network is handed in; importing timm for its type alone would take seconds
    from rskd.models.segmenter import Segmenter

_ROWS = 64
"""Rows that are turned into labels at a time: few, so that no second map of the whole plane is needed."""
_DEFAULTS = SegmentOptions()
T = TypeVar("T")


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
    tile = _tile_side(options, model.spec)
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    results = _Results(planes, model.spec, probabilities=options.probabilities, device=device)
    rows, columns = (spans(n, tile, overlap=options.overlap, device=device) for n in results.shape)
    grid = [(row, column) for row in rows for column in columns]
    pieces = _pieces(planes, model.spec, results, grid, tile)
    was_training = model.training
    model.train(False)
    try:
        done = 0
        for batch in _batched(pieces, options.batch_size):
            for piece, logits in zip(batch, _forward(model, batch), strict=True):
                piece.canvas.blend(logits, piece.row, piece.column)
                if piece.canvas.complete:
                    results.store(piece.index, piece.canvas.values)
            done += len(batch)
            yield Progress(done, len(planes) * len(grid), "tiles")
    finally:
        model.train(was_training)
    return results.in_world_of(scan)


@dataclass(frozen=True, slots=True)
class _Piece:
    """One tile of one plane."""

    index: int
    image: Tensor
    """C tile tile, normalised."""
    canvas: Canvas
    row: Span
    column: Span


def _pieces(
    planes: Slices, spec: ModelSpec, results: _Results, grid: list[tuple[Span, Span]], tile: int
) -> Iterator[_Piece]:
    """Cut plane after plane into tiles; only the planes whose tiles are in work are in memory."""
    for index, plane in enumerate(planes):
        image = torch.from_numpy(normalise(plane, spec))
        if image.shape[1:] != results.shape:
            image = F.interpolate(image[None], results.shape, mode="bilinear", antialias=True)[0]
        canvas = Canvas(results.canvas(index), tiles=len(grid))
        for row, column in grid:
            yield _Piece(index, cut(image, row, column, tile), canvas, row, column)


def _batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    items = iter(items)
    while batch := list(islice(items, size)):
        yield batch


def _forward(model: Segmenter, batch: list[_Piece]) -> Tensor:
    """Return the logits (B, K, tile, tile)."""
    try:
        with torch.inference_mode():
            images = torch.stack([piece.image for piece in batch])
            logits: Tensor = model(images.to(batch[0].canvas.values.device))
            return logits
    except torch.OutOfMemoryError as error:
        height, width = batch[0].image.shape[1:]
        raise ResourceError(
            f"{len(batch)} tiles of {height} x {width} pixels do not fit into the memory of the device: "
            "use a smaller batch size, or the CPU."
        ) from error


class _Results:
    """The labels and probabilities of all planes, filled plane by plane."""

    def __init__(self, planes: Slices, spec: ModelSpec, *, probabilities: bool, device: torch.device) -> None:
        self._planes, self._classes, self._device = planes, len(spec.classes), device
        self.shape = frame_shape(planes.plane_shape, spec.frame)
        """Height and width at which the network works."""
        size = (len(planes), *planes.plane_shape)
        self._labels = np.empty(size, np.min_scalar_type(self._classes - 1))
        self._probabilities = np.empty((self._classes, *size), np.float32) if probabilities else None

    @property
    def _framed(self) -> bool:
        return self.shape != self._planes.plane_shape

    def canvas(self, index: int) -> Tensor:
        """Return zeros (K, H, W) to blend into: the final place of the probabilities, where that is possible."""
        if self._probabilities is not None and not self._framed and self._device.type == "cpu":
            return torch.from_numpy(self._probabilities[:, index]).zero_()
        return torch.zeros(self._classes, *self.shape, device=self._device)

    def store(self, index: int, values: Tensor) -> None:
        """Turn the logits (K, H, W) of a plane into probabilities, in place, and these into labels."""
        if self._framed or self._probabilities is not None:
            for rows in torch.split(values, _ROWS, dim=1):
                rows.copy_(rows.softmax(0))
        if self._framed:
            values = F.interpolate(values[None], self._planes.plane_shape, mode="bilinear", antialias=True)[0]
        if self._probabilities is not None:
            torch.from_numpy(self._probabilities[:, index]).copy_(values)
        labels = torch.from_numpy(self._labels[index])
        for target, rows in zip(torch.split(labels, _ROWS), torch.split(values, _ROWS, dim=1), strict=True):
            target.copy_(rows.argmax(0))

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
