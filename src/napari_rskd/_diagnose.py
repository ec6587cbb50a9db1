"""Write a diagnostic file in the background, by a process of its own: it tries everything out, torch among it."""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Generator, Mapping
from functools import partial
from pathlib import Path

from napari_rskd._job import Background, Orders
from rskd.engine.child import find_python
from rskd.errors import EngineError
from rskd.events import Event
from rskd.jobs import Outcome

LOOK = 0.1
"""Seconds between two looks at whether it is done."""


class Diagnosis(Background):
    """`rskd doctor` on its way; its outcome has the file as `file`.

    Parameters
    ----------
    file
        Text file to write.
    settings
        What is set in the window.
    """

    def __init__(self, file: Path, settings: Mapping[str, object]) -> None:
        words = ["doctor", "--output", str(file)]
        for name, value in settings.items():
            words += ["--setting", f"{name}={value}"]
        super().__init__(partial(_diagnose, words=words, file=file), title="Writing a diagnostic file")


def _diagnose(orders: Orders, *, words: list[str], file: Path) -> Generator[Event, None, Outcome | None]:
    """Yield nothing, and return what became of the file."""
    yield from ()
    file.unlink(missing_ok=True)
    with tempfile.TemporaryFile() as said:
        command = [find_python(), "-P", "-m", "rskd", *words]
        hidden = getattr(subprocess, "CREATE_NO_WINDOW", 0)
        with subprocess.Popen(command, stdout=said, stderr=said, creationflags=hidden) as doctor:  # noqa: S603
            while doctor.poll() is None:
                if orders.leaving:
                    doctor.kill()
                    return None
                time.sleep(LOOK)
        if not file.is_file():
            said.seek(0)
            last = said.read().decode(errors="replace").strip().rpartition("\n")[2]
            raise EngineError(f"The diagnostic file was not written: {last or f'exit status {doctor.returncode}'}")
    return Outcome({"file": str(file), "healthy": doctor.returncode == 0})
