"""The data sets of the studies, laid out as folders of images, masks and regions; nothing of them is shipped."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rskd.config import BACKGROUND, ClassInfo, DataOptions

COLORS = ("#e4572e", "#2e86ab", "#f2b134")


@dataclass(frozen=True)
class Files:
    """One image with its mask, and its region of interest where the data set has one."""

    patient: str
    """What must stay on one side of a split, and has masks or has none."""
    image: Path
    mask: Path
    region: Path | None = None


@dataclass(frozen=True)
class Dataset:
    """Where the files of a data set lie, and what they show."""

    classes: tuple[str, ...]
    """Without the background."""
    channels: int
    find: Callable[[Path, str, dict[str, Any]], Iterable[Files]]
    """Files of one entry of a split, from the folder, the entry, and the whole of `splits.json`."""
    inverted: bool = False
    """Whether 0 is the class and 255 the background, in masks that are pictures."""

    def infos(self) -> tuple[ClassInfo, ...]:
        """Return the classes as a network names them."""
        named = (ClassInfo(name=name, color=color) for name, color in zip(self.classes, COLORS, strict=False))
        return (BACKGROUND, *named)


def _acdc(place: Path, entry: str, splits: dict[str, Any]) -> Iterable[Files]:
    return [Files(entry, place / "images" / name, place / "labels" / name) for name in splits["files"][entry]]


def _drive(place: Path, entry: str, splits: dict[str, Any]) -> Iterable[Files]:
    number, side = entry.removesuffix(".tif").split("_")
    folder = place / side
    mask = folder / "1st_manual" / f"{number}_manual1.gif"
    return [Files(number, folder / "images" / entry, mask, folder / "mask" / f"{number}_{side}_mask.gif")]


def _hippocampus(place: Path, entry: str, splits: dict[str, Any]) -> Iterable[Files]:
    return [Files(entry, place / "images" / entry, place / "labels" / entry)]


def _isbi(place: Path, entry: str, splits: dict[str, Any]) -> Iterable[Files]:
    return [Files(entry, place / "image" / entry, place / "label" / entry)]


def _sts(place: Path, entry: str, splits: dict[str, Any]) -> Iterable[Files]:
    return [Files(entry, place / entry / "CT_image.nii.gz", place / entry / "CT_mask.nii.gz")]


DATASETS = {
    "acdc": Dataset(("right ventricle", "myocardium", "left ventricle"), 1, _acdc),
    "drive": Dataset(("vessel",), 3, _drive),
    "hippocampus_mr": Dataset(("anterior", "posterior"), 1, _hippocampus),
    "isbi2012_em": Dataset(("membrane",), 1, _isbi, inverted=True),
    "sts_ct": Dataset(("gross tumour volume",), 1, _sts),
}


@dataclass(frozen=True)
class Folders:
    """A data set as the jobs take it."""

    development: DataOptions
    """To train on, with the validation cases named."""
    test: DataOptions


def lay_out(name: str, source: Path, place: Path, *, masks: float = 1.0) -> Folders:
    """Link the files of a data set into folders whose images and masks have the same names.

    Parameters
    ----------
    name
        A key of `DATASETS`.
    source
        Folder of the data set.
    place
        Folder to make the links in; what is there already is kept.
    masks
        Share of the patients to train on whose masks are linked: evenly spread over the sorted patients.
    """
    dataset, splits = DATASETS[name], json.loads((source / "splits.json").read_text())
    found = {
        side: [files for entry in entries for files in dataset.find(source, entry, splits)]
        for side, entries in splits["splits"].items()
    }
    labelled = _share(sorted({files.patient for files in found["train"]}), masks)
    development, test = place / f"{name}-{masks:g}", place / f"{name}-test"
    for files in found["train"]:
        _link(files, development, dataset, with_mask=files.patient in labelled)
    for files in found["val"]:
        _link(files, development, dataset)
    for files in found["test"]:
        _link(files, test, dataset)
    validation = tuple(_stem(files) for files in found["val"])
    return Folders(_options(development, validation=validation, unlabelled=masks < 1), _options(test))


def _share(patients: list[str], share: float) -> set[str]:
    """Return an even choice out of `patients`.

    Examples
    --------
    >>> sorted(_share(list("abcdefghij"), 0.2))
    ['c', 'h']
    """
    count = round(share * len(patients))
    return {patients[int((i + 0.5) * len(patients) / count)] for i in range(count)}


def _stem(files: Files) -> str:
    name = files.image.name if files.image.name.startswith(files.patient.partition(".")[0]) else files.patient
    return name.removesuffix(".gz").rpartition(".")[0] or name


def _link(files: Files, place: Path, dataset: Dataset, *, with_mask: bool = True) -> None:
    stem = _stem(files)
    _place(files.image, place / "images" / f"{stem}{_ending(files.image)}")
    if files.region is not None:
        _place(files.region, place / "regions" / f"{stem}{_ending(files.region)}")
    target = place / "masks" / f"{stem}{_ending(files.mask)}"
    if not with_mask:
        target.parent.mkdir(parents=True, exist_ok=True)
    elif dataset.inverted:
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((np.asarray(Image.open(files.mask)) == 0).astype(np.uint8) * 255).save(target)
    else:
        _place(files.mask, target)


def _ending(path: Path) -> str:
    return ".nii.gz" if path.name.endswith(".nii.gz") else path.suffix


def _place(source: Path, target: Path) -> None:
    """Link a file; where the system allows no links, copy it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        return
    try:
        os.symlink(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)


def _options(place: Path, **fields: Any) -> DataOptions:
    regions = place / "regions"
    return DataOptions(
        images=place / "images", masks=place / "masks", regions=regions if regions.exists() else None, **fields
    )
