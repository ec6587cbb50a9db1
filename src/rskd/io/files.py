"""Files that are whole or not there."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rskd.errors import FileError


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
            os.replace(path, aside)
        os.replace(partial, path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise FileError(f"{path.name} cannot be written into {path.parent}: {reason}.") from error
    finally:
        for leftover in (partial, aside):
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            with suppress(OSError):
                leftover.unlink()
