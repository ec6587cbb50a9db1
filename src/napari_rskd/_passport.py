"""What a network is, in words, before anything runs; its speed on this computer on a click."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

from qtpy.QtCore import Signal
from qtpy.QtWidgets import QFrame, QHBoxLayout, QMenu, QPushButton, QToolButton, QVBoxLayout

from napari_rskd import _theme
from napari_rskd._panel import text
from napari_rskd._session import Model
from rskd.bench_words import NAMES
from rskd.config import ModelSpec
from rskd.models.presets import PRESETS

HIDDEN = {"recipe", "teacher sha256", "steps"}
"""Parts of a model card that are for programs."""
_LICENCES = ("licence", "license")
_SCORES = ("Dice", "IoU", "HD95")
LARGE = 256
"""Side in pixels of the picture that speed is measured on."""


class PassportCard(QFrame):
    """The passport of a model with what can be done about it; hidden as long as nothing is known.

    Parameters
    ----------
    viewer
        Whose theme it follows.
    role
        "teacher" or "student".
    """

    measure_asked = Signal()
    keep_asked = Signal()
    save_asked = Signal()

    def __init__(self, viewer: Any, role: str) -> None:
        super().__init__()
        self._viewer = viewer
        self.model: Model | None = None
        self.words = text(name=f"{role}_passport")
        self.speed = text(name=f"{role}_speed")
        self.measure = QPushButton(
            "Measure speed", toolTip=f"Segment a picture of {LARGE} x {LARGE} pixels a few times."
        )
        self.more = QToolButton(text="Keep", toolTip="Put this model where you find it again, or take it elsewhere.")
        self.more.setStyleSheet("padding-right: 14px;")  # room for the arrow
        self.more.setPopupMode(QToolButton.ToolButtonPopupMode.InstantPopup)
        menu = QMenu(self)
        self.keep = menu.addAction("Keep in my library", self.keep_asked.emit)
        self.save = menu.addAction("Save a copy…", self.save_asked.emit)
        self.more.setMenu(menu)
        self.measure.clicked.connect(self.measure_asked)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        buttons = QHBoxLayout()
        buttons.addWidget(self.measure, 1)
        buttons.addWidget(self.more)
        column.addWidget(self.words)
        column.addLayout(buttons)
        column.addWidget(self.speed)
        self.speed.hide()
        self.show_model(None)
        _theme.follow(viewer, self, self._write)

    def show_model(self, model: Model | None) -> None:
        """Show what is known of a model."""
        if model is None or self.model is None or model.source != self.model.source:
            self.show_speed("")
        self.model = model
        self._write()
        known = model is not None and (model.fresh or model.passport is not None)
        self.setVisible(known)
        self.more.setVisible(known and model is not None and not model.fresh)

    def show_speed(self, words: str) -> None:
        """Show how fast it is."""
        self.speed.setText(words)
        self.speed.setVisible(bool(words))

    def _write(self) -> None:
        model = self.model
        if model is not None and model.fresh:
            self.words.setText(fresh_words(PRESETS[model.source]))
        elif model is not None and model.passport is not None:
            self.words.setText(passport_words(model.passport, warning=_theme.color(self._viewer, "warning")))


def passport_words(passport: Mapping[str, Any], *, warning: str = "#e3b617") -> str:
    """Return what is in a weight file as a few lines for people, as rich text.

    Parameters
    ----------
    passport
        `spec`, `card`, `parameters`, `bytes`, `sha256` as the engine's inspect job returns them.
    warning
        Colour of what must not be overlooked.
    """
    spec = passport["spec"]
    card = {key: html.escape(value) for key, value in passport["card"].items() if key not in HIDDEN and value}
    licence = next((card.pop(key) for key in _LICENCES if key in card), "UNKNOWN")
    if "UNKNOWN" in licence.upper():
        licence = f"<b><span style='color:{warning}'>⚠</span> {licence}</b>"
    scores = {key: card.pop(key) for key in list(card) if any(score in key for score in _SCORES)}
    rows = {
        "Name": html.escape(spec["name"]),
        "Finds": ", ".join(map(_swatch, spec["classes"][1:])) + " (may overlap)" * spec["overlapping"],
        "Expects": _expected(spec),
        "Network": _network(spec),
        "Size": f"{passport['parameters'] / 1e6:.2f} million parameters, {passport['bytes'] / 1e6:.1f} MB",
        "Trained on": card.pop("data", ""),
        "Method": card.pop("method", ""),
        **{key[:1].upper() + key[1:]: value for key, value in scores.items()},
        "Licence": licence,
        **{key.replace("_", " ").capitalize(): value for key, value in card.items()},
        "SHA-256": passport["sha256"][:16] + "…",
    }
    return "<br>".join(f"<b>{name}</b>: {value}" for name, value in rows.items() if value)


def fresh_words(spec: ModelSpec) -> str:
    """Return what a network to start fresh is."""
    return (
        f"<b>Network</b>: {_network(spec.model_dump())}<br>It has learned nothing yet: it starts in the Distill panel, "
        "with the classes and channels of the teacher."
    )


def speed_words(value: Mapping[str, Any]) -> str:
    """Return the figures of a short bench as a sentence.

    Examples
    --------
    >>> rows = [{"size": 256, "runtime": "torch", "fps": 12.5}, {"size": 256, "runtime": "onnx", "fps": 41.2}]
    >>> speed_words({"rows": rows, "threads": 1, "computer": {"processor": "a chip"}})
    'Pictures of 256 x 256 pixels, per second: 12 in torch, 41 in ONNX Runtime (1 thread of a chip).'
    """
    rows, threads = value["rows"], value["threads"]
    size = rows[0]["size"]
    found = ", ".join(f"{_number(row['fps'])} in {NAMES[row['runtime']]}" for row in rows)
    where = f"{threads} thread{'s' * (threads != 1)} of {value['computer']['processor']}"
    return f"Pictures of {size} x {size} pixels, per second: {found} ({where})."


def _number(fps: float) -> str:
    return f"{fps:.0f}" if fps >= 10 else f"{fps:.1f}"


def _swatch(info: Mapping[str, Any]) -> str:
    return f"<span style='color:{html.escape(info['color'])}'>■</span> {html.escape(info['name'])}"


def _expected(spec: Mapping[str, Any]) -> str:
    names = ", ".join(spec["channels"])
    channels = f"{spec['in_channels']} channel{'s' * (spec['in_channels'] != 1)}" + (f" ({names})" if names else "")
    if spec["frame"]:
        size = f"any size, seen at {spec['frame']} pixels on its longer side"
    elif spec["spacing"]:
        size = f"pixels of {spec['spacing']:g} mm, others are resampled"
    else:
        size = "pixels as they are"
    planes = f"volumes plane by plane across {spec['axis']}" if spec["axis"] else ""
    return "; ".join(filter(None, [html.escape(spec["modality"]), html.escape(channels), size, planes]))


def _network(spec: Mapping[str, Any]) -> str:
    return html.escape(
        f"{spec['encoder']}, tiles of {spec['image_size']} pixels, tokens of {spec['patch_size']}, "
        f"decoder “{spec['decoder']}”"
    )
