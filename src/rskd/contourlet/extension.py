"""Which sizes a transform runs on: extension of the border, and cutting it off again."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rskd.contourlet.directional import directional_reach
from rskd.contourlet.filters import directional_pair, pyramid_pair
from rskd.contourlet.pyramid import pyramid_reach
from rskd.contourlet.subbands import Layout
from rskd.errors import ParameterError

BORDERS = ("periodic", "symmetric")
MAX_ORDER = 8


def max_levels(shape: Sequence[int]) -> int:
    """Return how many pyramid levels an image can have: the coarsest lowpass keeps at least one pixel.

    Parameters
    ----------
    shape
        Shape of the image; the last two entries count.

    Examples
    --------
    >>> max_levels((3, 48, 512))
    5
    """
    return min(shape[-2:]).bit_length() - 1


def plan_layout(
    shape: tuple[int, int],
    levels: Sequence[int],
    *,
    pyramid: str,
    directional: str,
    border: str,
    nonsubsampled: bool,
) -> Layout:
    """Check the parameters and choose the size on which the transform runs."""
    orders = check_levels(shape, levels)
    pyramid_pair(pyramid)
    directional_pair(directional)
    if border not in BORDERS:
        raise ParameterError(f"border={border!r} is not known: use one of {', '.join(BORDERS)}")
    multiple = 1 if nonsubsampled else max(2**level * max(2, 2 ** (order - 1)) for level, order in enumerate(orders))
    reach = transform_reach(orders, pyramid, directional) if border == "symmetric" else (0, 0)
    # Beyond one mirror image on either side together there is nothing left that could leak.
    wanted = [min(n + 2 * r, 2 * n) for n, r in zip(shape, reach, strict=True)]
    extended = [-(-n // multiple) * multiple for n in wanted]
    before = [(large - n) // 2 if border == "symmetric" else 0 for large, n in zip(extended, shape, strict=True)]
    return Layout(
        shape, (extended[0], extended[1]), (before[0], before[1]), orders, pyramid, directional, border, nonsubsampled
    )


def check_levels(shape: tuple[int, int], levels: Sequence[int]) -> tuple[int, ...]:
    """Check the numbers of levels and directions against the image."""
    orders = tuple(int(order) for order in levels)
    most = max_levels(shape)
    if not orders:
        raise ParameterError("levels is empty: give log2 of the number of directions per level, such as (3, 2)")
    if len(orders) > most:
        size = "×".join(map(str, shape))
        raise ParameterError(
            f"{len(orders)} levels need {2 ** len(orders)} pixels along both axes, the image has {size}: "
            f"use at most {most} levels"
        )
    for order in orders:
        if order == 1:
            raise ParameterError(
                "levels contains 1: two directions live on a quincunx lattice, which is no image; use 0 or at least 2"
            )
        if not 0 <= order <= MAX_ORDER:
            raise ParameterError(f"levels contains {order}: log2 of the directions must be 0 or 2 … {MAX_ORDER}")
    return orders


def transform_reach(levels: Sequence[int], pyramid: str, directional: str) -> tuple[int, int]:
    """Return how many pixels up/down and left/right a coefficient's value can come from."""
    down, up = pyramid_reach(pyramid)
    rows = columns = coarser = 0
    for level, order in enumerate(levels):
        step = 2**level
        height, width = directional_reach(order, directional) if order else (1, 1)
        rows = max(rows, coarser + step * (height + down + up))
        columns = max(columns, coarser + step * (width + down + up))
        coarser += step * down
    return rows, columns


def extend(x: Tensor, layout: Layout) -> Tensor:
    """Extend (..., H, W) by reflection about its edges (half-sample symmetric) to the layout's size."""
    for axis, (n, large, before) in enumerate(zip(layout.shape, layout.extended, layout.before, strict=True)):
        if large != n:
            position = torch.arange(-before, large - before, device=x.device) % (2 * n)
            x = x.index_select(axis - 2, torch.minimum(position, 2 * n - 1 - position))
    return x


def crop(x: Tensor, layout: Layout) -> Tensor:
    """Undo `extend`."""
    (top, left), (height, width) = layout.before, layout.shape
    return x[..., top : top + height, left : left + width]


def check_coefficients(arrays: Sequence[Tensor], layout: Layout) -> None:
    """Check that every sub-band has the shape that the layout says."""
    for band, array in zip(layout.describe(), arrays, strict=True):
        if tuple(array.shape[-2:]) != band.shape or array.shape[:-2] != arrays[0].shape[:-2]:
            leading = tuple(arrays[0].shape[:-2])
            raise ParameterError(
                f"sub-band {band.name!r} has shape {tuple(array.shape)}, expected {(*leading, *band.shape)}: "
                "keep the shapes of the forward transform"
            )
