"""What goes over the pipes: one JSON object per line; arrays as .npy files in a private folder.

To the child: ``run`` (id, job, arrays), ``stop`` (id), ``cancel`` (id), ``exit``.
From the child: ``ready``, ``event`` (id, event), and one of ``result`` (id, value, arrays), ``cancelled`` (id) or
``error`` (id, error, message).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rskd import errors
from rskd.errors import EngineError, ParameterError, RskdError

Line = dict[str, Any]
LAST_WORDS = frozenset({"result", "error", "cancelled"})
"""Types of the messages that end a job."""
MAPPED_FROM = 1 << 20
"""Arrays of at least this many bytes are memory-mapped; each mapping costs a file descriptor."""


def encode(message: Line) -> bytes:
    r"""Return `message` as one line.

    Examples
    --------
    >>> encode({"type": "stop", "id": 1})
    b'{"type": "stop", "id": 1}\n'
    """
    return json.dumps(message).encode("ascii") + b"\n"


def decode(line: bytes) -> Line:
    """Return the message that `encode` wrote."""
    message: Line = json.loads(line)
    return message


def save_arrays(folder: Path, arrays: Mapping[str, NDArray[Any]], *, prefix: str) -> dict[str, str]:
    """Write `arrays` into `folder` and return the file name of each.

    Parameters
    ----------
    folder
        Existing folder.
    arrays
        Arrays of numbers or booleans of any shape, by any name.
    prefix
        Start of the file names, which tells what goes in from what comes out.

    Raises
    ------
    ParameterError
        If an array holds Python objects.
    """
    names: dict[str, str] = {}
    for index, (name, array) in enumerate(arrays.items()):
        if array.dtype.hasobject:
            raise ParameterError(f"Array {name!r} holds Python objects ({array.dtype}): convert it to numbers first.")
        names[name] = f"{prefix}{index}.npy"
        np.save(folder / names[name], array, allow_pickle=False)
    return names


def load_arrays(folder: Path, names: Mapping[str, str]) -> dict[str, NDArray[Any]]:
    """Open the arrays that `save_arrays` wrote; large ones are memory-mapped, copy on write."""
    return {name: _load(folder / file) for name, file in names.items()}


def _load(path: Path) -> NDArray[Any]:
    # An open mapping keeps Windows from deleting the file; elsewhere the file can go while the array lives on.
    mapped = os.name == "posix" and path.stat().st_size >= MAPPED_FROM
    array: NDArray[Any] = np.load(path, mmap_mode="c" if mapped else None, allow_pickle=False)
    return array.view(np.ndarray)


def error_to_json(error: RskdError) -> Line:
    """Return the class name and the sentence of `error`; a class from elsewhere travels as its nearest public base."""
    name = next(cls.__name__ for cls in type(error).__mro__ if vars(errors).get(cls.__name__) is cls)
    return {"error": name, "message": str(error)}


def error_from_json(message: Line) -> RskdError:
    """Return the exception that `error_to_json` described.

    Examples
    --------
    >>> error_from_json({"error": "DataError", "message": "No masks."})
    DataError('No masks.')
    """
    cls = vars(errors).get(message["error"], EngineError)
    error: RskdError = cls(message["message"])
    return error
