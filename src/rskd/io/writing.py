"""Write a scan, or the labels found in it, with the geometry it came with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rskd.errors import DataError, ParameterError
from rskd.io import nifti, numpy_file, raster, tiff
from rskd.io.files import replacing
from rskd.scan import Scan

_WRITERS: tuple[tuple[str, Callable[[Path, Scan], None]], ...] = (
    (".tif", tiff.write),
    (".tiff", tiff.write),
    (".png", raster.write),
    (".nii", nifti.write),
    (".nii.gz", nifti.write),
    (".npy", numpy_file.write),
)


def write_image(path: str | Path, scan: Scan) -> None:
    """Write a scan; the ending of the name decides on the format. The file appears whole or not at all.

    Parameters
    ----------
    path
        New name ending in .tif (an OME-TIFF), .png (one picture of 8 or 16 bits), .nii, .nii.gz or .npy; an existing
        file is replaced.
    scan
        What to write.

    Raises
    ------
    ParameterError
        If the format cannot hold this scan, or the ending is none of these.
    FileError
        If the system does not let it be written.
    """
    path = Path(path)
    for suffix, write in _WRITERS:
        if path.name.lower().endswith(suffix):
            with replacing(path) as partial:
                write(partial, scan)
            return
    endings = ", ".join(suffix for suffix, _ in _WRITERS)
    raise ParameterError(f"{path.name} does not say which format to write: end the name in one of {endings}.")


def write_labels(path: str | Path, labels: NDArray[Any], scan: Scan) -> None:
    """Write labels with the geometry of the scan they belong to, as the smallest unsigned integers that hold them.

    Parameters
    ----------
    path
        As for `write_image`. For a scan read from NIfTI, a .nii or .nii.gz has the order of the axes and the geometry
        fields of that file, bit for bit.
    labels
        Integers ≥ 0 over the axes of `scan` without c.
    scan
        What was segmented.

    Raises
    ------
    DataError
        If the labels have another shape than the scan, or are not integers ≥ 0.
    ParameterError, FileError
        As `write_image`.

    Examples
    --------
    >>> import tempfile
    >>> from rskd.io import read_scan
    >>> scan = Scan(np.zeros((4, 6, 3), np.uint8), "yxc", spacing=(0.5, 0.5), units="um")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_labels(Path(folder) / "labels.tif", np.ones((4, 6), int), scan)
    ...     read = read_scan(Path(folder) / "labels.tif")
    >>> read.axes, str(read.data.dtype), read.spacing, read.units
    ('yx', 'uint8', (0.5, 0.5), 'um')
    """
    axes = scan.axes.replace("c", "")
    shape = tuple(n for n, axis in zip(scan.data.shape, scan.axes, strict=True) if axis != "c")
    labels = np.asarray(labels)
    if labels.shape != shape:
        raise DataError(f"The labels have the shape {labels.shape}, the image has {shape} over {axes!r}: use its own.")
    if labels.dtype.kind not in "biu" or (labels.size and labels.min() < 0):
        raise DataError(f"Labels of type {labels.dtype} from {labels.min()} on: only integers ≥ 0 can be written.")
    smallest = np.min_scalar_type(int(labels.max(initial=0)))
    write_image(path, scan.like(labels.astype(smallest), axes))
