"""Token importance from attention, observed from outside while the model runs as it always does.

Nothing in the model is changed and fused attention stays on: a `TorchFunctionMode` sees the final queries, keys and
bias of every ``scaled_dot_product_attention`` (or the softmax of a model that writes its attention out) between the
entry and the exit of an attention module, and the importance is computed there, tile by tile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from rskd.errors import ModelError, ParameterError
from rskd.importance import sites as _sites
from rskd.importance.layout import Grid, Layout
from rskd.importance.sites import Call, Site
from rskd.importance.weights import Attention, Explicit, Fused, Linear

Heads = Literal["mean", "max", "each"]


@dataclass(frozen=True)
class TokenImportance:
    """How important each token is.

    Parameters
    ----------
    scores
        (B, N) over the patch tokens, row-major, summing to one; (B, h, N) per head.
    grid
        Height and width of the token map.
    name
        The module it was observed at.
    windows
        Window of every token (N) where tokens of different windows never met, so that their attention cannot be
        compared; ``None`` = all tokens can be compared.
    """

    scores: Tensor
    grid: Grid
    name: str
    windows: Tensor | None = None


@dataclass(frozen=True)
class _Seen:
    """One observed attention with what its scores need."""

    site: Site
    attention: Attention
    layout: Layout
    class_token: bool


class Observation(Mapping[int, TokenImportance]):
    """What `observe_attention` saw: block index → `TokenImportance`, of the last forward pass."""

    def __init__(self, definition: str, heads: Heads, wanted: Iterable[int]) -> None:
        self._definition, self._heads, self._wanted = definition, heads, sorted(wanted)
        self._importance: dict[int, TokenImportance] = {}
        self._trail: dict[int, _Seen] = {}

    def __getitem__(self, block: int) -> TokenImportance:
        """Return the importance at `block`; rollout is multiplied up when it is first asked for."""
        if block in self._wanted and block not in self._importance and block in self._trail:
            self._importance[block] = _rollout([self._trail[b] for b in range(block + 1)])
        return self._importance[block]

    def __iter__(self) -> Iterator[int]:
        """Iterate over the observed blocks in the order of depth."""
        return (b for b in self._wanted if b in self._importance or b in self._trail)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def record(self, seen: _Seen) -> None:
        """Keep the importance of one attention (for rollout: the attention itself, in queries and keys)."""
        if self._definition == "rollout":
            self._importance.clear()
            self._trail[seen.site.index] = seen
        else:
            self._importance[seen.site.index] = _importance(seen, self._definition, self._heads)


@contextmanager
def observe_attention(
    model: nn.Module,
    blocks: Sequence[int] | None = None,
    *,
    definition: str = "received",
    heads: Heads = "mean",
) -> Iterator[Observation]:
    """Observe how important each token is to `model` during the forward passes inside the ``with`` block.

    Under ``torch.no_grad()`` nothing is kept but the scores; otherwise the scores carry the gradient of a student.

    Parameters
    ----------
    model
        A timm transformer, or any module that holds one as `.encoder`.
    blocks
        Indices of attentions in the order of execution, negative = from the end; ``None`` = all (rollout: the last).
    definition
        ``"received"``, ``"received_value"``, ``"cls"``, ``"cls_value"`` or ``"rollout"``.
    heads
        ``"mean"`` or ``"max"`` over the heads, or ``"each"`` head of its own.

    Yields
    ------
    Observation
        Block index → `TokenImportance`, filled by a forward pass and replaced by the next.

    Raises
    ------
    ModelError
        The model has no attention, or one in which this importance has no meaning; the message names the alternative.
    ParameterError
        An unknown block or definition.

    Examples
    --------
    >>> import timm, torch
    >>> vit = timm.create_model("test_vit", img_size=32).eval()
    >>> with torch.no_grad(), observe_attention(vit, [-1]) as seen:
    ...     _ = vit(torch.zeros(2, 3, 32, 32))
    >>> [(block, tuple(i.scores.shape), i.grid) for block, i in seen.items()]
    [(5, (2, 4), (2, 2))]
    """
    _check(model, definition, heads)
    if definition == "rollout":
        blocks = [-1] if blocks is None else blocks
        wanted = [site.index for site in _sites.select_sites(model, blocks)]
        watched = _sites.select_sites(model, range(max(wanted) + 1))
    else:
        watched = _sites.select_sites(model, blocks)
        wanted = [site.index for site in watched]
    for site in watched:
        if reason := _sites.refusal(site):
            raise _sites.refuse(site, reason)
    observation = Observation(definition, heads, wanted)
    watch = _Watch(model, observation)
    with ExitStack() as stack:
        for handle in watch.hooks(watched):
            stack.callback(handle.remove)
        stack.enter_context(watch)
        yield observation


def _check(model: nn.Module, definition: str, heads: str) -> None:
    if definition not in _SCORES and definition != "rollout":
        raise ParameterError(
            f"definition={definition!r} is not read from attention: use one of {ATTENTION_DEFINITIONS}."
        )
    if heads not in ("mean", "max", "each"):
        raise ParameterError(f"heads={heads!r} is unknown: use 'mean', 'max' or 'each'.")
    if definition.startswith("cls") and not _sites.has_class_token(model):
        name = type(_sites.encoder_of(model)).__name__
        raise ModelError(f"{name} has no class token for definition={definition!r}: use 'received'.")


class _Watch(TorchFunctionMode):
    """Sees every tensor function and remembers what the attention that is running now computes with."""

    def __init__(self, model: nn.Module, observation: Observation) -> None:
        super().__init__()
        self._model, self._observation = model, observation
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
            yield site.module.register_forward_hook(self._leave(site))
            kernel = getattr(site.module, "kernel_func", None)
            if isinstance(kernel, nn.Module):
                yield kernel.register_forward_hook(self._see_kernel)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run `func` and let the running attention look at it."""
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

        return hook

    def _leave(self, site: Site) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
            running, self._running = self._running, None
            if running is None:
                return
            attention = running.attention(site)
            batch, _, queries, keys = attention.shape
            outer = self._outer.get(site.owner, running.inputs)
            call = Call(running.inputs, outer, self._image, self._prefix, queries, keys, batch)
            layout = _sites.layout_of(site, call)
            self._observation.record(_Seen(site, attention, layout, self._class_token))

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

    def see(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """Keep queries, keys and bias of a fused call, or the softmax that goes on to multiply values."""
        if func is F.scaled_dot_product_attention:
            self._fused.append(_fused(*args, **kwargs))
        elif func is F.pad and self.kernels:  # a linear attention appends ones to its values
            self._padded = args[0]
        elif func in _SOFTMAX:
            self._weights, self._aliases = out, [out]
        elif func in _DROPOUT and self._is_weights(args[0]):
            self._aliases.append(out)
        elif func in _MATMUL and self._is_weights(args[0]) and self._weights is not None and self._weights.ndim == 4:
            self._explicit.append(Explicit(self._weights, args[1]))

    def attention(self, site: Site) -> Attention:
        """Return the one attention that was seen, or say why there is none."""
        if len(self.kernels) == 2 and self._padded is not None:
            module: Any = site.module
            q, k = self.kernels
            return Linear(q, k, self._padded, module.eps)
        seen: Sequence[Attention] = self._fused or self._explicit
        if len(seen) != 1:
            raise _sites.refuse(site, f"computes {len(seen)} attentions that can be read, where one is needed")
        return seen[0]

    def _is_weights(self, tensor: Any) -> bool:
        return any(tensor is alias for alias in self._aliases)


_SOFTMAX = frozenset({torch.softmax, F.softmax, Tensor.softmax})
_DROPOUT = frozenset({F.dropout, torch.dropout})
_MATMUL = frozenset({torch.matmul, Tensor.matmul, Tensor.__matmul__})


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
    q, k, v = (t.flatten(0, -4) for t in (query, key, value))  # (…, h, N, d) -> B h N d
    if k.shape[1] != q.shape[1]:  # one head of keys serves several heads of queries
        k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], dim=1) for t in (k, v))
    bias = attn_mask
    if bias is not None:
        if bias.dtype == torch.bool:
            bias = q.new_zeros(bias.shape).masked_fill(~bias, float("-inf"))
        bias = bias.flatten(0, -4) if bias.ndim > 4 else bias[(None,) * (4 - bias.ndim)]
    return Fused(q, k, v, q.shape[-1] ** -0.5 if scale is None else scale, bias)


def _received(seen: _Seen) -> Tensor:
    weights = seen.layout.query_weights
    if weights is not None:
        batch = seen.attention.shape[0]
        weights = weights.to(seen.attention.v.device).repeat(batch // len(weights), 1)
    return seen.attention.columns(weights)


def _cls(seen: _Seen) -> Tensor:
    if seen.layout.prefix == 0:
        raise _sites.refuse(seen.site, "runs without the class token")
    return seen.attention.row(0)


def _value_norm(seen: _Seen) -> Tensor:
    v = seen.attention.v
    return (v if v.dtype == torch.float64 else v.float()).norm(dim=-1)  # B h Nk


_SCORES: dict[str, Callable[[_Seen], Tensor]] = {
    "received": _received,
    "received_value": lambda seen: _received(seen) * _value_norm(seen),
    "cls": _cls,
    "cls_value": lambda seen: _cls(seen) * _value_norm(seen),
}
ATTENTION_DEFINITIONS = (*_SCORES, "rollout")
"""Definitions that `observe_attention` knows."""


def _importance(seen: _Seen, definition: str, heads: Heads) -> TokenImportance:
    scores = seen.layout.restore(_SCORES[definition](seen))  # B h N
    if heads == "mean":
        scores = scores.mean(1)
    elif heads == "max":
        scores = scores.amax(1)
    return TokenImportance(normalise(scores), seen.layout.grid, seen.site.name, seen.layout.windows)


def normalise(scores: Tensor) -> Tensor:
    """Return `scores` divided by their sum over the last axis."""
    return scores / scores.sum(-1, keepdim=True)


def _rollout(trail: Sequence[_Seen]) -> TokenImportance:
    """Return the last row (class token) or the column mean of Π_ℓ (½ Ā_ℓ + ½ I), one vector × matrix per block."""
    last = trail[-1]
    for seen in trail:
        batch, _, queries, keys = seen.attention.shape
        if queries != keys or seen.layout.windows is not None or keys != last.attention.shape[3]:
            raise _sites.refuse(seen.site, "does not attend from all tokens to all tokens, as rollout needs")
    batch, _, queries, _ = last.attention.shape
    by_class = last.class_token and last.layout.prefix > 0
    step = last.attention.row(0) if by_class else last.attention.columns()
    start = step.new_full((batch, queries), 1 / queries)
    if by_class:
        start = (torch.arange(queries, device=step.device) == 0).to(step.dtype).expand(batch, -1)
    row = (start + step.mean(1)) / 2  # B Nq
    for seen in reversed(trail[:-1]):
        row = (row + seen.attention.columns(row).mean(1)) / 2
    scores = last.layout.restore(row.unsqueeze(1)).squeeze(1)
    return TokenImportance(normalise(scores), last.layout.grid, last.site.name)
