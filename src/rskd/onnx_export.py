"""Write a network as ONNX with its description inside, and check it against the original.

`rskd.models.exported` runs it; both need the extra ``onnx``. `rskd.export` is the task around it.
"""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rskd.config import ModelSpec
from rskd.errors import ModelError, ParameterError
from rskd.io.files import replacing
from rskd.models.exported import FORMAT, OnnxSegmenter, need
from rskd.models.normalise import normalise
from rskd.models.quantise import halve, quantise
from rskd.phantom import vessel_phantom

if TYPE_CHECKING:
    from rskd.models.segmenter import Segmenter

OPSET = 17
TOLERANCE = {"fp32": 1e-4, "fp16": 1e-2, "int8": float("inf")}
"""Largest difference of a logit between the network and its exported form, in units of the largest logit or of 1, for
every precision; of integers the labels are judged."""
AGREEMENT = 0.9
"""Least share of the pixels that an exported network gives the same label."""

Array = NDArray[np.float32]


class Check(NamedTuple):
    """How far an exported network is from the original."""

    difference: float
    """Largest difference of a logit, in units of the largest logit or of 1, whichever is larger."""
    agreement: float
    """Share of the pixels with the same label."""


def export_onnx(
    model: Segmenter,
    path: Path,
    *,
    card: Mapping[str, str] | None = None,
    size: int | None = None,
    images: Array | None = None,
    precision: str = "fp32",
    calibration: Array | None = None,
) -> Check:
    """Write a network as ONNX and check it against the original; a file that differs is not kept.

    The batch may have any length; height and width are fixed.

    Parameters
    ----------
    model
        The network; it is not changed.
    path
        The file to write.
    card
        What a user should know about the network; it travels inside the file.
    size
        Side of the square tiles in pixels, a multiple of the patch size; ``None`` = the size it was trained at.
    images
        Normalised images to check with, (B, C, size, size); ``None`` = drawn vessels and noise.
    precision
        "fp32", "fp16" (weights alone) or "int8".
    calibration
        Normalised images that show "int8" the range of the activations, (B, C, size, size); ``None`` = `images`.

    Returns
    -------
    Check
        How far it is from the original.

    Raises
    ------
    ModelError
        If the network cannot be exported, or the exported one says something else.
    FileError
        If the file cannot be written.
    ResourceError
        If `onnx` or `onnxruntime` is not installed.

    Examples
    --------
    >>> from rskd.models.presets import fresh_spec
    >>> from rskd.models.segmenter import Segmenter
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "student.onnx"
    >>> model = Segmenter(fresh_spec("rskd-nano", in_channels=1, classes=["organ"]))
    >>> export_onnx(model, path, size=64).difference < 1e-4  # doctest: +SKIP
    True
    """
    need("onnxruntime")
    resized = at_size(model, size)
    samples = _samples(resized.spec) if images is None else np.asarray(images, np.float32)
    with replacing(path) as partial:
        _write(resized, partial, card or {})
        if precision == "fp16":
            halve(partial)
        elif precision == "int8":
            quantise(partial, samples if calibration is None else calibration)
        check = _check(resized, partial, samples)
        _refuse_other(model.spec, check, precision)
    return check


def _refuse_other(spec: ModelSpec, check: Check, precision: str) -> None:
    """Refuse an exported network that says something else than the original."""
    allowed = TOLERANCE[precision]
    if not check.difference <= allowed:  # nor may it be no number
        raise ModelError(
            f"The exported network differs from {spec.name} by {check.difference:.1e} of its largest logit (allowed: "
            f"{allowed:.0e}): its encoder {spec.encoder} cannot be exported faithfully."
        )
    if check.agreement < AGREEMENT:
        raise ModelError(
            f"In {precision} only {check.agreement:.1%} of the pixels get the label that {spec.name} gives them "
            f"(at least {AGREEMENT:.0%} should): calibrate with more images of the kind it was trained on, or use fp16."
        )


def at_size(model: Segmenter, size: int | None) -> Segmenter:
    """Return a copy in evaluation mode on the CPU, made for square images of one size."""
    side = model.spec.image_size if size is None else size
    if side % model.spec.patch_size:
        raise ParameterError(f"size={side} is no multiple of the patch size {model.spec.patch_size}.")
    copy = deepcopy(model).cpu().eval()
    copy.spec = model.spec.model_copy(update={"image_size": side})
    if hasattr(copy.encoder, "set_input_size"):
        copy.encoder.set_input_size(img_size=(side, side))
    return copy


def _samples(spec: ModelSpec) -> Array:
    """Return two normalised images (2, C, side, side): drawn vessels, with the channels repeated, and noise."""
    rng, side = np.random.default_rng(0), spec.image_size
    drawn = vessel_phantom(rng, side)[0].transpose(2, 0, 1)
    vessels = drawn[np.arange(spec.in_channels) % 3]
    noise = rng.normal(size=vessels.shape)
    return np.stack([normalise(image, spec) for image in (vessels, noise)])


def _write(model: Segmenter, path: Path, card: Mapping[str, str]) -> None:
    onnx = need("onnx")
    import torch  # only writing needs it

    spec = model.spec
    buffer: Any = io.BytesIO()  # the exporter writes into files too, whatever its stub says
    example = torch.zeros(1, spec.in_channels, spec.image_size, spec.image_size)
    batch = {"images": {0: "batch"}, "logits": {0: "batch"}}
    names: dict[str, Any] = {"input_names": ["images"], "output_names": ["logits"], "dynamic_axes": batch}
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter tells its own maintainers about the future
            torch.onnx.export(model, (example,), buffer, opset_version=OPSET, dynamo=False, **names)
    except Exception as error:  # the exporter raises whatever its parts raise
        problem = str(error).partition("\n")[0]
        raise ModelError(f"{spec.name} ({spec.encoder}) cannot be written as ONNX: {problem}") from error
    graph = onnx.load_model_from_string(buffer.getvalue())
    metadata = {
        "format": FORMAT,
        "spec": spec.model_dump_json(),
        "card": json.dumps(dict(card)),
        "parameters": str(sum(parameter.numel() for parameter in model.parameters())),
    }
    onnx.helper.set_model_props(graph, metadata)
    onnx.save(graph, str(path))


def _check(model: Segmenter, path: Path, images: Array) -> Check:
    import torch

    with torch.inference_mode():
        expected = model(torch.from_numpy(images)).numpy()
    found = OnnxSegmenter(path)(images)
    difference = float(np.abs(found - expected).max() / max(1.0, np.abs(expected).max()))
    mine, theirs = (logits > 0 if model.spec.overlapping else logits.argmax(1) for logits in (found, expected))
    return Check(difference, float((mine == theirs).mean()))
