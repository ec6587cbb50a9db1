"""Made-up pictures that resemble vessels in the back of the eye, for demonstrations and tests.

They are drawn here, contain nothing of any person, and come with their exact masks.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from rskd.errors import ParameterError
from rskd.io import write_image
from rskd.scan import Scan

_GROUND = np.array([0.76, 0.42, 0.20])
"""Red, green and blue of the background."""
_VESSEL = np.array([0.80, 0.45, 0.55])
"""How much of each the widest vessel lets through."""
_THINNEST = 0.7
"""Radius in pixels at which a branch ends."""
_SMALLEST = 16


def vessel_phantom(rng: np.random.Generator, size: int = 128) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Draw a picture with branching vessels, and its mask.

    Parameters
    ----------
    rng
        Where chance comes from.
    size
        Side of the square in pixels, at least 16.

    Returns
    -------
    image : ndarray
        Shape (size, size, 3), uint8: dark red trees on uneven orange, with blur and noise.
    mask : ndarray
        Shape (size, size), uint8: 255 on vessels, else 0.

    Examples
    --------
    >>> image, mask = vessel_phantom(np.random.default_rng(0), 64)
    >>> image.shape, mask.shape, sorted({0, 255} & set(mask.ravel().tolist()))
    ((64, 64, 3), (64, 64), [0, 255])
    """
    if size < _SMALLEST:
        raise ParameterError(f"size={size} leaves no room for a vessel: use at least {_SMALLEST}.")
    radius = np.zeros((size, size))
    for _ in range(3):
        _grow(rng, radius, _at_the_edge(rng, size), max(rng.uniform(0.016, 0.028) * size, 1.5 * _THINNEST))
    mask = radius > 0
    depth = gaussian_filter(np.sqrt(radius / radius.max()), 0.6)  # thin vessels are faint
    light = 1 + 0.25 * _clouds(rng, size, size / 4) + 0.06 * _clouds(rng, size, 2)
    image = _GROUND * light[..., None] * (1 - (1 - _VESSEL) * depth[..., None])
    image = image + rng.normal(0, 0.012, image.shape)
    return (image.clip(0, 1) * 255).round().astype(np.uint8), (mask * 255).astype(np.uint8)


def write_phantoms(folder: str | Path, *, count: int, size: int = 128, seed: int = 0) -> None:
    """Write pictures and masks to ``folder/images`` and ``folder/masks``, as a training set.

    Parameters
    ----------
    folder
        Where to; made if needed.
    count
        How many.
    size
        Side in pixels.
    seed
        The same seed gives the same pictures, however many there are.
    """
    for index in range(count):
        image, mask = vessel_phantom(np.random.default_rng((seed, index)), size)
        name = f"phantom_{index:03d}.png"
        write_image(Path(folder) / "images" / name, Scan(image, "yxc"))
        write_image(Path(folder) / "masks" / name, Scan(mask, "yx"))


def _at_the_edge(rng: np.random.Generator, size: int) -> tuple[NDArray[np.float64], float]:
    """Return a point on the border and a direction that leads inwards."""
    angle = rng.uniform(0, 2 * math.pi)
    outward = np.array([math.sin(angle), math.cos(angle)])
    point = (0.5 + 0.5 * outward / np.abs(outward).max()) * (size - 1)
    return point, angle + math.pi + rng.normal(0, 0.3)


def _grow(
    rng: np.random.Generator, radius: NDArray[np.float64], start: tuple[NDArray[np.float64], float], width: float
) -> None:
    """Draw one tree into the map of vessel radii: branches wander, thin out and fork in two (Murray's law)."""
    size = len(radius)
    branches = [(*start, width)]
    while branches:
        point, angle, width = branches.pop()
        course, bend = angle, 0.0
        for _ in range(int(rng.uniform(0.15, 0.45) * size)):
            bend = 0.85 * bend - 0.03 * (angle - course) + rng.normal(0, 0.04)
            angle += bend
            point = point + np.array([math.sin(angle), math.cos(angle)])
            if not (-width <= point).all() or not (point < size + width).all():
                break
            _stamp(radius, point, width)
        else:
            share = rng.uniform(0.3, 0.7)
            spread = rng.uniform(0.4, 0.9)
            for part, side in ((share, 1), (1 - share, -1)):
                thinner = width * part ** (1 / 3) * 0.92
                if thinner > _THINNEST:
                    branches.append((point, angle + side * spread * (1 - part), thinner))


def _stamp(radius: NDArray[np.float64], point: NDArray[np.float64], width: float) -> None:
    """Draw a disc of radius `width` around `point`."""
    low = np.maximum(np.floor(point - width).astype(int), 0)
    high = np.maximum(np.ceil(point + width).astype(int) + 1, 0)
    window = radius[low[0] : high[0], low[1] : high[1]]
    y, x = np.ogrid[low[0] : low[0] + window.shape[0], low[1] : low[1] + window.shape[1]]
    inside = (y - point[0]) ** 2 + (x - point[1]) ** 2 <= width**2
    np.maximum(window, np.where(inside, width, 0), out=window)


def _clouds(rng: np.random.Generator, size: int, width: float) -> NDArray[np.float64]:
    """Return smooth noise of mean 0 and deviation 1."""
    noise = gaussian_filter(rng.standard_normal((size, size)), width, mode="reflect")
    clouds: NDArray[np.float64] = (noise - noise.mean()) / noise.std()
    return clouds
