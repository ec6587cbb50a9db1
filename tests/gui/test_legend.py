"""The legend: colours, sizes, what is shown, how clearly, and what a brush cannot change."""

from typing import Any

import numpy as np
import pytest
from qtpy.QtCore import QPoint, Qt
from qtpy.QtGui import QColor
from qtpy.QtWidgets import QColorDialog

from napari_rskd._layers import segmentation_layers
from napari_rskd._readers import layer_of
from napari_rskd._source import Source, add_layer
from napari_rskd.legend import LegendWidget
from rskd.scan import Scan

SOON = 10_000
CLASSES = [
    {"name": "background", "color": "#000000"},
    {"name": "liver", "color": "#ff0000"},
    {"name": "lesion", "color": "#0000ff"},
]


@pytest.fixture
def scan(viewer: Any) -> Any:
    viewer.layers.clear()
    place = {"scale": (5, 0.5, 0.25), "units": ("mm",) * 3}
    return viewer.add_image(np.zeros((4, 10, 20)), name="CT", **place)


@pytest.fixture
def result(viewer: Any, scan: Any) -> Any:
    """Labels of two classes: 80 voxels of liver, 8 of a lesion."""
    labels = np.zeros((4, 10, 20), np.uint8)
    labels[:, :5, :4] = 1
    labels[:2, 6:8, 10:12] = 2
    return add_layer(viewer, made(scan, {"labels": labels})[0])


def made(scan: Any, arrays: Any, **how: Any) -> list[Any]:
    facts = {"image": str(scan.unique_id), "where": "", "model": "m"}
    return segmentation_layers(arrays, CLASSES, Source.of(scan), by="student", axes="zyx", made_from=facts, **how)


def click(qtbot: Any, widget: Any) -> None:
    qtbot.mouseClick(widget, Qt.MouseButton.LeftButton, pos=QPoint(8, widget.height() // 2))


def names(legend: Any) -> list[str]:
    return [row.name for row in legend.rows]


def sizes(legend: Any) -> list[str]:
    return [row.fields["size"].text() for row in legend.rows]


def test_a_row_fits_into_a_dock_of_300_pixels(qtbot, engine, viewer, open_panel) -> None:
    viewer.layers.clear()
    picture = viewer.add_image(np.zeros((300, 300)), name="Fundus")
    facts = {"image": str(picture.unique_id), "where": "", "model": "m"}
    labels = {"labels": np.ones((300, 300), np.uint8)}
    places = segmentation_layers(labels, CLASSES[:2], Source.of(picture), by="student", axes="yx", made_from=facts)
    add_layer(viewer, places[0])
    legend = open_panel("Legend")
    qtbot.waitUntil(lambda: sizes(legend) == ["90000 pixels"], timeout=SOON)
    margins = legend.layout().contentsMargins()
    assert legend.minimumWidth() <= 300
    assert legend._body.minimumSizeHint().width() <= 300 - margins.left() - margins.right()


def test_of_labels_that_change_with_time_it_tells_the_sizes_in_view(qtbot, engine, viewer, open_panel) -> None:
    viewer.layers.clear()
    beating = Scan(np.zeros((3, 4, 10, 20), np.float32), "tzyx", spacing=(5, 0.5, 0.25), units="mm")
    data, options, kind = layer_of(beating)
    scan = add_layer(viewer, (data, options, kind))
    labels = np.zeros(beating.data.shape, np.uint8)
    for time in range(3):
        labels[time, :, :5, : 4 * (time + 1)] = 1
    facts = {"image": str(scan.unique_id), "where": "", "model": "m"}
    places = segmentation_layers(
        {"labels": labels}, CLASSES[:2], Source.of(scan), by="student", axes="tzyx", made_from=facts
    )
    add_layer(viewer, places[0])
    viewer.dims.set_current_step(0, 0)
    legend = open_panel("Legend")
    for time, size in ((0, "0.05 ml"), (2, "0.15 ml"), (1, "0.1 ml")):
        viewer.dims.set_current_step(0, time)
        qtbot.waitUntil(lambda size=size: sizes(legend) == [size], timeout=SOON)


def test_it_tells_volumes_and_follows_what_is_painted(qtbot, engine, viewer, result, open_panel) -> None:
    legend = open_panel("Legend")
    assert names(legend) == ["Liver", "Lesion"]
    qtbot.waitUntil(lambda: sizes(legend) == ["0.05 ml", "0.005 ml"], timeout=SOON)  # 0.625 mm³ a voxel
    result.data_setitem((np.arange(4), np.full(4, 9), np.full(4, 19)), 2)
    qtbot.waitUntil(lambda: sizes(legend) == ["0.05 ml", "0.0075 ml"], timeout=SOON)
    result.undo()
    qtbot.waitUntil(lambda: sizes(legend) == ["0.05 ml", "0.005 ml"], timeout=SOON)
    result.redo()
    qtbot.waitUntil(lambda: sizes(legend) == ["0.05 ml", "0.0075 ml"], timeout=SOON)
    assert legend.minimumSizeHint().width() <= 300


def test_show_hide_fade_and_colour_of_one_class(qtbot, engine, monkeypatch, viewer, result, open_panel) -> None:
    legend = open_panel("Legend")
    liver, lesion = legend.rows
    click(qtbot, liver.fields["shown"])
    np.testing.assert_allclose(result.colormap.map(1), (1, 0, 0, 0), atol=0.01)
    np.testing.assert_allclose(result.colormap.map(2), (0, 0, 1, 1), atol=0.01)
    click(qtbot, liver.fields["shown"])
    liver.fields["opacity"].setFocus()
    qtbot.keyClick(liver.fields["opacity"], Qt.Key.Key_Home)
    for _ in range(4):
        qtbot.keyClick(liver.fields["opacity"], Qt.Key.Key_PageUp)
    np.testing.assert_allclose(result.colormap.map(1), (1, 0, 0, 0.4), atol=0.01)
    monkeypatch.setattr(QColorDialog, "getColor", lambda *_: QColor("#00ff00"))
    click(qtbot, lesion.fields["swatch"])
    np.testing.assert_allclose(result.colormap.map(2), (0, 1, 0, 1), atol=0.01)
    viewer.window.remove_dock_widget(legend)
    again = open_panel("Legend")  # it remembers
    assert again.rows[0].fields["opacity"].value() == 40


@pytest.mark.parametrize("label", [0, 2])
def test_a_brush_leaves_a_locked_class_alone(qtbot, engine, viewer, result, open_panel, label: int) -> None:
    legend = open_panel("Legend")
    click(qtbot, legend.rows[0].fields["lock"])
    before = result.data.copy()
    result.brush_size = 6
    viewer.dims.set_current_step(0, 1)
    result.paint((1, 4, 4), label)  # half of it over the liver
    painted = result.data.copy()
    qtbot.waitUntil(lambda: not np.array_equal(result.data, painted), timeout=SOON)
    np.testing.assert_array_equal(result.data == 1, before == 1)
    expected = np.where(before == 1, 1, painted)
    np.testing.assert_array_equal(result.data, expected)
    assert "Liver is locked" in legend.status.text()
    for move, state in ((result.undo, before), (result.redo, expected)):
        move()
        np.testing.assert_array_equal(result.data, state)
    click(qtbot, legend.rows[0].fields["lock"])
    result.paint((1, 2, 2), 2)
    qtbot.wait(50)
    assert result.data[1, 2, 2] == 2


def test_two_legends_take_a_stroke_back_once(qtbot, engine, viewer, result, open_panel) -> None:
    first = open_panel("Legend")
    click(qtbot, first.rows[0].fields["lock"])
    second = LegendWidget(viewer)
    viewer.dims.set_current_step(0, 1)
    result.brush_size = 1
    result.paint((1, 8, 16), 2)
    earlier = result.data.copy()
    result.paint((1, 2, 2), 2)  # on the liver
    qtbot.waitUntil(lambda: "Liver is locked" in second.status.text(), timeout=SOON)
    qtbot.wait(50)
    np.testing.assert_array_equal(result.data, earlier)
    assert "Liver is locked" in first.status.text()
    with qtbot.waitSignal(second.destroyed, timeout=SOON):
        second.deleteLater()
    result.paint((1, 2, 2), 2)
    qtbot.waitUntil(lambda: result.data[1, 2, 2] == 1, timeout=SOON)  # the first one still has its lock
    click(qtbot, first.rows[0].fields["lock"])
    result.paint((1, 2, 2), 2)
    qtbot.wait(50)
    assert result.data[1, 2, 2] == 2


def test_a_locked_class_cannot_be_painted_with(qtbot, engine, viewer, result, open_panel) -> None:
    legend = open_panel("Legend")
    click(qtbot, legend.rows[1].fields["lock"])
    before = result.data.copy()
    result.fill((1, 9, 19), 2)
    qtbot.waitUntil(lambda: "Lesion is locked" in legend.status.text(), timeout=SOON)
    np.testing.assert_array_equal(result.data, before)


def test_classes_that_overlap_are_one_legend(qtbot, engine, viewer, scan, open_panel) -> None:
    planes = np.zeros((2, 4, 10, 20), np.uint8)
    planes[0, :, :5, :4] = 1
    planes[1, 0, :2, :2] = 1
    legend = open_panel("Legend")
    assert "its classes are listed here" in legend.title.text()
    for data in made(scan, {"labels": planes}, overlapping=True):
        add_layer(viewer, data)
    assert names(legend) == ["Liver", "Lesion"]
    qtbot.waitUntil(lambda: sizes(legend) == ["0.05 ml", "0.0025 ml"], timeout=SOON)
    viewer.layers.selection.active = scan
    assert names(legend) == ["Liver", "Lesion"]
    viewer.layers.remove("Liver (student)")
    assert names(legend) == ["Lesion"]
    viewer.layers.clear()
    assert names(legend) == []


def test_the_selected_result_is_the_one_that_is_told_about(qtbot, engine, viewer, scan, result, open_panel) -> None:
    legend = open_panel("Legend")
    facts = {"image": "other", "where": "z=1", "model": "m"}
    plane = np.ones((1, 10, 20), np.uint8)
    data, options, kind = segmentation_layers(
        {"labels": plane}, CLASSES[:2], Source.of(scan), by="teacher", axes="zyx", made_from=facts
    )[0]
    other = add_layer(viewer, (data, options, kind))
    viewer.layers.selection.active = other
    assert names(legend) == ["Liver"]
    qtbot.waitUntil(lambda: sizes(legend) == ["25 mm²"], timeout=SOON)  # one slice: its area
    viewer.layers.selection.active = result
    assert names(legend) == ["Liver", "Lesion"]


def test_a_closed_legend_lets_go_of_the_labels(qtbot, engine, viewer, result, open_panel, close_panel) -> None:
    legend = open_panel("Legend")
    click(qtbot, legend.rows[0].fields["lock"])
    close_panel(legend)
    again = open_panel("Legend")
    assert again is not legend
    assert again.rows[0].fields["lock"].isChecked()
    click(qtbot, again.rows[0].fields["lock"])
    result.brush_size = 6
    viewer.dims.set_current_step(0, 1)
    result.paint((1, 4, 4), 2)
    painted = result.data.copy()
    qtbot.wait(300)
    np.testing.assert_array_equal(result.data, painted)
