"""Token importance from features: for convolutional networks, and wherever attention cannot be compared."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rskd.errors import ModelError, ParameterError
from rskd.importance.columns import exact, shares
from rskd.importance.layout import Grid, grid_of
from rskd.importance.sites import encoder_of, prefix_tokens, resolve_blocks


@dataclass(frozen=True)
class TokenFeatures:
    """Features of the patch tokens after a block or stage."""

    tokens: Tensor
    """(B, N, C), row-major on the grid, without prefix tokens."""
    grid: Grid
    """Height and width of the map."""
    name: str
    """The module whose output they are."""


def feature_norm(tokens: Tensor) -> Tensor:
    """Return ‖x_j‖₂ of tokens (B, N, C), summing to one over N.

    Examples
    --------
    >>> feature_norm(torch.tensor([[[3., 4.], [0., 15.]]]))
    tensor([[0.2500, 0.7500]])
    """
    return shares(exact(tokens).norm(dim=-1))


def attention_transfer(tokens: Tensor, *, power: float = 2.0) -> Tensor:
    """Return mean_c |x_jc|^p of tokens (B, N, C), the map of Attention Transfer, summing to one over N.

    References
    ----------
    Zagoruyko & Komodakis, *Paying more attention to attention*, ICLR 2017.

    Examples
    --------
    >>> attention_transfer(torch.tensor([[[1., 1.], [1., 2.]]]))
    tensor([[0.2857, 0.7143]])
    """
    return shares((exact(tokens).abs() ** power).mean(-1))


def gradient_importance(tokens: Tensor, loss: Tensor) -> Tensor:
    """Return Σ_c |x_jc · ∂loss/∂x_jc|, what the loss would change by if a token faded, summing to one over N.

    Parameters
    ----------
    tokens
        (B, N, C) of `observe_features`, part of the graph of `loss`.
    loss
        A scalar computed in the same forward pass; its graph is kept.

    Raises
    ------
    ParameterError
        The loss does not depend on the tokens, or gradients were switched off.
    """
    try:
        (grad,) = torch.autograd.grad(loss, tokens, retain_graph=True)
    except RuntimeError as error:
        raise ParameterError(
            "the loss does not depend on these tokens: run the model inside `observe_features` with gradients enabled."
        ) from error
    return shares(exact(tokens * grad).abs().sum(-1).detach())


FEATURE_DEFINITIONS: dict[str, Callable[[Tensor], Tensor]] = {"feature_norm": feature_norm, "at": attention_transfer}
"""Definitions that read features: (B, N, C) → (B, N)."""


def feature_stages(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the named stages of the encoder in the order of depth: every block of a plain transformer, or every stage.

    Raises
    ------
    ModelError
        The network is not a timm network, or does not name its stages.
    """
    encoder = encoder_of(model)
    info: Any = getattr(encoder, "feature_info", None)
    records: Sequence[Any] = getattr(info, "info", info) or ()
    names = [record["module"] for record in records if record.get("module")]
    modules = dict(encoder.named_modules())
    stages = [(name, modules[name]) for name in names if name in modules]
    if not stages:
        raise ModelError(f"{type(encoder).__name__} does not name its stages in `feature_info`: use a timm network.")
    return stages


@contextmanager
def observe_features(model: nn.Module, blocks: Sequence[int] | None = None) -> Iterator[dict[int, TokenFeatures]]:
    """Observe the patch tokens after blocks or stages during the forward passes inside the ``with`` block.

    Parameters
    ----------
    model
        A timm network, or any module that holds one as `.encoder`.
    blocks
        Indices into `feature_stages`, negative = from the end; ``None`` = all.

    Yields
    ------
    dict
        Index → `TokenFeatures` of the last forward pass, part of its graph.

    Examples
    --------
    >>> import timm
    >>> net = timm.create_model("test_resnet").eval()
    >>> with torch.no_grad(), observe_features(net, [-1]) as seen:
    ...     _ = net(torch.zeros(2, 3, 64, 64))
    >>> [(index, tuple(f.tokens.shape), f.grid) for index, f in seen.items()]
    [(4, (2, 4, 96), (2, 2))]
    """
    stages = feature_stages(model)
    for block in blocks or ():
        if not -len(stages) <= block < len(stages):
            raise ParameterError(
                f"block {block} does not exist, the model has {len(stages)}: use 0 … {len(stages) - 1}."
            )
    wanted = range(len(stages)) if blocks is None else sorted({block % len(stages) for block in blocks})
    seen: dict[int, TokenFeatures] = {}
    image: list[Grid] = []
    prefix = prefix_tokens(model)
    channels_last = getattr(encoder_of(model), "output_fmt", "NCHW") == "NHWC"

    def see_image(module: nn.Module, args: tuple[Any, ...]) -> None:
        image[:] = [tuple(args[0].shape[-2:])]

    def see_output(index: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
            features = out[0] if isinstance(out, tuple | list) else out
            seen[index] = _tokens(features, stages[index][0], image, prefix, channels_last)

        return hook

    with ExitStack() as stack:
        stem = next((m for m in encoder_of(model).modules() if isinstance(m, nn.Conv2d)), None)
        if stem is not None:
            stack.callback(stem.register_forward_pre_hook(see_image).remove)
        for index in wanted:
            stack.callback(stages[index][1].register_forward_hook(see_output(index)).remove)
        yield seen


def _tokens(features: Tensor, name: str, image: list[Grid], prefix: int, channels_last: bool) -> TokenFeatures:
    """Return (B, N, C) of what a block gave: (B, prefix + N, C), (B, C, H, W) or (B, H, W, C)."""
    if features.ndim == 4:
        features = features if channels_last else features.permute(0, 2, 3, 1)
        return TokenFeatures(features.flatten(1, 2), (features.shape[1], features.shape[2]), name)
    if features.ndim == 3 and image:
        for drop in {prefix, 0}:
            grid = grid_of(features.shape[1] - drop, image[0])
            if grid is not None:
                return TokenFeatures(features[:, drop:], grid, name)
    raise ModelError(f"{name} gives {tuple(features.shape)}, which is no map of tokens: choose another block.")
