"""Weights by what they do: every distillation term pulls at the student as strongly as it is asked to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

AFTER = 100
"""Steps before the gradients are compared: the first ones say little."""
LIMITS = (1e-4, 1e4)
"""Smallest and largest factor: a term whose gradient is all but zero is not blown up without end."""


def alone(values: Tensor) -> Tensor:
    """Return the sum of `values` over the processes where there is this one alone."""
    return values


class Calibration(nn.Module):
    """Measures once how strongly every term pulls at the student, compared with the task, and keeps the factors.

    The factors and the count of steps are buffers, so that a resumed run goes on with them; the count stands still
    until the measurement is done.

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

    def see(
        self, losses: Mapping[str, Tensor], parameters: Sequence[Tensor], added_up: Callable[[Tensor], Tensor] = alone
    ) -> bool:
        """Count a step; at the first one after `AFTER` in which the task has a gradient, compare those of `losses`.

        Parameters
        ----------
        losses
            Every term, the one that the others are measured by first.
        parameters
            With respect to which.
        added_up
            Returns the sum of its argument over all processes that see a part of the step.

        Returns
        -------
        bool
            Whether the factors were set just now.
        """
        self.names = list(losses)
        if int(self.steps) != AFTER:
            self.steps += 1
            return False
        found = added_up(self._compare(losses, parameters))
        if not found[-1]:  # no label anywhere: the next step is looked at
            return False
        self.factors.copy_(found[:-1] / found[-1])
        self.steps += 1
        return True

    def _compare(self, losses: Mapping[str, Tensor], parameters: Sequence[Tensor]) -> Tensor:
        """Return the factors and behind them a 1; without a gradient to measure them by, zeros."""
        first, *others = losses
        reference = self.ratio * gradient_norms({first: losses[first]}, parameters)[first]
        if not reference:
            return self.factors.new_zeros(len(self.factors) + 1)
        factors = torch.ones_like(self.factors)
        norms = gradient_norms({name: losses[name] for name in others}, parameters)
        for place, norm in enumerate(norms.values(), 1):
            factors[place] = min(max(reference / max(norm, 1e-30), LIMITS[0]), LIMITS[1]) if norm else 1.0
        return torch.cat([factors, factors.new_ones(1)])


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
