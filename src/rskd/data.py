"""Training patches: cut, turned, scaled and recoloured at random, but always the same for the same seed and step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from rskd.cases import Case, read_case
from rskd.config import ModelSpec
from rskd.errors import DataError
from rskd.models.normalise import normalise

IGNORE = -1
"""Target of a pixel that has no mask or lies outside of the region: no loss is computed there."""
FOREGROUND_SHARE = 0.5
"""Share of the patches that are centred on a foreground pixel, where the slice has any."""
SCALE_RANGE = (0.75, 1.33)


@dataclass(frozen=True)
class Slice:
    """One image plane, ready for the network."""

    case: str
    image: Tensor
    """C H W, normalised, float32."""
    target: Tensor
    """H W, class index or `IGNORE`, int64."""


@dataclass(frozen=True)
class Batch:
    """Patches of one step."""

    images: Tensor
    """B C H W."""
    targets: Tensor
    """B H W, class index or `IGNORE`."""
    cases: tuple[str, ...]
    """B names: where each patch comes from."""

    def part(self, patches: slice) -> Batch:
        """Return some of the patches.

        Examples
        --------
        >>> batch = Batch(torch.zeros(4, 1, 8, 8), torch.zeros(4, 8, 8), ("a", "b", "c", "d"))
        >>> batch.part(slice(1, 3)).cases
        ('b', 'c')
        """
        return Batch(self.images[patches], self.targets[patches], self.cases[patches])


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


class PatchSampler:
    """Draws the batch of any step as a function of seed and step alone, so that a resumed run sees the same patches.

    Parameters
    ----------
    slices
        Planes to draw from.
    patch
        Side of a patch in pixels.
    batch_size
        Patches per batch.
    augment
        Flip, rotate, scale and change intensities; otherwise only the place is random.
    seed
        Seed of the whole run.
    """

    def __init__(
        self, slices: Sequence[Slice], *, patch: int, batch_size: int, augment: bool = True, seed: int = 0
    ) -> None:
        if not slices:
            raise DataError("There is no image to train on: choose a folder that has some.")
        self._slices = slices
        self._foreground = [torch.nonzero(plane.target > 0) for plane in slices]
        self._patch, self._batch_size, self._augment, self._seed = patch, batch_size, augment, seed

    def batch(self, step: int) -> Batch:
        """Return the batch of a step (counted from 0)."""
        rng = np.random.default_rng((self._seed, step))
        patches = [self._draw(rng) for _ in range(self._batch_size)]
        images, targets, cases = zip(*patches, strict=True)
        return Batch(torch.stack(images), torch.stack(targets), cases)

    def _draw(self, rng: np.random.Generator) -> tuple[Tensor, Tensor, str]:
        index = int(rng.integers(len(self._slices)))
        plane = self._slices[index]
        centre = self._centre(rng, plane, self._foreground[index])
        turn = _random_turn(rng) if self._augment else torch.eye(2)
        image, target = cut(plane, centre, turn, self._patch)
        return (_recolour(image, rng) if self._augment else image), target, plane.case

    def _centre(self, rng: np.random.Generator, plane: Slice, foreground: Tensor) -> tuple[float, float]:
        height, width = plane.target.shape
        if len(foreground) and rng.random() < FOREGROUND_SHARE:
            y, x = foreground[int(rng.integers(len(foreground)))].tolist()
            jitter = rng.uniform(-0.25, 0.25, 2) * self._patch
            return y + jitter[0], x + jitter[1]
        return _inside(rng, height, self._patch), _inside(rng, width, self._patch)


def _inside(rng: np.random.Generator, length: int, patch: int) -> float:
    """Return the centre of a patch that lies inside, or the middle where it cannot."""
    margin = min(patch, length) / 2
    return float(rng.uniform(margin, length - margin)) - 0.5


def cut(plane: Slice, centre: tuple[float, float], turn: Tensor, patch: int) -> tuple[Tensor, Tensor]:
    """Return image (C, patch, patch) and target (patch, patch) around `centre`, seen through the 2 × 2 matrix `turn`.

    Parameters
    ----------
    plane
        Where to cut.
    centre
        Row and column of the patch's middle, in pixels.
    turn
        Maps an offset (x, y) in the patch to an offset in the plane.
    patch
        Side in pixels.
    """
    height, width = plane.target.shape
    half = torch.tensor([width / 2, height / 2])
    matrix = turn * (patch / 2) / half[:, None]  # patch coordinates (-1 … 1) to plane coordinates (-1 … 1)
    shift = (torch.tensor([centre[1], centre[0]]) + 0.5) / half - 1
    theta = torch.cat([matrix, shift[:, None]], dim=1).float()[None]  # 1 2 3
    grid = F.affine_grid(theta, [1, 1, patch, patch], align_corners=False)
    image = F.grid_sample(plane.image[None], grid, mode="bilinear", padding_mode="reflection", align_corners=False)[0]
    shifted = (plane.target[None, None] - IGNORE).float()  # outside of the plane is 0 = IGNORE
    target = F.grid_sample(shifted, grid, mode="nearest", padding_mode="zeros", align_corners=False)[0, 0]
    return image, target.long() + IGNORE


def _random_turn(rng: np.random.Generator) -> Tensor:
    angle = rng.uniform(0, 2 * math.pi)
    scale = math.exp(rng.uniform(*np.log(SCALE_RANGE)))
    flip = rng.choice((-1.0, 1.0))
    cosine, sine = math.cos(angle) * scale, math.sin(angle) * scale
    return torch.tensor([[cosine * flip, -sine], [sine * flip, cosine]])


def _recolour(image: Tensor, rng: np.random.Generator) -> Tensor:
    channels = image.shape[0]
    gain = torch.from_numpy(rng.uniform(0.8, 1.25, (channels, 1, 1))).float()
    offset = torch.from_numpy(rng.normal(0, 0.15, (channels, 1, 1))).float()
    noise = torch.from_numpy(rng.standard_normal(image.shape, np.float32)) * float(rng.uniform(0, 0.1))
    return image * gain + offset + noise
