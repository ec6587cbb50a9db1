"""Look at a running model without touching it: which attention runs, and what it computes with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from rskd.errors import ModelError
from rskd.importance import sites as _sites
from rskd.importance.columns import attend
from rskd.importance.layout import Layout
from rskd.importance.sites import Call, Site
from rskd.importance.weights import Attention, Explicit, Fused, Linear

MERGED_FROM = 1 << 20
"""Queries times keys (1024 tokens) from which an attention is computed together with the mean of its rows; below, the
network computes bit for bit as unobserved."""


@dataclass(frozen=True)
class Seen:
    """One observed attention with what its scores need."""

    site: Site
    attention: Attention
    layout: Layout
    class_token: bool


class Watch(TorchFunctionMode):
    """Sees every tensor function of the attention that is running now; between attentions it is off.

    Parameters
    ----------
    model
        A timm network, or any module that holds one.
    record
        Takes every attention that was seen.
    means
        Whether the mean of the rows will be asked for: large attentions without gradients are then computed together
        with it on a CPU, from the same weights: 0.6 of the time of one after the other at 5330 tokens.
    """

    def __init__(self, model: nn.Module, record: Callable[[Seen], None], *, means: bool = False) -> None:
        super().__init__()
        self._model, self._record, self._means = model, record, means
        self._prefix, self._class_token = _sites.prefix_tokens(model), _sites.has_class_token(model)
        self._image: tuple[int, int, int] | None = None
        self._outer: dict[nn.Module, tuple[Any, ...]] = {}
        self._running: _Running | None = None

    def hooks(self, watched: Sequence[Site]) -> Iterator[Any]:
        """Register the hooks that tell which attention runs and what it got; yields their handles."""
        encoder = _sites.encoder_of(self._model)
        stem = next((m for m in encoder.modules() if isinstance(m, nn.Conv2d)), None)
        if stem is not None:
            yield stem.register_forward_pre_hook(self._see_image)
        for owner in {site.owner for site in watched}:
            yield owner.register_forward_pre_hook(self._see_outer)
        for site in watched:
            yield site.module.register_forward_pre_hook(self._enter(site), with_kwargs=True)
            yield site.module.register_forward_hook(self._leave(site), always_call=True)
            kernel = getattr(site.module, "kernel_func", None)
            if isinstance(kernel, nn.Module):
                yield kernel.register_forward_hook(self._see_kernel)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run `func` and let the running attention look at it."""
        if self._means and self._running is not None and func is F.scaled_dot_product_attention:
            merged = _merged(*args, **(kwargs or {}))
            if merged is not None:
                return self._running.keep(merged, args[0].shape[:-1])
        out = func(*args, **(kwargs or {}))
        if self._running is not None:
            self._running.see(func, args, kwargs or {}, out)
        return out

    def _see_image(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        batch, _, height, width = args[0].shape
        self._image = (batch, height, width)

    def _see_outer(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self._outer[module] = args

    def _see_kernel(self, module: nn.Module, args: tuple[Any, ...], out: Tensor) -> None:
        if self._running is not None:
            self._running.kernels.append(out)

    def _enter(self, site: Site) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._running = _Running(args)
            self.__enter__()  # type: ignore[no-untyped-call]

        return hook

    def _leave(self, site: Site) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
            running, self._running = self._running, None
            if running is None:
                return
            self.__exit__(None, None, None)  # type: ignore[no-untyped-call]
            if out is None:  # the attention failed: its own error is on the way
                return
            attention = _sites.split_heads(site, running.attention(site))
            batch, _, queries, keys = attention.shape
            outer = self._outer.get(site.owner, running.inputs)
            call = Call(running.inputs, outer, self._image, self._prefix, queries, keys, batch)
            layout = _sites.layout_of(site, call)
            self._record(Seen(site, attention, layout, self._class_token))

        return hook


class _Running:
    """What one run of one attention module has shown so far."""

    def __init__(self, inputs: tuple[Any, ...]) -> None:
        self.inputs = inputs
        self.kernels: list[Tensor] = []
        self._fused: list[Fused] = []
        self._explicit: list[Explicit] = []
        self._weights: Tensor | None = None
        self._aliases: list[Any] = []
        self._padded: Tensor | None = None
        self._transposed: Tensor | None = None

    def see(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """Keep queries, keys and bias of a fused call, or the softmax that goes on to multiply values."""
        if func is F.scaled_dot_product_attention:
            self._fused.append(_fused(*args, **kwargs))
        elif func is F.pad and self.kernels:  # a linear attention appends ones to its values
            self._padded = args[0]
        elif func in _SOFTMAX and kwargs.get("dim", args[-1]) in (-1, out.ndim - 1):
            self._weights, self._aliases = out, [out]
        elif func in _DROPOUT and self._is_weights(args[0]):
            self._aliases.append(out)
        elif func in _TRANSPOSE and self._is_weights(args[0]):
            self._transposed = out
        elif func in _MATMUL and self._weights is not None:
            if self._is_weights(args[0]):
                self._explicit.append(_explicit(self._weights, args[1]))
            elif args[1] is self._transposed:
                self._explicit.append(_explicit(self._weights, args[0].mT))

    def keep(self, merged: tuple[Fused, Tensor], shape: Sequence[int]) -> Tensor:
        """Keep an attention that was computed with the mean of its rows; returns its output as the model expects it."""
        fused, out = merged
        self._fused.append(fused)
        return out.reshape(*shape, out.shape[-1])

    def attention(self, site: Site) -> Attention:
        """Return the one attention that was seen, or say why there is none."""
        if len(self.kernels) == 2 and self._padded is not None:
            module: Any = site.module
            q, k = self.kernels
            return Linear(q, k, self._padded, module.eps)
        if len(self._explicit) > 1 and _sites.runs_heads_in_turn(site):
            return Explicit(torch.cat([e.a for e in self._explicit], 1), torch.cat([e.v for e in self._explicit], 1))
        seen: Sequence[Attention] = self._fused or self._explicit
        if len(seen) != 1:
            raise _sites.refuse(site, f"computes {len(seen)} attentions that can be read, where one is needed")
        return seen[0]

    def _is_weights(self, tensor: Any) -> bool:
        return any(tensor is alias for alias in self._aliases)


_SOFTMAX = frozenset({torch.softmax, F.softmax, Tensor.softmax})
_DROPOUT = frozenset({F.dropout, torch.dropout})
_MATMUL = frozenset({torch.matmul, Tensor.matmul, Tensor.__matmul__})
_TRANSPOSE = frozenset({torch.transpose, Tensor.transpose})


def _explicit(weights: Tensor, values: Tensor) -> Explicit:
    """Return weights and values with four axes each: a single head where there is no axis of heads."""
    if weights.ndim == 3:
        weights, values = weights.unsqueeze(1), values.unsqueeze(1)
    return Explicit(weights.flatten(0, -4), values.flatten(0, -4))


def _fused(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Fused:
    """Return the arguments of ``scaled_dot_product_attention`` with four axes each and an additive bias."""
    if is_causal:
        raise ModelError("causal attention ranks tokens by their place, not by their content: use 'feature_norm'.")
    q, k, v = (
        t.flatten(0, -4) if t.ndim > 3 else t.unsqueeze(1) for t in (query, key, value)
    )  # (…, h, N, d) -> B h N d
    if k.shape[1] != q.shape[1]:  # one head of keys serves several heads of queries
        k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], dim=1) for t in (k, v))
    bias = attn_mask
    if bias is not None:
        if bias.dtype == torch.bool:
            bias = q.new_zeros(bias.shape).masked_fill(~bias, float("-inf"))
        if query.ndim == 3 and bias.ndim == 3:
            bias = bias.unsqueeze(1)
        bias = bias.flatten(0, -4) if bias.ndim > 4 else bias[(None,) * (4 - bias.ndim)]
    return Fused(q, k, v, q.shape[-1] ** -0.5 if scale is None else scale, bias)


def _merged(*args: Any, **kwargs: Any) -> tuple[Fused, Tensor] | None:
    """Return an attention that knows the mean of its rows, and its output; ``None`` where the model computes it."""
    tensors = (*args, *kwargs.values())
    if (
        torch.is_grad_enabled()
        or torch.is_autocast_enabled("cpu")
        or not all(
            tensor.device.type == "cpu" and tensor.dtype == torch.float32
            for tensor in tensors
            if isinstance(tensor, Tensor)
        )
    ):
        return None
    if kwargs.get("dropout_p") or len(args) > 4:
        return None
    fused = _fused(*args, **kwargs)
    if fused.q.shape[2] * fused.k.shape[2] < MERGED_FROM:
        return None
    out, mean = attend(fused.q, fused.k, fused.v, scale=fused.scale, bias=fused.bias)
    return replace(fused, mean=mean), out
