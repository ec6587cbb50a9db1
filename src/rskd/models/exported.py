"""Students outside of torch: an ONNX file with its description inside, run by ONNX Runtime or OpenVINO.

Neither this module nor what it imports needs torch; it needs `onnxruntime`, which comes with the extra ``onnx``, or
`openvino`, which is an extra of its own.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from functools import cached_property
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from rskd.backend import NumpyBackend
from rskd.config import ModelSpec
from rskd.errors import FileError, ModelError, ParameterError, ResourceError
from rskd.models.passport import Passport, sha256

SUFFIX = ".onnx"
FORMAT = "rskd-onnx-1"
METADATA = ("format", "spec", "card", "parameters")
"""What an exported network says about itself."""
_LIBRARIES = {"onnx": "onnxruntime", "openvino": "openvino"}
"""What each runtime is called on PyPI."""


class OnnxSegmenter:
    """An exported network in ONNX Runtime: a `rskd.models.segmenter.Segmenter` wherever nothing is trained.

    Parameters
    ----------
    path
        File of `rskd.onnx_export.export_onnx`.
    threads
        CPU threads; ``None`` = one less than there are cores (at least one).

    Raises
    ------
    FileError
        If there is no such file, or it is damaged.
    ModelError
        If it was not written by `rskd.onnx_export.export_onnx`.
    ResourceError
        If the runtime is not installed.

    Notes
    -----
    It takes NumPy arrays and gives arrays, always of the size it was exported for.
    """

    training = False
    backend = NumpyBackend()
    fixed = True
    """Whether it takes tiles of one size alone."""

    def __init__(self, path: Path, *, threads: int | None = None) -> None:
        if not path.is_file():
            raise FileError(f"There is no weight file {path}: check the name, or choose another file.")
        self.path, self._threads = path, 0
        self.use_threads(threads)
        metadata = self._metadata()
        if metadata.get("format") != FORMAT:
            raise ModelError(f"{path.name} does not say which network it is: it was not exported by this program.")
        try:
            self.spec = ModelSpec.model_validate_json(metadata["spec"])
        except ValidationError as error:
            raise ModelError(f"The description in {path.name}: {error.errors()[0]['msg']}.") from error
        self.card: dict[str, str] = json.loads(metadata["card"])
        self.parameter_count = int(metadata["parameters"])

    def use_threads(self, threads: int | None) -> None:
        """Run on so many CPU threads from now on; ``None`` = one less than there are cores (at least one)."""
        wanted = threads or max(1, (os.cpu_count() or 1) - 1)
        if wanted == self._threads:
            return
        try:
            self._open(wanted)
        except ResourceError:
            raise
        except Exception as error:  # the runtimes' errors share no other base
            raise FileError(f"{self.path.name} is damaged or no ONNX file ({error}): export it again.") from error
        self._threads = wanted

    def _open(self, threads: int) -> None:
        runtime = need("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # leave the cores to the window
        self._session = runtime.InferenceSession(str(self.path), options, providers=["CPUExecutionProvider"])

    def _metadata(self) -> dict[str, str]:
        found: dict[str, str] = self._session.get_modelmeta().custom_metadata_map
        return found

    def _run(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        logits: NDArray[np.float32] = self._session.run(None, {"images": images})[0]
        return logits

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the file, in hexadecimal."""
        return sha256(self.path)

    def __call__(self, images: NDArray[np.floating]) -> NDArray[np.float32]:
        """Return logits (B, K, H, W) for images (B, C, H, W)."""
        side = self.spec.image_size
        if tuple(images.shape[1:]) != (self.spec.in_channels, side, side):
            raise ParameterError(
                f"The images are {tuple(images.shape[1:])}, this network was exported for "
                f"{(self.spec.in_channels, side, side)}: use tiles of {side} pixels, or export it at another size."
            )
        return self._run(np.ascontiguousarray(images, np.float32))

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


class OpenVinoSegmenter(OnnxSegmenter):
    """An exported network in OpenVINO; see `OnnxSegmenter`."""

    def _open(self, threads: int) -> None:
        openvino = need("openvino")
        core = openvino.Core()
        self._model = core.read_model(str(self.path))
        settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1}
        exact = {"INFERENCE_PRECISION_HINT": "f32"}  # or it would round to what the processor is fast with
        self._request = core.compile_model(self._model, "CPU", settings | exact).create_infer_request()

    def _metadata(self) -> dict[str, str]:
        names = (name for name in METADATA if self._model.has_rt_info(["framework", name]))
        return {name: self._model.get_rt_info(["framework", name]).astype(str) for name in names}

    def _run(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.array(self._request.infer([images])[0])  # its own memory is written again by the next call


RUNTIMES: dict[str, type[OnnxSegmenter]] = {"onnx": OnnxSegmenter, "openvino": OpenVinoSegmenter}
"""What runs an exported network, by name."""


def available_runtimes() -> list[str]:
    """Return the names of the runtimes for exported networks that are installed."""
    return [name for name in RUNTIMES if find_spec(_LIBRARIES[name]) is not None]


def open_exported(path: Path, runtime: str = "auto", *, threads: int | None = None) -> OnnxSegmenter:
    """Return the network in an exported file.

    Parameters
    ----------
    path
        The file.
    runtime
        A key of `RUNTIMES`; "auto" = the first one that is installed.
    threads
        CPU threads; ``None`` = one less than there are cores (at least one).

    Raises
    ------
    FileError, ModelError, ResourceError
        As `OnnxSegmenter`.
    """
    name = next(iter(available_runtimes()), "onnx") if runtime == "auto" else runtime
    return RUNTIMES[name](path, threads=threads)


def inspect_onnx(path: Path) -> Passport:
    """Return what an exported network says about itself."""
    model = open_exported(path, threads=1)
    return Passport(model.spec, model.card, model.parameter_count, path.stat().st_size, sha256(path))


def refuse_exported(path: Path) -> None:
    """Refuse an exported network where more than its answer is needed."""
    if path.suffix.lower() == SUFFIX:
        raise ModelError(
            f"{path.name} was exported to be run: it cannot be trained, looked into or exported again; name the weight "
            "file it was made from."
        )


def need(name: str) -> Any:
    """Return a library of the extra ``onnx``, or OpenVINO."""
    try:
        return import_module(name)
    except ImportError as error:
        extra = "openvino" if name == "openvino" else "onnx"
        raise ResourceError(
            f"Exported networks need {name}, which is not installed: install it with `pip install "
            f"'napari-rskd[{extra}]'`."
        ) from error
