"""Planes of the training images, ready for the network."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from rskd.cases import Case, read_case
from rskd.config import ModelSpec
from rskd.models.normalise import normalise

IGNORE = -1
"""Target of a pixel that has no mask or lies outside of the region: no loss is computed there."""


@dataclass(frozen=True)
class Slice:
    """One image plane, ready for the network."""

    case: str
    image: Tensor
    """C H W, normalised, float32."""
    target: Tensor
    """H W, class index or `IGNORE`, int64."""


def load_slices(case: Case, spec: ModelSpec) -> list[Slice]:
    """Read a case and return its planes at the size and in the range that the network was made for."""
    images, masks, regions = read_case(case, spec)
    slices = []
    for index, image in enumerate(images):
        planes = torch.from_numpy(normalise(image, spec))
        target = torch.full(planes.shape[1:], IGNORE)
        if masks is not None:
            target = torch.from_numpy(masks[index].astype(np.int64))
            if regions is not None:
                target = target.masked_fill(~torch.from_numpy(regions[index]), IGNORE)
        slices.append(Slice(case.name, *_to_frame(planes, target, spec.frame)))
    return slices


def _to_frame(image: Tensor, target: Tensor, frame: int | None) -> tuple[Tensor, Tensor]:
    height, width = target.shape
    if frame is None or max(height, width) == frame:
        return image, target
    factor = frame / max(height, width)
    size = (round(height * factor), round(width * factor))
    image = F.interpolate(image[None], size, mode="bilinear", antialias=True)[0]
    target = F.interpolate(target[None, None].double(), size, mode="nearest-exact")[0, 0].long()
    return image, target
