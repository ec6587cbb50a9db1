"""Planes of the training images, ready for the network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from rskd.cases import Case, read_partners
from rskd.config import ModelSpec, SegmentOptions
from rskd.errors import DataError, ParameterError
from rskd.io import read_scan
from rskd.io.slices import millimetres
from rskd.models.normalise import normalise
from rskd.plan import SAME_SIZE, View
from rskd.scan import Scan

IGNORE = -1
"""Target of a pixel that has no mask or lies outside of the region: no loss is computed there."""

TRAINING_AXIS: Literal["z"] = "z"
"""Axis across the planes that are trained on: those y-x, as they are stored."""
_LARGEST_PIXEL = 1000.0
"""Side in mm; what is larger is no medical image."""


@dataclass(frozen=True)
class Slice:
    """One image plane, ready for the network."""

    case: str
    image: Tensor
    """C H W, normalised, float32."""
    target: Tensor
    """H W, class index or `IGNORE`, int64; where classes may overlap K H W, whether each is there: 0, 1, `IGNORE`."""
    pixel: tuple[float, float] | None = None
    """Height and width of a pixel in mm; `None` = unknown."""


def load_slices(case: Case, spec: ModelSpec) -> list[Slice]:
    """Read a case and return its planes y-x at the size and in the range that the network was made for."""
    scan = read_scan(case.image)
    images, masks, regions = read_partners(case, scan, spec)
    try:
        view = View.along(TRAINING_AXIS, scan, spec, SegmentOptions())
    except ParameterError as error:
        raise DataError(f"{case.image.name}: {error}") from error
    pixel = _pixel(scan, view)
    slices = []
    for index, image in enumerate(images):
        planes = torch.from_numpy(normalise(image, spec))
        if masks is None:
            outputs = (len(spec.outputs),) if spec.overlapping else ()
            target = torch.full((*outputs, *planes.shape[1:]), IGNORE)
        else:
            target = torch.from_numpy(masks[index].astype(np.int64))
            if regions is not None:
                target = target.masked_fill(~torch.from_numpy(regions[index]), IGNORE)
        slices.append(Slice(case.name, *_resized(planes, target, view.seen), pixel))
    return slices


def trained_on(spec: ModelSpec, planes: Sequence[Slice]) -> ModelSpec:
    """Return the description of a network after it was trained on planes: what they are, it is to see again.

    Parameters
    ----------
    spec
        The network before.
    planes
        All that it is trained on and validated with. If they have square pixels of one size, and no frame and no other
        size was asked for, it is written down.

    Examples
    --------
    >>> plane = Slice("a", torch.zeros(1, 4, 4), torch.zeros(4, 4), (0.7, 0.7))
    >>> spec = trained_on(ModelSpec(name="net"), [plane])
    >>> spec.axis, spec.spacing
    ('z', 0.7)
    """
    spacing = spec.spacing if spec.spacing or spec.frame else _one_size(planes)
    return ModelSpec.model_validate(spec.model_dump() | {"axis": TRAINING_AXIS, "spacing": spacing})


def _one_size(planes: Sequence[Slice]) -> float | None:
    """Return the side of a pixel, if all are square and so much alike that none would be resampled to another."""
    pixels = [plane.pixel for plane in planes]
    sides = [side for pixel in pixels if pixel is not None for side in pixel]
    if not sides or None in pixels or max(sides) > _LARGEST_PIXEL:
        return None
    middle = (min(sides) + max(sides)) / 2
    return middle if max(sides) - middle <= SAME_SIZE * middle else None


def _pixel(scan: Scan, view: View) -> tuple[float, float] | None:
    """Return the height and width in mm of a pixel that the network sees."""
    sizes = millimetres(scan)
    if not sizes:
        return None
    whole = zip(view.slices.plane, view.slices.plane_shape, view.seen, strict=True)
    height, width = (sizes[axis] * stored / seen for axis, stored, seen in whole)
    return height, width


def _resized(image: Tensor, target: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Bring a plane to the height and width at which the network sees it."""
    if target.shape[-2:] == size:
        return image, target
    image = F.interpolate(image[None], size, mode="bilinear", antialias=True)[0]
    whole = target.reshape(1, -1, *target.shape[-2:])  # 1 K H W
    target = F.interpolate(whole.double(), size, mode="nearest-exact").long().reshape(*target.shape[:-2], *size)
    return image, target
