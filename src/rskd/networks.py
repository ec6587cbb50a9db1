"""Open the network in a file of any kind, and put it where the work runs; torch is imported only if it is needed."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from rskd.config import ComputeOptions
from rskd.errors import FileError, ResourceError
from rskd.io.state import state_of_files
from rskd.models.description import description_file
from rskd.models.exported import SUFFIX, OnnxSegmenter, inspect_onnx
from rskd.models.passport import Passport
from rskd.models.presets import weight_file

if TYPE_CHECKING:
    from rskd.models.segmenter import Segmenter

KEPT = 4
"""Networks that stay in memory."""


class Networks:
    """Networks that were read, by their files, so that the second image is begun at once."""

    def __init__(self) -> None:
        self._models: OrderedDict[tuple[Path, str], Segmenter] = OrderedDict()

    def get(self, path: Path, compute: ComputeOptions) -> Segmenter:
        """Return the network in a file, placed, from memory if file and description are those that were read.

        Raises
        ------
        FileError, ModelError, ResourceError
            As `open_network` and `place`.
        """
        path = weight_file(path)
        beside = description_file(path)
        try:
            key = (path.resolve(), state_of_files([path, beside] if beside.is_file() else [path]))
        except OSError as error:
            raise FileError(f"There is no weight file {path}: check the name, or choose another file.") from error
        model = self._models.pop(key, None) or open_network(path)
        self._models[key] = model
        while len(self._models) > KEPT:
            self._models.popitem(last=False)
        return place(model, compute)

    def forget(self) -> None:
        """Free their memory."""
        self._models.clear()


def open_network(path: Path) -> Segmenter:
    """Return the network in a weight file, on the CPU.

    Parameters
    ----------
    path
        Name of a bundled network, a file that `rskd.models.weights.load` takes, or an ONNX file of `rskd export`: this
        one stands in for a `Segmenter` wherever nothing is trained or observed, and needs no torch.

    Raises
    ------
    FileError, ModelError
        If the file cannot be read, or holds no network that can be used.
    ResourceError
        If a library that this kind of file needs is not installed.
    """
    path = weight_file(path)
    if path.suffix.lower() == SUFFIX:
        stand_in: Any = OnnxSegmenter(path)
        return cast("Segmenter", stand_in)
    from rskd.models import weights

    return weights.load(path)


def inspect(path: Path) -> Passport:
    """Return what a weight file of any kind says about itself; parameters and errors as for `open_network`."""
    path = weight_file(path)
    if path.suffix.lower() == SUFFIX:
        return inspect_onnx(path)
    from rskd.models import weights

    return weights.inspect(path)


def place(model: Segmenter, compute: ComputeOptions) -> Segmenter:
    """Return the network on the device, and with the threads, that `compute` asks for.

    Raises
    ------
    ResourceError
        If this computer has no such device, or the network cannot run there.
    """
    if isinstance(model, OnnxSegmenter):
        if compute.device not in ("auto", "cpu"):
            raise ResourceError(
                f"An exported network runs on the CPU, not on {compute.device}: choose device 'auto', or the file it "
                "was exported from."
            )
        model.use_threads(compute.threads)
        return model
    from rskd.compute import choose_device, use_threads

    use_threads(compute)
    return model.to(choose_device(compute))
