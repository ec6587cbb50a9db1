"""Cut a patch and change it at random, image and mask together, by random numbers from a generator that is passed in.

Turn, flip, scale and elastic deformation are one map from the patch into the plane, so that the image is interpolated
once and the mask sees exactly the same map. torchvision's transforms would resample once each, and draw from the
global generator; its functions do what happens to the intensities alone.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as V

from rskd.config import AugmentOptions
from rskd.data.slices import IGNORE, Slice

_KNOTS = 5
"""Side of the grid of random shifts that an elastic deformation runs smoothly through."""


def augmented(
    plane: Slice, centre: tuple[float, float], patch: int, options: AugmentOptions, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Return a patch of a plane, changed at random.

    Parameters
    ----------
    plane
        Where to cut.
    centre
        Row and column of the patch's middle, in pixels.
    patch
        Side in pixels.
    options
        What may happen.
    rng
        Where every random number comes from.

    Returns
    -------
    image : Tensor
        C, patch, patch.
    target : Tensor
        patch, patch; or K, patch, patch where classes may overlap; `IGNORE` outside of the plane.

    Examples
    --------
    >>> plane = Slice("a", torch.zeros(1, 40, 40), torch.ones(40, 40, dtype=torch.long))
    >>> image, target = augmented(plane, (20, 20), 16, AugmentOptions(), np.random.default_rng(0))
    >>> tuple(image.shape), target.unique().tolist()
    ((1, 16, 16), [1])
    """
    turn = random_turn(options, rng)
    bend = random_bend(options.elastic, patch, rng) if options.elastic and rng.random() < options.share else None
    image, target = cut(plane, centre, turn, patch, bend=bend)
    return recoloured(image, options, rng), target


def cut(
    plane: Slice, centre: tuple[float, float], turn: Tensor, patch: int, *, bend: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return image (C, patch, patch) and target ([K,] patch, patch) around `centre`, seen through a matrix `turn`.

    Parameters
    ----------
    plane
        Where to cut.
    centre
        Row and column of the patch's middle, in pixels.
    turn
        2 × 2, maps an offset (x, y) in the patch to an offset in the plane.
    patch
        Side in pixels.
    bend
        (2, patch, patch): by how many pixels (x, y) of the patch each of its places looks aside.
    """
    along = torch.arange(patch) - (patch - 1) / 2  # offsets from the middle of the patch
    x, y = along[None, :], along[:, None]
    if bend is not None:
        x, y = x + bend[0], y + bend[1]
    (xx, xy), (yx, yy) = turn.tolist()
    columns = x * xx + y * xy + centre[1]  # h w, pixels of the plane
    rows = x * yx + y * yy + centre[0]
    return _bilinear(plane.image, rows, columns), _nearest(plane.target, rows, columns)


def _bilinear(image: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return the image (C, H, W) at places (h, w) between its pixels, mirrored outside."""
    height, width = image.shape[1:]
    grid = torch.stack([(2 * columns + 1) / width - 1, (2 * rows + 1) / height - 1], dim=-1)  # -1 … 1 from edge to edge
    return F.grid_sample(image[None], grid[None], mode="bilinear", padding_mode="reflection", align_corners=False)[0]


def _nearest(target: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return the target ([K,] H, W) at the pixels nearest to places (h, w), `IGNORE` outside; reads no more."""
    height, width = target.shape[-2:]
    row, column = rows.round().long(), columns.round().long()
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    found = target[..., row.clamp(0, height - 1), column.clamp(0, width - 1)]
    return found.masked_fill_(~inside, IGNORE)


def random_turn(options: AugmentOptions, rng: np.random.Generator) -> Tensor:
    """Return a random matrix (2 × 2) that flips, turns and scales."""
    angle = math.radians(rng.uniform(-options.rotation, options.rotation))
    scale = _factor(options.scale, rng)
    flips = rng.choice((-1.0, 1.0), 2) if options.flip else (1.0, 1.0)
    cosine, sine = math.cos(angle) * scale, math.sin(angle) * scale
    return torch.tensor([[cosine * flips[0], -sine * flips[1]], [sine * flips[0], cosine * flips[1]]]).float()


def random_bend(amplitude: float, patch: int, rng: np.random.Generator) -> Tensor:
    """Return a smooth random displacement (2, patch, patch) in pixels.

    Parameters
    ----------
    amplitude
        Largest shift at the knots, as a share of the side; up to 0.05 the patch is not folded over.
    patch
        Side in pixels.
    rng
        Where the shifts come from.
    """
    knots = torch.from_numpy(rng.uniform(-amplitude * patch, amplitude * patch, (1, 2, _KNOTS, _KNOTS))).float()
    return F.interpolate(knots, (patch, patch), mode="bicubic", align_corners=True)[0]


def recoloured(image: Tensor, options: AugmentOptions, rng: np.random.Generator) -> Tensor:
    """Return an image (C, H, W) with other intensities: less sharp, of other contrast and brightness, noisy."""
    if options.blur and rng.random() < options.share:
        image = blurred(image, rng.uniform(0, options.blur))
    if options.low_resolution > 1 and rng.random() < options.share:
        image = coarsened(image, rng.uniform(1, options.low_resolution))
    channels = image.shape[0]
    gain = torch.tensor([_factor(options.contrast, rng) for _ in range(channels)])
    offset = torch.from_numpy(rng.normal(0, options.brightness, channels))
    image = image * gain.float()[:, None, None] + offset.float()[:, None, None]
    if options.noise:
        noise = torch.from_numpy(rng.standard_normal(image.shape, np.float32))
        image = image.add(noise, alpha=rng.uniform(0, options.noise))
    return image


def blurred(image: Tensor, sigma: float) -> Tensor:
    """Return an image (C, H, W) blurred by a Gaussian of `sigma` pixels."""
    reach = min(math.ceil(3 * sigma), min(image.shape[1:]) - 1)  # a border can be reflected no further
    return V.gaussian_blur(image, [2 * reach + 1] * 2, [sigma] * 2) if reach else image


def coarsened(image: Tensor, factor: float) -> Tensor:
    """Return an image (C, H, W) without the detail that pixels larger by `factor` would not show."""
    size = list(image.shape[1:])
    coarse: Tensor = V.resize(V.resize(image, [max(1, round(side / factor)) for side in size], antialias=True), size)
    return coarse


def _factor(largest: float, rng: np.random.Generator) -> float:
    """Return a factor between 1/largest and largest, as often above 1 as below."""
    return math.exp(rng.uniform(-1, 1) * math.log(largest))
