"""Cut planes into overlapping tiles and blend what a network says about them.

The weight of a tile is the product of two Gaussians, one per axis, divided by the sum over all tiles that cover the
pixel. Because tiles lie on a grid this sum is a product as well, so every weight is known beforehand, the weights of
a pixel add up to one, and blending is a single multiply-add into one map.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rskd.backend import Array, Backend, NumpyBackend

_SIGMA = 0.125
"""Deviation of the Gaussian as a share of the tile: its border weighs 1/3000 of its middle."""
SURE = 10.0
"""By how much the logit of the background, or 0 where it has none, exceeds the others in a tile taken for empty."""
_MOST_SEEN = 1024
"""Tiles between two yields, at most, where most of them are empty."""
NUMPY = NumpyBackend()


@dataclass(frozen=True, slots=True)
class Span:
    """Where a tile lies on one axis."""

    start: int
    """First pixel; negative where the tile is longer than the axis."""
    inside: slice
    """The pixels of the axis that it covers."""
    weights: Array
    """Its share in the result for each of these pixels, float32."""

    @property
    def covered(self) -> slice:
        """The part of the tile that lies on the axis."""
        return slice(self.inside.start - self.start, self.inside.stop - self.start)

    def moved(self, offset: int) -> Span:
        """Return it as seen from the pixel `offset`."""
        inside = slice(self.inside.start - offset, self.inside.stop - offset)
        return Span(self.start - offset, inside, self.weights)


def spans(length: int, tile: int, *, overlap: float, backend: Backend = NUMPY) -> list[Span]:
    """Lay tiles evenly over an axis, each overlapping the next by at least the wanted share.

    Parameters
    ----------
    length
        Pixels of the axis, at least 1; a tile longer than this lies centred over it.
    tile
        Pixels of a tile.
    overlap
        Wanted share of a tile that it has in common with the next, 0 … 0.9.
    backend
        What the weights are made of.

    Examples
    --------
    >>> [span.start for span in spans(100, 32, overlap=0.25)]
    [0, 23, 45, 68]
    >>> bool(sum(span.weights.sum() for span in spans(100, 32, overlap=0.25)) == 100)
    True
    """
    step = max(1, int(tile * (1 - overlap)))
    count = max(0, math.ceil((length - tile) / step)) + 1
    room = length - tile
    starts = [room // 2] if room <= 0 else [round(i * room / (count - 1)) for i in range(count)]
    offsets = np.arange(tile) - (tile - 1) / 2
    bell = np.exp(-0.5 * (offsets / (_SIGMA * tile)) ** 2)
    insides = [slice(max(start, 0), min(start + tile, length)) for start in starts]
    bells = [bell[inside.start - start : inside.stop - start] for start, inside in zip(starts, insides, strict=True)]
    total = np.zeros(length)
    for inside, part in zip(insides, bells, strict=True):
        total[inside] += part
    return [
        Span(start, inside, backend.put((part / total[inside]).astype(np.float32)))
        for start, inside, part in zip(starts, insides, bells, strict=True)
    ]


def cut(plane: Array, row: Span, column: Span, tile: int) -> Array:
    """Return the tile (C, tile, tile) of a plane (C, H, W); beyond its edges the plane is mirrored.

    Examples
    --------
    >>> plane = np.array([[[1, 2, 3]]])
    >>> cut(plane, *spans(1, 5, overlap=0), *spans(3, 5, overlap=0), 5)[0, 0]
    array([1, 1, 2, 3, 3])
    """
    rows, columns = (
        span.inside if span.inside.stop - span.inside.start == tile else _mirrored(span.start, tile, length)
        for span, length in zip((row, column), plane.shape[1:], strict=True)
    )
    return plane[:, rows][:, :, columns]


def _mirrored(start: int, count: int, length: int) -> NDArray[np.intp]:
    """Return `count` positions from `start` on, turned back at both ends of an axis, as often as needed."""
    position = np.arange(start, start + count) % (2 * length)
    return np.minimum(position, 2 * length - 1 - position)


def blend(canvas: Array, tile: Array, row: Span, column: Span, *, backend: Backend = NUMPY) -> None:
    """Add a tile (K, tile, tile) with its weights to the map (K, H, W) of its plane, in place.

    Examples
    --------
    >>> canvas = np.zeros((1, 1, 3))
    >>> for column in spans(3, 2, overlap=0.5):
    ...     blend(canvas, np.ones((1, 2, 2)), *spans(1, 2, overlap=0), column)
    >>> canvas
    array([[[1., 1., 1.]]])
    """
    place, covered = canvas[:, row.inside, column.inside], tile[:, row.covered, column.covered]
    backend.blend(place, covered, row.weights, column.weights)


@dataclass(frozen=True, slots=True)
class Tiling:
    """The places of all tiles of a plane: every row with every column."""

    tile: int
    """Side of a tile in pixels."""
    rows: tuple[Span, ...]
    columns: tuple[Span, ...]
    backend: Backend
    """What planes and maps are made of."""

    @classmethod
    def over(cls, shape: tuple[int, int], *, tile: int, overlap: float, backend: Backend = NUMPY) -> Tiling:
        """Cover a plane of `shape` (H, W); parameters as for `spans`.

        Examples
        --------
        >>> len(Tiling.over((100, 32), tile=32, overlap=0.25))
        4
        """
        rows, columns = (tuple(spans(n, tile, overlap=overlap, backend=backend)) for n in shape)
        return cls(tile, rows, columns, backend)

    def __len__(self) -> int:
        """Return the number of tiles."""
        return len(self.rows) * len(self.columns)

    @property
    def grid(self) -> Iterator[tuple[Span, Span]]:
        """Row and column of every tile, row by row."""
        return product(self.rows, self.columns)

    def touching(self, rows: slice, columns: slice) -> tuple[Tiling, slice, slice]:
        """Return the tiles that a window of the plane is blended from, and the block of the plane under them.

        The tiles count from the corner of the block; blended into it, they are complete inside the window, with the
        same values as in the whole plane.

        Parameters
        ----------
        rows, columns
            The window, not empty.

        Examples
        --------
        >>> part, rows, columns = Tiling.over((100, 32), tile=32, overlap=0.25).touching(slice(60, 70), slice(0, 32))
        >>> len(part), rows, columns
        (2, slice(45, 100, None), slice(0, 32, None))
        """
        touched_rows, block_rows = _touching(self.rows, rows)
        touched_columns, block_columns = _touching(self.columns, columns)
        return Tiling(self.tile, touched_rows, touched_columns, self.backend), block_rows, block_columns


def _touching(found: Sequence[Span], window: slice) -> tuple[tuple[Span, ...], slice]:
    """Return the spans that meet the window, as seen from the first pixel under them, and the pixels under them."""
    touched = [span for span in found if span.inside.start < window.stop and window.start < span.inside.stop]
    block = slice(touched[0].inside.start, touched[-1].inside.stop)
    return tuple(span.moved(block.start) for span in touched), block


class Work(NamedTuple):
    """A plane to run a network over."""

    image: Array
    """C H W, on the network's device."""
    canvas: Array
    """Zeros (K, H, W) to blend into, in place."""
    is_empty: Callable[[Array], bool] | None = None
    """Tells of the part (C, h, w) of a tile that lies on the plane whether it is background without the network
    looking at it; None = every tile is run."""
    background: int = 1
    """How many of the first maps are the background's: one, or none where classes may overlap."""


@dataclass(frozen=True, slots=True)
class _Piece:
    """One tile of one plane."""

    work: Work
    row: Span
    column: Span
    last: bool
    """Whether the plane is complete with it."""

    @property
    def is_empty(self) -> bool:
        work = self.work
        return work.is_empty is not None and work.is_empty(work.image[:, self.row.inside, self.column.inside])


def predict_tiled(
    network: Callable[[Array], Array],
    planes: Iterable[Work | tuple[Array, Array]],
    tiling: Tiling,
    *,
    batch_size: int,
) -> Iterator[tuple[int, list[Array]]]:
    """Run a network over the tiles of planes and blend its outputs.

    Parameters
    ----------
    network
        Maps images (B, C, tile, tile) to outputs (B, K, tile, tile).
    planes
        Pairs of an image (C, H, W) and zeros (K, H, W) to blend into, in place; all of the tiling's backend. Only the
        planes whose tiles are in work are asked for; a batch may hold tiles of several.
    tiling
        Over the shape (H, W) that all planes share.
    batch_size
        Tiles run together.

    Yields
    ------
    tuple of int and list of arrays
        After every batch: how many tiles it had, empty ones included, and the maps that became complete, in order.

    Raises
    ------
    MemoryError, RuntimeError
        If the memory of the device does not suffice; see `rskd.errors.is_out_of_memory`.

    Examples
    --------
    >>> image, canvas = np.random.default_rng(0).random((1, 50, 30), np.float32), np.zeros((1, 50, 30), np.float32)
    >>> tiling = Tiling.over((50, 30), tile=16, overlap=0.25)
    >>> ran = [count for count, _ in predict_tiled(lambda images: images, [(image, canvas)], tiling, batch_size=8)]
    >>> ran, np.allclose(image, canvas)
    ([8, 4], True)
    """
    backend = tiling.backend
    room: Array = None  # one buffer for all batches: fresh memory for each would cost more than the blending
    for seen, batch in _batches(planes, tiling, batch_size):
        if batch:
            if room is None or len(room) < len(batch):
                room = backend.zeros(len(batch), len(batch[0].work.image), tiling.tile, tiling.tile)
            with backend.running():
                for piece, output in zip(batch, _run(network, batch, room[: len(batch)]), strict=True):
                    blend(piece.work.canvas, output, piece.row, piece.column, backend=backend)
        yield len(seen), [piece.work.canvas for piece in seen if piece.last]


def _batches(
    planes: Iterable[Work | tuple[Array, Array]], tiling: Tiling, batch_size: int
) -> Iterator[tuple[list[_Piece], list[_Piece]]]:
    """Yield the next tiles, and those of them that are to be run; of empty ones the background is put down at once."""
    seen: list[_Piece] = []
    batch: list[_Piece] = []
    for work in (Work(*plane) for plane in planes):
        for number, (row, column) in enumerate(tiling.grid, 1):
            piece = _Piece(work, row, column, number == len(tiling))
            seen.append(piece)
            if piece.is_empty:
                _blend_background(piece, tiling.backend)
            else:
                batch.append(piece)
            if len(batch) == batch_size or len(seen) == _MOST_SEEN:
                yield seen, batch
                seen, batch = [], []
    if seen:
        yield seen, batch


def _blend_background(piece: _Piece, backend: Backend) -> None:
    """Add what a network that is sure of the background would say."""
    others = piece.work.canvas[piece.work.background :, piece.row.inside, piece.column.inside]
    backend.blend(others, backend.put(np.full(1, -SURE, np.float32)), piece.row.weights, piece.column.weights)


def _run(network: Callable[[Array], Array], batch: list[_Piece], images: Array) -> Array:
    """Cut the pieces into `images` (B, C, tile, tile) and return what the network makes of them."""
    for piece, image in zip(batch, images, strict=True):
        image[...] = cut(piece.work.image, piece.row, piece.column, images.shape[-1])
    return network(images)
