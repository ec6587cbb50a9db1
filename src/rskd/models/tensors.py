"""Read a file that torch has written, as far as it holds tensors; no pickle is ever executed."""

from __future__ import annotations

import pickle  # only for the name of the error that torch raises
import pickletools
from collections import deque
from pathlib import Path
from typing import Any

import torch

from rskd.errors import FileError, ModelError

_PICKLE_OF_OLD = (b"(", b"c", b"}", b"]")
"""First bytes of a pickle of protocol 0, which has no mark of its own."""


def read_torch(path: Path) -> Any:
    """Return what a ``.pt`` or ``.pth`` file holds: tensors, numbers and texts in lists and mappings.

    Raises
    ------
    FileError
        If the file is damaged, or none of torch.
    ModelError
        If it holds Python objects or code.
    """
    if not (_is_archive(path) or _is_pickle(path)):
        raise FileError(f"{path.name} is no weight file: choose a .safetensors or .pt file.")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"{path.name} holds more than weights (Python objects or code), which is never run: "
            "ask its author for a .safetensors file."
        ) from error
    except Exception as error:  # whatever a damaged archive makes torch raise
        raise FileError(f"{path.name} is damaged, or no weight file at all: copy it again.") from error


def _is_archive(path: Path) -> bool:
    """Tell whether a file begins like the archives of today's torch, be it damaged further on."""
    with path.open("rb") as file:
        return file.read(2) == b"PK"


def _is_pickle(path: Path) -> bool:
    """Tell whether a file begins with a pickle, which is read and not executed; text and noise may look like one."""
    with path.open("rb") as file:
        head = file.read(1)
        if head != b"\x80" and head not in _PICKLE_OF_OLD:
            return False
        file.seek(0)
        try:
            deque(pickletools.genops(file), maxlen=0)
        except Exception:  # noise makes it raise whatever its parts raise
            return False
    return True
