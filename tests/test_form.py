"""Forms show what the schema says and give back what was entered."""

import pytest
from qtpy.QtCore import QPoint, QPointF, Qt
from qtpy.QtGui import QWheelEvent
from qtpy.QtWidgets import (
    QApplication,
    QCheckBox,
    QComboBox,
    QDoubleSpinBox,
    QLineEdit,
    QPushButton,
    QSpinBox,
    QVBoxLayout,
    QWidget,
)

from napari_rskd._form import Form, Section, stops, words
from rskd.config import (
    ComputeOptions,
    Config,
    ContourletOptions,
    DistillOptions,
    FusionOptions,
    RankOptions,
    SegmentOptions,
    TextureOptions,
    TrainOptions,
)
from rskd.errors import ParameterError
from tests.gui.conftest import open_sections

GROUPS: list[Config] = [
    ComputeOptions(threads=3),
    ContourletOptions(levels=(2, 0)),
    DistillOptions(texture=TextureOptions(levels=(3,)), ramp=0.5),
    RankOptions(block=-2),
    SegmentOptions(tile=None, overlap=0.5),
    SegmentOptions(skip_flat=0.5, skip_dark=-3, axis="x"),
    TrainOptions(learning_rate=3e-5, patch=None, epochs=5000),
]


def form(qtbot, value: Config, **options) -> Form:
    """Return a form with all of its sections opened."""
    widget = Form(value, **options)
    qtbot.addWidget(widget)
    open_sections(widget)
    return widget


def field(parent: QWidget, kind: type, name: str) -> QWidget:
    return parent.findChild(kind, name)


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: type(group).__name__)
def test_untouched_form_gives_back_what_it_was_given(qtbot, group: Config) -> None:
    assert form(qtbot, group).value() == group


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: type(group).__name__)
def test_set_value_shows_another_group(qtbot, group: Config) -> None:
    widget = form(qtbot, type(group)())
    widget.set_value(group)
    assert widget.value() == group


def test_entered_values_come_back(qtbot) -> None:
    widget = form(qtbot, TrainOptions())
    rate = field(widget, QDoubleSpinBox, "learning_rate")
    rate.clear()
    qtbot.keyClicks(rate, "0.0025")
    qtbot.keyClick(rate, Qt.Key.Key_Return)
    field(widget, QCheckBox, "augment").click()
    assert widget.value() == TrainOptions(learning_rate=0.0025, augment=False)


def test_ranges_are_those_of_the_schema(qtbot) -> None:
    widget = form(qtbot, TrainOptions())
    epochs = field(widget, QSpinBox, "epochs")
    assert (epochs.minimum(), epochs.maximum()) == (1, 100_000)
    seed = field(widget, QSpinBox, "seed")
    assert seed.maximum() == 2**31 - 1
    rate = field(widget, QDoubleSpinBox, "learning_rate")
    assert 0 < rate.minimum() < 1e-4
    assert rate.maximum() == 1


def test_help_texts_are_tooltips(qtbot) -> None:
    widget = form(qtbot, SegmentOptions())
    assert (
        field(widget, QDoubleSpinBox, "overlap").toolTip()
        == "Share of a tile that it has in common with its neighbour."
    )


def test_none_is_offered_in_words_and_comes_back(qtbot) -> None:
    widget = form(qtbot, SegmentOptions(tile=64))
    tile = field(widget, QSpinBox, "tile")
    tile.setValue(tile.minimum())
    assert tile.text() == "auto"
    assert widget.value().tile is None


def test_nested_groups_are_sections(qtbot) -> None:
    widget = form(qtbot, DistillOptions())
    sections = {section.toggle.text() for section in widget.findChildren(Section)}
    assert sections >= {"Logits", "Ranking", "Texture", "Fusion", "Baselines"}
    field(widget, QComboBox, "gate").setCurrentText("space")
    assert widget.value().fusion == FusionOptions(gate="space")


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: type(group).__name__)
def test_a_folded_form_has_no_fields_yet_but_its_value(qtbot, group: Config) -> None:
    widget = Form(type(group)(), folded=True)
    qtbot.addWidget(widget)
    widget.set_value(group)
    assert (widget.findChildren(QWidget), widget.value()) == ([], group)
    section = Section("Open it", widget)
    qtbot.addWidget(section)
    section.toggle.click()
    open_sections(section)
    assert len(widget.findChildren(QWidget)) > len(type(group).model_fields)
    assert widget.value() == group


def test_a_field_made_late_is_heard_and_reached_by_the_tab_key(qtbot) -> None:
    parent, heard = QWidget(), []
    column = QVBoxLayout(parent)
    widget = Form(DistillOptions(), folded=True)
    widget.changed.connect(lambda: heard.append(widget.value()))
    section, last = Section("What the student learns", widget), QPushButton("Last")
    column.addWidget(section)
    column.addWidget(last)
    qtbot.addWidget(parent)
    parent.show()
    section.toggle.click()
    open_sections(section)
    assert heard == []
    field(widget, QComboBox, "gate").setCurrentText("space")
    assert heard[-1].fusion.gate == "space"
    order = [section.toggle]
    while order[-1] is not last:
        order.append(order[-1].nextInFocusChain())
    fields = stops(widget)
    assert len(fields) > 50
    assert [one for one in order if one in fields] == fields


def test_a_rule_of_the_schema_is_told_in_one_sentence(qtbot) -> None:
    widget = form(qtbot, ContourletOptions())
    field(widget, QLineEdit, "levels").setText("3, 9")
    with pytest.raises(ParameterError, match=r"Levels: .* less than or equal to 5 \(it is '9'\)"):
        widget.value()


@pytest.mark.parametrize(
    ("entry", "words"),
    [("3, x", "Levels: a whole number is needed (it is 'x')."), ("1", "Levels: a level cannot be split")],
)
def test_no_word_of_the_checking_library_gets_through(qtbot, entry, words) -> None:
    widget = form(qtbot, ContourletOptions())
    field(widget, QLineEdit, "levels").setText(entry)
    with pytest.raises(ParameterError) as told:
        widget.value()
    assert str(told.value).startswith(words)


def test_omitted_fields_keep_their_value(qtbot) -> None:
    widget = form(qtbot, SegmentOptions(probabilities=True), omit=["probabilities"])
    assert field(widget, QCheckBox, "probabilities") is None
    assert widget.value().probabilities is True


def scroll(widget: QWidget) -> None:
    position = QPointF(widget.rect().center())
    event = QWheelEvent(
        position, widget.mapToGlobal(position), QPoint(), QPoint(0, 120), Qt.MouseButton.NoButton,
        Qt.KeyboardModifier.NoModifier, Qt.ScrollPhase.NoScrollPhase, False,
    )  # fmt: skip
    QApplication.sendEvent(widget, event)


def test_wheel_changes_only_the_field_that_has_the_focus(qtbot, monkeypatch) -> None:
    widget = form(qtbot, TrainOptions())
    epochs = field(widget, QSpinBox, "epochs")
    before = epochs.value()
    scroll(epochs)
    assert epochs.value() == before
    monkeypatch.setattr(epochs, "hasFocus", lambda: True)  # a display without a window manager gives nobody the focus
    scroll(epochs)
    assert epochs.value() > before


def test_words() -> None:
    assert words("steps_per_epoch") == "Steps per epoch"
