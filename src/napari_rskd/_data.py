"""Training data for a distillation: folders, open layers, or generated examples. Runs in the worker thread."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rskd.config import DataOptions
from rskd.io import write_image, write_labels
from rskd.phantom import write_phantoms
from rskd.scan import SPATIAL, Scan

PHANTOMS = 24
PHANTOM_SIZE = 128
_UNITS = {"millimeter": "mm", "micrometer": "um", "nanometer": "nm", "centimeter": "cm", "meter": "m"}


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


def scan_of(layer: Any, axes: str, data: Any) -> Scan:
    """Return a layer's pixels as a scan with its spacing."""
    unit = _UNITS.get(str(layer.units[-1]))
    letters = axes if len(axes) == layer.ndim else axes[:-1]  # an RGB layer counts its colours apart
    spacing = tuple(abs(float(s)) for s, a in zip(layer.scale, letters, strict=True) if a in SPATIAL)
    return Scan(data, axes, spacing=spacing, units=unit)


def write_pairs(pairs: Sequence[LayerPair], folder: Path) -> DataOptions:
    """Write layers into `folder` as a training set; returns where it is."""
    images, masks = folder / "images", folder / "masks"
    images.mkdir(parents=True)
    masks.mkdir()
    for number, pair in enumerate(pairs, 1):
        stem = f"{number:03d}_{re.sub(r'[^A-Za-z0-9]+', '_', pair.name).strip('_')}"
        write_image(images / f"{stem}.tif", pair.image)
        if pair.mask is not None:
            write_labels(masks / f"{stem}.tif", pair.mask, pair.image)
    labelled = [pair.mask is not None for pair in pairs]
    return DataOptions(images=images, masks=masks if any(labelled) else None, unlabelled=not all(labelled))


def write_examples(folder: Path) -> DataOptions:
    """Generate vessel-like pictures with their masks in `folder`; returns where they are."""
    write_phantoms(folder, count=PHANTOMS, size=PHANTOM_SIZE)
    return DataOptions(images=folder / "images", masks=folder / "masks")
