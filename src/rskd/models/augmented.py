"""Test-time augmentation: a network that looks at every tile from several sides."""

from __future__ import annotations

import math
from itertools import product

import torch
from torch import Tensor, nn

from rskd.models.segmenter import Segmenter


class Augmented(nn.Module):
    """A network whose probabilities are the mean over flipped, and on request turned, versions of a tile.

    It can stand wherever the network itself can; tiles are blended as ever. The names of the parameters are others, so
    it is for use, not for training or saving.

    Parameters
    ----------
    model
        The network.
    rotations
        Turn the tiles by quarters as well: 8 versions instead of 4, and as many times the work.

    Examples
    --------
    >>> from rskd.models.presets import fresh_spec
    >>> model = Augmented(Segmenter(fresh_spec("rskd-nano", in_channels=1, classes=["organ"])), rotations=False)
    >>> model.eval()(torch.zeros(1, 1, 64, 64)).exp().sum(1).allclose(torch.ones(1, 64, 64))
    True
    """

    def __init__(self, model: Segmenter, *, rotations: bool) -> None:
        super().__init__()
        self.model, self.spec = model, model.spec
        self._versions = [*product(range(4) if rotations else (0, 2), (False, True))]

    def forward(self, images: Tensor) -> Tensor:
        """Return the logarithms of the mean probabilities (B, K, H, W), which softmax leaves as they are."""
        total: Tensor | None = None
        for quarters, flipped in self._versions:
            seen = torch.rot90(images.flip(3) if flipped else images, quarters, (2, 3))
            answer = torch.rot90(self.model(seen).log_softmax(1), -quarters, (2, 3))
            answer = answer.flip(3) if flipped else answer
            total = answer if total is None else torch.logaddexp(total, answer)
        assert total is not None  # noqa: S101 - there are always versions
        return total - math.log(len(self._versions))
