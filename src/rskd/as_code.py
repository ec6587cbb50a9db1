"""A recipe as lines to paste: Python, or a command for the terminal."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from rskd.flags import command_line
from rskd.io import read_scans
from rskd.jobs import Geometry, Job
from rskd.steps import FromFile, FromStep, Recipe, Step

WIDTH = 100
RESULTS = Path("results")
"""Where a copied command puts what it finds, in the folder where it is run."""
_OUTPUT = {"segment": Path("labels.tif"), "denoise": Path("denoised.tif"), "rank": RESULTS, "contourlet": RESULTS}


def as_python(recipe: Recipe) -> str:
    """Return a recipe as Python code, with ``step1``, ``step2`` … for what its steps return.

    Examples
    --------
    >>> recipe = Recipe.model_validate({"steps": [{"job": {"kind": "inspect", "model": "retina-student"}}]})
    >>> print(as_python(recipe))
    from pathlib import Path
    <BLANKLINE>
    from rskd.events import drain
    from rskd.jobs import InspectJob
    from rskd.run import Session
    <BLANKLINE>
    session = Session()
    step1 = drain(session.run(InspectJob(model=Path("retina-student"))))
    print(step1.value)
    """
    lines, used = [], list[BaseModel]()
    for number, step in enumerate(recipe.steps, 1):
        arrays = {name: _array(source) for name, source in step.arrays.items()}
        handed = "{" + ", ".join(f'"{name}": {code}' for name, code in arrays.items()) + "}"
        job = _code(step.job)
        if len(job) + len(handed) > WIDTH:
            job = _code(step.job, broken=True)
        lines.append(f"step{number} = drain(session.run({job}{f', {handed}' if arrays else ''}))")
        lines.append(f"print(step{number}.value)")
        used += [*_models(step.job), *(source for source in step.arrays.values() if isinstance(source, FromFile))]
    return "\n".join([*_imports(used), "", "session = Session()", *lines])


def as_command(recipe: Recipe) -> str:
    """Return a recipe as one line for a POSIX terminal.

    A single job is told by its own command where that does the very same; anything else is handed to `rskd run`.

    Examples
    --------
    >>> as_command(Recipe.model_validate({"steps": [{"job": {"kind": "inspect", "model": "retina-student"}}]}))
    'rskd inspect --model retina-student'
    """
    own = _own_command(recipe.steps[0]) if len(recipe.steps) == 1 else None
    if own is None:
        own = ["run", _brief(recipe), "--output", str(RESULTS)]
    return shlex.join(["rskd", *own])


def _brief(recipe: Recipe) -> str:
    """Return the JSON of a recipe without its defaults."""
    steps = [step.model_dump(mode="json", exclude_defaults=True) for step in recipe.steps]
    for step, told in zip(recipe.steps, steps, strict=True):
        told["job"] = {"kind": step.job.kind, **told["job"]}
    return json.dumps({"kind": recipe.kind, "steps": steps})


def _own_command(step: Step) -> list[str] | None:
    """Return the words of a job's own command; None where it would not do the same."""
    job: Job = step.job
    if step.arrays:
        source = step.arrays.get("image")
        if len(step.arrays) > 1 or not isinstance(source, FromFile) or not _says_no_more(source):
            return None
        if getattr(job, "geometry", Geometry()) != Geometry():
            return None  # where the layer lies is more than the file says
        job = job.model_copy(update={"image": source.file})
    if job.kind in _OUTPUT and job.output is None:  # type: ignore[union-attr]
        job = job.model_copy(update={"output": _OUTPUT[job.kind]})
    return command_line(job)


def _says_no_more(source: FromFile) -> bool:
    """Tell whether the file is nothing but its pixels, so that it makes no difference to a job to read it itself."""
    scans = read_scans(source.file)
    alone = len(scans) == 1 and not source.at
    return alone and scans[0].spacing is None and scans[0].affine is None and "alpha" not in scans[0].channels


def _array(source: FromFile | FromStep) -> str:
    """Return code for an array."""
    if isinstance(source, FromFile):
        return f"{_code(source)}.read()"
    index = f"[{', '.join(map(str, source.at))}]" if source.at else ""
    return f'step{source.step}.arrays["{source.array}"]{index}'


def _code(value: Any, *, broken: bool = False) -> str:
    """Return code for a value; a model names only what differs from its defaults."""
    match value:
        case BaseModel():
            parts = [f"{name}={_code(each)}" for name, each in _told(value)]
            inside = "".join(f"\n    {part}," for part in parts) + "\n" if broken else ", ".join(parts)
            return f"{type(value).__name__}({inside})"
        case Path():
            return f"Path({_code(str(value))})"
        case str():
            return json.dumps(value, ensure_ascii=False)
        case tuple() | list():
            return "(" + "".join(f"{_code(each)}, " for each in value).strip() + ")"
        case dict():
            return "{" + ", ".join(f"{_code(key)}: {_code(each)}" for key, each in value.items()) + "}"
        case float() if not math.isfinite(value):
            return f'float("{value}")'
        case _:
            return repr(value)


def _told(model: BaseModel) -> Iterator[tuple[str, Any]]:
    """Yield the fields that differ from their defaults."""
    for name, field in type(model).model_fields.items():
        value = getattr(model, name)
        if name != "kind" and value != field.get_default(call_default_factory=True):
            yield name, value


def _models(model: BaseModel) -> Iterator[BaseModel]:
    """Yield every model that code for this one names."""
    yield model
    for _, value in _told(model):
        if isinstance(value, BaseModel):
            yield from _models(value)


def _imports(used: list[BaseModel]) -> list[str]:
    names: dict[str, set[str]] = {"rskd.events": {"drain"}, "rskd.run": {"Session"}}
    for model in used:
        home = type(model).__module__
        names.setdefault("rskd.config" if home.startswith("rskd.config") else home, set()).add(type(model).__name__)
    ours = [f"from {module} import {', '.join(sorted(found))}" for module, found in sorted(names.items())]
    return ["from pathlib import Path", "", *ours]
