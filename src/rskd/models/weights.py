"""Weights on disk: safetensors with the network's description and its card inside. No pickle is ever executed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_tensors
from torch import Tensor

from rskd.config import ModelSpec
from rskd.errors import FileError, ModelError
from rskd.io.files import write_atomically
from rskd.models.description import described, read_fields
from rskd.models.exported import refuse_exported
from rskd.models.foreign import inspect_foreign, is_foreign, load_foreign
from rskd.models.inference import find_weights, infer_spec
from rskd.models.passport import Passport as Passport
from rskd.models.passport import sha256 as sha256
from rskd.models.presets import weight_file
from rskd.models.segmenter import Segmenter
from rskd.models.tensors import read_torch

INFERRED = {
    "note": "the description was read off the weights' shapes: heads, intensities and names of classes leave no trace "
    "there; a JSON file of the same name can state them"
}
"""Card of a network whose file does not describe it."""
KEY = "rskd"
"""The one entry of the file's metadata: safetensors writes several in random order, and equal files must be equal."""


def save(path: Path, model: Segmenter, *, card: Mapping[str, str], half: bool = False) -> None:
    """Write a network to a safetensors file, atomically.

    Parameters
    ----------
    path
        The file; its folder exists.
    model
        The network.
    card
        What a user should know: data, licence, recipe, accuracy.
    half
        Store floating-point weights as float16.
    """
    tensors = {name: _stored(tensor, half) for name, tensor in model.state_dict().items()}
    metadata = {KEY: json.dumps({"spec": model.spec.model_dump_json(), "card": dict(card)})}
    write_atomically(path, save_tensors(tensors, metadata))


def load(path: Path) -> Segmenter:
    """Return the network in a weight file, on the CPU and in evaluation mode.

    Parameters
    ----------
    path
        Name of a bundled network, a ``.safetensors`` file of this program, a ``.pt`` file that holds
        ``{"spec": JSON, "state_dict": tensors}``, a file of weights alone, whose description is read off their shapes
        (`rskd.models.inference`), or a network from elsewhere with a JSON file beside it (`rskd.models.foreign`): this
        one can teach and segment, not learn.

    Raises
    ------
    FileError
        If the file cannot be read.
    ModelError
        If it holds something else, or code.
    """
    path = weight_file(path)
    _check_file(path)
    if is_foreign(path):
        return cast("Segmenter", load_foreign(path))
    spec, tensors = _read(path)[:2]
    model = Segmenter(spec)
    _check(path, model.state_dict(), tensors)
    model.load_state_dict(tensors)
    return model.eval()


def inspect(path: Path) -> Passport:
    """Return what a weight file says about itself; a network of this program is not built for it."""
    path = weight_file(path)
    _check_file(path)
    if is_foreign(path):
        return inspect_foreign(path)
    spec, tensors, card = _read(path)
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    return Passport(
        spec=spec,
        card=card,
        parameters=sum(tensor.numel() for name, tensor in tensors.items() if not name.endswith(buffers)),
        bytes=path.stat().st_size,
        sha256=sha256(path),
    )


def read_spec(path: Path) -> ModelSpec:
    """Return the description of a network from a JSON file."""
    try:
        return _parse_spec(path.read_text(encoding="utf-8"), path)
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(f"{path} cannot be read: {error}.") from error


def _stored(tensor: Tensor, half: bool) -> Tensor:
    tensor = tensor.detach().cpu().contiguous()
    return tensor.half() if half and tensor.is_floating_point() else tensor


def _parse_spec(text: str, path: Path) -> ModelSpec:
    try:
        return ModelSpec.model_validate_json(text)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"]) or "description"
        raise ModelError(f"The description of the network in {path.name}: {where}: {problem['msg']}.") from error


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise FileError(f"There is no weight file {path}: check the name, or choose another file.")
    refuse_exported(path)


def _read(path: Path) -> tuple[ModelSpec, dict[str, Tensor], dict[str, str]]:
    reader = _read_safetensors if path.suffix == ".safetensors" else _read_torch
    spec_json, tensors, card = reader(path)
    spec = _inferred(tensors, path) if spec_json is None else _parse_spec(spec_json, path)
    floats = {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}
    return spec, floats, card


def _inferred(tensors: dict[str, Tensor], path: Path) -> ModelSpec:
    try:
        fields = infer_spec(tensors, read_fields(path), name=path.stem)
    except ModelError as error:
        raise ModelError(f"{path.name} does not say which network it belongs to; {error}.") from error
    return described(ModelSpec, fields, path.name)


def _read_safetensors(path: Path) -> tuple[str | None, dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
    except (OSError, SafetensorError) as error:
        raise FileError(f"{path.name} is damaged or no safetensors file ({error}): copy it again.") from error
    if KEY not in metadata:
        return None, _weights(tensors, path), dict(INFERRED)
    try:
        content = json.loads(metadata[KEY])
        return content["spec"], tensors, {str(name): str(text) for name, text in content["card"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"The description inside {path.name} is damaged: copy the file again.") from error


def _read_torch(path: Path) -> tuple[str | None, dict[str, Tensor], dict[str, str]]:
    content = read_torch(path)
    if isinstance(content, Mapping) and isinstance(content.get("spec"), str):
        return content["spec"], _weights(content, path), {}
    return None, _weights(content, path), dict(INFERRED)


def _weights(content: Any, path: Path) -> dict[str, Tensor]:
    try:
        return find_weights(content)
    except ModelError as error:
        raise ModelError(f"{path.name} is no weight file of a network: {error}.") from error


def _check(path: Path, expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    problems = [f"{name} is missing" for name in expected if name not in found]
    problems += [f"{name} is unknown" for name in found if name not in expected]
    problems += [
        f"{name} has shape {tuple(found[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in found and found[name].shape != tensor.shape
    ]
    if problems:
        raise ModelError(f"The weights in {path.name} do not fit their description: {'; '.join(problems)}.")
