"""Which tokens of an image matter to a teacher and to a student, and how far the two agree."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from rskd.config import RankOptions, SegmentOptions
from rskd.depth import matching_block
from rskd.errors import ModelError, ParameterError
from rskd.events import Message, Progress, Task
from rskd.importance import (
    TokenImportance,
    agreement,
    align,
    attention_sites,
    feature_stages,
    gradient_importance,
    observe_attention,
    observe_features,
    rank_tokens,
)
from rskd.importance.attention import observed_modules
from rskd.importance.features import FEATURE_DEFINITIONS
from rskd.importance.ranking import top_count
from rskd.importance.sites import refusal, resolve_blocks
from rskd.importance.until import run_until
from rskd.io.files import replacing
from rskd.jobs import Outcome
from rskd.models.normalise import normalise
from rskd.models.segmenter import Segmenter
from rskd.plan import View
from rskd.scan import Scan, move_axes

MOST_TOKENS = 16384
"""Attention grows with the square of the number of tokens; this many take seconds to minutes on a CPU."""


def rank(
    models: Mapping[str, Segmenter], scan: Scan, options: RankOptions, *, output: Path | None = None
) -> Task[Outcome]:
    """Rank the tokens of one image by their importance to each network.

    The whole image goes through a network at once, with pixels of the size that it was trained at, resized to the
    nearest whole number of patches, so that every token sees every other.

    Parameters
    ----------
    models
        Network by role: ``teacher``, ``student``, or both.
    scan
        One 2-D image.
    options
        Definition of importance, block, share of the top.
    output
        Folder for a map and a table per role, one figure (PNG and SVG), and the agreement of a pair; None = none.

    Yields
    ------
    Progress, Message
        A step per network; a warning where tokens of different windows cannot be compared.

    Returns
    -------
    Outcome
        Arrays ``{role}_importance`` (h, w) float32, summing to one, and ``{role}_order`` (N,), the most important
        token first. `value` has per role ``grid``, ``token`` (pixels of the image per token along y and x), ``block``
        (from 0), ``definition``, ``top`` (how many tokens lead) and ``name``; and ``agreement`` if there are both
        roles, with the teacher's importance brought to the student's grid.

    Raises
    ------
    ParameterError
        If the image is a stack, has other channels than the network takes, or too many pixels.
    ModelError
        If the network has no such importance.
    """
    value: dict[str, Any] = {}
    arrays: dict[str, NDArray[Any]] = {}
    seen: dict[str, TokenImportance] = {}
    blocks = choose_blocks(models, options)
    for done, (role, model) in enumerate(models.items(), 1):
        block, found = observe(model, scan, options.model_copy(update={"block": blocks[role]}))
        seen[role] = found
        value[role] = _facts(model, scan, options, block=block, found=found)
        arrays[f"{role}_importance"] = found.scores[0].reshape(found.grid).float().cpu().numpy()
        arrays[f"{role}_order"] = rank_tokens(found.scores[0], found.grid).order.cpu().numpy()
        if found.windows is not None:
            yield Message(
                f"The tokens of the {role} meet only inside windows: compare them inside one, or use feature_norm.",
                warning=True,
            )
        yield Progress(done, len(models), "networks")
    if len(seen) == 2:
        teacher, student = seen["teacher"], seen["student"]
        aligned = align(teacher.scores[0].cpu(), teacher.grid, student.grid)
        value["agreement"] = asdict(agreement(aligned, student.scores[0].cpu(), top=options.keep_ratio))
    if output is not None:
        _write(output, scan, value, arrays)
    return Outcome(value, arrays)


def choose_blocks(models: Mapping[str, Segmenter], options: RankOptions) -> dict[str, int]:
    """Return the block to look at by role: of two networks `options.block` is the student's, the teacher's as deep."""
    if len(models) < 2:
        return dict.fromkeys(models, options.block)
    depths = {role: _depth(model, options.definition) for role, model in models.items()}
    (block,) = resolve_blocks([options.block], depths["student"])
    return {"student": block, "teacher": matching_block(block, depths["student"], depths["teacher"])}


def _depth(model: Segmenter, definition: str) -> int:
    reads_features = definition in FEATURE_DEFINITIONS or definition == "grad"
    return len(feature_stages(model) if reads_features else attention_sites(model)) or 1


@contextmanager
def evaluating(model: Segmenter) -> Iterator[None]:
    """Put a network into evaluation mode inside the ``with`` block."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def observe(model: Segmenter, scan: Scan, options: RankOptions) -> tuple[int, TokenImportance]:
    """Return the index of the observed block and the importance (1, N) of its tokens."""
    ((block, found),) = _observe(model, scan, options.definition, [options.block]).items()
    head = options.head
    if head is None:
        return block, replace(found, scores=found.scores[:, 0])
    count = found.scores.shape[1] - 1
    if head >= count:
        hint = f"the block has heads 0 to {count - 1}" if count else f"{options.definition!r} has no heads"
        raise ParameterError(f"head={head} of {model.spec.name} does not exist: {hint}.")
    return block, replace(found, scores=found.scores[:, 1 + head])


def observe_all(model: Segmenter, scan: Scan, definition: str) -> dict[int, TokenImportance]:
    """Return the importance (1, 1 + heads, N) at every block that has one: the mean over the heads, then every head."""
    if definition in FEATURE_DEFINITIONS or definition in ("grad", "rollout"):
        return _observe(model, scan, definition, list(range(_depth(model, definition))))
    blocks = [site.index for site in attention_sites(model) if not refusal(site)]
    return _observe(model, scan, definition, blocks or None)


def _observe(model: Segmenter, scan: Scan, definition: str, blocks: list[int] | None) -> dict[int, TokenImportance]:
    """Return the importance (1, 1 + heads, N) at these blocks."""
    image = prepare(model, scan)
    with evaluating(model):
        if definition == "grad":
            return _gradient(model, image, blocks)
        with torch.inference_mode(), observe_attention(model, blocks, definition=definition, heads="all") as seen:
            run_until(model, image, observed_modules(model, blocks, definition))
            return {block: _with_heads(found) for block, found in seen.items()}


def _with_heads(found: TokenImportance) -> TokenImportance:
    """Return importance with an axis of heads, of length one where there are none."""
    return found if found.scores.ndim == 3 else replace(found, scores=found.scores[:, None])


def _gradient(model: Segmenter, image: Tensor, blocks: list[int] | None) -> dict[int, TokenImportance]:
    """Return the importance for the network's own answer: the cross-entropy against what it finds most likely."""
    with torch.enable_grad(), observe_features(model, blocks) as observation:
        logits = model(image)  # 1 K H W
        if model.spec.overlapping:
            loss = F.binary_cross_entropy_with_logits(logits, (logits >= 0).float())
        else:
            loss = F.cross_entropy(logits, logits.argmax(1))
        return {
            index: TokenImportance(gradient_importance(features, loss)[:, None], features.grid, features.name)
            for index, features in observation.items()
        }


def prepare(model: Segmenter, scan: Scan) -> Tensor:
    """Return the image (1, C, H, W), normalised, its sides multiples of the patch."""
    view = View.along("z", scan, model.spec, SegmentOptions())
    if len(view.slices) != 1:
        raise ParameterError(f"The image is a stack of {len(view.slices)} planes: choose one of them.")
    height, width = view.seen
    patch = model.spec.patch_size
    rows, columns = max(1, round(height / patch)), max(1, round(width / patch))
    if rows * columns > MOST_TOKENS:
        raise ParameterError(
            f"The image has {rows} x {columns} tokens of {patch} pixels, at most {MOST_TOKENS} can be ranked together: "
            "crop it, or make it smaller."
        )
    parameter = next(model.parameters(), None)
    if parameter is None:
        raise ModelError(f"{model.spec.name} has no weights.")
    image = torch.from_numpy(normalise(view.slices[0], model.spec)).to(parameter.device)[None]  # 1 C H W
    return F.interpolate(image, (rows * patch, columns * patch), mode="bilinear", antialias=True)


def _facts(model: Segmenter, scan: Scan, options: RankOptions, *, block: int, found: TokenImportance) -> dict[str, Any]:
    sizes = dict(zip(scan.axes, scan.data.shape, strict=True))
    return {
        "grid": list(found.grid),
        "token": [sizes["y"] / found.grid[0], sizes["x"] / found.grid[1]],
        "block": block,
        "definition": options.definition,
        "top": top_count(options.keep_ratio, found.scores.shape[-1]),
        "name": model.spec.name,
    }


def _write(folder: Path, scan: Scan, value: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write a map and a table per role, ``ranking.png`` and ``.svg``, and ``agreement.json`` for a pair."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.image import imsave

    roles = [role for role in ("teacher", "student") if role in value]
    figure = Figure(figsize=(5 * (len(roles) + 1), 5), layout="constrained")
    first, *others = figure.subplots(1, len(roles) + 1)
    picture = _picture(scan)
    first.set_title("Image")
    for axes in (first, *others):
        axes.imshow(picture, cmap="gray")
        axes.set_axis_off()
    for role, axes in zip(roles, others, strict=True):
        importance = arrays[f"{role}_importance"]
        with replacing(folder / f"{role}_importance.png") as partial:
            imsave(partial, importance, cmap=colormaps["inferno"])
        with replacing(folder / f"{role}_ranking.csv") as partial:
            partial.write_text(_table(importance, arrays[f"{role}_order"], value[role]["token"]), encoding="utf-8")
        extent = (-0.5, picture.shape[1] - 0.5, picture.shape[0] - 0.5, -0.5)
        axes.imshow(importance, cmap="inferno", alpha=0.6, extent=extent)
        axes.set_title(f"{role.capitalize()}: {value[role]['name']}, block {value[role]['block']}")
    for name in ("ranking.png", "ranking.svg"):
        with replacing(folder / name) as partial:
            figure.savefig(partial, dpi=120)
    if "agreement" in value:
        with replacing(folder / "agreement.json") as partial:
            partial.write_text(json.dumps(value["agreement"], indent=1), encoding="utf-8")


def _table(importance: NDArray[np.float32], order: NDArray[np.int64], token: list[float]) -> str:
    """Return a line per token, the most important first, with the middle of the token in pixels of the image."""
    text = StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["rank", "token", "row", "column", "y", "x", "importance"])
    for place, index in enumerate(order, 1):
        row, column = divmod(int(index), importance.shape[1])
        y, x = (row + 0.5) * token[0] - 0.5, (column + 0.5) * token[1] - 0.5
        table.writerow([place, index, row, column, f"{y:.2f}", f"{x:.2f}", f"{importance[row, column]:.6g}"])
    return text.getvalue()


def _picture(scan: Scan) -> NDArray[np.float64]:
    """Return the image for display, (H, W) or (H, W, 3), from 0 to 1."""
    array = move_axes(scan.data, scan.axes, "tzyxc")[0, 0]  # H W C
    picture = array[..., :3] if array.shape[-1] >= 3 else array[..., 0]
    low, high = np.percentile(picture, (0.5, 99.5))
    shown: NDArray[np.float64] = np.clip((picture - low) / ((high - low) or 1.0), 0, 1)
    return shown
