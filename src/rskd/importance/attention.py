"""Token importance, observed from outside while the model runs as it always does.

Nothing in the model is changed and fused attention stays on: a `TorchFunctionMode` sees the final queries, keys and
bias of every ``scaled_dot_product_attention`` (or the softmax of a model that writes its attention out) between the
entry and the exit of an attention module, and the importance is computed there, tile by tile. One exception: from
`watch.MERGED_FROM` on, a float32 attention on a CPU without gradients is computed in the same tiles as its "received"
importance, so that queries and keys are multiplied once; the output is the same to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from rskd.errors import ModelError, ParameterError
from rskd.importance import sites as _sites
from rskd.importance.columns import exact, shares
from rskd.importance.features import FEATURE_DEFINITIONS, TokenFeatures, feature_stages, observe_features
from rskd.importance.layout import Grid
from rskd.importance.watch import Seen, Watch

Heads = Literal["mean", "max", "each", "all"]


@dataclass(frozen=True)
class TokenImportance:
    """How important each token is.

    Parameters
    ----------
    scores
        (B, N) over the patch tokens, row-major, summing to one; (B, h, N) per head, (B, 1 + h, N) with their mean.
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


Observation = Mapping[int, TokenImportance]
"""What `observe_attention` saw: block index → `TokenImportance`, of the last forward pass."""


class FeatureObservation(Observation):
    """Importance of observed features, computed when it is asked for."""

    def __init__(self, features: Mapping[int, TokenFeatures], scores: Callable[[Tensor], Tensor]) -> None:
        self._features, self._scores = features, scores

    def __getitem__(self, block: int) -> TokenImportance:
        """Return the importance after `block`."""
        seen = self._features[block]
        return TokenImportance(self._scores(seen.tokens), seen.grid, seen.name)

    def __iter__(self) -> Iterator[int]:
        """Iterate over the observed blocks in the order of depth."""
        return iter(sorted(self._features))

    def __len__(self) -> int:
        return len(self._features)


class AttentionObservation(Observation):
    """Importance of observed attentions."""

    def __init__(self, definition: str, heads: Heads, wanted: Iterable[int]) -> None:
        self._definition, self._heads, self._wanted = definition, heads, sorted(wanted)
        self._importance: dict[int, TokenImportance] = {}
        self._trail: dict[int, Seen] = {}

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

    def record(self, seen: Seen) -> None:
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
        A timm network, or any module that holds one as `.encoder`.
    blocks
        Indices of attentions (`attention_sites`) in the order of execution, or of stages (`feature_stages`) where the
        definition reads features; both are the blocks of a plain transformer. Negative = from the end; ``None`` = all
        (rollout: the last).
    definition
        ``"received"``, ``"received_value"``, ``"cls"``, ``"cls_value"``, ``"rollout"``, ``"feature_norm"`` or ``"at"``.
    heads
        ``"mean"`` or ``"max"`` over the heads, ``"each"`` head of its own, or ``"all"``: the mean, then each.

    Yields
    ------
    Observation
        Block index → `TokenImportance`, filled by a forward pass and replaced by the next.

    Raises
    ------
    ModelError
        The model has no attention, or one in which this importance has no meaning; the message names the alternative.
    ParameterError
        An unknown block or definition, or gradient checkpointing, which runs every attention twice.

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
    with ExitStack() as stack:
        if definition in FEATURE_DEFINITIONS:
            features = stack.enter_context(observe_features(model, blocks))
            yield FeatureObservation(features, FEATURE_DEFINITIONS[definition])
            return
        watched, wanted = _watched(model, blocks, definition)
        for site in watched:
            if reason := _sites.refusal(site):
                raise _sites.refuse(site, reason)
        observation = AttentionObservation(definition, heads, wanted)
        watch = Watch(model, observation.record, means=definition.startswith("received"))
        for handle in watch.hooks(watched):
            stack.callback(handle.remove)
        yield observation


def observed_modules(model: nn.Module, blocks: Sequence[int] | None, definition: str) -> list[nn.Module]:
    """Return the modules that `observe_attention` looks at: once all of them have run, it knows the importance."""
    if definition in FEATURE_DEFINITIONS:
        stages = feature_stages(model)
        return [stages[block].module for block in _sites.resolve_blocks(blocks, len(stages))]
    return [site.module for site in _watched(model, blocks, definition)[0]]


def _watched(model: nn.Module, blocks: Sequence[int] | None, definition: str) -> tuple[list[_sites.Site], list[int]]:
    """Return the attentions to look at, and the indices of those whose importance is wanted."""
    if definition != "rollout":
        watched = _sites.select_sites(model, blocks)
        return watched, [site.index for site in watched]
    wanted = [site.index for site in _sites.select_sites(model, [-1] if blocks is None else blocks)]
    return _sites.select_sites(model, range(max(wanted) + 1)), wanted


def _check(model: nn.Module, definition: str, heads: str) -> None:
    if definition not in DEFINITIONS:
        hint = "`gradient_importance`, which needs a loss" if definition == "grad" else ", ".join(DEFINITIONS)
        raise ParameterError(f"definition={definition!r} cannot be observed in a forward pass: use {hint}.")
    if heads not in get_args(Heads):
        raise ParameterError(f"heads={heads!r} is unknown: use 'mean', 'max', 'each' or 'all'.")
    if torch.is_grad_enabled() and any(getattr(module, "grad_checkpointing", False) for module in model.modules()):
        raise ParameterError("gradient checkpointing runs what is observed twice: switch it off for this model.")
    if definition.startswith("cls") and not _sites.has_class_token(model):
        name = type(_sites.encoder_of(model)).__name__
        raise ModelError(f"{name} has no class token for definition={definition!r}: use 'received'.")


def _received(seen: Seen) -> Tensor:
    weights = seen.layout.query_weights
    if weights is not None:
        batch = seen.attention.shape[0]
        weights = weights.to(seen.attention.v.device).repeat(batch // len(weights), 1)
    return seen.attention.columns(weights)


def _cls(seen: Seen) -> Tensor:
    if seen.layout.prefix == 0:
        raise _sites.refuse(seen.site, "runs without the class token")
    return seen.attention.row(0)


def _value_norm(seen: Seen) -> Tensor:
    norms: Tensor = exact(seen.attention.v).norm(dim=-1)  # B h Nk
    return norms


_SCORES: dict[str, Callable[[Seen], Tensor]] = {
    "received": _received,
    "received_value": lambda seen: _received(seen) * _value_norm(seen),
    "cls": _cls,
    "cls_value": lambda seen: _cls(seen) * _value_norm(seen),
}
DEFINITIONS = (*_SCORES, "rollout", *FEATURE_DEFINITIONS)
"""Definitions that `observe_attention` knows."""


def _importance(seen: Seen, definition: str, heads: Heads) -> TokenImportance:
    scores = seen.layout.restore(_SCORES[definition](seen))  # B h N
    if heads == "mean":
        scores = scores.mean(1)
    elif heads == "max":
        scores = scores.amax(1)
    elif heads == "all":
        scores = torch.cat([scores.mean(1, keepdim=True), scores], 1)
    return TokenImportance(shares(scores), seen.layout.grid, seen.site.name, seen.layout.windows)


def _rollout(trail: Sequence[Seen]) -> TokenImportance:
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
    return TokenImportance(shares(scores), last.layout.grid, last.site.name)
