"""What a segmentation was made with, to be written beside it; and what to do when memory runs out."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from rskd.config import Config, ModelSpec, SegmentOptions
from rskd.errors import ParameterError, ResourceError

_TILE_BYTES_PER_PIXEL = 1024
"""What a network is reckoned to need: 256 maps of float32 at full resolution."""
_LARGEST_BATCH = {"cpu": 4}
"""On the CPU more tiles at once gain nothing, and a cancel would wait for them."""
_LARGEST_BATCH_ON_GPU = 32
_SMALLEST_TILE = 16


class SegmentRecipe(Config):
    """Everything that the labels depend on besides the image, as it was in the end."""

    network: str
    """Name of the network."""
    weights: str
    """SHA-256 of its weights and description."""
    version: str
    """Version of this program."""
    axis: str
    """Axis along which the image was cut into planes; "all" = the mean over three."""
    level: int
    """Level of a multiscale image."""
    spacing: float | None
    """Side of a pixel in mm to which planes were resampled; None = they were not."""
    tile: int
    """Side of a tile in pixels."""
    overlap: float
    """Share of a tile that it has in common with its neighbour."""
    batch_size: int
    """Tiles run together."""
    device: str
    """Where the network ran."""
    skip_flat: float | None = None
    """Tiles that vary less were taken for background."""
    skip_dark: float | None = None
    """Tiles that are darker were taken for background."""
    setbacks: tuple[str, ...] = ()
    """What did not fit into memory and what was done about it, in order."""


@dataclass(frozen=True)
class Setting:
    """How a network is run, as far as the memory has a say in it.

    Examples
    --------
    >>> setting = Setting(tile=64, batch_size=1, device="cpu")
    >>> setting.less(patch=16).tile
    32
    """

    tile: int
    batch_size: int
    device: str
    setbacks: tuple[str, ...] = ()

    @classmethod
    def chosen(cls, options: SegmentOptions, spec: ModelSpec, device: str) -> Setting:
        """Return what `options` ask for; where they leave it open, the size of training and what memory allows.

        Raises
        ------
        ParameterError
            If the tile is no multiple of the patch size.
        """
        tile = options.tile or spec.image_size
        if tile % spec.patch_size:
            nearest = max(1, round(tile / spec.patch_size)) * spec.patch_size
            raise ParameterError(f"tile={tile} is no multiple of the patch size {spec.patch_size}: use {nearest}.")
        return cls(tile, options.batch_size or _batch_size(tile, device), device)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Setting:
        """Return the setting of which `dataclasses.asdict` was written as JSON."""
        return cls(**{**fields, "setbacks": tuple(fields["setbacks"])})

    def less(self, *, patch: int, fixed: bool = False) -> Setting:
        """Return what to try when memory has run out: half the batch, then the CPU, and only then smaller tiles.

        Parameters
        ----------
        patch
            Pixels of which a tile is a multiple.
        fixed
            Whether the network takes no other tile.

        Raises
        ------
        ResourceError
            If there is nothing left to try.
        """
        tiles = f"{self.batch_size} tile{'s' * (self.batch_size > 1)} of {self.tile} x {self.tile} pixels"
        problem = f"The memory of the device {self.device} does not hold {tiles}"
        if self.batch_size > 1:
            smaller = self.batch_size // 2
            return self._after(f"{problem}: going on with {smaller} at a time.", batch_size=smaller)
        if self.device != "cpu":
            return self._after(f"{problem}: going on on the CPU, which is slower.", device="cpu")
        if fixed:
            raise ResourceError(
                f"{problem}, and the network takes no smaller ones: close other programs, or export it at another size."
            )
        tile = self.tile // 2 // patch * patch
        if tile >= max(patch, _SMALLEST_TILE):
            text = f"{problem}: beginning again with tiles of {tile}, which can change what the network sees."
            return self._after(text, tile=tile)
        raise ResourceError(f"{problem}, and there is nothing left to make smaller: close other programs.")

    def _after(self, setback: str, **changes: Any) -> Setting:
        return replace(self, setbacks=(*self.setbacks, setback), **changes)


def free_memory(device: str) -> int:
    """Return the bytes that are free on a device."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.mem_get_info(torch.device(device))[0])
    from psutil import virtual_memory

    return int(virtual_memory().available)


def _batch_size(tile: int, device: str) -> int:
    fits = free_memory(device) // 2 // (_TILE_BYTES_PER_PIXEL * tile**2)
    return max(1, min(_LARGEST_BATCH.get(device, _LARGEST_BATCH_ON_GPU), fits))


def fingerprint(model: Any) -> str:
    """Return the SHA-256 of a network's weights, their names and its description, as hexadecimal digits.

    A network that has an attribute `sha256` answers for itself.
    """
    own = getattr(model, "sha256", None)
    if isinstance(own, str):
        return own
    total = hashlib.sha256(model.spec.model_dump_json().encode())
    state = model.state_dict() if hasattr(model, "state_dict") else {}
    for name, tensor in sorted(state.items()):
        total.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        total.update(_bytes(tensor))
    return total.hexdigest()


def _bytes(tensor: Any) -> memoryview:
    import torch

    values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return memoryview(values.numpy())
