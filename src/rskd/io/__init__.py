"""Scans in, results out: the kind of a file is decided by its content, its geometry is kept.

The library of a format is imported when a file of that format is read or written, not before.
"""

from rskd.io.axes import guess_axes
from rskd.io.reading import SUFFIXES, can_read, read_labels, read_scan, read_scans
from rskd.io.writing import check_place, keep_image, write_image, write_labels

__all__ = [
    "SUFFIXES",
    "can_read",
    "check_place",
    "guess_axes",
    "keep_image",
    "read_labels",
    "read_scan",
    "read_scans",
    "write_image",
    "write_labels",
]
