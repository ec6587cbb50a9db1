"""Read the description of a network off the names and shapes of its weights, as far as they tell."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from rskd.config import BACKGROUND, ClassInfo, ModelSpec
from rskd.errors import ModelError
from rskd.models.presets import COLORS, PRESETS

PREFIXES = ("module.", "_orig_mod.", "student.", "model.", "net.")
"""What other programs, and wrappers of torch, put before the names of weights."""
CONTAINERS = ("state_dict", "model_state_dict", "objective", "student", "model", "net", "ema")
"""Where files keep weights among other things."""
Weights = Mapping[str, Tensor]
_TELLING = {
    "upsample": "decoder.project.weight",
    "mlp": "decoder.projects.0.weight",
    "fpn": "decoder.laterals.0.weight",
    "unet": "decoder.joins.0.0.0.weight",
}
"""The weight that each decoder alone has, and whose outputs are its width."""


def find_weights(content: Any) -> dict[str, Tensor]:
    """Return the weights in what a file holds, under the names that they have in the network.

    Parameters
    ----------
    content
        Weights by name, or a mapping that holds them under a usual name.

    Raises
    ------
    ModelError
        If there are none.

    Examples
    --------
    >>> import torch
    >>> list(find_weights({"epoch": 3, "state_dict": {"module.head.bias": torch.zeros(2)}}))
    ['head.bias']
    """
    found = content
    for _ in range(3):  # a checkpoint in a checkpoint
        inner = next((found[name] for name in CONTAINERS if isinstance(found, Mapping) and name in found), None)
        if not isinstance(inner, Mapping):
            break
        found = inner
    if not isinstance(found, Mapping) or not any(isinstance(value, Tensor) for value in found.values()):
        raise ModelError("there are no weights by name in it")
    return _without_prefix({str(name): value for name, value in found.items() if isinstance(value, Tensor)})


def _without_prefix(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in PREFIXES:
        own = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
        if own and (len(own) == len(weights) or prefix == "student."):
            return _without_prefix(own)
    return weights


def infer_spec(weights: Weights, fields: Mapping[str, Any], *, name: str) -> dict[str, Any]:
    """Return the fields of the description of a `Segmenter` that its weights tell, with what is said beside them.

    Number of heads, intensities and names of classes leave no trace in the weights. The heads are those of the named
    network with the same shapes, where there is one.

    Parameters
    ----------
    weights
        By name, without prefixes.
    fields
        What is known otherwise; it counts more.
    name
        Name of the network, where nothing else is said.

    Returns
    -------
    dict
        Fields of `ModelSpec`.

    Raises
    ------
    ModelError
        If the weights are not those of a `Segmenter` with a plain transformer, or the heads are missing.
    """
    if "encoder.patch_embed.proj.weight" not in weights or "decoder.head.weight" not in weights:
        raise ModelError(_strange(weights))
    found = {"name": name} | _encoder(weights) | _decoder(weights, overlapping=fields.get("overlapping") is True)
    found |= {key: value for key, value in fields.items() if key in ModelSpec.model_fields}
    if found.get("num_heads") is None:
        twin = next((preset for preset in PRESETS.values() if _alike(preset, found)), None)
        if twin is None:
            raise ModelError(
                "the number of attention heads leaves no trace in the weights: say it in a JSON file of the same name, "
                'as {"num_heads": 3}'
            )
        found["num_heads"] = twin.num_heads
    return found


def _strange(weights: Weights) -> str:
    if any(name.startswith(("patch_embed.", "blocks.")) for name in weights):
        return (
            "these are the weights of an encoder alone: name the file as `pretrained`, together with a network to "
            "start fresh"
        )
    return (
        "these are not the weights of a plain transformer with one of our decoders: describe the network in a JSON "
        "file of the same name"
    )


def _encoder(weights: Weights) -> dict[str, Any]:
    width, channels, patch = weights["encoder.patch_embed.proj.weight"].shape[:3]
    found: dict[str, Any] = {
        "embed_dim": width,
        "in_channels": channels,
        "patch_size": patch,
        "depth": _count(weights, r"encoder\.blocks\.(\d+)\."),
    }
    positions = weights.get("encoder.pos_embed")
    if positions is not None:
        side = int(positions.shape[1] ** 0.5)  # prefix tokens are fewer than a row
        found["image_size"] = side * patch
    return found


def _decoder(weights: Weights, *, overlapping: bool) -> dict[str, Any]:
    classes = weights["decoder.head.weight"].shape[0] + overlapping  # then the background has no output
    stem = [weights[f"stem.levels.{i}.0.weight"].shape[0] for i in range(_count(weights, r"stem\.levels\.(\d+)\."))]
    kind = next((kind for kind, key in _TELLING.items() if key in weights), "linear")
    names = [ClassInfo(name=f"class {k}", color=COLORS[(k - 1) % len(COLORS)]) for k in range(1, classes)]
    found: dict[str, Any] = {"decoder": kind, "classes": (BACKGROUND, *names)}
    if kind in _TELLING:
        found["decoder_width"] = weights[_TELLING[kind]].shape[0]
        found["norm"] = "batch" if any(name.endswith("running_mean") for name in weights) else "group"
    return found | ({"stem_widths": tuple(stem)} if stem else {})


def _count(weights: Weights, pattern: str) -> int:
    return len({match[1] for name in weights if (match := re.match(pattern, name))})


def _alike(preset: ModelSpec, found: Mapping[str, Any]) -> bool:
    names = ("embed_dim", "depth", "patch_size", "decoder", "decoder_width", "stem_widths")
    return all(getattr(preset, name) == found.get(name) for name in names)
