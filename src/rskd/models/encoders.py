"""timm encoders: built from a description, and seen as a list of maps from shallow to deep."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import timm
from torch import Tensor, nn

from rskd.config import ModelSpec
from rskd.errors import FileError, ModelError
from rskd.jobs import DOWNLOAD

PLAIN = ("vision_transformer", "deit")
"""Modules of timm whose networks are plain Vision Transformers: their width, depth, heads and patches can be chosen."""
FAILURES = (RuntimeError, TypeError, ValueError, AssertionError, KeyError)


def build_encoder(spec: ModelSpec, *, pretrained: Path | None = None) -> nn.Module:
    """Return the encoder that `spec` describes.

    Parameters
    ----------
    spec
        Description of the network.
    pretrained
        File with timm weights of this encoder; ``None`` = fresh weights. `DOWNLOAD` alone fetches those that timm
        publishes; otherwise nothing is ever downloaded.

    Raises
    ------
    ModelError
        If timm has no such encoder, it cannot be built as described, or the weights do not fit.
    FileError
        If there is no such file, or it cannot be fetched.

    Examples
    --------
    >>> encoder = build_encoder(ModelSpec(name="any", encoder="test_resnet", patch_size=32))
    >>> strides(encoder)
    (2, 4, 8, 16, 32)
    """
    fetch = pretrained == DOWNLOAD
    arguments: dict[str, Any] = {"pretrained": fetch, "num_classes": 0, "in_chans": spec.in_channels}
    try:
        if _family(spec.encoder) in PLAIN:
            encoder: nn.Module = timm.create_model(spec.encoder, **arguments, **_plain_arguments(spec))
        else:
            encoder = _build_other(spec, arguments)
    except FAILURES as error:
        raise ModelError(f"The encoder {spec.encoder!r} cannot be built as described: {error}.") from error
    except Exception as error:  # whatever a network that is away raises
        if not fetch:
            raise
        raise FileError(
            f"The weights of {spec.encoder} cannot be fetched ({type(error).__name__}): name a file instead."
        ) from error
    if not is_plain(encoder):
        _check_stride(spec, encoder)
    if pretrained is not None and not fetch:
        load_pretrained(encoder, pretrained)
    return encoder


def load_pretrained(encoder: Any, path: Path) -> None:
    """Fill an encoder with timm weights from a file, adapted to its channels and grid.

    Parameters
    ----------
    encoder
        A timm network.
    path
        A ``.safetensors`` file, or a ``.pth`` file with nothing but weights; those of the classifier are left out.

    Raises
    ------
    FileError
        If the file cannot be read.
    ModelError
        If a weight is missing or unknown, or has another shape.
    """
    if not path.is_file():
        raise FileError(f"There is no weight file {path}: check the name, or choose another file.")
    try:
        found = timm.models.load_state_dict(str(path), weights_only=True)
    except Exception as error:
        raise FileError(f"{path.name} is no weight file that can be read: {error}.") from error
    config = encoder.pretrained_cfg
    family = sys.modules[type(encoder).__module__]
    try:
        found = getattr(family, "checkpoint_filter_fn", lambda state, model: state)(found, encoder)
        for name in _names(config.get("first_conv")):
            weight = encoder.get_submodule(name).weight
            found[f"{name}.weight"] = timm.models.adapt_input_conv(weight.shape[1], found[f"{name}.weight"])
        classifiers = tuple(f"{name}." for name in _names(config.get("classifier")))
        kept = {name: value for name, value in found.items() if not name.startswith(classifiers)}
        encoder.load_state_dict(kept)
    except FAILURES as error:
        raise ModelError(f"The weights in {path.name} do not fit the encoder: {error}.") from error


def _names(value: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return () if value is None else (value,) if isinstance(value, str) else tuple(value)


def is_plain(encoder: nn.Module) -> bool:
    """Return whether an encoder is a plain Vision Transformer, whose stages are its blocks."""
    return isinstance(encoder, timm.models.VisionTransformer)


def strides(encoder: nn.Module) -> tuple[int, ...]:
    """Return how many pixels of the image one place of every stage stands for, shallow to deep."""
    return tuple(int(record["reduction"]) for record in _records(encoder))


def widths(encoder: nn.Module) -> tuple[int, ...]:
    """Return the channels of every stage, shallow to deep."""
    return tuple(int(record["num_chs"]) for record in _records(encoder))


def stage_maps(encoder: Any, images: Tensor, stages: tuple[int, ...]) -> list[Tensor]:
    """Return the maps (B, D_i, h_i, w_i) of some stages, shallow to deep; normalised where all have one width."""
    normalise = len(set(widths(encoder))) == 1
    maps: list[Tensor] = encoder.forward_intermediates(
        images, indices=list(stages), norm=normalise, output_fmt="NCHW", intermediates_only=True
    )
    return maps


def _records(encoder: Any) -> list[dict[str, Any]]:
    info = encoder.feature_info
    return list(getattr(info, "info", info))


def _family(name: str) -> str:
    return str(timm.models.model_entrypoint(name).__module__).rpartition(".")[2]


def _sizes(spec: ModelSpec) -> dict[str, int]:
    sizes = {"embed_dim": spec.embed_dim, "depth": spec.depth, "num_heads": spec.num_heads}
    return {name: size for name, size in sizes.items() if size is not None}


def _plain_arguments(spec: ModelSpec) -> dict[str, Any]:
    size = {"img_size": spec.image_size, "patch_size": spec.patch_size, "dynamic_img_size": True}
    return size | _sizes(spec)


def _build_other(spec: ModelSpec, arguments: dict[str, Any]) -> nn.Module:
    """Build any other family: with the image size where its windows or tables need one."""
    if _sizes(spec):
        raise ValueError(f"{', '.join(_sizes(spec))} can be chosen for plain Vision Transformers (vit_…) alone")
    for size in _size_arguments(spec.image_size):
        try:
            encoder: nn.Module = timm.create_model(spec.encoder, **arguments, **size)
        except TypeError as error:
            if "unexpected keyword" not in str(error):
                raise
        else:
            break
    if not hasattr(encoder, "forward_intermediates"):
        raise TypeError("it does not show the maps of its stages")
    return encoder


def _size_arguments(side: int) -> Iterator[dict[str, Any]]:
    yield {"img_size": side, "strict_img_size": False}
    yield {"img_size": side, "dynamic_img_size": True}
    yield {"img_size": side}
    yield {}


def _check_stride(spec: ModelSpec, encoder: nn.Module) -> None:
    deepest = strides(encoder)[-1]
    if spec.patch_size != deepest:
        raise ModelError(
            f"One place of the deepest map of {spec.encoder} stands for {deepest} pixels, patch_size is "
            f"{spec.patch_size}: set it to {deepest}."
        )
