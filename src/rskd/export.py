"""Write a student as ONNX with its description inside, and check it against the original.

`rskd.models.exported` runs it; both need the extra ``onnx``.
"""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rskd.config import ModelSpec, SegmentOptions
from rskd.errors import ModelError, ParameterError
from rskd.events import Message, Task
from rskd.io import read_scan
from rskd.io.files import replacing
from rskd.jobs import ExportJob, Outcome
from rskd.models.exported import FORMAT, SUFFIX, OnnxSegmenter, need
from rskd.models.normalise import normalise
from rskd.phantom import vessel_phantom
from rskd.plan import View
from rskd.scan import Scan
from rskd.tiling import NUMPY, Tiling, cut

if TYPE_CHECKING:
    from rskd.models.segmenter import Segmenter

OPSET = 17
TOLERANCE = 1e-4
"""Largest difference of a logit between the network and its exported form, in units of the largest logit or of 1."""

CHECKED = 8
"""Tiles of an image that the exported network is checked on, at most."""

Array = NDArray[np.float32]


def export(job: ExportJob) -> Task[Outcome]:
    """Write the network in a weight file as ONNX, and check it on tiles of an image.

    Parameters
    ----------
    job
        Weight file, file to write, size of the tiles, and the image to check with.

    Yields
    ------
    Message
        What it is checked on.

    Returns
    -------
    Outcome
        ``{"output", "size", "tiles", "difference", "allowed", "bytes"}``; `difference` is the largest one of a logit,
        in units of the largest logit or of 1.

    Raises
    ------
    ParameterError
        If the file to write is none of ONNX, the size does not suit the network, or the image does not.
    ModelError, FileError, ResourceError
        As `export_onnx`.
    """
    from rskd.models import weights  # it imports torch
    from rskd.models.foreign import from_elsewhere

    if job.output.suffix.lower() != SUFFIX:
        raise ParameterError(f"{job.output.name} is to be an ONNX file: let its name end in {SUFFIX}.")
    model, card = weights.load(job.model), weights.inspect(job.model).card
    if from_elsewhere(model):
        raise ModelError(f"{job.model.name} is a network from elsewhere: export it with the program that it is from.")
    spec = _at_size(model, job.size).spec
    images = _samples(spec) if job.image is None else tiles_of(read_scan(job.image, axes=job.axes), spec)
    what = "drawn vessels and noise" if job.image is None else f"{len(images)} tiles of the image"
    yield Message(f"Exporting {spec.name} for tiles of {spec.image_size} pixels, and checking it on {what}.")
    job.output.parent.mkdir(parents=True, exist_ok=True)
    difference = export_onnx(model, job.output, card=card, size=job.size, images=images)
    return Outcome(
        {
            "output": str(job.output),
            "size": spec.image_size,
            "tiles": len(images),
            "difference": difference,
            "allowed": TOLERANCE,
            "bytes": job.output.stat().st_size,
        }
    )


def tiles_of(scan: Scan, spec: ModelSpec) -> Array:
    """Return tiles (B, C, side, side) of the middle plane of a scan as the network sees them, spread evenly over it.

    Examples
    --------
    >>> tiles_of(Scan(np.eye(100), "yx"), ModelSpec(name="any", image_size=64)).shape
    (4, 1, 64, 64)
    """
    view = View.along("z", scan, spec, SegmentOptions())
    plane = normalise(view.slices[len(view.slices) // 2], spec)
    height, width = view.seen
    image = view.there.apply(plane, slice(0, height), slice(0, width), NUMPY)
    places = list(Tiling.over(view.seen, tile=spec.image_size, overlap=0.0).grid)
    chosen = np.unique(np.linspace(0, len(places) - 1, CHECKED).round().astype(int))
    return np.stack([cut(image, row, column, spec.image_size) for row, column in (places[place] for place in chosen)])


def export_onnx(
    model: Segmenter,
    path: Path,
    *,
    card: Mapping[str, str] | None = None,
    size: int | None = None,
    images: Array | None = None,
) -> float:
    """Write a network as ONNX, float32, and check it against the original; a file that differs is not kept.

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

    Returns
    -------
    float
        Largest difference to the original, in units of its largest logit or of 1, whichever is larger.

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
    >>> export_onnx(model, path, size=64) < 1e-4  # doctest: +SKIP
    True
    """
    need("onnxruntime")
    resized = _at_size(model, size)
    samples = _samples(resized.spec) if images is None else np.asarray(images, np.float32)
    with replacing(path) as partial:
        _write(resized, partial, card or {})
        difference = _difference(resized, partial, samples)
        if not difference <= TOLERANCE:  # nor may it be no number
            raise ModelError(
                f"The exported network differs from {model.spec.name} by {difference:.1e} of its largest logit "
                f"(allowed: {TOLERANCE:.0e}): its encoder {model.spec.encoder} cannot be exported faithfully."
            )
    return difference


def _at_size(model: Segmenter, size: int | None) -> Segmenter:
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


def _difference(model: Segmenter, path: Path, images: Array) -> float:
    import torch

    with torch.inference_mode():
        expected = model(torch.from_numpy(images)).numpy()
    found = OnnxSegmenter(path)(images)
    return float(np.abs(found - expected).max() / max(1.0, np.abs(expected).max()))
