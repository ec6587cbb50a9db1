"""A group of parameters as a form: ranges, defaults and help come from the schema, so they live nowhere else."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar, Union, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from qtpy.QtCore import QEvent, QObject, Qt, Signal
from qtpy.QtWidgets import (
    QAbstractSpinBox,
    QCheckBox,
    QComboBox,
    QDoubleSpinBox,
    QFormLayout,
    QLineEdit,
    QSpinBox,
    QToolButton,
    QVBoxLayout,
    QWidget,
)

from rskd.config import Config
from rskd.errors import ParameterError

C = TypeVar("C", bound=Config)
INT_LIMIT = 2**31 - 1
EPSILON = 1e-6  # the smallest step of a decimal field
_KINDS = {
    "int_parsing": "a whole number is needed",
    "int_type": "a whole number is needed",
    "int_from_float": "a whole number is needed",
    "float_parsing": "a number is needed",
    "float_type": "a number is needed",
}
"""What is wrong with an entry, in plain words, by pydantic's kind of error."""


class _WheelGuard(QObject):
    """Lets the wheel scroll the panel instead of changing a value that merely lies under the pointer."""

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:  # noqa: N802
        if event.type() == QEvent.Type.Wheel and isinstance(watched, QWidget) and not watched.hasFocus():
            event.ignore()
            return True
        return False


def guard_wheel(widget: QWidget) -> QWidget:
    """Make a field ignore the wheel unless it has the focus; returns the field."""
    widget.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
    widget.installEventFilter(_WheelGuard(widget))
    return widget


class Section(QWidget):
    """A heading that shows or hides what is below it."""

    def __init__(self, title: str, content: QWidget, *, opened: bool = False) -> None:
        super().__init__()
        self.toggle = QToolButton(text=title, checkable=True)
        self.toggle.setToolButtonStyle(Qt.ToolButtonStyle.ToolButtonTextBesideIcon)
        self.toggle.setAutoRaise(True)
        self.content = content
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(2)
        column.addWidget(self.toggle)
        column.addWidget(content)
        content.layout().setContentsMargins(12, 2, 0, 4)
        self.toggle.toggled.connect(self._show)
        self.toggle.setChecked(opened)
        self._show(opened)

    def _show(self, opened: bool) -> None:
        self.toggle.setArrowType(Qt.ArrowType.DownArrow if opened else Qt.ArrowType.RightArrow)
        if opened and isinstance(self.content, Form) and self.content.folded:
            self.content.unfold()
            self._line_up()
        self.content.setVisible(opened)

    def _line_up(self) -> None:
        """Let the Tab key reach new fields after the heading; Qt has put them behind all others of the window."""
        before: QWidget = self.toggle
        for field in stops(self.content):
            QWidget.setTabOrder(before, field)
            before = field


def stops(widget: QWidget) -> list[QWidget]:
    """Return what the Tab key stops at inside of a widget, from top to bottom; parts of a field are none."""
    inside = (child for child in widget.findChildren(QWidget) if child.window() is widget.window())
    return [child for child in inside if child.focusPolicy() & Qt.FocusPolicy.TabFocus and child.focusProxy() is None]


class _NumberBox(QDoubleSpinBox):
    """A decimal field that shows 0.001 as 0.001, not as 0.001000."""

    def textFromValue(self, value: float) -> str:  # noqa: N802
        return f"{value:g}"


@dataclass(frozen=True)
class _Editor:
    widget: QWidget
    get: Callable[[], Any]
    set: Callable[[Any], None]
    changed: Any


class Form(QWidget, Generic[C]):
    """A form for a frozen group of parameters.

    Parameters
    ----------
    value
        The group to start with.
    omit
        Names of the fields that are set elsewhere.
    folded
        Make the fields when the `Section` around them is opened: a hundred of them slow a panel that shows none.

    Notes
    -----
    `value()` returns a new group; what the form does not show is kept.
    """

    changed = Signal()

    def __init__(self, value: C, *, omit: Iterable[str] = (), folded: bool = False) -> None:
        super().__init__()
        self._base = value
        self._omitted = set(omit) | {"kind"}
        self._editors: dict[str, _Editor] = {}
        self.folded = True
        """Whether the fields are still to be made."""
        layout = QFormLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(4)
        layout.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        layout.setRowWrapPolicy(QFormLayout.RowWrapPolicy.WrapLongRows)
        if not folded:
            self.unfold()

    def unfold(self) -> None:
        """Make the fields."""
        self.folded = False
        layout = self.layout()
        for name, info in type(self._base).model_fields.items():
            if name not in self._omitted:
                self._add(layout, name, info, getattr(self._base, name))

    def _add(self, layout: QFormLayout, name: str, info: FieldInfo, value: Any) -> None:
        editor = _editor(info, value)
        help_text = " ".join((info.description or "").split())
        editor.widget.setObjectName(name)
        label = info.title or words(name)
        editor.widget.setAccessibleName(label)
        editor.changed.connect(self.changed)
        self._editors[name] = editor
        if isinstance(editor.widget, Form):
            section = Section(label, editor.widget)
            section.toggle.setToolTip(help_text)
            layout.addRow(section)
        elif isinstance(editor.widget, QCheckBox):
            editor.widget.setText(label)
            editor.widget.setToolTip(help_text)
            layout.addRow(editor.widget)
        else:
            editor.widget.setToolTip(help_text)
            layout.addRow(label, editor.widget)
            layout.labelForField(editor.widget).setToolTip(help_text)

    def put_above(self, **rows: QWidget) -> None:
        """Put fields of the panel over those of the schema, in one alignment; the names become labels."""
        for position, (name, field) in enumerate(rows.items()):
            self.layout().insertRow(position, words(name), field)

    def value(self) -> C:
        """Return the parameters as they stand; raise `ParameterError` with one sentence if they cannot be used."""
        edited = {name: editor.get() for name, editor in self._editors.items()}
        try:
            return type(self._base).model_validate({**self._base.model_dump(), **edited})
        except ValidationError as error:
            first = error.errors()[0]
            where = words(str(first["loc"][0])) if first["loc"] else "These values"
            what = _KINDS.get(first["type"]) or first["msg"].removeprefix("Value error, ")
            raise ParameterError(f"{where}: {what} (it is {first['input']!r}).") from error

    def set_value(self, value: C) -> None:
        """Show these parameters."""
        self._base = value
        for name, editor in self._editors.items():
            editor.set(getattr(value, name))


def words(name: str) -> str:
    """Return a field's name as a label.

    Examples
    --------
    >>> words("steps_per_epoch")
    'Steps per epoch'
    """
    return name.replace("_", " ").capitalize()


def _editor(info: FieldInfo, value: Any) -> _Editor:
    """Return the field that edits this type."""
    inner, optional = _without_none(info.annotation)
    if isinstance(value, Config):
        return _group(value)
    if get_origin(inner) is Literal:
        return _choice(get_args(inner), value)
    if inner is bool:
        return _switch(value)
    if inner is int:
        return _whole_number(info, value, optional=optional)
    if inner is float:
        return _number_or_none(value) if optional else _number(info, value)
    if get_origin(inner) is tuple:
        return _list_of_numbers(value, optional=optional)
    raise TypeError(f"there is no form field for {info.annotation}")  # our own mistake: a new kind of parameter


def _without_none(annotation: Any) -> tuple[Any, bool]:
    """Split `T | None` into T and whether None is allowed."""
    if get_origin(annotation) in (Union, types.UnionType):
        rest = [arg for arg in get_args(annotation) if arg is not types.NoneType]
        if len(rest) == 1:
            return _without_metadata(rest[0]), True
    return _without_metadata(annotation), False


def _without_metadata(annotation: Any) -> Any:
    return annotation.__origin__ if hasattr(annotation, "__metadata__") else annotation


def _limits(info: FieldInfo, step: float) -> tuple[float | None, float | None]:
    """Return the lowest and highest value the schema allows."""
    low: float | None = None
    high: float | None = None
    for rule in info.metadata:
        low = getattr(rule, "ge", low)
        high = getattr(rule, "le", high)
        if hasattr(rule, "gt"):
            low = rule.gt + step
        if hasattr(rule, "lt"):
            high = rule.lt - step
    return low, high


def _group(value: Config) -> _Editor:
    form: Form[Config] = Form(value, folded=True)
    return _Editor(form, form.value, form.set_value, form.changed)


def _switch(value: bool) -> _Editor:
    box = QCheckBox(checked=value)
    return _Editor(box, box.isChecked, box.setChecked, box.toggled)


def _choice(options: tuple[Any, ...], value: Any) -> _Editor:
    box = QComboBox()
    box.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
    box.setMinimumContentsLength(6)
    for option in options:
        box.addItem(str(option).replace("_", " "), option)
    guard_wheel(box)

    def show(new: Any) -> None:
        box.setCurrentIndex(box.findData(new))

    show(value)
    return _Editor(box, box.currentData, show, box.currentIndexChanged)


def _whole_number(info: FieldInfo, value: int | None, *, optional: bool) -> _Editor:
    low, high = _limits(info, 1)
    lowest = int(low) if low is not None else -INT_LIMIT
    box = QSpinBox(minimum=lowest - optional, maximum=int(high) if high is not None else INT_LIMIT)
    box.setStepType(QAbstractSpinBox.StepType.AdaptiveDecimalStepType if box.maximum() > 100 else box.stepType())
    if optional:
        box.setSpecialValueText("auto")
    guard_wheel(box)

    def get() -> int | None:
        return None if optional and box.value() < lowest else box.value()

    def show(new: int | None) -> None:
        box.setValue(lowest - 1 if new is None else new)

    show(value)
    return _Editor(box, get, show, box.valueChanged)


def _number(info: FieldInfo, value: float) -> _Editor:
    low, high = _limits(info, EPSILON)
    box = _NumberBox(decimals=6)
    box.setRange(-float(INT_LIMIT) if low is None else low, float(INT_LIMIT) if high is None else high)
    box.setStepType(QAbstractSpinBox.StepType.AdaptiveDecimalStepType)
    guard_wheel(box)
    box.setValue(value)
    return _Editor(box, box.value, box.setValue, box.valueChanged)


def _number_or_none(value: float | None) -> _Editor:
    line = QLineEdit()
    line.setPlaceholderText("none")

    def show(new: float | None) -> None:
        line.setText("" if new is None else f"{new:g}")

    show(value)
    return _Editor(line, lambda: line.text().strip() or None, show, line.textChanged)


def _list_of_numbers(value: tuple[int, ...] | None, *, optional: bool) -> _Editor:
    line = QLineEdit()
    line.setPlaceholderText("auto" if optional else "none")

    def get() -> tuple[str, ...] | None:
        parts = tuple(part.strip() for part in line.text().split(",") if part.strip())
        return None if optional and not parts else parts

    def show(new: tuple[int, ...] | None) -> None:
        line.setText(", ".join(str(n) for n in new or ()))

    show(value)
    return _Editor(line, get, show, line.textChanged)
