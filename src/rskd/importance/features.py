"""Token importance from features: for convolutional networks, and wherever attention cannot be compared."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rskd.errors import ModelError, ParameterError
from rskd.importance.columns import exact, shares
from rskd.importance.layout import Grid, grid_of
from rskd.importance.sites import attention_sites, encoder_of, prefix_tokens, resolve_blocks


@dataclass(frozen=True)
class TokenFeatures:
    """Features after a block or stage, and how the patch tokens lie in them."""

    output: Tensor
    """What the module gave, a node of the graph of the model's output."""
    grid: Grid
    """Height and width of the map."""
    name: str
    """The module whose output they are."""
    arrange: Callable[[Tensor], Tensor]
    """From a tensor of the shape of `output` to tokens (B, N, C)."""

    @property
    def tokens(self) -> Tensor:
        """(B, N, C), row-major on the grid, without prefix tokens."""
        return self.arrange(self.output)


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


def gradient_importance(features: TokenFeatures, loss: Tensor) -> Tensor:
    """Return Σ_c |x_jc · ∂loss/∂x_jc|, what the loss would change by if a token faded, summing to one over N.

    Parameters
    ----------
    features
        Of `observe_features`, from the forward pass that gave `loss`.
    loss
        A scalar; its graph is kept.

    Returns
    -------
    Tensor
        (B, N), without gradient.

    Raises
    ------
    ParameterError
        The loss does not depend on the features, or gradients were switched off.

    Examples
    --------
    >>> x = torch.tensor([[[1.0], [2.0]]], requires_grad=True)
    >>> gradient_importance(TokenFeatures(x, (1, 2), "x", lambda tokens: tokens), (x ** 2).sum())
    tensor([[0.2000, 0.8000]])
    """
    try:
        (grad,) = torch.autograd.grad(loss, features.output, retain_graph=True)
    except RuntimeError as error:
        raise ParameterError(
            f"the loss does not depend on {features.name}: run the model inside `observe_features` with gradients on."
        ) from error
    scores = features.arrange(exact(features.output * grad)).abs().sum(-1).detach()
    if not bool((scores.sum(-1) > 0).all()):
        raise ParameterError(f"the loss does not depend on the tokens of {features.name}: choose an earlier block.")
    return shares(scores)


FEATURE_DEFINITIONS: dict[str, Callable[[Tensor], Tensor]] = {"feature_norm": feature_norm, "at": attention_transfer}
"""Definitions that read features: (B, N, C) → (B, N)."""


class Stage(NamedTuple):
    """A block or stage whose output is a map of tokens."""

    name: str
    module: nn.Module
    channels: int | None
    """C of its output, where timm tells it."""


def feature_stages(model: nn.Module) -> list[Stage]:
    """Return the named stages of the encoder in the order of depth: every block of a plain transformer, or every stage.

    They are those of timm's `feature_info`; where it names no modules, the `stages`, or the blocks that attend.

    Raises
    ------
    ModelError
        None of these exists.
    """
    encoder = encoder_of(model)
    info: Any = getattr(encoder, "feature_info", None)
    records: Sequence[Any] = getattr(info, "info", info) or ()
    modules = dict(encoder.named_modules())
    channels = {r["module"]: int(r["num_chs"]) for r in records if r.get("module") in modules}
    names = list(channels) or [f"stages.{name}" for name, _ in modules.get("stages", nn.Module()).named_children()]
    names = names or list(dict.fromkeys(site.name.rpartition(".")[0] for site in attention_sites(model)))
    if not names:
        raise ModelError(f"{type(encoder).__name__} does not name its stages in `feature_info`: use a timm network.")
    return [Stage(name, modules[name], channels.get(name)) for name in names]


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
    wanted = resolve_blocks(blocks, len(stages))
    seen: dict[int, TokenFeatures] = {}
    image: list[Grid] = []

    def see_image(module: nn.Module, args: tuple[Any, ...]) -> None:
        image[:] = [tuple(args[0].shape[-2:])]

    def see_output(index: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
            output = out[0] if isinstance(out, tuple | list) else out
            seen[index] = _features(model, output, stages[index], image)

        return hook

    with ExitStack() as stack:
        stem = next((m for m in encoder_of(model).modules() if isinstance(m, nn.Conv2d)), None)
        if stem is not None:
            stack.callback(stem.register_forward_pre_hook(see_image).remove)
        for index in wanted:
            stack.callback(stages[index].module.register_forward_hook(see_output(index)).remove)
        yield seen


def _features(model: nn.Module, output: Tensor, stage: Stage, image: list[Grid]) -> TokenFeatures:
    """Return what a stage gave with the way to its tokens: (B, prefix + N, C), (B, C, H, W) or (B, H, W, C)."""
    encoder: Any = encoder_of(model)
    name = stage.name
    if hasattr(encoder, "reroll"):  # Hiera keeps its tokens in the order of mask units
        block = int(name.rpartition(".")[2])
        height, width = encoder.reroll(output, block).shape[1:3]
        return TokenFeatures(output, (height, width), name, lambda x: encoder.reroll(x, block).flatten(1, 2))
    if output.ndim == 4:
        if _channels_last(encoder, output, stage):
            return TokenFeatures(output, (output.shape[1], output.shape[2]), name, lambda x: x.flatten(1, 2))
        return TokenFeatures(output, (output.shape[2], output.shape[3]), name, lambda x: x.flatten(2).mT)
    prefix = prefix_tokens(model)
    for drop in dict.fromkeys((prefix, 0)) if output.ndim == 3 and image else ():
        grid = grid_of(output.shape[1] - drop, image[0])
        if grid is not None:
            return TokenFeatures(output, grid, name, lambda x, drop=drop: x[:, drop:])  # type: ignore[misc]
    raise ModelError(f"{name} gives {tuple(output.shape)}, which is no map of tokens: choose another block.")


def _channels_last(encoder: nn.Module, output: Tensor, stage: Stage) -> bool:
    """Tell (B, H, W, C) from (B, C, H, W) by the number of channels; where both would do, by what the encoder says."""
    first, last = (output.shape[axis] == stage.channels for axis in (1, 3))
    return last if first != last else getattr(encoder, "output_fmt", "NCHW") == "NHWC"
