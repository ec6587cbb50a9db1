"""The fields that the panels share: choose a layer, a model, a folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from qtpy.QtCore import Signal
from qtpy.QtWidgets import QCheckBox, QComboBox, QFileDialog, QHBoxLayout, QLineEdit, QPushButton, QVBoxLayout, QWidget

from napari_rskd._farewell import when_destroyed
from napari_rskd._form import guard_wheel
from napari_rskd._library import WEIGHT_SUFFIXES, model_at
from napari_rskd._session import ROLES, Model, Session, follow_session
from rskd.errors import FileError

WEIGHT_FILES = f"Model weights ({' '.join('*' + suffix for suffix in WEIGHT_SUFFIXES)});;All files (*)"
_BROWSE, _RUN = "browse", "run"  # data of the entries that open a dialog


class NarrowBox(QComboBox):
    """A drop-down list that may be narrower than its longest entry and ignores a passing wheel."""

    def __init__(self) -> None:
        super().__init__()
        self.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        self.setMinimumContentsLength(6)
        guard_wheel(self)


class LayerBox(NarrowBox):
    """The layers of one type; follows the layer list.

    Parameters
    ----------
    viewer
        Whose layers.
    layer_type
        Class of the layers that are offered.
    nothing
        Text of an entry for "no layer"; empty = there is none.
    """

    changed = Signal()

    def __init__(self, viewer: Any, layer_type: type, *, nothing: str = "") -> None:
        super().__init__()
        self._viewer = viewer
        self._type = layer_type
        self._nothing = nothing
        self.setPlaceholderText("none is open")
        self.currentIndexChanged.connect(lambda _: self.changed.emit())
        watch_layers(viewer, self, self.reset_choices)
        self.reset_choices()

    def reset_choices(self, event: object = None) -> None:
        """Read the layer list again; what is chosen stays chosen if it is still there."""
        chosen = self.layer()
        self.blockSignals(True)
        self.clear()
        if self._nothing:
            self.addItem(self._nothing, None)
        for layer in self._viewer.layers:
            if isinstance(layer, self._type):
                self.addItem(layer.name, layer)  # type: ignore[attr-defined]
        self.blockSignals(False)
        self.choose(chosen)
        self.changed.emit()

    def layer(self) -> Any:
        """Return the chosen layer, or None."""
        return self.currentData()

    def choose(self, layer: Any) -> None:
        """Choose a layer; the first one if it is not offered."""
        index = next((i for i in range(self.count()) if self.itemData(i) is layer), 0)
        self.setCurrentIndex(index if self.count() else -1)


def watch_layers(viewer: Any, widget: QWidget, react: Callable[..., None]) -> None:
    """Call `react` when layers come, go or get another name, as long as `widget` lives."""

    def on_change(event: object = None) -> None:
        react()

    def watch_name(event: Any) -> None:
        event.value.events.name.connect(on_change)
        react()

    events = viewer.layers.events
    connections = [(events.inserted, watch_name), (events.removed, on_change), (events.reordered, on_change)]
    connections += [(layer.events.name, on_change) for layer in viewer.layers]
    for emitter, slot in connections:
        emitter.connect(slot)

    def release(*_: object) -> None:
        for emitter, slot in connections:
            emitter.disconnect(slot)
        for layer in viewer.layers:
            layer.events.name.disconnect(on_change)

    when_destroyed(widget, release)


class ModelBox(NarrowBox):
    """The known models, and entries that open a file or the folder of a run."""

    chosen = Signal()
    refused = Signal(object)
    """The `FileError` that says why a file or folder cannot be chosen."""

    def __init__(self) -> None:
        super().__init__()
        self._last = -1
        self.setPlaceholderText("none")
        self.activated.connect(self._activated)

    def offer(self, models: tuple[Model, ...], current: Model | None) -> None:
        """List these models and choose `current`."""
        self.blockSignals(True)
        self.clear()
        for model in models:
            self._insert(self.count(), model)
        self.addItem("Open a weight file…", _BROWSE)
        self.addItem("Open the folder of a run…", _RUN)
        self.blockSignals(False)
        sources = [model.source for model in models]
        self._last = sources.index(current.source) if current is not None and current.source in sources else -1
        self.setCurrentIndex(self._last)

    def _insert(self, place: int, model: Model) -> None:
        self.insertItem(place, model.name if model.fresh else f"{model.name} ({_where(model)})", model)
        self.setItemData(place, model.source, 3)  # Qt.ItemDataRole.ToolTipRole

    def model(self) -> Model | None:
        """Return the chosen model."""
        data = self.currentData()
        return data if isinstance(data, Model) else None

    def choose(self, model: Model) -> None:
        """Choose a model, which is added if it is not in the list."""
        sources = [known.source for i in range(self.count()) if isinstance(known := self.itemData(i), Model)]
        if model.source not in sources:
            self._insert(len(sources), model)
            sources.append(model.source)
        self._last = sources.index(model.source)
        self.setCurrentIndex(self._last)

    def choose_file(self, path: Path) -> None:
        """Add a weight file, or the best network of a run folder, to the list and choose it."""
        try:
            self.choose(model_at(path))
        except FileError as error:
            self.refused.emit(error)
            return
        self.chosen.emit()

    def _activated(self, index: int) -> None:
        what = self.itemData(index)
        if isinstance(what, Model):
            self._last = index
            self.chosen.emit()
            return
        self.setCurrentIndex(self._last)
        if what == _RUN:
            found = QFileDialog.getExistingDirectory(self, "Open the folder of a run")
        else:
            found, _ = QFileDialog.getOpenFileName(self, "Open model weights", "", WEIGHT_FILES)
        if found:
            self.choose_file(Path(found))


def _where(model: Model) -> str:
    return "on this computer" if model.path.is_file() else "no longer there"


class FolderField(QWidget):
    """A line for a folder with a button that looks for it."""

    changed = Signal()
    """At every letter."""
    settled = Signal()
    """When a folder was typed to its end, or chosen."""

    def __init__(self, question: str, *, placeholder: str = "") -> None:
        super().__init__()
        self._question = question
        self.line = QLineEdit(placeholderText=placeholder)
        self.line.textChanged.connect(self._changed)
        self.line.editingFinished.connect(self.settled)
        browse = QPushButton("…", toolTip=question)
        browse.setFixedWidth(32)
        browse.clicked.connect(self._browse)
        row = QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        row.addWidget(self.line)
        row.addWidget(browse)

    def path(self) -> Path | None:
        """Return the folder, or None if the line is empty."""
        text = self.line.text().strip()
        return Path(text).expanduser() if text else None

    def set_path(self, path: Path) -> None:
        """Show a folder."""
        self.line.setText(str(path))
        self.line.setCursorPosition(0)
        self.settled.emit()

    def _changed(self) -> None:
        self.line.setToolTip(self.line.text())
        self.changed.emit()

    def _browse(self) -> None:
        folder = QFileDialog.getExistingDirectory(self, self._question, self.line.text())
        if folder:
            self.set_path(Path(folder))


class NetworkBoxes(QWidget):
    """Which of the loaded networks to look into; follows the session.

    Parameters
    ----------
    session
        Whose networks.
    """

    changed = Signal()

    def __init__(self, session: Session) -> None:
        super().__init__()
        self._session = session
        self.boxes = {role: QCheckBox(checked=True, objectName=role) for role in ROLES}
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        for box in self.boxes.values():
            column.addWidget(box)
            box.toggled.connect(lambda _: self.changed.emit())
        follow_session(self, session, self._offer)

    def loaded(self) -> dict[str, Model]:
        """Return the networks that there are, by role, the teacher first."""
        models = {role: getattr(self._session, role) for role in ROLES}
        return {role: model for role, model in models.items() if model is not None}

    def chosen(self) -> dict[str, Model]:
        """Return those that are ticked."""
        return {role: model for role, model in self.loaded().items() if self.boxes[role].isChecked()}

    def _offer(self) -> None:
        loaded = self.loaded()
        for role, box in self.boxes.items():
            box.setEnabled(role in loaded)
            box.setText(f"{role.capitalize()}: {loaded[role].name if role in loaded else 'none loaded'}")
        self.changed.emit()
