"""Find the attentions of a model and say how their tokens lie on the map: the only place that knows families."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from rskd.errors import ModelError, ParameterError
from rskd.importance.layout import Grid, Layout, dilated_index, grid_of, whole_map, window_index
from rskd.importance.weights import Attention, Fused

NO_ATTENTION = "use definition='feature_norm' or 'at', which read the features of any network"

_PROJECTIONS = (
    {"qkv"},
    {"qkvs"},
    {"q", "kv"},
    {"q", "k"},
    {"q_proj", "k_proj"},
    {"query", "key"},
    {"in_proj", "q_norm"},  # the block itself attends
)
"""Children that make a module an attention: it owns the projections to queries and keys."""

_REFUSED = {
    "xcit.XCA": "attends between channels, not between tokens",
    "edgenext.CrossCovarianceAttn": "attends between channels, not between tokens",
    "davit.ChannelAttention": "attends between channels, not between tokens",
    "davit.ChannelAttentionV2": "attends between channels, not between tokens",
    "cait.TalkingHeadAttn": "mixes its heads after the softmax, so no row of weights belongs to a token",
    "cait.ClassAttn": "asks with the class token only, after the patch tokens are finished",
    "xcit.ClassAttn": "asks with the class token only, after the patch tokens are finished",
    "volo.ClassAttention": "asks with the class token only, after the patch tokens are finished",
    "diff_attention.DiffAttention": "subtracts two attentions, so its weights can be negative",
    "vision_transformer.DiffParallelScalingBlock": "subtracts two attentions, so its weights can be negative",
    "hiera.MaskUnitAttention": "keeps its tokens in the order of mask units",
    "mobilevit.Attention": "attends between the same pixel of all patches",
}


@dataclass(frozen=True)
class Site:
    """One attention of a model, in the order of execution."""

    index: int
    name: str
    module: nn.Module
    owner: nn.Module
    """The module around it: it knows windows and shifts, and its output are the tokens after the block."""


@dataclass(frozen=True)
class Call:
    """What is known about one run of a site from outside."""

    inputs: tuple[Any, ...]
    """Arguments of the attention."""
    outer: tuple[Any, ...]
    """Arguments of the module around it."""
    image: tuple[int, int, int] | None
    """Batch, height and width of the image at the first convolution."""
    prefix: int
    queries: int
    keys: int
    batch: int


def encoder_of(model: nn.Module) -> nn.Module:
    """Return the timm network inside `model`: what `.encoder`, `.module` or `.model` leads to, or `model` itself."""
    for name in ("module", "encoder", "model"):
        inner = getattr(model, name, None)
        if isinstance(inner, nn.Module):
            return encoder_of(inner)
    return model


def attention_sites(model: nn.Module) -> list[Site]:
    """Return the attentions of the encoder of `model` in the order of execution; empty for a convolutional network."""
    modules = dict(encoder_of(model).named_modules())
    found = [(name, module) for name, module in modules.items() if _is_attention(module)]
    owners = [module if hasattr(module, "in_proj") else modules[name.rpartition(".")[0]] for name, module in found]
    return [Site(i, name, module, owner) for i, ((name, module), owner) in enumerate(zip(found, owners, strict=True))]


def select_sites(model: nn.Module, blocks: Sequence[int] | None) -> list[Site]:
    """Return the sites that `blocks` names (negative = from the end), all for ``None``.

    Raises
    ------
    ModelError
        The model has no attention.
    ParameterError
        A block does not exist.
    """
    sites = attention_sites(model)
    if not sites:
        raise ModelError(f"{type(encoder_of(model)).__name__} has no attention to observe: {NO_ATTENTION}.")
    return [sites[block] for block in resolve_blocks(blocks, len(sites))]


def resolve_blocks(blocks: Sequence[int] | None, count: int) -> list[int]:
    """Return the distinct indices, ascending and from 0, that `blocks` names out of `count`; all for ``None``.

    Examples
    --------
    >>> resolve_blocks([-1, 0, 3], 4)
    [0, 3]
    """
    for block in blocks or ():
        if not -count <= block < count:
            raise ParameterError(f"block {block} does not exist, the model has {count}: use 0 … {count - 1}.")
    return list(range(count)) if blocks is None else sorted({block % count for block in blocks})


def refuse(site: Site, reason: str) -> ModelError:
    """Return the error for a site whose attention has no meaning per token."""
    return ModelError(f"{site.name} ({type(site.module).__name__}) {reason}: {NO_ATTENTION}.")


def refusal(site: Site) -> str | None:
    """Return why no attention importance exists for `site`, ``None`` where one may."""
    return _REFUSED.get(_family(site.module))


def prefix_tokens(model: nn.Module) -> int:
    """Return how many tokens precede the patch tokens."""
    counts: Iterator[Any] = (getattr(module, "num_prefix_tokens", None) for module in encoder_of(model).modules())
    count = next((count for count in counts if count is not None), None)
    class_token = getattr(encoder_of(model), "cls_token", None)
    return count if count is not None else class_token.shape[1] if isinstance(class_token, Tensor) else 0


def has_class_token(model: nn.Module) -> bool:
    """Tell whether token 0 is a class token."""
    return any(getattr(module, "cls_token", None) is not None for module in encoder_of(model).modules())


def runs_heads_in_turn(site: Site) -> bool:
    """Tell whether the attentions of one run of `site` are its heads, one after the other."""
    return _family(site.module) == "efficientvit_msra.CascadedGroupAttention"


def split_heads(site: Site, attention: Attention) -> Attention:
    """Return `attention` with (B, h, …) where the family hands (B·h, …) to its fused attention."""
    if _family(site.module) != "vision_transformer_sam.Attention" or not isinstance(attention, Fused):
        return attention
    module: Any = site.module

    def split(tensor: Tensor) -> Tensor:
        return tensor.reshape(-1, module.num_heads, *tensor.shape[2:])

    bias = None if attention.bias is None else split(attention.bias)
    return Fused(split(attention.q), split(attention.k), split(attention.v), attention.scale, bias)


def layout_of(site: Site, call: Call) -> Layout:
    """Return how the keys of `site` lie on the token map.

    Raises
    ------
    ModelError
        The order of the tokens is not known for this family: nothing is guessed.
    """
    family = _LAYOUTS.get(_family(site.module)) or _LAYOUTS.get(_family(site.owner)) or _whole
    layout = family(site, call)
    windows, places = layout.shape
    images = call.batch // windows
    if call.keys != layout.prefix + places or (call.image is not None and images != call.image[0]):
        raise refuse(site, f"attends inside {call.batch} parts of {call.keys} tokens whose order is not known")
    return layout


def _is_attention(module: nn.Module) -> bool:
    children = {name for name, child in module.named_children()}
    return "Pool" not in type(module).__name__ and any(names <= children for names in _PROJECTIONS)


def _family(module: nn.Module) -> str:
    return f"{type(module).__module__.rpartition('.')[2]}.{type(module).__name__}"


def _whole(site: Site, call: Call) -> Layout:
    """All tokens of one map: (B, prefix + N, C), (B, C, H, W) or (B, H, W, C)."""
    tokens: Tensor = call.inputs[0]
    if tokens.ndim == 4:
        last, first = _channels_last_grid(tokens), (tokens.shape[2], tokens.shape[3])
        grids = (first, last) if _projects_maps(site.module) else (last, first)
        return whole_map(next((grid for grid in grids if grid[0] * grid[1] == call.keys), last))
    if tokens.shape[1] != call.keys:
        raise refuse(site, f"has {call.keys} keys for {tokens.shape[1]} tokens, whose place is not known")
    return _pooled(site, call)


def _pooled(site: Site, call: Call) -> Layout:
    """Keys that form a map of the shape of the image, after prefix tokens."""
    patches = call.keys - call.prefix
    grid = call.inputs[1] if len(call.inputs) > 1 and _is_grid(call.inputs[1]) else None
    if grid is None or grid[0] * grid[1] != patches:
        grid = grid_of(patches, call.image[1:]) if call.image and patches > 0 else None
    if grid is None:
        raise refuse(site, f"has {patches} patch tokens that form no grid of the shape of the image")
    return whole_map((grid[0], grid[1]), call.prefix)


def _projects_maps(module: nn.Module) -> bool:
    """Tell whether the projections are convolutions, so that the tokens are channels-first."""
    return any(isinstance(child, nn.Conv2d) for child in module.modules())


def _is_grid(value: object) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and all(isinstance(v, int) for v in value)


def _swin(site: Site, call: Call) -> Layout:
    owner: Any = site.owner
    grid = _channels_last_grid(call.outer[0])
    return Layout(grid, window_index(grid, tuple(owner.window_size), tuple(owner.shift_size)))


def _tiny_vit(site: Site, call: Call) -> Layout:
    size = int(site.owner.window_size)  # type: ignore[arg-type]
    grid = _channels_last_grid(call.outer[0])
    return Layout(grid, window_index(grid, (size, size)))


def _maxvit(site: Site, call: Call) -> Layout:
    owner: Any = site.owner
    first = call.outer[0]
    grid = tuple(first.shape[2:]) if _family(owner).endswith("2d") else _channels_last_grid(first)
    index = window_index if owner.partition_block else dilated_index
    return Layout(grid, index(grid, tuple(owner.partition_size)))


def _davit(site: Site, call: Call) -> Layout:
    owner: Any = site.owner
    grid = tuple(call.outer[0].shape[2:])  # B C H W
    return Layout(grid, window_index(grid, tuple(owner.window_size)))


def _gc_vit(site: Site, call: Call) -> Layout:
    owner: Any = site.owner
    grid = _channels_last_grid(call.outer[0])
    return Layout(grid, window_index(grid, tuple(owner.window_size)))


def _sam(site: Site, call: Call) -> Layout:
    size = int(site.owner.window_size)  # type: ignore[arg-type]
    grid = _channels_last_grid(call.outer[0])
    return Layout(grid, window_index(grid, (size, size))) if size else whole_map(grid)


def _cascaded(site: Site, call: Call) -> Layout:
    size = int(site.module.resolution)  # type: ignore[arg-type]
    grid = tuple(call.outer[0].shape[2:])  # B C H W
    return Layout(grid, window_index(grid, (size, size)))


def _mobile(site: Site, call: Call) -> Layout:
    """MobileNetV4: the keys are a strided map."""
    stride = int(site.module.kv_stride)  # type: ignore[arg-type]
    height, width = call.inputs[0].shape[2:]
    return whole_map((-(-height // stride), -(-width // stride)))


def _twins_local(site: Site, call: Call) -> Layout:
    size = int(site.module.ws)  # type: ignore[arg-type]
    grid = tuple(call.inputs[1])
    return Layout(grid, window_index(grid, (size, size)))


def _reduced(site: Site, call: Call) -> Layout:
    """PVT and Twins: the keys are a strided or pooled map of the tokens."""
    module: Any = site.module
    height, width = call.inputs[1]
    if getattr(module, "pool", None) is not None:
        return whole_map((7, 7))
    ratio = module.sr.stride[0] if module.sr is not None else 1
    return whole_map((height // ratio, width // ratio))


def _channels_last_grid(tokens: Tensor) -> Grid:
    return tokens.shape[1], tokens.shape[2]


_LAYOUTS: dict[str, Callable[[Site, Call], Layout]] = {
    "swin_transformer.SwinTransformerBlock": _swin,
    "swin_transformer_v2.SwinTransformerV2Block": _swin,
    "swin_transformer_v2_cr.SwinTransformerV2CrBlock": _swin,
    "davit.SpatialBlock": _davit,
    "gcvit.GlobalContextVitBlock": _gc_vit,
    "vision_transformer_sam.Block": _sam,
    "efficientvit_msra.LocalWindowAttention": _cascaded,
    "attention2d.MultiQueryAttention2d": _mobile,
    "mvitv2.MultiScaleAttention": _pooled,
    "tiny_vit.TinyVitBlock": _tiny_vit,
    "maxxvit.PartitionAttention2d": _maxvit,
    "maxxvit.PartitionAttentionCl": _maxvit,
    "twins.LocallyGroupedAttn": _twins_local,
    "twins.GlobalSubSampleAttn": _reduced,
    "pvt_v2.Attention": _reduced,
}
