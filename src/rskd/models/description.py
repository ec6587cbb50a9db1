"""The JSON file beside a weight file, which says what the weights do not: same name, ending ``.json``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from rskd.errors import FileError, ModelError

Description = TypeVar("Description", bound=BaseModel)


def description_file(path: Path) -> Path:
    """Return the file that describes the weights in `path`.

    Examples
    --------
    >>> description_file(Path("teacher.pt")).name
    'teacher.json'
    """
    return path.with_suffix(".json")


def read_fields(path: Path) -> dict[str, Any]:
    """Return what the file beside `path` says; nothing where there is none."""
    beside = description_file(path)
    if not beside.is_file():
        return {}
    try:
        fields = json.loads(beside.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FileError(f"{beside} cannot be read as JSON: {error}.") from error
    if not isinstance(fields, dict):
        raise ModelError(f"{beside.name} is no description of a network: it must be a JSON object.")
    return fields


def described(kind: type[Description], fields: dict[str, Any], where: str) -> Description:
    """Return `fields` as a description; the first thing that is wrong is said in one sentence."""
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(str(part) for part in problem["loc"]) or "description"
        message = problem["msg"].removeprefix("Value error, ")
        raise ModelError(f"The description of the network in {where}: {place}: {message}.") from error
