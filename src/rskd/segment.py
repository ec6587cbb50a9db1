"""Segment a scan of any size: plane by plane, tile by tile."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from rskd.config import ModelSpec, SegmentOptions
from rskd.errors import ParameterError, ResourceError
from rskd.events import Progress, Task
from rskd.io.slices import Slices, frame_shape
from rskd.models.normalise import normalise
from rskd.scan import Scan
from rskd.tiling import Span, blend, cut, spans

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
    results = _Results(planes, model, probabilities=options.probabilities)
    tiling = _lay(results.shape, model, options)
    inputs = ((_prepare(plane, model, results.shape), results.canvas(index)) for index, plane in enumerate(planes))
    was_training = model.training
    model.eval()
    try:
        tiles = stored = 0
        for ran, finished in _predict(model, inputs, tiling, options.batch_size):
            for logits in finished:
                results.store(stored, logits)
                stored += 1
            tiles += ran
            yield Progress(tiles, len(planes) * len(tiling.grid), "tiles")
    finally:
        model.train(was_training)
    return results.in_world_of(scan)


def predict_plane(model: Segmenter, image: Tensor, options: SegmentOptions = _DEFAULTS) -> NDArray[np.float32]:
    """Return the blended logits of one plane that has been prepared already.

    Parameters
    ----------
    model
        The network, in evaluation mode.
    image
        Shape (C, H, W), normalised, of any size.
    options
        Tiles.

    Returns
    -------
    ndarray
        Shape (K, H, W).
    """
    device = _device(model)
    canvas = torch.zeros(len(model.spec.classes), *image.shape[1:], device=device)
    tiling = _lay((image.shape[1], image.shape[2]), model, options)
    for _ in _predict(model, [(image.to(device), canvas)], tiling, options.batch_size):
        pass
    return canvas.cpu().numpy()


@dataclass(frozen=True, slots=True)
class _Tiling:
    """The places of all tiles of a plane, row by row."""

    tile: int
    grid: tuple[tuple[Span, Span], ...]


@dataclass(frozen=True, slots=True)
class _Piece:
    """One tile of one plane."""

    image: Tensor
    """C H W: its plane."""
    canvas: Tensor
    """K H W: the map of its plane."""
    row: Span
    column: Span
    last: bool
    """Whether the plane is complete with it."""


def _lay(shape: tuple[int, int], model: Segmenter, options: SegmentOptions) -> _Tiling:
    tile = _tile_side(options, model.spec)
    rows, columns = (spans(n, tile, overlap=options.overlap, device=_device(model)) for n in shape)
    return _Tiling(tile, tuple((row, column) for row in rows for column in columns))


def _prepare(plane: NDArray[np.generic], model: Segmenter, shape: tuple[int, int]) -> Tensor:
    image = torch.from_numpy(normalise(plane, model.spec)).to(_device(model))
    if image.shape[1:] != shape:
        image = F.interpolate(image[None], shape, mode="bilinear", antialias=True)[0]
    return image


def _predict(
    model: Segmenter, planes: Iterable[tuple[Tensor, Tensor]], tiling: _Tiling, batch_size: int
) -> Iterator[tuple[int, list[Tensor]]]:
    """Blend the logits of every image (C, H, W) into the zeros (K, H, W) that come with it.

    A batch may hold tiles of several planes; only planes whose tiles are in work are asked for. Yields, after every
    batch, the number of its tiles and the maps that became complete, in order.
    """
    pieces = (
        _Piece(image, canvas, row, column, number == len(tiling.grid))
        for image, canvas in planes
        for number, (row, column) in enumerate(tiling.grid, 1)
    )
    room: Tensor | None = None  # one buffer for all batches: fresh memory for each would cost more than the blending
    while batch := list(islice(pieces, batch_size)):
        if room is None:
            room = batch[0].image.new_empty(len(batch), len(batch[0].image), tiling.tile, tiling.tile)
        for piece, logits in zip(batch, _forward(model, batch, room[: len(batch)]), strict=True):
            blend(piece.canvas, logits, piece.row, piece.column)
        yield len(batch), [piece.canvas for piece in batch if piece.last]


def _forward(model: Segmenter, batch: list[_Piece], images: Tensor) -> Tensor:
    """Cut the pieces into `images` (B, C, tile, tile) and return their logits (B, K, tile, tile)."""
    try:
        with torch.inference_mode():
            for piece, image in zip(batch, images, strict=True):
                image.copy_(cut(piece.image, piece.row, piece.column, images.shape[-1]))
            logits: Tensor = model(images)
            return logits
    except torch.OutOfMemoryError as error:
        height, width = images.shape[-2:]
        raise ResourceError(
            f"{len(batch)} tiles of {height} x {width} pixels do not fit into the memory of the device: "
            "use a smaller batch size, or the CPU."
        ) from error


def _device(model: Segmenter) -> torch.device:
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


class _Results:
    """The labels and probabilities of all planes, filled plane by plane."""

    def __init__(self, planes: Slices, model: Segmenter, *, probabilities: bool) -> None:
        self._planes, self._classes, self._device = planes, len(model.spec.classes), _device(model)
        self.shape = frame_shape(planes.plane_shape, model.spec.frame)
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
