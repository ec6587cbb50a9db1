"""Where the log files are: one per process, the newest few kept."""

from __future__ import annotations

import os
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import platformdirs

KEPT = 20
"""Number of log files that stay in the folder."""
LARGEST = 4 << 20
"""Bytes at which the log of a long-lived process starts again."""


def log_folder() -> Path:
    """Return the folder of this user's log files (it need not exist)."""
    return Path(platformdirs.user_log_dir("rskd", appauthor=False))


def settings_folder() -> Path:
    """Return the folder of this user's settings (it need not exist)."""
    return Path(platformdirs.user_config_dir("rskd", appauthor=False))


def new_log(name: str, *, folder: Path | None = None) -> Path:
    """Create an empty log file and remove all but the newest `KEPT`.

    Parameters
    ----------
    name
        Start of the file's name.
    folder
        Where; None = `log_folder()`, or the folder for temporary files where that cannot be written.
    """
    stem = f"{name}-{time.strftime('%Y%m%d-%H%M%S')}-"
    try:
        place = folder or log_folder()
        place.mkdir(parents=True, exist_ok=True)
        handle, path = tempfile.mkstemp(prefix=stem, suffix=".log", dir=place)
    except OSError:
        place = Path(tempfile.gettempdir())
        handle, path = tempfile.mkstemp(prefix=f"rskd-{stem}", suffix=".log")
    os.close(handle)
    # The names begin with a time stamp, so that their order is that of their age.
    for old in sorted(place.glob(f"{name}-*.log"))[:-KEPT]:
        with suppress(OSError):
            old.unlink()
    return Path(path)


def shorten(descriptor: int) -> None:
    """Empty the log file behind `descriptor` if it is larger than `LARGEST`; do nothing if it is not a file."""
    with suppress(OSError):
        if os.fstat(descriptor).st_size > LARGEST:
            os.ftruncate(descriptor, 0)
