"""Smaller ONNX files: weights in half precision, or weights and activations in 8-bit integers."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rskd.models.exported import need

QUANTISED = ("Conv", "MatMul", "Gemm")
"""Operations done in 8 bits: where the work is. Norms, softmax and sums stay in 32 bits."""
_SMALLEST = 64
"""Weights with fewer numbers stay as they are: halving them saves nothing."""


def halve(path: Path) -> None:
    """Store the weights of an ONNX file in 16 bits, in place.

    They are turned back into 32 bits when the file is loaded: half the size, the same speed, and a rounding of 1/2048.
    """
    onnx = need("onnx")
    model = onnx.load(str(path))
    graph = model.graph
    casts = []
    for weight in graph.initializer:
        values = onnx.numpy_helper.to_array(weight)
        if values.dtype == np.float32 and values.size >= _SMALLEST and np.abs(values).max() < np.finfo(np.float16).max:
            name = weight.name
            weight.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float16), f"{name}_half"))
            casts.append(onnx.helper.make_node("Cast", [f"{name}_half"], [name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.save(model, str(path))


def quantise(path: Path, images: NDArray[np.float32]) -> None:
    """Bring the work of an ONNX file to 8-bit integers, in place (static quantisation).

    Weights have a scale per channel; the range of the activations is what they reach on `images`.

    Parameters
    ----------
    path
        The file, float32.
    images
        Normalised images to calibrate with, (B, C, H, W), as the network will meet them.
    """
    onnx = need("onnx")
    quantization = need("onnxruntime.quantization")
    shapes = need("onnxruntime.quantization.shape_inference")
    metadata = {entry.key: entry.value for entry in onnx.load(str(path)).metadata_props}
    with TemporaryDirectory() as folder, _quiet():
        prepared, quantised = Path(folder) / "prepared.onnx", Path(folder) / "quantised.onnx"
        shapes.quant_pre_process(str(path), str(prepared), skip_symbolic_shape=True)
        quantization.quantize_static(
            str(prepared),
            str(quantised),
            _reader(quantization, images),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=list(QUANTISED),
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
        )
        model = onnx.load(str(quantised))
    onnx.helper.set_model_props(model, metadata)
    onnx.save(model, str(path))


def _reader(quantization: Any, images: NDArray[np.float32]) -> Any:
    """Return what hands the images to the calibration, one after the other."""

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._images: Iterator[NDArray[np.float32]] = iter(images)

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            image = next(self._images, None)
            return None if image is None else {"images": image[None]}

    return Reader()


class _quiet:  # noqa: N801 - a context manager
    """Keep the library's advice to its own developers out of the log."""

    def __enter__(self) -> None:
        self._level = logging.root.level
        logging.root.setLevel(logging.ERROR)

    def __exit__(self, *_: object) -> None:
        logging.root.setLevel(self._level)
