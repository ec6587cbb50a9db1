"""The colours of napari's current theme, for what the style sheet does not reach."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from napari.utils.theme import get_theme
from qtpy.QtWidgets import QWidget

from napari_rskd._farewell import when_destroyed


def color(viewer: Any, name: str) -> str:
    """Return a colour of the viewer's theme as #rrggbb; `name` is a field of napari's themes."""
    return str(getattr(get_theme(viewer.theme), name).as_hex(format="long"))


def follow(viewer: Any, widget: QWidget, apply: Callable[[], None]) -> None:
    """Call `apply` now and at every change of the theme, as long as `widget` lives."""

    def on_change(event: object = None) -> None:
        apply()

    viewer.events.theme.connect(on_change)
    when_destroyed(widget, lambda: viewer.events.theme.disconnect(on_change))
    apply()
