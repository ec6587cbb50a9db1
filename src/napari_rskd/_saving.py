"""Save a result as people have drawn it by now: a name beside its source, written off the window's thread."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from qtpy.QtCore import QObject, Signal
from qtpy.QtWidgets import QMessageBox, QWidget

from napari_rskd._job import aside
from napari_rskd._readers import SCAN
from napari_rskd._writers import class_names, scan_of_labels
from rskd.engine.failures import explain
from rskd.errors import RskdError
from rskd.io import write_labels
from rskd.io.names import split_name
from rskd.scan import Scan

FORMATS = {
    "NIfTI (*.nii.gz *.nii)": ".nii.gz",
    "DICOM SEG (*.dcm)": ".dcm",
    "OME-TIFF (*.ome.tif *.ome.tiff)": ".ome.tif",
    "OME-Zarr (*.zarr)": ".zarr",
}
"""By their line in a file dialog, the endings that name them."""
_ENDING = re.compile(r"\.(nii(\.gz)?|dcm|(ome\.)?tiff?|zarr)$", re.IGNORECASE)
_MEDICAL = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd")


class Saver(QObject):
    """Saves labels in the background.

    Parameters
    ----------
    parent
        Widget it lives with.
    """

    saved = Signal(str)
    """Name of the file."""
    failed = Signal(object)
    """The `RskdError`."""

    def save(self, path: Path, layers: Sequence[Any], source: Path | None) -> None:
        """Write labels; several layers are the classes, which may overlap.

        Parameters
        ----------
        path
            Where to.
        layers
            Labels layers of one result.
        source
            The file that was segmented, which is never replaced; ``None`` = unknown.
        """
        work = writing(path, layers, source)
        aside(work).add_done_callback(lambda future: self._over(path, future))

    def _over(self, path: Path, future: Future[None]) -> None:
        error = future.exception()
        with suppress(RuntimeError):  # the panel was closed meanwhile
            if error is None:
                self.saved.emit(path.name)
            elif isinstance(error, Exception):
                self.failed.emit(error if isinstance(error, RskdError) else explain(error))


def writing(path: Path, layers: Sequence[Any], source: Path | None) -> Callable[[], None]:
    """Return what writes these labels as they are now, whatever is painted later. Parameters as of `Saver.save`."""
    scan = scan_of_labels(layers[0])
    if source is not None and scan.source is None:
        scan = replace(scan, source=source)
    planes = [_as_it_is(layer.data) for layer in layers]
    names = tuple(name for layer in layers for name in class_names({"features": layer.features}))

    def write() -> None:
        data = np.asarray(planes[0]) if len(planes) == 1 else np.stack(planes)
        write_labels(path, data, scan, names=names)

    return write


def _as_it_is(data: Any) -> Any:
    """Return labels that no brush changes any more; what lies in a file may be too large to be copied."""
    return data.copy() if type(data) is np.ndarray else data


def source_path(layer: Any) -> Path | None:
    """Return the file or folder that a layer was read from, ``None`` if it is unknown."""
    scan = layer.metadata.get(SCAN)
    found = scan.source if isinstance(scan, Scan) else getattr(layer.source, "path", None)
    return None if found is None else Path(found)


def formats_for(layer: Any) -> list[str]:
    """Return the lines of a file dialog, the one that fits best first; DICOM SEG needs a source in DICOM."""
    scan = layer.metadata.get(SCAN)
    dicom = isinstance(scan, Scan) and (bool(scan.files) or scan.modality is not None)
    source = source_path(layer)
    ending = "" if source is None else split_name(source.name)[1]
    nifti, seg, tiff, ome_zarr = FORMATS
    best = seg if dicom else nifti if ending in _MEDICAL else ome_zarr if ending == ".zarr" else tiff
    return [best, *(line for line in FORMATS if line != best and (dicom or line != seg))]


def suggested_name(layer: Any, folder: Path, *, where: str = "", ending: str) -> Path:
    """Return a name beside the source for the segmentation of a layer, one that is not taken.

    The layer's name is used, not the file's: the names of DICOM files may say who the patient is.

    Parameters
    ----------
    layer
        What was segmented.
    folder
        Where to put it if the source is unknown.
    where
        Which slice it was; empty = all of it.
    ending
        Of the name, such as ``".nii.gz"``.
    """
    source = source_path(layer)
    parent = folder if source is None else source.parent
    stem = "_".join(re.findall(r"[\w-]+", f"{layer.name} {where} segmentation"))
    number, path = 1, parent / f"{stem}{ending}"
    while path.exists():
        number, path = number + 1, parent / f"{stem}_{number + 1}{ending}"
    return path


def with_ending(name: str, line: str) -> Path:
    """Return the name with an ending: its own, or that of the chosen format.

    Examples
    --------
    >>> with_ending("liver", "DICOM SEG (*.dcm)").name, with_ending("liver.nii", "DICOM SEG (*.dcm)").name
    ('liver.dcm', 'liver.nii')
    """
    return Path(name if _ENDING.search(name) else name + FORMATS.get(line, ".nii.gz"))


def may_replace(parent: QWidget, typed: str, *paths: Path) -> bool:
    """Ask whether files may be replaced that a file dialog has not asked about; where there are none, they may.

    Parameters
    ----------
    parent
        Widget that asks.
    typed
        The name that the dialog returned: about that one it has asked.
    paths
        What is about to be written.
    """
    there = [path.name for path in paths if path.exists() and path.absolute() != Path(typed).absolute()]
    if not there:
        return True
    words = f"{', '.join(there)}: there is such a file already. Replace it?"
    if len(there) > 1:
        words = f"{', '.join(there)}: there are such files already. Replace them?"
    return bool(QMessageBox.question(parent, "Replace?", words) == QMessageBox.StandardButton.Yes)
