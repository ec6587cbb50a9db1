"""Pictures of a few validation images, drawn anew after every round of a training, to see it learn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from rskd.data import Slice
from rskd.errors import FileError
from rskd.io.files import write_atomically
from rskd.models.segmenter import Segmenter
from rskd.report.measure import LARGEST, Plane
from rskd.report.pictures import quartet
from rskd.runs import RunFolder
from rskd.training.validation import plane_labels

Value = TypeVar("Value", bound=np.generic)


class Preview:
    """Teacher, student, mask and mistakes on some of the validation images.

    Parameters
    ----------
    folder
        The run, in whose folder `preview` the pictures are kept: 01.png, 02.png …
    planes
        What is validated with.
    count
        Of how many images there is to be a picture.
    colors
        Of the classes, "#rrggbb", the background first.
    """

    def __init__(self, folder: RunFolder, planes: Sequence[Slice], *, count: int, colors: Sequence[str]) -> None:
        self._folder = folder
        self._chosen = telling(planes, count)
        self._planes = [_plane(plane) for plane in self._chosen]
        self._colors = colors

    def meet(self, teacher: Segmenter) -> None:
        """Segment the images with the teacher, who will not change its mind."""
        self._planes = self._with("teacher", teacher)

    def draw(self, student: Segmenter) -> None:
        """Draw the pictures with what the student says now; where the disk refuses, the old ones stay."""
        for number, plane in enumerate(self._with("student", student), 1):
            with suppress(FileError):
                write_atomically(self._folder.previews / f"{number:02}.png", quartet(plane, self._colors))

    def _with(self, role: str, network: Segmenter) -> list[Plane]:
        """Return the planes with the labels of one more network, which stays in its mode."""
        training = network.training
        network.eval()
        found = [_thin(plane_labels(network, chosen.image)).astype(np.uint8) for chosen in self._chosen]
        network.train(training)
        pairs = zip(self._planes, found, strict=True)
        return [replace(plane, labels={**plane.labels, role: labels}) for plane, labels in pairs]


def telling(planes: Sequence[Slice], count: int) -> list[Slice]:
    """Return a plane of each of `count` cases, spread evenly: the one with most of the foreground.

    Examples
    --------
    >>> import torch
    >>> def plane(case, *target):
    ...     return Slice(case, torch.zeros(1, 1, 2), torch.tensor([target]))
    >>> planes = [plane("a", 0, 0), plane("a", 0, 1), plane("b", 0, 0), plane("c", 1, 1)]
    >>> [(chosen.case, chosen.target.tolist()) for chosen in telling(planes, 2)]
    [('a', [[0, 1]]), ('c', [[1, 1]])]
    """
    cases = list(dict.fromkeys(plane.case for plane in planes))
    chosen = [cases[at] for at in np.linspace(0, len(cases) - 1, min(count, len(cases))).round().astype(int)]
    return [
        max((plane for plane in planes if plane.case == case), key=lambda plane: int((plane.target > 0).sum()))
        for case in chosen
    ]


def _plane(chosen: Slice) -> Plane:
    target = chosen.target.numpy()
    known = np.asarray(target >= 0 if target.ndim == 2 else (target >= 0).all(0))
    truth = _thin(target.clip(0)).astype(np.uint8)
    return Plane(chosen.case, 1, 1, _thin(chosen.image.numpy()), truth, _thin(known), {})


def _thin(picture: NDArray[Value]) -> NDArray[Value]:
    stride = max(1, math.ceil(max(picture.shape[-2:]) / LARGEST))
    return picture[..., ::stride, ::stride]
