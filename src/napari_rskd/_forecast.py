"""How long a training will still take, and whether it still gets better; from its events alone."""

from __future__ import annotations

from collections import deque

import numpy as np

from rskd.durations import about, span
from rskd.events import Epoch, Event, Step

RECENT = 60
"""Steps that the forecast looks back on."""
PATIENCE = 0.15
"""Share of the rounds without a better one after which a plateau is named; at least three rounds."""


class Forecast:
    """Watches a training.

    Examples
    --------
    >>> forecast = Forecast()
    >>> for step in range(1, 11):
    ...     forecast.add(Step(step, 100, 1, {}, 1e-3, 2.0))
    >>> forecast.left()
    (180.0, 180.0, 180.0)
    """

    def __init__(self) -> None:
        self._seconds: deque[float] = deque(maxlen=RECENT)
        self._steps_left = 0
        self._epochs: list[Epoch] = []
        self._checks: list[float] = []  # what a round takes beside its steps
        self._round = 0.0

    def add(self, event: Event) -> None:
        """Take in a `Step` or an `Epoch`; other events are passed over."""
        match event:
            case Step(step=step, steps=steps, seconds=seconds):
                self._seconds.append(seconds)
                self._steps_left = steps - step
                self._round += seconds
            case Epoch(epoch=epoch, seconds=seconds):
                self._checks.append(max(0.0, seconds - self._round))
                self._epochs = [earlier for earlier in self._epochs if earlier.epoch < epoch]  # a run may go back
                self._epochs.append(event)
                self._round = 0.0

    def left(self) -> tuple[float, float, float] | None:
        """Return the seconds left: low, median and high; None before there is anything to judge by."""
        if not self._seconds:
            return None
        rounds = self._epochs[-1].epochs - self._epochs[-1].epoch if self._epochs else 0
        checks = float(np.median(self._checks)) * rounds if self._checks else 0.0
        low, median, high = (float(np.quantile(self._seconds, share)) for share in (0.25, 0.5, 0.75))
        return low * self._steps_left + checks, median * self._steps_left + checks, high * self._steps_left + checks

    def plateau(self) -> str:
        """Return in words since when it does not get better; empty while it does.

        Examples
        --------
        >>> forecast = Forecast()
        >>> for epoch, best in enumerate([True, True, False, False, False], 1):
        ...     forecast.add(Epoch(epoch, 20, {}, 0.8, best=best))
        >>> forecast.plateau()
        'No better round since round 2: stopping now would lose little.'
        """
        best = max((epoch.epoch for epoch in self._epochs if epoch.best), default=0)
        if not best or self._epochs[-1].epoch - best < max(3, PATIENCE * self._epochs[-1].epochs):
            return ""
        return f"No better round since round {best}: stopping now would lose little."


def left_words(left: tuple[float, float, float] | None) -> str:
    """Return the time left as one would say it, with its spread where that is wide enough to matter.

    Examples
    --------
    >>> left_words((40, 42, 45)), left_words((500, 600, 720)), left_words(None)
    ('about 42 s left', 'about 10 min left (8 to 12 min)', 'working out how long it takes')
    """
    if left is None:
        return "working out how long it takes"
    low, median, high = left
    words = f"{about(median)} left"
    return words if median < 90 or high - low < 0.2 * median else f"{words} ({span(low, high)})"
