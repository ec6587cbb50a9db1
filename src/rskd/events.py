"""The small events that long work yields, and what travels back to a long work.

A task is a generator: it yields events, receives an optional `Command` at every `yield`, and returns
its result. A `yield` is always a safe point to stop, save or close.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, ClassVar, TypeVar

T = TypeVar("T")


class Command(StrEnum):
    """What a runner may send into a task at a `yield`."""

    STOP = "stop"
    """Finish cleanly now and return what there is (for a training: the best so far)."""


@dataclass(frozen=True, slots=True)
class Message:
    """Something the user should read, in one sentence."""

    kind: ClassVar[str] = "message"
    text: str
    warning: bool = False


@dataclass(frozen=True, slots=True)
class Progress:
    """`done` of `total` parts (`what`: tiles, slices, files) are finished."""

    kind: ClassVar[str] = "progress"
    done: int
    total: int
    what: str = "tiles"


@dataclass(frozen=True, slots=True)
class Step:
    """One optimiser step: every loss term unweighted, and the weighted sum as `total`."""

    kind: ClassVar[str] = "step"
    step: int
    """1-based, counted over the whole run."""
    steps: int
    """How many there will be in all."""
    epoch: int
    losses: Mapping[str, float]
    learning_rate: float
    seconds: float
    """Wall time of this step."""


@dataclass(frozen=True, slots=True)
class Epoch:
    """One pass over the training cases with its validation."""

    kind: ClassVar[str] = "epoch"
    epoch: int
    """1-based."""
    epochs: int
    losses: Mapping[str, float]
    """Mean of every term over the epoch."""
    dice: float
    """Validation Dice, mean over cases and foreground classes (0 … 1); NaN where nothing could be validated."""
    dice_per_class: Mapping[str, float] = field(default_factory=dict)
    best: bool = False
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Reference:
    """How good a network is on the validation images before the first step: what the student sets out from or for."""

    kind: ClassVar[str] = "reference"
    name: str
    """"teacher" or "student"."""
    dice: float
    """Mean over cases and foreground classes (0 … 1)."""
    dice_per_class: Mapping[str, float] = field(default_factory=dict)


Event = Message | Progress | Step | Epoch | Reference
Task = Generator[Event, Command | None, T]
"""Long work that returns a `T`."""

_KINDS: dict[str, type[Event]] = {cls.kind: cls for cls in (Message, Progress, Step, Epoch, Reference)}


def to_json(event: Event) -> dict[str, Any]:
    """Return `event` as a JSON-able dictionary with its `kind`.

    Examples
    --------
    >>> to_json(Progress(1, 4))
    {'kind': 'progress', 'done': 1, 'total': 4, 'what': 'tiles'}
    """
    return {"kind": event.kind, **asdict(event)}


def from_json(fields: Mapping[str, Any]) -> Event:
    """Return the event that `to_json` wrote.

    Examples
    --------
    >>> from_json({'kind': 'progress', 'done': 1, 'total': 4, 'what': 'tiles'})
    Progress(done=1, total=4, what='tiles')
    """
    rest = dict(fields)
    return _KINDS[rest.pop("kind")](**rest)


def drain(task: Task[T]) -> T:
    """Run a task to its end, ignore its events, and return its result.

    Examples
    --------
    >>> def count():
    ...     yield Progress(1, 1)
    ...     return 42
    >>> drain(count())
    42
    """
    while True:
        try:
            next(task)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]


def retold(task: Task[T], tell: Callable[[Event], Event]) -> Task[T]:
    """Run a task as a part of a larger one: its events go out as `tell` returns them, and commands go in.

    Examples
    --------
    >>> def part():
    ...     yield Progress(3, 8)
    ...     yield Message("The memory ran out.", warning=True)
    ...     return 42
    >>> def tell(event):
    ...     return event if isinstance(event, Message) else Progress(0, 2, "images")
    >>> [getattr(event, "text", event) for event in retold(part(), tell)]
    [Progress(done=0, total=2, what='images'), 'The memory ran out.']
    """
    command: Command | None = None
    try:
        while True:
            command = yield tell(task.send(command))
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]
    finally:
        task.close()


def within(progress: Progress) -> Callable[[Event], Event]:
    """Return what tells of a part by the `progress` of the whole; messages are passed on, nobody must miss them.

    Examples
    --------
    >>> tell = within(Progress(0, 2, "images"))
    >>> tell(Progress(3, 8)), tell(Message("The memory ran out."))
    (Progress(done=0, total=2, what='images'), Message(text='The memory ran out.', warning=False))
    """
    return lambda event: event if isinstance(event, Message) else progress
