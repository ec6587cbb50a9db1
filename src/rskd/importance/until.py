"""Run a network no further than it is looked at."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack, suppress
from typing import Any

from torch import Tensor, nn


class _Seen(BaseException):
    """All has run that was waited for; no `Exception`, which networks from elsewhere put into words of their own."""


def run_until(model: nn.Module, images: Tensor, modules: Iterable[nn.Module]) -> None:
    """Run a network until each of some modules in it has run; what comes after, a decoder say, is not computed.

    Parameters
    ----------
    model
        The network.
    images
        What it takes.
    modules
        Parts of it, watched before by whoever wants to know what they compute. If one never runs, all of the network
        does.

    Examples
    --------
    >>> import torch
    >>> layers = nn.Sequential(nn.Flatten(), nn.Linear(2, 2), nn.Linear(999, 1))
    >>> run_until(layers, torch.zeros(1, 2), [layers[1]])
    """
    waiting = set(modules)

    def see(module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        waiting.discard(module)
        if not waiting:
            raise _Seen

    with ExitStack() as stack, suppress(_Seen):
        for module in [*waiting]:
            stack.callback(module.register_forward_hook(see).remove)
        model(images)
