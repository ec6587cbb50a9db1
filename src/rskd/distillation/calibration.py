"""Weights by what they do: every distillation term pulls at the student as strongly as it is asked to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

AFTER = 100
"""Steps before the gradients are compared: the first ones say little."""
LIMITS = (1e-4, 1e4)
"""Smallest and largest factor: a term whose gradient is all but zero is not blown up without end."""


class Calibration(nn.Module):
    """Measures once how strongly every term pulls at the student, compared with the task, and keeps the factors.

    The factors and the count of steps are buffers, so that a resumed run goes on with them.

    Parameters
    ----------
    ratio
        Wanted norm of the gradient of a term, in norms of the gradient of the task (or of the logits, without a task).
    """

    steps: Tensor
    factors: Tensor

    NAMES_AT_MOST = 32

    def __init__(self, ratio: float) -> None:
        super().__init__()
        self.ratio = ratio
        self.names: list[str] = []
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self.register_buffer("factors", torch.ones(self.NAMES_AT_MOST, dtype=torch.float64))

    def factor(self, name: str) -> float:
        """Return what the weight of a term is multiplied by; 1 before the measurement."""
        return float(self.factors[self.names.index(name)]) if name in self.names else 1.0

    def see(self, losses: Mapping[str, Tensor], parameters: Sequence[Tensor]) -> None:
        """Count a step; at the one after the first `AFTER`, compare the gradients of `losses`."""
        self.names = list(losses)
        if int(self.steps) == AFTER:
            ratios = gradient_norms(losses, parameters)
            reference = ratios[self.names[0]]
            for place, name in enumerate(self.names[1:], 1):
                factor = self.ratio * reference / max(ratios[name], 1e-30)
                self.factors[place] = min(max(factor, LIMITS[0]), LIMITS[1]) if reference and ratios[name] else 1.0
        self.steps += 1


def gradient_norms(losses: Mapping[str, Tensor], parameters: Sequence[Tensor]) -> dict[str, float]:
    """Return the norm of the gradient of every loss with respect to `parameters`; the graph is kept.

    Examples
    --------
    >>> x = torch.tensor([3.0, 4.0], requires_grad=True)
    >>> gradient_norms({"a": x.square().sum(), "b": x[0] * 2}, [x])
    {'a': 10.0, 'b': 2.0}
    """
    norms = {}
    for name, loss in losses.items():
        grads = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        norms[name] = sum(float(grad.double().square().sum()) for grad in grads if grad is not None) ** 0.5
    return norms
