"""Files that are whole or not there."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from rskd.errors import FileError, ParameterError

PARTIAL = ".*.partial.*"
"""Pattern of the names of files that are being written; a killed process leaves them behind."""
ATTEMPTS = 20
"""How often a file is tried to be replaced on Windows while another program has it open."""
PAUSE = 0.05
"""Seconds between two attempts."""
_TAKEN = {errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES, errno.EDEADLK}
"""What a system says of a lock that somebody else has; `EDEADLK` after Windows has waited for it."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Offer a temporary file (or folder) beside `path` that takes its place when the block succeeds.

    Parameters
    ----------
    path
        File to create or replace, or folder where the block makes one; its folder is made if needed.

    Yields
    ------
    Path
        Where to write; it ends like `path`.

    Raises
    ------
    FileError
        If the system refuses (no such disk, no space, no permission); `path` is then as it was.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with replacing(Path(folder) / "note.txt") as partial:
    ...         _ = partial.write_text("whole")
    ...     [file.name for file in Path(folder).iterdir()]
    ['note.txt']
    """
    partial = path.with_name(f".{secrets.token_hex(6)}.partial.{path.name}")
    aside = partial.with_name(f"{partial.name}.old")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        if partial.is_dir() and path.is_dir():
            _replace(path, aside)
        try:
            _replace(partial, path)
        except OSError:
            if aside.exists():
                _replace(aside, path)
            raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise FileError(f"{path.name} cannot be written into {path.parent}: {reason}.") from error
    finally:
        for leftover in (partial, aside) if path.exists() else (partial,):
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            with suppress(OSError):
                leftover.unlink()


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a reader, or a crash, sees the old content or the new one and nothing between.

    Parameters
    ----------
    path
        File to create or replace.
    content
        All of it; it is on the disk when this returns.

    Raises
    ------
    FileError
        As `replacing`.
    """
    with replacing(path) as partial, partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def locked(path: Path, refusal: str) -> Iterator[None]:
    """Keep every other process out; the system opens the lock when this process ends, however it ends.

    Parameters
    ----------
    path
        File to lock; it is made if needed, and stays.
    refusal
        What to say to a process that comes second.

    Raises
    ------
    ParameterError
        If another process has the lock.
    FileError
        If the file system knows no locks.
    """
    with path.open("ab") as file:
        try:
            _lock(file)
        except OSError as error:
            if error.errno in _TAKEN:
                raise ParameterError(refusal) from error
            reason = error.strerror or str(error)
            raise FileError(
                f"{path.parent} cannot be kept from other processes, since its file system gives no locks ({reason}): "
                "choose a folder on another disk."
            ) from error
        yield


def _lock(file: IO[bytes]) -> None:
    """Lock an open file for this process, until it is closed; OSError if another one has it."""
    if sys.platform == "win32":
        import msvcrt

        file.seek(0)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _replace(source: Path, target: Path) -> None:
    """Move a file or folder; on Windows, wait for whoever reads or scans the target at this moment."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            os.replace(source, target)
            return
        except PermissionError:
            if os.name != "nt" or attempt == ATTEMPTS:
                raise
            time.sleep(PAUSE)
