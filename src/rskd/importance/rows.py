"""What one token attends to: its row of every attention, observed in one forward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from rskd.errors import ModelError
from rskd.importance import sites as _sites
from rskd.importance.attention import TokenImportance
from rskd.importance.columns import shares
from rskd.importance.layout import Grid, grid_of, place_of_token
from rskd.importance.watch import Seen, Watch


@contextmanager
def observe_rows(model: nn.Module, at: tuple[float, float], *, image: Grid) -> Iterator[dict[int, TokenImportance]]:
    """Observe what the token at one place attends to during the forward passes inside the ``with`` block.

    Parameters
    ----------
    model
        A timm network, or any module that holds one as `.encoder`.
    at
        Row and column as shares of the image, 0 up to below 1.
    image
        Height and width of the images, in pixels.

    Yields
    ------
    dict
        Block → `TokenImportance` with scores (1, 1 + h, N): the mean over the heads, then every head; zero in the
        windows in which the token is not.

    Raises
    ------
    ModelError
        The model has no attention between tokens.

    Examples
    --------
    >>> import timm
    >>> vit = timm.create_model("test_vit", img_size=32).eval()
    >>> with torch.no_grad(), observe_rows(vit, (0.9, 0.1), image=(32, 32)) as seen:
    ...     _ = vit(torch.zeros(1, 3, 32, 32))
    >>> tuple(seen[0].scores.shape), seen[0].grid
    ((1, 3, 4), (2, 2))
    """
    watched = row_sites(model)
    rows: dict[int, TokenImportance] = {}

    def record(seen: Seen) -> None:
        scores = seen.layout.restore(_row(seen, at, image))  # 1 h N
        scores = torch.cat([scores.mean(1, keepdim=True), scores], 1)
        rows[seen.site.index] = TokenImportance(shares(scores), seen.layout.grid, seen.site.name, seen.layout.windows)

    watch = Watch(model, record)
    with ExitStack() as stack:
        for handle in watch.hooks(watched):
            stack.callback(handle.remove)
        yield rows


def row_sites(model: nn.Module) -> list[_sites.Site]:
    """Return the attentions that `observe_rows` looks at; errors as there."""
    found = _sites.select_sites(model, None)
    watched = [site for site in found if not _sites.refusal(site)]
    if not watched:
        raise _sites.refuse(found[0], str(_sites.refusal(found[0])))
    return watched


def _row(seen: Seen, at: tuple[float, float], image: Grid) -> Tensor:
    """Return the weights of the keys (windows, h, Nk) for the query at `at`; zero outside of its window."""
    layout = seen.layout
    _, _, queries, keys = seen.attention.shape
    if layout.index is None:
        grid = layout.grid if queries == keys else grid_of(queries - layout.prefix, image)
        if grid is None:
            raise ModelError(f"{seen.site.name} asks with {queries} queries, which are no map: choose another network.")
        return seen.attention.row(layout.prefix + _token(at, grid))
    windows, places = layout.index.shape
    if queries != places:
        raise ModelError(
            f"{seen.site.name} asks with {queries} queries in windows of {places}: choose another network."
        )
    window, place = divmod(int(place_of_token(layout.index)[_token(at, layout.grid)]), places)
    rows = seen.attention.row(place)
    mine = torch.arange(windows, device=rows.device) == window
    return rows * mine[:, None, None]


def _token(at: tuple[float, float], grid: Grid) -> int:
    row, column = (min(size - 1, max(0, int(share * size))) for share, size in zip(at, grid, strict=True))
    return row * grid[1] + column
