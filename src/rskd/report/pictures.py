"""Pictures of segmentations: the classes over the image, and where a network and the mask differ.

Everything that colour says is said by a pattern or an outline as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from io import BytesIO
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy.ndimage import binary_erosion

from rskd.report.measure import Plane

SIDE = 360
"""Pixels that the longer side of a picture has at least."""
MISSED, EXTRA, MIXED_UP = range(1, 4)
"""Kinds of mistakes: the mask alone has a class, the network alone has one, both have one but not the same."""
_MISTAKES = {MISSED: (0, 90, 181), EXTRA: (230, 120, 0), MIXED_UP: (150, 20, 140)}
_TINT = 0.55
"""Opacity of a class."""
_DIMMED = 0.55
_SWATCH = (16, 28)
"""Height and width of a sample in a legend, in pixels."""
_GAP = 4
"""Pixels between pictures that are shown together."""
Picture = NDArray[np.uint8]
Value = TypeVar("Value", bound=np.generic)


def backdrop(plane: Plane) -> Picture:
    """Return the image (H, W, 3) as it is shown: colours as they are, anything else as grey between its percentiles."""
    image = plane.image
    colourful = len(image) == 3
    if image.dtype != np.uint8 or not colourful:
        shown = (image if colourful else image[:1]).astype(np.float64)
        low, high = np.percentile(shown, (1, 99))
        image = ((shown - low) / max(high - low, 1e-12)).clip(0, 1) * 255
    picture: Picture = np.broadcast_to(image, (3, *image.shape[1:])).transpose(1, 2, 0).astype(np.uint8)
    return picture


def photograph(plane: Plane) -> bytes:
    """Draw the image alone; returns PNG."""
    return _png(_enlarge(backdrop(plane), _enlargement(plane.truth.shape)))


def overlay(plane: Plane, labels: NDArray[np.integer], colors: Sequence[str]) -> bytes:
    """Draw classes over the image in greys; returns PNG.

    Parameters
    ----------
    plane
        What was segmented.
    labels
        Class of every pixel, H W; or whether each class is there, K H W, without the background.
    colors
        Of every class, "#rrggbb", the background first.
    """
    return _png(_overlaid(plane, labels, colors))


def difference(plane: Plane, labels: NDArray[np.integer]) -> bytes:
    """Draw where labels and mask differ over the dimmed image; returns PNG."""
    return _png(_differing(plane, labels))


def quartet(plane: Plane, colors: Sequence[str]) -> bytes:
    """Draw teacher and student, and below them the mask and the student's mistakes, each with its name; returns PNG.

    Without a teacher the image is shown in its place; without a mask the student is compared with the teacher.

    Parameters
    ----------
    plane
        What was segmented, with the labels of the "student" and perhaps the "teacher".
    colors
        Of every class, "#rrggbb", the background first.
    """
    student, teacher = plane.labels["student"], plane.labels.get("teacher")
    empty = np.zeros_like(student)
    tiles = {"image": _overlaid(plane, empty, colors)}
    if teacher is not None:
        tiles = {"teacher": _overlaid(plane, teacher, colors)}
    tiles["student"] = _overlaid(plane, student, colors)
    if plane.region.any() or teacher is None:
        tiles["mask"] = _overlaid(plane, plane.truth, colors)
        tiles["mistakes"] = _differing(plane, student)
    else:
        tiles["no mask"] = _overlaid(plane, empty, colors)
        against = replace(plane, truth=teacher, region=np.ones_like(plane.region))
        tiles["unlike the teacher"] = _differing(against, student)
    first, second, third, fourth = (_named(tile, name) for name, tile in tiles.items())
    return _png(np.vstack([np.hstack([first, second]), np.hstack([third, fourth])]))


def mistakes(plane: Plane, labels: NDArray[np.integer]) -> NDArray[np.uint8]:
    """Return the kind of mistake of every pixel (H, W); 0 = none, or outside of the region.

    Where classes may overlap, a pixel that lacks one and has another too many is mixed up.

    Examples
    --------
    >>> truth = np.array([[1, 1, 0, 1]])
    >>> plane = Plane("a", 1, 1, np.zeros((1, 1, 4)), truth, np.ones((1, 4), bool), {})
    >>> mistakes(plane, np.array([[1, 0, 1, 2]]))
    array([[0, 1, 2, 3]], dtype=uint8)
    """
    if labels.ndim == 3:
        missed, extra = ((side & plane.region).any(0) for side in (plane.truth > labels, labels > plane.truth))
        return np.where(missed, np.where(extra, MIXED_UP, MISSED), np.where(extra, EXTRA, 0)).astype(np.uint8)
    wrong = (labels != plane.truth) & plane.region
    kinds = np.where(labels == 0, MISSED, np.where(plane.truth == 0, EXTRA, MIXED_UP))
    return np.where(wrong, kinds, 0).astype(np.uint8)


def swatch(kind: int) -> bytes:
    """Return a sample of how a kind of mistake is drawn, for a legend; PNG."""
    picture = np.full((*_SWATCH, 3), 255 * _DIMMED)
    _paint(picture, np.ones(_SWATCH, bool), kind)
    return _png(picture)


def class_swatch(index: int, color: str) -> bytes:
    """Return a sample of how a class is drawn, for a legend; PNG."""
    picture = np.full((*_SWATCH, 3), 90.0)
    _tint(picture, np.ones(_SWATCH, bool), index, color)
    return _png(picture)


def pattern(index: int, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Return where the fill of a class, or of a kind of mistake, is drawn: plain, stripes, or stripes the other way."""
    y, x = np.indices(shape)
    fills = (np.ones(shape, bool), (y + x) % 8 < 3, (y - x) % 8 < 3, y % 6 < 2, x % 6 < 2)
    return fills[(index - 1) % len(fills)]


def _overlaid(plane: Plane, labels: NDArray[np.integer], colors: Sequence[str]) -> NDArray[np.float64]:
    factor = _enlargement(labels.shape)
    picture = _enlarge(_greys(plane), factor)
    for index, color in enumerate(colors[1:], 1):
        there = labels == index if labels.ndim == 2 else labels[index - 1] > 0
        _tint(picture, _enlarge(there, factor), index, color)
    return picture


def _differing(plane: Plane, labels: NDArray[np.integer]) -> NDArray[np.float64]:
    factor = _enlargement(labels.shape)
    picture = _DIMMED * _enlarge(_greys(plane), factor)
    kinds = _enlarge(mistakes(plane, labels), factor)
    for kind in _MISTAKES:
        _paint(picture, kinds == kind, kind)
    return picture


def _named(picture: NDArray[np.float64], name: str) -> NDArray[np.uint8]:
    """Return a picture with its name in the upper left corner and a margin to its neighbours."""
    image = Image.fromarray(np.pad(picture.clip(0, 255).astype(np.uint8), ((0, _GAP), (0, _GAP), (0, 0))))
    size = max(12, min(picture.shape[:2]) // 12)
    ImageDraw.Draw(image).text((6, 4), name, "white", font_size=size, stroke_width=2, stroke_fill="black")
    return np.asarray(image)


def _greys(plane: Plane) -> NDArray[np.float64]:
    """Return the image without colours, on which classes stand out, H W 3."""
    grey = backdrop(plane).astype(np.float64).mean(-1, keepdims=True)
    return np.repeat(grey, 3, axis=-1)


def _tint(picture: NDArray[np.float64], where: NDArray[np.bool_], index: int, color: str) -> None:
    """Lay the pattern and the outline of a class over a part of a picture."""
    ink = np.array([int(color[at : at + 2], 16) for at in (1, 3, 5)])
    hatched = where & pattern(index, where.shape)
    picture[hatched] = (1 - _TINT) * picture[hatched] + _TINT * ink
    picture[where & ~binary_erosion(where)] = ink


def _paint(picture: NDArray[np.float64], where: NDArray[np.bool_], kind: int) -> None:
    """Fill with the colour of a kind of mistake: missed is striped with white, extra plain, mixed up with black."""
    picture[where] = _MISTAKES[kind]
    if kind == MISSED:
        picture[where & pattern(2, where.shape)] = 255
    if kind == MIXED_UP:
        picture[where & pattern(4, where.shape)] = 0


def _enlargement(shape: tuple[int, ...]) -> int:
    return max(1, round(SIDE / max(shape[-2:])))


def _enlarge(picture: NDArray[Value], factor: int) -> NDArray[Value]:
    return picture.repeat(factor, axis=0).repeat(factor, axis=1)


def _png(picture: NDArray[np.generic]) -> bytes:
    buffer = BytesIO()
    Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
