"""Tell whether an image is still what it was."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rskd.io.ome_zarr import LABELS
from rskd.scan import Scan

_PART = 1 << 26
"""Bytes of an array that are looked at together."""


def state_of(scan: Scan) -> str:
    """Return a fingerprint of a scan: of sizes and times of its files where it is lazy, else of its values.

    Examples
    --------
    >>> state_of(Scan(np.eye(3), "yx")) == state_of(Scan(np.eye(3).T, "yx")) != state_of(Scan(np.ones((3, 3)), "yx"))
    True
    """
    if scan.source is not None and not isinstance(scan.data, np.ndarray):
        return state_of_files(scan.files or [scan.source])
    return _hash_of(scan.data)


def state_of_files(files: Sequence[Path]) -> str:
    """Return a fingerprint of files, or of those in a folder, that takes no reading: sizes and times.

    Labels that were added to an OME-Zarr image are no part of it.
    """
    total = hashlib.sha256()
    for path in files:
        inside = sorted(path.rglob("*")) if path.is_dir() else [path]
        for file in inside:
            place = file.relative_to(path)
            if LABELS in place.parts or file.is_dir():
                continue
            facts = file.stat()
            total.update(f"{path.name} {place.as_posix()} {facts.st_size} {facts.st_mtime_ns}\n".encode())
    return total.hexdigest()


def _hash_of(data: Any) -> str:
    """Return the SHA-256 of an array, read in parts along the blocks in which it is stored."""
    total = hashlib.sha256()
    chunks = getattr(data, "chunks", None)
    block = 1 if not chunks else int(np.max(chunks[0]))
    row = max(1, data.dtype.itemsize * int(np.prod(data.shape[1:])))
    step = max(1, _PART // (row * block)) * block
    for first in range(0, data.shape[0], step):
        part = np.ascontiguousarray(data[first : first + step])
        total.update(part.reshape(-1).view(np.uint8).data)
    return total.hexdigest()
