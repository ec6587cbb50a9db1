"""What a teacher says about a fixed pool of views, in half precision on disk, so that it is asked only once per view.

Every view has a record of fixed size in one memory-mapped file, and a checksum in another, written after it: a record
counts only with its checksum, so a process may be killed at any time. What was computed is read back before it is
used, so that a run is the same whether an answer was made just now or in an earlier life of the run. The scores by
which tokens are ranked keep 32 bits: half precision would tie what the teacher tells apart.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rskd.distillation.features import Features
from rskd.errors import FileError
from rskd.events import Message, Progress, Task
from rskd.io.files import write_atomically

_ANSWERS, _SUMS, _ABOUT = "answers.bin", "sums.bin", "about.json"
_EXACT = "importance"
"""Parts whose name begins so are kept in 32 bits."""


class TeacherCache:
    """The answers of a teacher on a pool of views; made or checked by `open_cache`.

    Parameters
    ----------
    folder
        Where they are.
    views
        Size of the pool.
    example
        What the teacher says about any one view: it tells the size of every part, and what is the same for all views.
    """

    def __init__(self, folder: Path, *, views: int, example: Features) -> None:
        self.folder, self._example = folder, example
        self._records = np.memmap(folder / _ANSWERS, _record(example), "r", shape=(views,))
        self._sums = np.memmap(folder / _SUMS, np.uint32, "r", shape=(views,))
        self.trouble: str | None = None
        """Why nothing more can be kept, if so."""

    def answers(self, views: Sequence[int], ask: Callable[[], Features]) -> Features:
        """Return what the teacher says about some views.

        Parameters
        ----------
        views
            B numbers.
        ask
            Asks the teacher about all of them; it is called if any answer is missing. In a batch, an answer may depend
            in its last digits on the others, so the whole batch is asked whichever are missing.

        Returns
        -------
        Features
            From disk; or, if half precision or the disk cannot hold what the teacher said, as it was said.
        """
        missing = [place for place, number in enumerate(views) if not self._sums[number]]
        if missing:
            said = ask()
            if not (fits_half(said) and self._keep(said, {place: views[place] for place in missing})):
                return said
        return self._read(views)

    def _keep(self, said: Features, numbers: dict[int, int]) -> bool:
        """Write what was said about the views at some places of a batch; returns whether it worked."""
        rows = np.zeros(len(said.logits), self._records.dtype)
        for name, part in _parts(said).items():
            rows[name] = part.cpu().numpy()
        try:
            with (self.folder / _ANSWERS).open("r+b", buffering=0) as file:
                for place, number in numbers.items():
                    file.seek(number * rows.itemsize)
                    file.write(rows[place].tobytes())
            with (self.folder / _SUMS).open("r+b", buffering=0) as file:
                for place, number in numbers.items():
                    file.seek(number * self._sums.itemsize)
                    file.write(_checksum(rows[place]).tobytes())
        except OSError as error:
            self.trouble = f"The teacher's answers can no longer be kept on disk: {error.strerror}."
            return False
        return True

    def _read(self, views: Sequence[int]) -> Features:
        rows, device = self._records[list(views)], self._example.logits.device
        parts = {name: torch.from_numpy(np.ascontiguousarray(rows[name])) for name in rows.dtype.names or ()}
        return _assembled(self._example, {name: part.to(device) for name, part in parts.items()})

    def check(self) -> Task[int]:
        """Forget every answer that does not fit its checksum, and return how many these were."""
        kept = np.flatnonzero(self._sums).tolist()
        damaged = []
        for done, number in enumerate(kept, 1):
            if _checksum(self._records[number]) != self._sums[number]:
                damaged.append(number)
            yield Progress(done, len(kept), "answers of the teacher checked")
        with (self.folder / _SUMS).open("r+b", buffering=0) as file:
            for number in damaged:
                file.seek(number * self._sums.itemsize)
                file.write(bytes(self._sums.itemsize))
        return len(damaged)


def cache_size(example: Features, views: int) -> int:
    """Return how many bytes the answers on a pool of views take.

    Examples
    --------
    >>> cache_size(Features(torch.zeros(1, 2, 8, 8), (4, 4), stages=(torch.zeros(1, 3, 4, 4),)), views=10)
    3560
    """
    return views * (_record(example).itemsize + np.dtype(np.uint32).itemsize)


def fits_half(seen: Features) -> bool:
    """Return whether half precision can hold what a network says.

    Examples
    --------
    >>> [fits_half(Features(torch.tensor([[[[value]]]]), (1, 1))) for value in (6e4, 7e4)]
    [True, False]
    """
    return all(bool(part.isfinite().all()) for part in _parts(seen).values())


def open_cache(folder: Path, *, views: int, example: Features, key: str) -> Task[TeacherCache]:
    """Go on with the answers in a folder, or begin anew where there are none that fit.

    Parameters
    ----------
    folder
        Where they are, or shall be.
    views, example
        As for `TeacherCache`.
    key
        Names everything that the answers depend on; with another key they are others.

    Yields
    ------
    Message
        If there were answers to something else, or damaged ones.
    Progress
        While those that are there are checked.

    Raises
    ------
    FileError
        If the disk refuses; nothing is left on it then.
    """
    about = {"key": key, "views": views, "bytes per view": _record(example).itemsize, "checksum": "crc32"}
    found = _read_about(folder)
    if found == about and _whole(folder, cache_size(example, views)):
        cache = TeacherCache(folder, views=views, example=example)
        damaged = yield from cache.check()
        if damaged:
            yield Message(f"{damaged} answers of the teacher were damaged on disk: it is asked again.", warning=True)
        return cache
    if folder.exists():
        told = "are damaged" if found is None or found == about else "belong to another teacher, data or augmentation"
        yield Message(f"The teacher's answers on disk {told}: it is asked again.", warning=True)
        shutil.rmtree(folder, ignore_errors=True)
    _allocate(folder, views=views, record=_record(example).itemsize)
    write_atomically(folder / _ABOUT, json.dumps(about, indent=1).encode())
    return TeacherCache(folder, views=views, example=example)


def _read_about(folder: Path) -> object:
    try:
        return json.loads((folder / _ABOUT).read_bytes())
    except (OSError, ValueError):
        return None


def _whole(folder: Path, size: int) -> bool:
    files = [folder / _ANSWERS, folder / _SUMS]
    return all(file.is_file() for file in files) and sum(file.stat().st_size for file in files) == size


def _allocate(folder: Path, *, views: int, record: int) -> None:
    """Make both files at their full size: a disk that is too small says so now, and not in the middle of the night."""
    try:
        folder.mkdir(parents=True)
        for name, size in ((_ANSWERS, views * record), (_SUMS, views * np.dtype(np.uint32).itemsize)):
            with (folder / name).open("wb") as file:
                file.truncate(size)
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise FileError(
            f"The teacher's answers on {views} views need {views * record / 1e9:.2f} GB in {folder}, which is refused: "
            f"{error.strerror}."
        ) from error


def _parts(seen: Features) -> dict[str, Tensor]:
    """Return all that depends on the view, by name, at the precision in which it is kept."""
    half = {"logits": seen.logits} | {f"stage{place}": stage for place, stage in enumerate(seen.stages)}
    if seen.texture is not None:
        half["texture"] = seen.texture
    exact = {f"{_EXACT}{place}": layout.scores for place, layout in enumerate(seen.importance_layout)}
    return {name: part.half() for name, part in half.items()} | {name: part.float() for name, part in exact.items()}


def _assembled(example: Features, parts: dict[str, Tensor]) -> Features:
    """Return `example` with other parts, in 32 bits."""
    parts = {name: part.float() for name, part in parts.items()}
    layout = tuple(
        replace(importance, scores=parts[f"{_EXACT}{place}"])
        for place, importance in enumerate(example.importance_layout)
    )
    return replace(
        example,
        logits=parts["logits"],
        stages=tuple(parts[f"stage{place}"] for place in range(len(example.stages))),
        texture=parts.get("texture"),
        importance=tuple(importance.scores for importance in layout),
        importance_layout=layout,
    )


def _record(example: Features) -> np.dtype[np.void]:
    """Return the layout of the record of one view."""
    fields = [(name, part.cpu().numpy().dtype, tuple(part.shape[1:])) for name, part in _parts(example).items()]
    return np.dtype(fields, align=True)


def _checksum(record: np.void) -> np.uint32:
    """Return the CRC-32 of a record, never 0, which stands for a missing one."""
    return np.uint32(zlib.crc32(record.tobytes()) or 1)
