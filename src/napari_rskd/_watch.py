"""Watch a run that another process works on: one that outlived its napari, or was started elsewhere."""

from __future__ import annotations

from collections.abc import Generator
from functools import partial

from napari_rskd._job import Background, Orders, converse
from rskd.events import Event
from rskd.following import follow, pause
from rskd.jobs import Outcome
from rskd.runs import RunFolder


class Watch(Background):
    """A run that is worked on elsewhere, as if it had been started here.

    What happened before comes first. A cancel pauses the run; when napari ends, the run goes on.

    Parameters
    ----------
    folder
        The run.
    title
        What is done, for people.
    """

    def __init__(self, folder: RunFolder, *, title: str) -> None:
        super().__init__(partial(_watch, folder=folder), title=title, lasting=True)


def _watch(orders: Orders, *, folder: RunFolder) -> Generator[Event, None, Outcome | None]:
    """Yield the events of the run."""
    return (yield from converse(follow(folder), orders, cancel=partial(pause, folder)))
