"""What changes with the step: the learning rate and the weight of the terms that rise."""

from __future__ import annotations

import math


def learning_rate(step: int, steps: int, *, highest: float, warmup: float) -> float:
    """Return the rate of a step (from 0): linear warm-up over a share of the steps, then half a cosine down to zero.

    After the last step it is 0.

    Examples
    --------
    >>> [round(learning_rate(step, 8, highest=1.0, warmup=0.5), 3) for step in range(8)]
    [0.25, 0.5, 0.75, 1.0, 1.0, 0.854, 0.5, 0.146]
    """
    warm = round(warmup * steps)
    if step < warm:
        return highest * (step + 1) / warm
    if step >= steps:
        return 0.0
    return highest * (1 + math.cos(math.pi * (step - warm) / (steps - warm))) / 2


def ramp(step: int, steps: int, *, share: float) -> float:
    """Return the factor (0 … 1) of the terms that rise linearly over the first `share` of the steps.

    Examples
    --------
    >>> [ramp(step, 8, share=0.5) for step in range(5)]
    [0.25, 0.5, 0.75, 1.0, 1.0]
    """
    length = share * steps
    return min(1.0, (step + 1) / length) if length else 1.0
