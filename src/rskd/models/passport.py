"""What a weight file says about itself, whatever its kind."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from rskd.config import ModelSpec
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
