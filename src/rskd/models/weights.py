"""Weights on disk: safetensors with the network's description and its card inside. No pickle is ever executed."""

from __future__ import annotations

import json
import pickle  # only for the name of the error that torch raises
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_tensors
from torch import Tensor

from rskd.config import ModelSpec
from rskd.errors import FileError, ModelError
from rskd.io.files import write_atomically
from rskd.models.exported import refuse_exported
from rskd.models.passport import Passport as Passport
from rskd.models.passport import sha256 as sha256
from rskd.models.presets import weight_file
from rskd.models.segmenter import Segmenter

_PICKLE_OF_OLD = (b"(", b"c", b"}", b"]")
"""First bytes of a pickle of protocol 0, which has no mark of its own."""
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
        Name of a bundled network, a ``.safetensors`` file of this program, or a ``.pt`` file that holds
        ``{"spec": JSON, "state_dict": tensors}``.

    Raises
    ------
    FileError
        If the file cannot be read.
    ModelError
        If it holds something else, or code.
    """
    path = weight_file(path)
    spec, tensors = _read(path)[:2]
    model = Segmenter(spec)
    _check(path, model.state_dict(), tensors)
    model.load_state_dict(tensors)
    return model.eval()


def inspect(path: Path) -> Passport:
    """Return what a weight file says about itself, without building the network."""
    path = weight_file(path)
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


def _read(path: Path) -> tuple[ModelSpec, dict[str, Tensor], dict[str, str]]:
    if not path.is_file():
        raise FileError(f"There is no weight file {path}: check the name, or choose another file.")
    refuse_exported(path)
    reader = _read_safetensors if path.suffix == ".safetensors" else _read_torch
    spec_json, tensors, card = reader(path)
    floats = {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}
    return _parse_spec(spec_json, path), floats, card


def _read_safetensors(path: Path) -> tuple[str, dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
    except (OSError, SafetensorError) as error:
        raise FileError(f"{path.name} is damaged or no safetensors file ({error}): copy it again.") from error
    if KEY not in metadata:
        raise ModelError(f"{path.name} does not say which network it belongs to: it was not written by this program.")
    try:
        content = json.loads(metadata[KEY])
        return content["spec"], tensors, {str(name): str(text) for name, text in content["card"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"The description inside {path.name} is damaged: copy the file again.") from error


def _read_torch(path: Path) -> tuple[str, dict[str, Tensor], dict[str, str]]:
    with path.open("rb") as file:
        head = file.read(2)
    if head != b"PK" and head[:1] != b"\x80" and head[:1] not in _PICKLE_OF_OLD:
        raise FileError(f"{path.name} is no weight file: choose a .safetensors or .pt file.")
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"{path.name} holds more than weights (Python objects or code), which is never run: "
            "ask its author for a .safetensors file."
        ) from error
    except Exception as error:  # whatever a damaged archive makes torch raise
        raise FileError(f"{path.name} is damaged, or no weight file at all: copy it again.") from error
    try:
        return content["spec"] + "", dict(content["state_dict"]), {}
    except (TypeError, KeyError, ValueError, IndexError) as error:
        raise ModelError(
            f"{path.name} does not say which network it belongs to: "
            "it must hold a 'spec' (the description as JSON) and a 'state_dict'."
        ) from error


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
