"""Training data for a distillation: folders, open layers, or generated examples. Runs in the worker thread."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from napari_rskd._picture import whole_picture
from napari_rskd._source import whole
from rskd.config import DataOptions
from rskd.io import write_image, write_labels
from rskd.phantom import write_phantoms
from rskd.scan import Scan

PHANTOMS = 24
PHANTOM_SIZE = 128


@dataclass(frozen=True)
class LayerPair:
    """An image from an open layer, and its mask if there is one.

    Parameters
    ----------
    name
        Name of the image layer.
    image
        Scan of the image.
    mask
        Labels over the image's axes without channels; ``None`` = unlabelled.
    """

    name: str
    image: Scan
    mask: Any | None


def pair_of(image: Any, labels: Any) -> Callable[[], LayerPair]:
    """Return what reads an image layer, and the labels layer that is its mask if there is one; it may take a while.

    Raises
    ------
    ParameterError
        If the image has more axes than a scan can have.
    """
    picture = whole_picture(image)

    def read() -> LayerPair:
        scan = Scan(picture.pixels(), picture.axes, spacing=picture.geometry.spacing, units=picture.geometry.units)
        return LayerPair(image.name, scan, None if labels is None else whole(labels))

    return read


def write_pairs(pairs: Iterable[Callable[[], LayerPair]], folder: Path) -> DataOptions:
    """Read layers, one at a time, and write them into `folder` as a training set; returns where it is."""
    images, masks = folder / "images", folder / "masks"
    images.mkdir(parents=True)
    masks.mkdir()
    labelled = []
    for number, read in enumerate(pairs, 1):
        pair = read()
        labelled.append(pair.mask is not None)
        stem = f"{number:03d}_{re.sub(r'[^A-Za-z0-9]+', '_', pair.name).strip('_')}"
        write_image(images / f"{stem}.tif", pair.image)
        if pair.mask is not None:
            write_labels(masks / f"{stem}.tif", pair.mask, pair.image)
    return DataOptions(images=images, masks=masks if any(labelled) else None, unlabelled=not all(labelled))


def write_examples(folder: Path) -> DataOptions:
    """Generate vessel-like pictures with their masks in `folder`; returns where they are."""
    write_phantoms(folder, count=PHANTOMS, size=PHANTOM_SIZE)
    return DataOptions(images=folder / "images", masks=folder / "masks")
