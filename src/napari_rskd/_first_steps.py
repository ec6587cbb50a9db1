"""The first step, where something is missing, and what a button does about it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from napari_rskd._samples import retina
from napari_rskd._source import add_layer

OPEN_FIRST = "Open an image first: File › Open, or File › Open Sample › RSKD."
LOAD_FIRST = "Load a student or a teacher first, in the Models panel."


def open_sample(viewer: Any) -> None:
    """Open the photograph that comes along."""
    add_layer(viewer, retina()[0])


FIRST_STEPS: dict[str, tuple[str, Callable[[Any], None]]] = {
    OPEN_FIRST: ("Open the retina photograph", open_sample),
}
"""By what is missing: the words of the button, and what it does with the viewer."""
