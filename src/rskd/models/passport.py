"""What a weight file says about itself, whatever its kind."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from rskd.config import ModelSpec
from rskd.models.description import description_file
from rskd.models.presets import weight_file


@dataclass(frozen=True)
class Passport:
    """What a weight file says about itself."""

    spec: ModelSpec
    card: dict[str, str]
    """Data, licence, recipe, measured accuracy … in words."""
    parameters: int
    bytes: int
    sha256: str


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with weight_file(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def identity(path: Path) -> str:
    """Return the SHA-256 of a weight file and of the description beside it, where there is one, in hexadecimal.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "net.pt"
    ...     _ = path.write_bytes(b"weights")
    ...     alone = identity(path)
    ...     _ = description_file(path).write_text("{}")
    ...     alone == sha256(path), alone == identity(path)
    (True, False)
    """
    path = weight_file(path)
    own, beside = sha256(path), description_file(path)
    return hashlib.sha256(f"{own} {sha256(beside)}".encode()).hexdigest() if beside.is_file() else own
