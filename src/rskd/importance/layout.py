"""Where the keys of an attention lie on the token map: whole map, windows, shifted windows, dilated grid, reduced map.

One index says it all: ``index[w, m]`` is the token (row-major) at place m of window w, or −1 where the model padded.
Undoing a partition is then one gather, whatever the family.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

Grid = tuple[int, int]


@dataclass(frozen=True)
class Layout:
    """The way from an attention's keys to the token map.

    Parameters
    ----------
    grid
        Height and width of the token map.
    index
        (windows, places) token of every place, −1 = padding; ``None`` = one window that holds all tokens in order.
    prefix
        Tokens before the map (class, distillation, registers); only where there is one window.
    """

    grid: Grid
    index: Tensor | None = None
    prefix: int = 0

    @property
    def shape(self) -> tuple[int, int]:
        """(windows, places)."""
        return (1, self.grid[0] * self.grid[1]) if self.index is None else (self.index.shape[0], self.index.shape[1])

    @property
    def windows(self) -> Tensor | None:
        """Window of every token (N), ``None`` where there is only one."""
        if self.index is None or len(self.index) == 1:
            return None
        return torch.div(place_of_token(self.index), self.index.shape[1], rounding_mode="floor")

    @property
    def query_weights(self) -> Tensor | None:
        """Weights (windows, places) that average over real queries only, ``None`` where every query is real."""
        if self.index is None or bool((self.index >= 0).all()):
            return None
        real = self.index >= 0
        return real.double() / real.sum(1, keepdim=True).clamp(min=1)

    def restore(self, columns: Tensor) -> Tensor:
        """Return (B, h, N) of per-key values (B·windows, h, prefix + places): undo the partition, drop all padding.

        Examples
        --------
        >>> layout = Layout((2, 4), window_index((2, 4), (2, 2)))
        >>> layout.restore(torch.arange(8.).view(2, 1, 4)).view(2, 4)
        tensor([[0., 1., 4., 5.],
                [2., 3., 6., 7.]])
        """
        columns = columns[..., self.prefix :]
        if self.index is None:
            return columns
        (count, places), heads = self.index.shape, columns.shape[1]
        columns = columns.reshape(-1, count, heads, places).transpose(1, 2)  # B h W M
        return columns.reshape(-1, heads, count * places)[..., place_of_token(self.index).to(columns.device)]


def place_of_token(index: Tensor) -> Tensor:
    """Return (N), the flat place w·M + m of every token of a window index (windows, places)."""
    flat = index.flatten()
    real = flat >= 0
    places = torch.empty(int(real.sum()), dtype=torch.long)
    places[flat[real]] = torch.arange(len(flat))[real]
    return places


def whole_map(grid: Grid, prefix: int = 0) -> Layout:
    """Return the layout of attention over all tokens, after `prefix` others."""
    return Layout(grid, None, prefix)


def window_index(grid: Grid, window: Grid, shift: Grid = (0, 0)) -> Tensor:
    """Return the tokens of windows after a cyclic shift by −`shift`, padded at the bottom and right; (windows, places).

    Examples
    --------
    >>> window_index((2, 4), (2, 2))
    tensor([[0, 1, 4, 5],
            [2, 3, 6, 7]])
    >>> window_index((1, 3), (1, 2), (0, 1))
    tensor([[ 1,  2],
            [ 0, -1]])
    """
    tokens = torch.arange(grid[0] * grid[1]).view(grid)
    tokens = torch.roll(tokens, (-shift[0], -shift[1]), (0, 1))
    bottom, right = (-size % step for size, step in zip(grid, window, strict=True))
    tokens = torch.nn.functional.pad(tokens, (0, right, 0, bottom), value=-1)
    rows, columns = tokens.shape[0] // window[0], tokens.shape[1] // window[1]
    tokens = tokens.view(rows, window[0], columns, window[1]).transpose(1, 2)  # nh nw wh ww
    return tokens.reshape(rows * columns, window[0] * window[1])


def dilated_index(grid: Grid, size: Grid) -> Tensor:
    """Return the tokens of MaxViT's grid attention: each window takes every (grid / size)-th token; (windows, places).

    Examples
    --------
    >>> dilated_index((1, 4), (1, 2))
    tensor([[0, 2],
            [1, 3]])
    """
    tokens = torch.arange(grid[0] * grid[1]).view(size[0], grid[0] // size[0], size[1], grid[1] // size[1])
    return tokens.permute(1, 3, 0, 2).reshape(-1, size[0] * size[1])


def grid_of(tokens: int, image: Grid) -> Grid | None:
    """Return the grid of `tokens` cells whose shape follows that of the image, ``None`` where no grid does.

    Examples
    --------
    >>> grid_of(196, (224, 224)), grid_of(128, (128, 256)), grid_of(7, (224, 224))
    ((14, 14), (8, 16), None)
    """
    aspect = image[0] / image[1]
    heights = [h for h in range(1, tokens + 1) if tokens % h == 0]
    height = min(heights, key=lambda h: abs(h * h / tokens - aspect))
    width = tokens // height
    # a patch embedding rounds each side by less than one token
    tolerable = (height - 1) / (width + 1) < aspect < (height + 1) / max(width - 1, 0.5)
    return (height, width) if tolerable else None
