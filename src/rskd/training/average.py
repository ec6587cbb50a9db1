"""The running mean of a student's weights (exponential moving average)."""

from __future__ import annotations

from copy import deepcopy

import torch

from rskd.models.segmenter import Segmenter


class RunningMean:
    """A second student whose weights follow those of the first one slowly.

    Source: B. T. Polyak, A. B. Juditsky, SIAM J. Control Optim. 30 (1992) 838; that the decay rises at first, so that
    the random weights of the beginning are soon forgotten, is the custom of TensorFlow's `ExponentialMovingAverage`.

    Parameters
    ----------
    network
        The first one.
    decay
        Largest share of the old mean in a new one, 0 … 1.

    Attributes
    ----------
    network
        The mean, in evaluation mode.
    """

    def __init__(self, network: Segmenter, decay: float) -> None:
        self.network = deepcopy(network).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, network: Segmenter, step: int) -> None:
        """Take in the weights that `network` has after a step (counted from 1)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for mean, value in zip(self.network.state_dict().values(), network.state_dict().values(), strict=True):
            if mean.is_floating_point():
                mean.lerp_(value, 1 - decay)
            else:
                mean.copy_(value)
