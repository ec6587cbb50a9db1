"""What an observed attention can be asked: fused (queries and keys), explicit (the weights themselves) or linear."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from rskd.importance.columns import column_sums, exact


class Attention(Protocol):
    """Attention weights A (B, h, Nq, Nk) with rows that sum to one, and the values (B, h, Nk, d) they mix."""

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(B, h, Nq, Nk)."""

    @property
    def v(self) -> Tensor:
        """Values (B, h, Nk, d)."""

    def columns(self, weights: Tensor | None = None) -> Tensor:
        """Return Σ_i w_i A_ij, (B, h, Nk), for weights (B, Nq) of the queries; ``None`` = their mean."""

    def row(self, query: int) -> Tensor:
        """Return what one query attends to, (B, h, Nk)."""


@dataclass(frozen=True)
class Fused:
    """A = softmax(scale · q kᵀ + bias), never held."""

    q: Tensor
    k: Tensor
    v: Tensor
    scale: float
    bias: Tensor | None = None
    mean: Tensor | None = None
    """Mean of the rows (B, h, Nk), where the attention itself was computed together with it."""

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(B, h, Nq, Nk)."""
        return self.q.shape[0], self.q.shape[1], self.q.shape[2], self.k.shape[2]

    def columns(self, weights: Tensor | None = None) -> Tensor:
        """Return Σ_i w_i A_ij, tile by tile."""
        if weights is None and self.mean is not None:
            return self.mean
        return column_sums(self.q, self.k, scale=self.scale, bias=self.bias, weights=weights)

    def row(self, query: int) -> Tensor:
        """Return one row, in O(N)."""
        rows = slice(query, query + 1)
        bias = self.bias
        if bias is not None and bias.shape[2] > 1:
            bias = bias[:, :, rows]
        return column_sums(self.q[:, :, rows], self.k, scale=self.scale, bias=bias)


@dataclass(frozen=True)
class Explicit:
    """A as the model itself computed it."""

    a: Tensor
    v: Tensor

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(B, h, Nq, Nk)."""
        batch, heads, queries, keys = self.a.shape
        return batch, heads, queries, keys

    def columns(self, weights: Tensor | None = None) -> Tensor:
        """Return Σ_i w_i A_ij."""
        a = exact(self.a)
        return a.mean(2) if weights is None else (weights.to(a.dtype)[:, None, None] @ a).squeeze(2)

    def row(self, query: int) -> Tensor:
        """Return one row."""
        return exact(self.a[:, :, query])


@dataclass(frozen=True)
class Linear:
    """A_ij = φ(q_i)·φ(k_j) / Σ_l φ(q_i)·φ(k_l), the weights behind a linear attention with non-negative features φ."""

    q: Tensor
    k: Tensor
    v: Tensor
    eps: float

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(B, h, Nq, Nk)."""
        return self.q.shape[0], self.q.shape[1], self.q.shape[2], self.k.shape[2]

    def columns(self, weights: Tensor | None = None) -> Tensor:
        """Return Σ_i w_i A_ij in O(N·d²), as the attention itself."""
        q, k = exact(self.q), exact(self.k)
        total = q @ k.sum(2).unsqueeze(3) + self.eps  # B h Nq 1
        share = torch.full_like(total, 1 / q.shape[2]) if weights is None else weights[:, None, :, None].to(q.dtype)
        return (k @ (q / total * share).sum(2).unsqueeze(3)).squeeze(3)

    def row(self, query: int) -> Tensor:
        """Return one row."""
        q, k = exact(self.q[:, :, query]).unsqueeze(3), exact(self.k)
        products = (k @ q).squeeze(3)  # B h Nk
        return products / (products.sum(-1, keepdim=True) + self.eps)
