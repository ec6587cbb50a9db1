"""Where the next patch is cut: which plane, around which point."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rskd.config import SamplingOptions
from rskd.data.slices import Slice

Centre = tuple[float, float]
JITTER = 0.25
"""A pixel that is looked for lies at most this share of the patch beside its middle, in either direction."""


class _Planes:
    """Planes to draw from, by case.

    Parameters
    ----------
    slices
        All planes of the training.
    indices
        Those to draw from.
    even_cases
        Draw a case and then one of its planes; otherwise any plane.
    """

    def __init__(self, slices: Sequence[Slice], indices: Sequence[int], *, even_cases: bool) -> None:
        by_case: dict[str, list[int]] = {}
        for index in indices:
            by_case.setdefault(slices[index].case, []).append(index)
        self._groups = list(by_case.values()) if even_cases else [list(chain(*by_case.values()))]

    def draw(self, rng: np.random.Generator) -> int:
        group = self._groups[int(rng.integers(len(self._groups)))]
        return group[int(rng.integers(len(group)))]


class Places:
    """Draws the places of patches.

    Parameters
    ----------
    slices
        Planes to draw from, at least one.
    patch
        Side of a patch in pixels.
    options
        How often what is drawn.

    Examples
    --------
    >>> import torch
    >>> target = torch.zeros(64, 64, dtype=torch.long)
    >>> target[50, 10] = 1
    >>> places = Places([Slice("a", torch.zeros(1, 64, 64), target)], 16, SamplingOptions(foreground=1))
    >>> plane, (row, column) = places.draw(np.random.default_rng(0))
    >>> bool(abs(row - 50) <= 4 and abs(column - 10) <= 4)
    True
    """

    def __init__(self, slices: Sequence[Slice], patch: int, options: SamplingOptions) -> None:
        self._options, self._patch = options, patch
        self._sizes = [(plane.target.shape[-2], plane.target.shape[-1]) for plane in slices]
        self._pixels = [_pixels_by_class(plane) for plane in slices]
        labelled = [index for index, plane in enumerate(slices) if bool((plane.target >= 0).any())]
        unlabelled = sorted(set(range(len(slices))) - set(labelled))
        self._labelled, self._unlabelled = (
            _Planes(slices, indices, even_cases=options.even_cases) if indices else None
            for indices in (labelled, unlabelled)
        )
        self._classes = sorted({number for pixels in self._pixels for number in pixels})
        self._with_class = {
            number: _Planes(slices, [i for i in labelled if number in self._pixels[i]], even_cases=options.even_cases)
            for number in self._classes
        }
        counts = np.array([sum(len(pixels.get(n, ())) for pixels in self._pixels) for n in self._classes], float)
        shares = counts ** (1 - options.class_balance)
        self._odds = shares / shares.sum()

    def draw(self, rng: np.random.Generator) -> tuple[int, Centre]:
        """Return the index of a plane, and row and column of the middle of a patch in it."""
        if self._labelled is None or (self._unlabelled is not None and rng.random() >= self._options.labelled):
            assert self._unlabelled is not None  # noqa: S101 - there is at least one plane
            return self._anywhere(self._unlabelled, rng)
        if self._classes and rng.random() < self._options.foreground:
            return self._on_foreground(rng)
        return self._anywhere(self._labelled, rng)

    def _on_foreground(self, rng: np.random.Generator) -> tuple[int, Centre]:
        number = self._classes[int(rng.choice(len(self._classes), p=self._odds))]
        index = self._with_class[number].draw(rng)
        pixels = self._pixels[index][number]
        row, column = divmod(int(pixels[int(rng.integers(len(pixels)))]), self._sizes[index][1])
        jitter = rng.uniform(-JITTER, JITTER, 2) * self._patch
        return index, (row + jitter[0], column + jitter[1])

    def _anywhere(self, planes: _Planes, rng: np.random.Generator) -> tuple[int, Centre]:
        index = planes.draw(rng)
        height, width = self._sizes[index]
        return index, (_inside(rng, height, self._patch), _inside(rng, width, self._patch))


def _pixels_by_class(plane: Slice) -> dict[int, NDArray[Any]]:
    """Return the places (row · width + column) of the pixels of every class but the background, by its number."""
    if plane.target.ndim == 3:  # classes may overlap
        found = {label: np.flatnonzero(own == 1) for label, own in enumerate(plane.target.numpy(), 1)}
        return {label: pixels for label, pixels in found.items() if len(pixels)}
    target = plane.target.numpy().ravel()
    return {int(number): np.flatnonzero(target == number) for number in np.unique(target[target > 0])}


def _inside(rng: np.random.Generator, length: int, patch: int) -> float:
    """Return the centre of a patch that lies inside, or the middle where it cannot."""
    margin = min(patch, length) / 2
    return float(rng.uniform(margin, length - margin)) - 0.5
