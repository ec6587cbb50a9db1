"""Networks from elsewhere that can teach and segment.

They are TorchScript archives, `torch.export` programs and checkpoints of segmentation_models_pytorch; a JSON file of
the same name (`rskd.config.ForeignSpec`) says what they take and give.

TorchScript and `torch.export` files are programs: loading one runs what its author wrote, so the description must say
that it is trusted. No pickle is executed in any case.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rskd.config import ForeignSpec, ModelSpec
from rskd.errors import FileError, ModelError, ResourceError, is_out_of_memory
from rskd.models.description import described, description_file, read_fields
from rskd.models.inference import find_weights
from rskd.models.passport import Passport, identity, sha256
from rskd.models.tensors import read_torch

_FORCE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
SHOWS = {
    False: "its logits alone: terms on features, tokens or texture cannot be used",
    True: "its logits and the maps of its encoder's stages, but no attention",
}
"""What a foreign network can be compared by, closed or open."""


class ForeignNetwork(nn.Module):
    """A network that was not made here, to be used like a `rskd.models.segmenter.Segmenter`; it never trains.

    Parameters
    ----------
    spec
        What it takes and gives.
    network
        Maps images (B, C, H, W) to logits (B, K, H, W), alone or first in a tuple or mapping; a single output for two
        classes is the logit of the second.
    encoder
        The part of `network` that shows its stages, where there is one.
    """

    stem = decoder = None

    def __init__(self, spec: ModelSpec, network: nn.Module, *, encoder: nn.Module | None = None) -> None:
        super().__init__()
        self.spec = spec
        self._network = (network,)  # a tuple hides it from torch: not every program knows modes and modules
        self.encoder: nn.Module | None = None
        if encoder is not None:
            self.encoder = encoder
        self.sha256: str | None = None  # of the files: the hidden network has no weights to tell it by
        self.place = nn.Parameter(torch.zeros(0), requires_grad=False)  # says on which device it is

    @property
    def is_open(self) -> bool:
        """Whether it shows more than its logits."""
        return self.encoder is not None

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, K, H, W) for images (B, C, H, W)."""
        try:
            answer = self._network[0](images)
        except Exception as error:  # a program raises whatever its parts raise
            if is_out_of_memory(error):
                raise
            raise ModelError(
                f"{self.spec.name} does not take images of shape {tuple(images.shape)}: "
                f"{str(error).strip().splitlines()[-1]}"
            ) from error
        return self._logits(answer, images)

    def _logits(self, answer: Any, images: Tensor) -> Tensor:
        if isinstance(answer, Mapping):
            answer = answer.get("out", next(iter(answer.values())))
        elif isinstance(answer, tuple | list):
            answer = answer[0]
        classes = len(self.spec.outputs)
        if answer.shape[1] == 1 and classes == 2 and not self.spec.overlapping:
            # the sigmoid of z is the softmax of (0, z)
            answer = torch.cat([torch.zeros_like(answer), answer], dim=1)
        wanted = (len(images), classes, *images.shape[2:])
        if tuple(answer.shape) != wanted:
            raise ModelError(
                f"{self.spec.name} answers with {tuple(answer.shape)} instead of {wanted}: correct its description, or "
                "export it with logits at full size."
            )
        return answer  # type: ignore[no-any-return]

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> ForeignNetwork:
        self._network[0]._apply(fn)  # type: ignore[no-untyped-call]
        self.place = nn.Parameter(fn(self.place.data), requires_grad=False)
        return self

    def modules(self, remove_duplicate: bool = True) -> Iterator[nn.Module]:
        """Return itself alone: it has no parts with a mode of their own."""
        return iter((self,))

    def train(self, mode: bool = True) -> ForeignNetwork:
        """Return the network; it never trains."""
        self.training = False
        return self


class StagedEncoder(nn.Module):
    """An encoder of segmentation_models_pytorch whose maps can be observed, each at a stage of its own."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner
        self.output_stride = inner.output_stride
        self.out_channels = inner.out_channels
        widths = [(stage, width) for stage, width in enumerate(inner.out_channels) if stage and width]
        self.stages = nn.ModuleDict({str(stage): nn.Identity() for stage, _ in widths})
        self.feature_info = [
            {"module": f"stages.{stage}", "num_chs": width, "reduction": 2**stage} for stage, width in widths
        ]

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the maps of the encoder as they are."""
        maps = self.inner(images)
        return [self.stages[str(i)](x) if str(i) in self.stages else x for i, x in enumerate(maps)]


def from_elsewhere(model: nn.Module) -> bool:
    """Return whether a network can be used but not trained, exported or saved here."""
    return isinstance(model, ForeignNetwork)


def refuse_foreign(model: nn.Module, path: Path) -> None:
    """Refuse a network from elsewhere where it is to be exported."""
    if from_elsewhere(model):
        raise ModelError(f"{path.name} is a network from elsewhere: export it with the program that it is from.")


def is_foreign(path: Path) -> bool:
    """Return whether a file holds a program, or its description names an architecture of another library."""
    return _is_exported_program(path) or _is_script(path) or "architecture" in read_fields(path)


def load_foreign(path: Path) -> ForeignNetwork:
    """Return a network from elsewhere, on the CPU.

    Parameters
    ----------
    path
        TorchScript archive, `torch.export` program (``.pt2``), or checkpoint of segmentation_models_pytorch (weights
        alone), each with its description beside it.

    Raises
    ------
    ModelError
        If the description is missing or wrong, the program is not said to be trusted, or the network does not answer
        as described.
    FileError
        If the file is damaged.
    ResourceError
        If segmentation_models_pytorch is needed and not installed.
    """
    said = _description(path)
    if said.architecture:
        network = _smp(path, said)
        spec = _spec(said, path, f"{said.architecture}, {said.encoder}")
        model = ForeignNetwork(spec, network, encoder=network.encoder)
    else:
        kind, read = ("TorchScript", _script) if _is_script(path) else ("torch.export program", _exported_program)
        _check_trust(path, said)
        model = ForeignNetwork(_spec(said, path, kind), read(path))
    model.sha256 = identity(path)
    model.eval()
    with torch.no_grad():
        model(torch.zeros(2, said.in_channels, said.image_size, said.image_size))
    return model


def _check_trust(path: Path, said: ForeignSpec) -> None:
    if not said.trusted:
        raise ModelError(
            f"{path.name} is a program, which runs when it is loaded: if you trust its author, write "
            f'"trusted": true into {description_file(path).name}.'
        )


def inspect_foreign(path: Path) -> Passport:
    """Return what is known about a network from elsewhere."""
    model = load_foreign(path)
    parameters = sum(parameter.numel() for parameter in model._network[0].parameters())
    card = {"origin": model.spec.encoder, "shows": SHOWS[model.is_open]}
    return Passport(model.spec, card, parameters, path.stat().st_size, sha256(path))


def _description(path: Path) -> ForeignSpec:
    fields = read_fields(path)
    if not fields:
        raise ModelError(
            f"{path.name} does not say what it takes: write {description_file(path).name} with in_channels, classes, "
            "image_size and normalisation beside it."
        )
    return described(ForeignSpec, fields, description_file(path).name)


def _spec(said: ForeignSpec, path: Path, origin: str) -> ModelSpec:
    shared = said.model_dump(exclude={"architecture", "encoder", "trusted"})
    return described(
        ModelSpec, shared | {"name": said.name or path.stem, "encoder": origin}, description_file(path).name
    )


def _names(path: Path) -> list[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            return [name.rpartition("/")[2] for name in archive.namelist()]
    except (OSError, zipfile.BadZipFile):
        return []


def _is_script(path: Path) -> bool:
    return "constants.pkl" in _names(path)


def _is_exported_program(path: Path) -> bool:
    return path.suffix.lower() == ".pt2"


def _script(path: Path) -> nn.Module:
    try:
        script: nn.Module = torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]
    except Exception as error:  # whatever a damaged archive makes torch raise
        raise FileError(f"{path.name} is damaged, or made by another version of torch: export it again.") from error
    return script


def _exported_program(path: Path) -> nn.Module:
    if any(name.startswith("opaque_obj_") for name in _names(path)):
        raise ModelError(f"{path.name} holds Python objects, which are never run: export it without them.")
    try:
        with _weights_only():
            module: nn.Module = torch.export.load(path).module()
    except Exception as error:  # whatever a damaged archive, or a pickle in it, makes torch raise
        raise FileError(
            f"{path.name} is damaged, made by another version of torch, or holds Python objects: export it again."
        ) from error
    return module


@contextmanager
def _weights_only() -> Iterator[None]:
    """Let torch load tensors alone, also where its own code would fall back to executing a pickle."""
    before = os.environ.get(_FORCE)
    os.environ[_FORCE] = "1"
    try:
        yield
    finally:
        os.environ.pop(_FORCE)
        if before is not None:
            os.environ[_FORCE] = before


def _smp(path: Path, said: ForeignSpec) -> Any:
    if {*":/\\"}.intersection(said.encoder):  # "tu-hf-hub:…" would be fetched, "tu-local-dir:…" be read from any folder
        raise ModelError(
            f"{path.name} is said to have the encoder {said.encoder!r}, which lies elsewhere: only encoders that "
            "segmentation_models_pytorch has itself can be used."
        )
    try:
        import segmentation_models_pytorch as smp
    except ImportError as error:
        raise ResourceError(
            f"{path.name} needs segmentation_models_pytorch, which is not installed: "
            "install it with `pip install 'napari-rskd[smp]'`."
        ) from error
    weights = find_weights(_tensors(path))
    head = weights.get("segmentation_head.0.weight")
    outputs = len(said.classes) - said.overlapping if head is None else int(head.shape[0])
    sizes = {"in_channels": said.in_channels, "classes": outputs}
    try:
        network = smp.create_model(said.architecture, said.encoder, encoder_weights=None, **sizes)
        network.load_state_dict(weights)
    except Exception as error:  # the library raises whatever its parts raise
        problem = str(error).strip().splitlines()[0]
        raise ModelError(f"{path.name} is no {said.architecture} with {said.encoder}: {problem}") from error
    network.encoder = StagedEncoder(network.encoder)
    return network.eval()


def _tensors(path: Path) -> Any:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    return read_torch(path)
