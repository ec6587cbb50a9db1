"""Column sums of an attention matrix that is never held: the arithmetic below every attention importance.

``columns[b, h, j] = Σ_i w[b, i] · softmax_j(scale · q_i·k_j + bias_ij)`` is computed tile by tile, forwards and
backwards, so that the largest thing in memory is one tile instead of B·h·Nq·Nk numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CPU_TILE = 1 << 19
"""Elements of a tile on a CPU: 2 MiB of float32; the fastest of 2^14 … 2^23 at 197 and at 1025 tokens."""
FAINTEST = 70.0
"""Distance from the largest logit of a row beyond which a logit counts as so far away: a weight of e⁻⁷⁰ changes no sum
of float32, and one below 1e-38, which trained networks have many of, would take a processor ten times as long."""
DEVICE_TILE = 1 << 25
"""Elements of a tile elsewhere: 128 MiB of float32, enough to fill an accelerator."""

Tile = tuple[slice, slice, slice]


def column_sums(
    q: Tensor,
    k: Tensor,
    *,
    scale: float,
    bias: Tensor | None = None,
    weights: Tensor | None = None,
    tile: int | None = None,
) -> Tensor:
    """Return the weighted column sums of the attention matrix of `q` and `k`, per head.

    Parameters
    ----------
    q, k
        Queries (B, h, Nq, d) and keys (B, h, Nk, d), as they enter the product.
    scale
        Factor of the product, usually ``d ** -0.5``.
    bias
        Added to the scaled product before the softmax; broadcastable to (B, h, Nq, Nk).
    weights
        Weight of every query (B, Nq); ``None`` = ``1 / Nq`` each.
    tile
        Elements of the attention matrix that may exist at a time; ``None`` = chosen for the device.

    Returns
    -------
    Tensor
        (B, h, Nk) in float32 (float64 where q is); its gradient flows into q, k, bias and weights.

    Examples
    --------
    >>> q = k = torch.zeros(1, 2, 4, 8)
    >>> column_sums(q, k, scale=1.0)[0, 0]
    tensor([0.2500, 0.2500, 0.2500, 0.2500])
    """
    batch, _, queries, _ = q.shape
    if weights is None:
        weights = exact(q).new_full((batch, queries), 1.0 / queries)
    if tile is None:
        tile = CPU_TILE if q.device.type == "cpu" else DEVICE_TILE
    with torch.autocast(q.device.type, enabled=False):
        q, k = exact(q), exact(k)
        bias = None if bias is None else bias.to(q.dtype)
        sums: Tensor = _ColumnSums.apply(q, k, bias, weights.to(q.dtype), scale, tile)
    return sums


@torch.no_grad()
def attend(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float, bias: Tensor | None = None, tile: int | None = None
) -> tuple[Tensor, Tensor]:
    """Return what attention puts out and the mean of its rows, from weights that are computed once for both.

    Parameters
    ----------
    q, k, v
        Queries (B, h, Nq, d), keys (B, h, Nk, d) and values (B, h, Nk, e).
    scale, bias, tile
        As of `column_sums`.

    Returns
    -------
    tuple
        Output (B, h, Nq, e) and mean (B, h, Nk), without gradients.

    Examples
    --------
    >>> q = k = torch.zeros(1, 1, 2, 8)
    >>> out, mean = attend(q, k, torch.tensor([[[[1.], [3.]]]]), scale=1.0)
    >>> out.flatten(), mean.flatten()
    (tensor([2., 2.]), tensor([0.5000, 0.5000]))
    """
    batch, heads, queries, _ = q.shape
    keys = k.shape[2]
    q, k, v = q * scale, k.contiguous(), v.contiguous()
    bias = None if bias is None else bias.expand(batch, heads, queries, keys)
    out, mean = v.new_empty(batch, heads, queries, v.shape[3]), v.new_zeros(batch, heads, 1, keys)
    rows = max(1, min(queries, (tile or CPU_TILE) // keys))
    buffer, share = v.new_empty(rows, keys), v.new_full((1, rows), 1.0 / queries)
    for head in product(range(batch), range(heads)):
        q_h, k_h, v_h, out_h = q[head], k[head].mT, v[head], out[head]
        for i in range(0, queries, rows):
            attention = buffer[: queries - i]  # one and the same memory, which stays in the cache
            torch.mm(q_h[i : i + rows], k_h, out=attention)
            if bias is not None:
                attention += bias[head][i : i + rows]
            torch.maximum(attention, attention.amax(-1, keepdim=True) - FAINTEST, out=attention)
            torch.softmax(attention, -1, out=attention)
            torch.mm(attention, v_h, out=out_h[i : i + rows])
            mean[head].addmm_(share[:, : queries - i], attention)
    return out, mean.squeeze(2)


def exact(tensor: Tensor) -> Tensor:
    """Return `tensor` in float32, or as it is in float64."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def shares(scores: Tensor) -> Tensor:
    """Return `scores` divided by their sum over the last axis.

    Examples
    --------
    >>> shares(torch.tensor([1., 3.]))
    tensor([0.2500, 0.7500])
    """
    return scores / scores.sum(-1, keepdim=True)


class _ColumnSums(torch.autograd.Function):
    """Forgets every tile after use and recomputes it in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, bias: Tensor | None, weights: Tensor, scale: float, tile: int
    ) -> Tensor:
        ctx.save_for_backward(q, k, bias, weights)
        ctx.scale, ctx.tile = scale, tile
        sums = k.new_zeros(k.shape[:3])  # B h Nk
        for part in _tiles((*q.shape[:3], k.shape[2]), tile):
            attention = _attention(q, k, bias, scale, part)
            sums[part[:2]] += (weights[part[0], None, None, part[2]] @ attention).squeeze(2)
        return sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, bias, weights = ctx.saved_tensors
        grad_q, grad_k, grad_weights = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(weights)
        grad_bias = torch.zeros_like(bias) if ctx.needs_input_grad[2] else None
        for part in _tiles((*q.shape[:3], k.shape[2]), ctx.tile):
            attention = _attention(q, k, bias, ctx.scale, part)
            g = grad[part[:2]].unsqueeze(2)  # b h 1 Nk
            row = (attention * g).sum(-1, keepdim=True)  # b h i 1
            # softmax'(logits)ᵀ·(w_i g) = w_i · A_ij (g_j − Σ_l A_il g_l)
            logits = attention.mul_(g - row).mul_(weights[part[0], None, part[2], None])
            grad_q[part] = logits @ k[part[:2]] * ctx.scale
            grad_k[part[:2]] += logits.mT @ q[part] * ctx.scale
            grad_weights[part[0], part[2]] += row.squeeze(3).sum(1)
            if grad_bias is not None:
                target = grad_bias[_broadcast(grad_bias.shape, part)]
                target += logits.sum_to_size(target.shape)
        return grad_q, grad_k, grad_bias, grad_weights, None, None


def _attention(q: Tensor, k: Tensor, bias: Tensor | None, scale: float, part: Tile) -> Tensor:
    """Return the rows of the attention matrix that `part` names."""
    logits = (q[part] * scale) @ k[part[:2]].mT
    if bias is not None:
        logits += bias[_broadcast(bias.shape, part)]
    return logits.softmax(-1)


def _broadcast(shape: torch.Size, part: Tile) -> tuple[slice, ...]:
    """Return the index of `part` in a 4-D tensor of `shape` whose axes of length one stand for all."""
    return tuple(slice(None) if size == 1 else which for size, which in zip(shape, part, strict=False))


def _tiles(shape: tuple[int, ...], budget: int) -> Iterator[Tile]:
    """Cut (B, h, Nq) so that every tile × Nk has at most `budget` elements: rows first, then heads, then images."""
    batch, heads, queries, keys = shape
    rows = max(1, min(queries, budget // keys))
    width = max(1, min(heads, budget // (rows * keys))) if rows == queries else 1
    depth = max(1, min(batch, budget // (rows * keys * width))) if width == heads else 1
    for b in range(0, batch, depth):
        for h in range(0, heads, width):
            for i in range(0, queries, rows):
                yield slice(b, b + depth), slice(h, h + width), slice(i, i + rows)
