"""How good a network is on the images kept for validation, with the tiles that `segment` would use."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from torch import Tensor

from rskd.backend_torch import TorchBackend
from rskd.box import PRESENT
from rskd.config import SegmentOptions
from rskd.data import Slice
from rskd.events import Progress, Task
from rskd.metrics import dice_per_class
from rskd.models.segmenter import Segmenter
from rskd.tiling import Tiling, predict_tiled
from rskd.training.launch import added_up

_OVERLAP = SegmentOptions().overlap
_TILES = 4
"""Tiles that are run together."""
Scores = dict[str, NDArray[np.float64]]
"""Dice of every class (the background first) by case; NaN where a case has no such class."""


def validate(network: Segmenter, planes: Sequence[Slice], fabric: Fabric) -> Task[Scores]:
    """Segment every plane and compare with its mask; the processes of a run share the cases.

    Parameters
    ----------
    network
        On the device of `fabric`; it comes back in the mode (training or evaluation) in which it was.
    planes
        What to validate with, the planes of a case one after the other.
    fabric
        This process and the others.

    Yields
    ------
    Progress
        After every plane.

    Returns
    -------
    Scores
        Of all cases, in every process.
    """
    cases = list(dict.fromkeys(plane.case for plane in planes))
    mine = set(cases[fabric.global_rank :: fabric.world_size])
    own = [plane for plane in planes if plane.case in mine]
    found: dict[str, list[tuple[NDArray[np.generic], NDArray[np.generic]]]] = {}
    training = network.training
    network.eval()
    for done, plane in enumerate(own, 1):
        found.setdefault(plane.case, []).append((plane_labels(network, plane.image), plane.target.numpy()))
        yield Progress(done, len(own), "validation images")
    network.train(training)
    table = torch.zeros(len(cases), len(network.spec.classes), dtype=torch.float64)
    for case, pairs in found.items():
        table[cases.index(case)] = torch.from_numpy(_case_dice(pairs, table.shape[1]))
    return dict(zip(cases, added_up(fabric, table).numpy(), strict=True))


def mean_scores(scores: Mapping[str, NDArray[np.float64]], names: Sequence[str]) -> tuple[float, dict[str, float]]:
    """Return the mean Dice of the foreground, and that of each of its classes over the cases that have it.

    Parameters
    ----------
    scores
        From `validate`.
    names
        Of the classes, the background first.

    Examples
    --------
    >>> scores = {"a": np.array([1, 0.5, 0.8]), "b": np.array([1, 0.7, np.nan])}
    >>> mean_scores(scores, ["background", "organ", "tumour"])
    (0.7, {'organ': 0.6, 'tumour': 0.8})
    """
    columns = np.transpose([*scores.values()])[1:] if scores else np.empty((0, 0))
    means = {name: _mean(column) for name, column in zip(names[1:], columns, strict=False)}
    return _mean([*means.values()]), means


def _mean(values: Sequence[float] | NDArray[np.float64]) -> float:
    known = [float(value) for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def plane_labels(network: Segmenter, image: Tensor) -> NDArray[np.generic]:
    """Segment a plane (C, H, W) that is ready for the network: labels H W, or K H W where classes may overlap."""
    height, width = image.shape[1:]
    device = next(network.parameters()).device
    canvas = torch.zeros(len(network.spec.outputs), height, width, device=device)
    tiling = Tiling.over((height, width), tile=network.spec.image_size, overlap=_OVERLAP, backend=TorchBackend(device))
    for _ in predict_tiled(network, [(image.to(device), canvas)], tiling, batch_size=_TILES):
        pass
    labels: NDArray[np.generic] = (
        (canvas.sigmoid() >= PRESENT if network.spec.overlapping else canvas.argmax(0)).cpu().numpy()
    )
    return labels


def _case_dice(planes: Sequence[tuple[NDArray[np.generic], NDArray[np.generic]]], classes: int) -> NDArray[np.float64]:
    """Return the Dice of every class of a case; without classes that exclude each other the background has none."""
    if planes[0][1].ndim == 3:
        found = [[(labels[k], target[k]) for labels, target in planes] for k in range(classes - 1)]
        return np.array([math.nan, *(_case_dice(own, 2)[1] for own in found)])
    prediction, target = (np.concatenate([plane.ravel() for plane in side]) for side in zip(*planes, strict=True))
    return dice_per_class(prediction, np.maximum(target, 0), classes, region=target >= 0)
