"""Open the network in a file of any kind, and put it where the work runs; torch is imported only if it is needed."""

from __future__ import annotations

from collections import OrderedDict
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from platformdirs import user_cache_path

from rskd.config import ComputeOptions, InferenceOptions
from rskd.errors import FileError, ResourceError
from rskd.io.state import state_of_files
from rskd.models.description import description_file
from rskd.models.exported import RUNTIMES, SUFFIX, OnnxSegmenter, inspect_onnx, open_exported
from rskd.models.passport import Passport, identity
from rskd.models.presets import weight_file

if TYPE_CHECKING:
    from rskd.models.segmenter import Segmenter

KEPT = 4
"""Networks that stay in memory."""


class Networks:
    """Networks that were read, by their files, so that the second image is begun at once."""

    def __init__(self) -> None:
        self._models: OrderedDict[tuple[Path, str, str, int | None], Segmenter] = OrderedDict()

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
        beside = description_file(path)
        try:
            state = state_of_files([path, beside] if beside.is_file() else [path])
        except OSError as error:
            raise FileError(f"There is no weight file {path}: check the name, or choose another file.") from error
        key = (path.resolve(), state, runtime, tile if runtime in RUNTIMES else None)
        model = self._models.pop(key, None) or open_network(path, runtime, tile=tile)
        self._models[key] = model
        while len(self._models) > KEPT:
            self._models.popitem(last=False)
        return place(model, compute)

    def forget(self) -> None:
        """Free their memory."""
        self._models.clear()


def runtime_of(compute: ComputeOptions) -> str:
    """Return the runtime that options ask for; "torch" where they cannot.

    Examples
    --------
    >>> runtime_of(ComputeOptions()), runtime_of(InferenceOptions())
    ('torch', 'auto')
    """
    return compute.runtime if isinstance(compute, InferenceOptions) else "torch"


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
