"""Students outside of torch: written as ONNX with their description inside, checked, and run by ONNX Runtime.

Only writing needs torch (and `onnx`); running needs `onnxruntime` and NumPy. Both come with the extra ``onnx``.
"""

from __future__ import annotations

import io
import json
import os
import warnings
from collections.abc import Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from rskd.config import ModelSpec
from rskd.errors import FileError, ModelError, ParameterError, ResourceError
from rskd.models.normalise import normalise
from rskd.phantom import vessel_phantom

if TYPE_CHECKING:
    from rskd.models.segmenter import Segmenter

FORMAT = "rskd-onnx-1"
OPSET = 17
TOLERANCE = 1e-4
"""Largest difference of a logit between the network and its exported form, in units of the largest logit or of 1."""
_INSTALL = "install it with `pip install 'napari-rskd[onnx]'`"

Array = NDArray[np.float32]


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
        The file to write; its folder exists.
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
    _need("onnxruntime")
    resized = _at_size(model, size)
    samples = _samples(resized.spec) if images is None else np.asarray(images, np.float32)
    partial = path.with_name(path.name + ".partial")
    try:
        _write(resized, partial, card or {})
        difference = _difference(resized, partial, samples)
        if difference > TOLERANCE:
            raise ModelError(
                f"The exported network differs from {model.spec.name} by {difference:.1e} of its largest logit "
                f"(allowed: {TOLERANCE:.0e}): its encoder {model.spec.encoder} cannot be exported faithfully."
            )
        os.replace(partial, path)
    except OSError as error:
        raise FileError(f"{path} cannot be written: {error}.") from error
    finally:
        partial.unlink(missing_ok=True)
    return difference


class OnnxSegmenter:
    """An exported network, to be used like a `rskd.models.segmenter.Segmenter` wherever nothing is trained.

    Parameters
    ----------
    path
        File of `export_onnx`.
    threads
        CPU threads; ``None`` = one less than there are cores (at least one).

    Raises
    ------
    FileError
        If there is no such file, or it is damaged.
    ModelError
        If it was not written by `export_onnx`.
    ResourceError
        If `onnxruntime` is not installed.

    Notes
    -----
    It takes NumPy arrays and gives arrays, or takes tensors on the CPU and gives tensors; torch is not imported here.
    """

    training = False

    def __init__(self, path: Path, *, threads: int | None = None) -> None:
        runtime = _need("onnxruntime")
        if not path.is_file():
            raise FileError(f"There is no weight file {path}: check the name, or choose another file.")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads or max(1, (os.cpu_count() or 1) - 1)
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # leave the cores to the window
        try:
            self._session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the runtime's errors share no other base
            raise FileError(f"{path.name} is damaged or no ONNX file ({error}): export it again.") from error
        metadata = self._session.get_modelmeta().custom_metadata_map
        if metadata.get("format") != FORMAT:
            raise ModelError(f"{path.name} does not say which network it is: it was not exported by this program.")
        try:
            self.spec = ModelSpec.model_validate_json(metadata["spec"])
        except ValidationError as error:
            raise ModelError(f"The description in {path.name}: {error.errors()[0]['msg']}.") from error
        self.card: dict[str, str] = json.loads(metadata["card"])

    def __call__(self, images: Any) -> Any:
        """Return logits (B, K, H, W) for images (B, C, H, W), of the kind that the images are."""
        side = self.spec.image_size
        if tuple(images.shape[1:]) != (self.spec.in_channels, side, side):
            raise ParameterError(
                f"The images are {tuple(images.shape[1:])}, this network was exported for "
                f"{(self.spec.in_channels, side, side)}: use tiles of {side} pixels, or export it at another size."
            )
        is_array = isinstance(images, np.ndarray)
        values = np.ascontiguousarray(images if is_array else images.numpy(), np.float32)
        logits = self._session.run(None, {"images": values})[0]
        return logits if is_array else images.new_tensor(logits)

    def parameters(self) -> Iterator[Any]:
        """Return nothing: what a network on the CPU that cannot be trained has to say."""
        return iter(())

    def modules(self) -> Iterator[Any]:
        """Return nothing: it has no parts with a mode of their own."""
        return iter(())

    def eval(self) -> OnnxSegmenter:
        """Return the network; it never trains."""
        return self

    def train(self, mode: bool = True) -> OnnxSegmenter:
        """Return the network; it never trains."""
        return self


def _need(name: str) -> Any:
    try:
        return __import__(name)
    except ImportError as error:
        raise ResourceError(f"Exported networks need {name}, which is not installed: {_INSTALL}.") from error


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
    onnx = _need("onnx")
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
    metadata = {"format": FORMAT, "spec": spec.model_dump_json(), "card": json.dumps(dict(card))}
    onnx.helper.set_model_props(graph, metadata)
    onnx.save(graph, str(path))


def _difference(model: Segmenter, path: Path, images: Array) -> float:
    import torch

    with torch.inference_mode():
        expected = model(torch.from_numpy(images)).numpy()
    found = OnnxSegmenter(path)(images)
    return float(np.abs(found - expected).max() / max(1.0, np.abs(expected).max()))
