"""Test-time augmentation: a network that looks at every tile from several sides."""

from __future__ import annotations

import math
from itertools import product

import torch
from torch import Tensor, nn
from torch.nn import functional as F

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
        """Return the logarithms of the mean probabilities (B, K, H, W), which softmax leaves as they are.

        Where classes may overlap, the logits of the mean probabilities, of which these are the sigmoid.
        """
        totals: list[Tensor] = []
        for quarters, flipped in self._versions:
            seen = torch.rot90(images.flip(3) if flipped else images, quarters, (2, 3))
            parts = [torch.rot90(part, -quarters, (2, 3)) for part in self._logarithms(self.model(seen))]
            parts = [part.flip(3) for part in parts] if flipped else parts
            totals = [torch.logaddexp(*both) for both in zip(totals, parts, strict=True)] if totals else parts
        if self.spec.overlapping:
            there, absent = totals
            return there - absent
        return totals[0] - math.log(len(self._versions))

    def _logarithms(self, logits: Tensor) -> list[Tensor]:
        """Return the logarithms of the probabilities; where classes may overlap, of there and of not there."""
        if self.spec.overlapping:
            return [F.logsigmoid(logits), F.logsigmoid(-logits)]
        return [logits.log_softmax(1)]
