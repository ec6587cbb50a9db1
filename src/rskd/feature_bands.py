"""Which directional texture a network carries: a feature map of teacher and student as contourlet sub-bands."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rskd.config import ContourletOptions, FeatureMapOptions
from rskd.decompose import shown_bands, split
from rskd.errors import ModelError, ParameterError
from rskd.events import Progress, Task
from rskd.importance import feature_stages, observe_features
from rskd.importance.until import run_until
from rskd.jobs import Outcome
from rskd.models.segmenter import Segmenter, tokens_to_map
from rskd.rank import prepare
from rskd.scan import Scan


def feature_bands(
    models: Mapping[str, Segmenter], scan: Scan, options: ContourletOptions, *, feature_map: FeatureMapOptions
) -> Task[Outcome]:
    """Split a feature map of each network into sub-bands.

    Parameters
    ----------
    models
        Network by role: ``teacher``, ``student``, or both.
    scan
        One 2-D image.
    options
        Levels and filters.
    feature_map
        Which map, and which of its channels.

    Yields
    ------
    Progress
        A step per network.

    Returns
    -------
    Outcome
        Per role the arrays ``{role}_map`` and ``{role}_{band}``, and in `value` ``name``, ``where``, ``channels``,
        ``map`` (``scale``, ``translate``) and ``bands`` as `rskd.decompose.decompose` has them, but in pixels of the
        image.

    Raises
    ------
    ParameterError, ModelError
        If there is no such map or channel, or the map is too small for the levels.
    """
    value: dict[str, Any] = {}
    arrays: dict[str, NDArray[Any]] = {}
    sizes = dict(zip(scan.axes, scan.data.shape, strict=True))
    for done, (role, model) in enumerate(models.items(), 1):
        where, features = observe_map(model, prepare(model, scan), feature_map)
        plane = _choose(features, feature_map.feature, role)
        bands, coefficients = shown_bands(split(plane, options))
        factor = np.array([sizes["y"] / plane.shape[0], sizes["x"] / plane.shape[1]])
        place = {"scale": [1, 1], "translate": [0, 0]}
        value[role] = {
            "name": model.spec.name,
            "where": where,
            "channels": len(features),
            "map": place | _on_image(place, factor),
            "bands": [band | _on_image(band, factor) for band in bands],
        }
        arrays[f"{role}_map"] = plane.astype(np.float32)
        arrays |= {f"{role}_{name}": array for name, array in coefficients.items()}
        yield Progress(done, len(models), "networks")
    return Outcome(value, arrays)


@torch.no_grad()
def observe_map(model: Segmenter, image: Tensor, options: FeatureMapOptions) -> tuple[str, NDArray[np.float64]]:
    """Return where a map was observed, in words, and the map (C, h, w), of an image (1, C, H, W)."""
    seen: list[Tensor] = []
    was_training = model.training
    model.eval()
    try:
        with ExitStack() as stack:
            if options.part == "stem":
                level, module = _stem_level(model, options.level)
                where = f"stem, level {level}"
                stack.callback(module.register_forward_hook(lambda m, i, output: seen.append(output)).remove)
                run_until(model, image, [module])
            else:
                stages = feature_stages(model)
                found = stack.enter_context(observe_features(model, [options.level]))
                run_until(model, image, [stages[options.level].module])
                ((level, features),) = found.items()
                where = f"encoder, stage {level} of 0 to {len(stages) - 1}"
                seen.append(tokens_to_map(features.tokens, features.grid))
    finally:
        model.train(was_training)
    return where, seen[0][0].double().cpu().numpy()


def _stem_level(model: Segmenter, level: int) -> tuple[int, torch.nn.Module]:
    if model.stem is None:
        raise ModelError(f"{model.spec.name} has no stem: choose the encoder.")
    count = len(model.stem.levels)
    if not -count <= level < count:
        raise ParameterError(
            f"level={level} does not exist: the stem of {model.spec.name} has levels 0 to {count - 1}."
        )
    return level % count, model.stem.levels[level]


def _choose(features: NDArray[np.float64], channel: int | None, role: str) -> NDArray[np.float64]:
    """Return one channel of a map (C, h, w), or the mean of all."""
    if channel is None:
        mean: NDArray[np.float64] = features.mean(0)
        return mean
    if channel >= len(features):
        raise ParameterError(
            f"feature={channel} does not exist: the {role}'s map has channels 0 to {len(features) - 1}."
        )
    chosen: NDArray[np.float64] = features[channel]
    return chosen


def _on_image(place: Mapping[str, Any], factor: NDArray[np.float64]) -> dict[str, list[float]]:
    """Return where samples stand in pixels of the image, given it in samples of a map that covers the image."""
    return {
        "scale": (np.array(place["scale"]) * factor).tolist(),
        "translate": ((np.array(place["translate"]) + 0.5) * factor - 0.5).tolist(),
    }
