"""Open the network in a file of any kind, and put it where the work runs; torch is imported only if it is needed."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from platformdirs import user_cache_path

from rskd.config import ComputeOptions, InferenceOptions
from rskd.errors import FileError, ResourceError, RskdError
from rskd.events import Message, Task
from rskd.io.state import state_of_files
from rskd.models.description import description_file
from rskd.models.exported import RUNTIMES, SUFFIX, OnnxSegmenter, inspect_onnx, open_exported
from rskd.models.passport import Passport, identity
from rskd.models.presets import weight_file

if TYPE_CHECKING:
    from rskd.models.segmenter import Segmenter

KEPT = 4
"""Networks that stay in memory."""
_TRIALS = 3
"""Times that a tile is segmented to see which program is faster, after one that does not count."""


class Networks:
    """Networks that were read, by their files, so that the second image is begun at once."""

    def __init__(self) -> None:
        self._models: OrderedDict[tuple[Path, str, str, int | None], Segmenter] = OrderedDict()
        self._faster: dict[tuple[Path, str, int | None, int | None], str] = {}

    def get(self, path: Path, compute: ComputeOptions, *, tile: int | None = None) -> Segmenter:
        """Return the network in a file, placed, from memory if file and description are those that were read.

        Parameters
        ----------
        path
            As for `open_network`.
        compute
            Device, threads, and with `InferenceOptions` the runtime.
        tile
            Side of the tiles, where a runtime needs to know it; ``None`` = that of the training.

        Raises
        ------
        FileError, ModelError, ResourceError
            As `open_network` and `place`.
        """
        path, runtime = weight_file(path), runtime_of(compute)
        key = (path.resolve(), _state(path), runtime, tile if runtime in RUNTIMES else None)
        model = self._models.pop(key, None) or open_network(path, runtime, tile=tile)
        self._models[key] = model
        while len(self._models) > KEPT:
            self._models.popitem(last=False)
        return place(model, compute)

    def fastest(
        self, paths: Sequence[Path], compute: InferenceOptions, *, tile: int | None = None
    ) -> Task[InferenceOptions]:
        """Settle which runtime is meant by "auto": the faster one of torch and ONNX Runtime, tried out on one tile.

        Parameters
        ----------
        paths
            The networks of a job, each as for `get`.
        compute, tile
            As for `get`.

        Yields
        ------
        Message
            If it has to be tried out, which takes seconds for the first time.

        Returns
        -------
        InferenceOptions
            With the runtime named. It is torch wherever ONNX Runtime is no choice: on a GPU, where it is not installed,
            and where the exported copy of one network would not say the same. Exported networks stay with "auto".
        """
        files = [weight_file(path) for path in paths]
        if compute.runtime != "auto" or any(file.suffix.lower() == SUFFIX for file in files):
            return compute
        from rskd.compute import choose_device

        may = choose_device(compute).type == "cpu" and all(map(find_spec, ("onnx", "onnxruntime")))
        for file in files if may else ():
            key = (file.resolve(), _state(file), tile, compute.threads)
            if key not in self._faster:
                yield Message("Trying out which program runs this network faster: it takes a moment, once.")
                self._faster[key] = self._tried_out(file, compute, tile)
            may = may and self._faster[key] == "onnx"
        return compute.model_copy(update={"runtime": "onnx" if may else "torch"})

    def _tried_out(self, path: Path, compute: InferenceOptions, tile: int | None) -> str:
        """Return the runtime that takes less time for one tile; torch where the other cannot have it."""
        times = {}
        for name in ("torch", "onnx"):
            try:
                model = self.get(path, compute.model_copy(update={"runtime": name}), tile=tile)
                times[name] = _seconds(model, tile or model.spec.image_size)
            except RskdError:
                if name == "torch":
                    raise
        return min(times, key=lambda name: times[name])

    def forget(self) -> None:
        """Free their memory."""
        self._models.clear()


def _state(path: Path) -> str:
    """Return what changes with a weight file or the description beside it."""
    beside = description_file(path)
    try:
        return state_of_files([path, beside] if beside.is_file() else [path])
    except OSError as error:
        raise FileError(f"There is no weight file {path}: check the name, or choose another file.") from error


def _seconds(model: Segmenter, side: int) -> float:
    """Return how long a network takes for a tile, at best."""
    from rskd.backend import backend_of

    backend, times = backend_of(model.eval()), []
    tile = np.zeros((1, model.spec.in_channels, side, side), np.float32)
    for _ in range(1 + _TRIALS):
        began = time.perf_counter()
        with backend.running():
            backend.get(model(backend.put(tile)))
        times.append(time.perf_counter() - began)
    return min(times[1:])


def runtime_of(compute: ComputeOptions) -> str:
    """Return the runtime that options ask for; "torch" where they cannot.

    Examples
    --------
    >>> runtime_of(ComputeOptions()), runtime_of(InferenceOptions())
    ('torch', 'auto')
    """
    return compute.runtime if isinstance(compute, InferenceOptions) else "torch"


def runtime_name(model: Segmenter) -> str:
    """Return what runs a network: "torch", or a key of `rskd.models.exported.RUNTIMES`."""
    kind: type = type(model)
    return next((name for name, stand_in in RUNTIMES.items() if kind is stand_in), "torch")


def open_network(path: Path, runtime: str = "auto", *, tile: int | None = None) -> Segmenter:
    """Return the network in a weight file, on the CPU.

    Parameters
    ----------
    path
        Name of a bundled network, a file that `rskd.models.weights.load` takes, or an ONNX file of `rskd export`: this
        one stands in for a `Segmenter` wherever nothing is trained or observed, and needs no torch.
    runtime
        "torch", "onnx", "openvino"; "auto" = torch for weights, what is installed for an ONNX file.
    tile
        Side of the tiles, for weights in another runtime than torch; ``None`` = that of the training.

    Raises
    ------
    FileError, ModelError
        If the file cannot be read, or holds no network that can be used.
    ResourceError
        If a library that this kind of file needs is not installed.
    """
    path = weight_file(path)
    if path.suffix.lower() == SUFFIX:
        stand_in: Any = open_exported(path, "auto" if runtime == "torch" else runtime)
        return cast("Segmenter", stand_in)
    if runtime in RUNTIMES:
        stand_in = open_exported(exported_copy(path, tile), runtime)
        return cast("Segmenter", stand_in)
    from rskd.models import weights

    return weights.load(path)


def exported_copy(path: Path, size: int | None = None) -> Path:
    """Return the ONNX file that stands for weights in another runtime than torch; it is kept in the user's cache.

    Parameters
    ----------
    path
        Weight file.
    size
        Side of the tiles; ``None`` = that of the training.

    Raises
    ------
    ModelError
        If the network cannot be exported.
    """
    path = weight_file(path)
    if not path.is_file():
        raise FileError(f"There is no weight file {path}: check the name, or choose another file.")
    version = metadata.version("napari-rskd")
    copy = (
        user_cache_path("rskd", appauthor=False) / "exported" / f"{identity(path)[:32]}-{size or 0}-{version}{SUFFIX}"
    )
    if not copy.is_file():
        from rskd.models import weights
        from rskd.models.foreign import refuse_foreign
        from rskd.onnx_export import export_onnx

        model = weights.load(path)
        refuse_foreign(model, path)
        export_onnx(model, copy, card=weights.inspect(path).card, size=size)
    return copy


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
                "was exported from with the runtime torch."
            )
        model.use_threads(compute.threads)
        return model
    from rskd.compute import choose_device, use_threads

    use_threads(compute)
    return model.to(choose_device(compute))
