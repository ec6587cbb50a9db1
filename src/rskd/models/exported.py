"""Students outside of torch: an ONNX file with its description inside, run by ONNX Runtime.

Neither this module nor what it imports needs torch; it needs `onnxruntime`, which comes with the extra ``onnx``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from functools import cached_property
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
_INSTALL = "install it with `pip install 'napari-rskd[onnx]'`"


class OnnxSegmenter:
    """An exported network, to be used like a `rskd.models.segmenter.Segmenter` wherever nothing is trained.

    Parameters
    ----------
    path
        File of `rskd.export.export_onnx`.
    threads
        CPU threads; ``None`` = one less than there are cores (at least one).

    Raises
    ------
    FileError
        If there is no such file, or it is damaged.
    ModelError
        If it was not written by `rskd.export.export_onnx`.
    ResourceError
        If `onnxruntime` is not installed.

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
        self._path, self._threads = path, 0
        self.use_threads(threads)
        metadata = self._session.get_modelmeta().custom_metadata_map
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
        runtime = need("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = wanted
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # leave the cores to the window
        try:
            self._session = runtime.InferenceSession(str(self._path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the runtime's errors share no other base
            raise FileError(f"{self._path.name} is damaged or no ONNX file ({error}): export it again.") from error
        self._threads = wanted

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the file, in hexadecimal."""
        return sha256(self._path)

    def __call__(self, images: NDArray[np.floating]) -> NDArray[np.float32]:
        """Return logits (B, K, H, W) for images (B, C, H, W)."""
        side = self.spec.image_size
        if tuple(images.shape[1:]) != (self.spec.in_channels, side, side):
            raise ParameterError(
                f"The images are {tuple(images.shape[1:])}, this network was exported for "
                f"{(self.spec.in_channels, side, side)}: use tiles of {side} pixels, or export it at another size."
            )
        logits: NDArray[np.float32] = self._session.run(None, {"images": np.ascontiguousarray(images, np.float32)})[0]
        return logits

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


def inspect_onnx(path: Path) -> Passport:
    """Return what an exported network says about itself."""
    model = OnnxSegmenter(path, threads=1)
    return Passport(model.spec, model.card, model.parameter_count, path.stat().st_size, sha256(path))


def refuse_exported(path: Path) -> None:
    """Refuse an exported network where more than its answer is needed."""
    if path.suffix.lower() == SUFFIX:
        raise ModelError(
            f"{path.name} was exported to be run: it cannot be trained, looked into or exported again; name the weight "
            "file it was made from."
        )


def need(name: str) -> Any:
    """Return a library of the extra ``onnx``."""
    try:
        return __import__(name)
    except ImportError as error:
        raise ResourceError(f"Exported networks need {name}, which is not installed: {_INSTALL}.") from error
