"""Names of files: where their ending begins, and what is called after them."""

from __future__ import annotations

from pathlib import Path

from rskd.io import ome_zarr
from rskd.io.reading import SUFFIXES

_ENDINGS = (*SUFFIXES, ".ome.tif", ".ome.tiff", ".ome.zarr")
_OF_MAPS = {".png": ".tif", ".dcm": ".nii.gz"}
"""Endings of maps where the format of the labels cannot hold real numbers."""


def split_name(name: str) -> tuple[str, str]:
    """Return the name of an image file without its ending, and the ending in small letters; empty = none is known.

    Examples
    --------
    >>> split_name("Scan.1.NII.gz"), split_name("photo.ome.tif"), split_name("IM0001")
    (('Scan.1', '.nii.gz'), ('photo', '.ome.tif'), ('IM0001', ''))
    """
    fitting = [ending for ending in _ENDINGS if name.lower().endswith(ending) and len(name) > len(ending)]
    ending = max(fitting, key=len, default="")
    return name[: len(name) - len(ending)], ending


def companion(output: Path, what: str, ending: str = "") -> Path:
    """Return the name of a file that belongs to labels.

    Parameters
    ----------
    output
        File of the labels, or the place of labels inside of an OME-Zarr image, beside which it is put.
    what
        What is in it.
    ending
        Its ending; empty = that of the labels, or one like it that holds real numbers.

    Examples
    --------
    >>> companion(Path("a/scan.1.nii.gz"), "entropy").name, companion(Path("photo.png"), "margin").name
    ('scan.1_entropy.nii.gz', 'photo_margin.tif')
    >>> companion(Path("image.zarr/labels/vessels"), "entropy").as_posix()
    'image_vessels_entropy.zarr'
    """
    stem, own = split_name(output.name)
    folder, image = output.parent, ome_zarr.image_of(output)
    if image is not None or not own:
        image = image or output.parent.parent
        folder, stem, own = image.parent, f"{split_name(image.name)[0]}_{output.name}", ".zarr"
    return folder / f"{stem}_{what}{ending or _OF_MAPS.get(own, own)}"
