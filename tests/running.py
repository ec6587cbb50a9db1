"""How tests run a training to its end, to a stop, or to a crash."""

from rskd.events import Command, Step


def collect(task, stop_at=None, kill_at=None):
    """Run a task; send STOP at an optimiser step, or abandon it there as a crash would."""
    events, command = [], None
    while True:
        try:
            event = task.send(command)
        except StopIteration as end:
            return events, end.value
        events.append(event)
        step = event.step if isinstance(event, Step) else None
        if step is not None and step == kill_at:
            return events, None
        command = Command.STOP if step is not None and step == stop_at else None
