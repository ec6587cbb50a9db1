"""What is loaded in a viewer, outside the widgets: the same widget can be open twice, or closed and opened again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from psygnal import evented

from napari_rskd._farewell import when_destroyed
from rskd.models.presets import BUNDLED, PRESETS

if TYPE_CHECKING:
    from qtpy.QtWidgets import QWidget

    from napari_rskd._job import Background


ROLES = ("teacher", "student")


@dataclass(frozen=True)
class Model:
    """A network that can be chosen.

    Parameters
    ----------
    name
        Name for people.
    source
        Weight file, or the name of a network that starts fresh.
    fresh
        Whether it has no weights yet.
    passport
        What the engine found in the weight file; ``None`` = not read yet.
    """

    name: str
    source: str
    fresh: bool = False
    passport: Mapping[str, Any] | None = field(default=None, hash=False)

    @property
    def path(self) -> Path:
        """The weight file."""
        return Path(self.source)


@evented
@dataclass(eq=False)
class Session:
    """The state of one viewer; every field has a signal of its name in `events`."""

    teacher: Model | None = None
    student: Model | None = None
    fresh: Model | None = None
    """The network without weights that the next distillation is to start with."""
    library: tuple[Model, ...] = ()
    """Weight files that are known here."""
    distillation: Background | None = None
    """The run on its way, or the last one."""
    run: Path | None = None
    """Its folder."""

    def learn(self, model: Model) -> Model:
        """Put a model into the library, or what is new about it; returns it."""
        others = tuple(known for known in self.library if known.source != model.source)
        self.library = (*others, model)
        for role in ROLES:
            current = getattr(self, role)
            if current is not None and current.source == model.source:
                setattr(self, role, model)
        return model


_SESSIONS: WeakKeyDictionary[Any, Session] = WeakKeyDictionary()


def session_of(viewer: Any) -> Session:
    """Return the session of a viewer (or of napari's proxy of it); the bundled pair is chosen in a new one."""
    viewer = getattr(viewer, "__wrapped__", viewer)
    if viewer not in _SESSIONS:
        pair = bundled_pair()
        _SESSIONS[viewer] = Session(pair.get("teacher"), pair.get("student"), library=bundled_models())
    return _SESSIONS[viewer]


def bundled_pair() -> dict[str, Model]:
    """Return the first bundled teacher and student, by role."""
    return {role: model for model in reversed(bundled_models()) for role in ROLES if role in model.path.stem}


def bundled_models() -> tuple[Model, ...]:
    """Return the weight files that came with the package."""
    return tuple(
        Model(name=name.replace("-", " ").capitalize(), source=str(path))
        for name, path in BUNDLED.items()
        if path.is_file()
    )


def fresh_models() -> tuple[Model, ...]:
    """Return the networks that can start without weights, small to large."""
    return tuple(Model(name=f"New: {name}", source=name, fresh=True) for name in PRESETS)


def with_passport(model: Model, passport: Mapping[str, Any]) -> Model:
    """Return the model with what was found in its file, under the name it carries inside."""
    return replace(model, passport=passport)


def follow_session(widget: QWidget, session: Session, react: Callable[[], None]) -> None:
    """Call `react` now and whenever a model is chosen or a run begins, as long as `widget` lives."""

    def on_change(*_: object) -> None:
        react()

    events = session.events  # type: ignore[attr-defined]
    events.connect(on_change)
    when_destroyed(widget, lambda: events.disconnect(on_change, missing_ok=True))
    react()
