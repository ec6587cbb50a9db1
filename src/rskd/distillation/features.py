"""Look inside a network from outside: one forward pass, and what the terms compare."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from rskd.errors import ModelError
from rskd.importance.attention import TokenImportance, observe_attention
from rskd.importance.features import FEATURE_DEFINITIONS, TokenFeatures, feature_stages, observe_features
from rskd.importance.sites import attention_sites
from rskd.models.decoders import DecoderMap
from rskd.models.encoders import widths as encoder_widths
from rskd.models.segmenter import Segmenter, tokens_to_map


@dataclass(frozen=True)
class Taps:
    """Where to look; nothing is recorded that is not asked for."""

    stages: tuple[int, ...] = ()
    """Stages whose maps are wanted: those of the encoder (the blocks of a plain transformer), shallow to deep, and
    after these the decoder's maps, coarse to fine."""
    importance: tuple[int, ...] = ()
    """Blocks whose token importance is wanted."""
    definition: str = "received"
    """What counts as importance."""
    texture: bool = False
    """Whether the map that carries texture is wanted."""


@dataclass(frozen=True)
class Features:
    """What one forward pass of a `Segmenter` shows."""

    logits: Tensor
    """B K H W."""
    grid: tuple[int, int]
    """Rows and columns of the coarsest grid: that of the tokens of a plain transformer."""
    stages: tuple[Tensor, ...] = ()
    """Maps of the chosen stages: B D_i h_i w_i."""
    importance: tuple[Tensor, ...] = ()
    """Token importance of the chosen blocks: B N_i, each row sums to 1."""
    texture: Tensor | None = None
    """Map that carries texture: that of the stem at `texture_level`, B C H' W', or the first stage without a stem."""
    importance_layout: tuple[TokenImportance, ...] = ()
    """The same importance with its grid and its windows."""


def in_float(seen: Features) -> Features:
    """Return what was seen in half precision as float32, and everything else as it is."""
    layout = tuple(replace(importance, scores=_in_float(importance.scores)) for importance in seen.importance_layout)
    return replace(
        seen,
        logits=_in_float(seen.logits),
        stages=tuple(_in_float(x) for x in seen.stages),
        importance=tuple(importance.scores for importance in layout),
        texture=None if seen.texture is None else _in_float(seen.texture),
        importance_layout=layout,
    )


def _in_float(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def texture_level(model: Segmenter) -> int:
    """Return the level of the stem that carries texture: half resolution, or full where there is no other."""
    return min(1, len(model.spec.stem_widths) - 1)


def texture_width(model: Segmenter) -> int:
    """Return the channels of the map that carries texture."""
    return model.spec.stem_widths[texture_level(model)] if model.stem is not None else stage_widths(model)[0]


def stage_widths(model: Segmenter) -> tuple[int, ...]:
    """Return the channels of every stage of the encoder, shallow to deep; of a plain transformer, of every block.

    Examples
    --------
    >>> from rskd.models.presets import fresh_spec
    >>> stage_widths(Segmenter(fresh_spec("rskd-nano", in_channels=1, classes=["organ"])))
    (64, 64, 64, 64)
    """
    widths = encoder_widths(model.encoder)
    if len(widths) != len(feature_stages(model)):
        raise ModelError(
            f"The encoder {model.spec.encoder} names {len(widths)} stages of which {len(feature_stages(model))} can be "
            "observed: distil its logits alone, or choose another encoder."
        )
    return widths


def decoder_maps(model: Segmenter) -> tuple[DecoderMap, ...]:
    """Return the maps that the decoder makes, coarse to fine; none where it is not one of ours.

    Examples
    --------
    >>> from rskd.models.presets import fresh_spec
    >>> model = Segmenter(fresh_spec("rskd-nano", in_channels=1, classes=["organ"]))
    >>> [(found.stride, found.width) for found in decoder_maps(model)]
    [(8, 24), (4, 24), (2, 24), (1, 16)]
    """
    maps = getattr(model.decoder, "maps", tuple)
    return tuple(maps())


def importance_depth(model: Segmenter, definition: str) -> int:
    """Return the number of blocks whose importance can be asked for.

    Raises
    ------
    ModelError
        If the definition needs attention and the network has none.
    """
    if definition in FEATURE_DEFINITIONS:
        return len(feature_stages(model))
    depth = len(attention_sites(model))
    if not depth:
        raise ModelError(
            f"The encoder {model.spec.encoder} has no attention to rank tokens by: set the definition of the ranking "
            "term to 'at' or 'feature_norm', or its weight to 0."
        )
    return depth


def observe(model: Segmenter, images: Tensor, taps: Taps) -> Features:
    """Run a network once and return what the taps saw.

    Parameters
    ----------
    model
        Observed by hooks; it is not changed.
    images
        B C H W.
    taps
        Where to look.

    Examples
    --------
    >>> from rskd.models.presets import fresh_spec
    >>> model = Segmenter(fresh_spec("rskd-nano", in_channels=1, classes=["organ"]))
    >>> seen = observe(model, torch.zeros(1, 1, 64, 64), Taps(stages=(0, 2), importance=(2,), texture=True))
    >>> [tuple(stage.shape) for stage in seen.stages], tuple(seen.importance[0].shape), tuple(seen.texture.shape)
    ([(1, 64, 4, 4), (1, 64, 4, 4)], (1, 16), (1, 16, 32, 32))
    """
    patch = model.spec.patch_size
    grid = (images.shape[-2] // patch, images.shape[-1] // patch)
    stem_seen: list[Tensor] = []
    depth = len(feature_stages(model)) if taps.stages else 0
    stages = {stage for stage in taps.stages if stage < depth} | ({0} if taps.texture and model.stem is None else set())
    decoded: dict[int, list[Tensor]] = {stage: [] for stage in taps.stages if stage >= depth}
    with ExitStack() as stack:
        seen = stack.enter_context(observe_features(model, sorted(stages))) if stages else {}
        for stage, output in decoded.items():
            stack.callback(_record(decoder_maps(model)[stage - depth].module, output).remove)
        if taps.texture and model.stem is not None:
            stack.callback(_record(model.stem.levels[texture_level(model)], stem_seen).remove)
        attention = None
        if taps.importance:
            attention = stack.enter_context(observe_attention(model, taps.importance, definition=taps.definition))
        logits = model(images)
        layout = tuple(attention[block] for block in taps.importance) if attention else ()
    texture = (stem_seen[0] if stem_seen else _as_map(seen[0])) if taps.texture else None
    maps = tuple(decoded[stage][0] if stage in decoded else _as_map(seen[stage]) for stage in taps.stages)
    return Features(logits, grid, maps, tuple(importance.scores for importance in layout), texture, layout)


def _as_map(features: TokenFeatures) -> Tensor:
    return tokens_to_map(features.tokens, features.grid)  # B N D -> B D h w


def _record(module: nn.Module, seen: list[Tensor]) -> RemovableHandle:
    def hook(module: nn.Module, inputs: object, output: Tensor) -> None:
        seen[:] = [output]

    return module.register_forward_hook(hook)


def match_blocks(student_depth: int, teacher_depth: int, count: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the student's blocks at the end of each equal part of its depth, and the teacher's at the same depth.

    Examples
    --------
    >>> match_blocks(4, 8, 2)
    ((1, 3), (3, 7))
    """
    count = min(count, student_depth, teacher_depth)
    student = tuple(round((i + 1) * student_depth / count) - 1 for i in range(count))
    teacher = tuple(round((block + 1) * teacher_depth / student_depth) - 1 for block in student)
    return student, teacher
