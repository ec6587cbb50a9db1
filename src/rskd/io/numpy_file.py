"""NumPy's own array files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from rskd.errors import FileError
from rskd.io.axes import guess_axes
from rskd.scan import Scan


def read(path: Path) -> Scan:
    """Read an array without geometry; its axes are guessed."""
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if array.dtype.kind not in "biuf":
        raise FileError(f"{path.name} holds {array.dtype} values, which are no intensities: save real numbers instead.")
    return Scan(np.array(array, array.dtype.newbyteorder("=")), guess_axes(array.shape))


def write(path: Path, scan: Scan) -> None:
    """Write the array as it is, in the order of its axes."""
    with open(path, "wb") as file:  # np.save would append .npy to a name of its own
        np.save(file, np.asarray(scan.data), allow_pickle=False)
