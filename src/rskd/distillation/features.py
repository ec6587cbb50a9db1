"""Look inside a network from outside: one forward pass, and what the terms compare."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from rskd.importance.attention import observe_attention
from rskd.models.segmenter import Segmenter, tokens_to_map


@dataclass(frozen=True)
class Taps:
    """Where to look; nothing is recorded that is not asked for."""

    stages: tuple[int, ...] = ()
    """Blocks whose tokens are wanted as maps, shallow to deep."""
    importance: tuple[int, ...] = ()
    """Blocks whose token importance is wanted."""
    definition: str = "received"
    """What counts as importance."""
    texture: bool = False
    """Whether the map of the stem is wanted."""


@dataclass(frozen=True)
class Features:
    """What one forward pass of a `Segmenter` shows."""

    logits: Tensor
    """B K H W."""
    grid: tuple[int, int]
    """Rows and columns of the token grid."""
    stages: tuple[Tensor, ...] = ()
    """Token maps of the chosen blocks: B D h w."""
    importance: tuple[Tensor, ...] = ()
    """Token importance of the chosen blocks: B N, each row sums to 1."""
    texture: Tensor | None = None
    """Map of the convolutional stem at `texture_level`: B C H' W'."""


def texture_level(model: Segmenter) -> int:
    """Return the level of the stem that carries texture: half resolution, or full where there is no other."""
    return min(1, len(model.spec.stem_widths) - 1)


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
    >>> import torch
    >>> from rskd.models.presets import fresh_spec
    >>> model = Segmenter(fresh_spec("rskd-nano", in_channels=1, classes=["organ"]))
    >>> seen = observe(model, torch.zeros(1, 1, 64, 64), Taps(stages=(0, 2), importance=(2,), texture=True))
    >>> [tuple(stage.shape) for stage in seen.stages], tuple(seen.importance[0].shape), tuple(seen.texture.shape)
    ([(1, 64, 4, 4), (1, 64, 4, 4)], (1, 16), (1, 16, 32, 32))
    """
    patch = model.spec.patch_size
    grid = (images.shape[-2] // patch, images.shape[-1] // patch)
    seen: dict[Any, Tensor] = {}
    with ExitStack() as stack:
        for block in taps.stages:
            stack.callback(_record(model.encoder.blocks[block], seen, block).remove)
        if taps.texture:
            stack.callback(_record(model.stem.levels[texture_level(model)], seen, "texture").remove)
        attention = None
        if taps.importance:
            attention = stack.enter_context(observe_attention(model, taps.importance, definition=taps.definition))
        logits = model(images)
        importance = tuple(attention[block].scores for block in taps.importance) if attention else ()
    prefix = model.encoder.num_prefix_tokens
    stages = tuple(tokens_to_map(seen[block][:, prefix:], grid) for block in taps.stages)
    return Features(logits, grid, stages, importance, seen.get("texture"))


def _record(module: nn.Module, seen: dict[Any, Tensor], name: object) -> Any:
    def hook(module: nn.Module, inputs: object, output: Tensor) -> None:
        seen[name] = output

    remember: Callable[..., None] = hook
    return module.register_forward_hook(remember)


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
