"""The statistics of batch norm, settled before a network is validated or kept.

While it trains, batch norm keeps running means that follow the weights with a delay. At a high learning rate they
belong to the network of some steps ago, and a small student can lose a whole class with them that it has learned. So
they are measured anew with the weights as they are, as means over batches (precise batch norm: Wu and Johnson,
arXiv:2105.07576).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import Module
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import update_bn

PATCHES = 64
"""How many patches the statistics are measured on, at least."""


def has_running_means(network: Module) -> bool:
    """Return whether anything in a network keeps running means.

    Examples
    --------
    >>> from torch import nn
    >>> has_running_means(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))), has_running_means(nn.GroupNorm(1, 2))
    (True, False)
    """
    return any(isinstance(module, _BatchNorm) and module.track_running_stats for module in network.modules())


def settle(network: Module, batches: Sequence[Tensor]) -> None:
    """Replace the running means of batch norm by the means over batches; weights and mode stay as they are.

    Parameters
    ----------
    network
        On the device of the batches.
    batches
        Images (B, C, H, W); each batch counts alike. If there is none, nothing changes.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> norm = nn.BatchNorm2d(1)
    >>> settle(norm, [torch.full((2, 1, 4, 4), value) for value in (1.0, 3.0)])
    >>> norm.running_mean.item(), norm.training
    (2.0, True)
    """
    if batches and has_running_means(network):
        update_bn(batches, network)


def recent(step: int, batch_size: int) -> range:
    """Return the numbers of the last batches before `step` that hold `PATCHES` patches together, or of all there were.

    Examples
    --------
    >>> recent(100, 16), recent(2, 16)
    (range(96, 100), range(0, 2))
    """
    return range(max(0, step - -(-PATCHES // batch_size)), step)
