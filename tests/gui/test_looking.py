"""Token ranking and Contourlet in a real window with the real engine."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qtpy.QtCore import QPoint, Qt

from napari_rskd import _job
from napari_rskd._session import Model, session_of
from rskd.config import ContourletOptions
from rskd.models.presets import fresh_spec
from rskd.models.segmenter import Segmenter
from rskd.models.weights import save
from rskd.phantom import vessel_phantom

LONG = 120_000  # milliseconds
SIZE = 96


@pytest.fixture(scope="module", autouse=True)
def no_engine_left() -> Iterator[None]:
    yield
    _job.shut_down()


@pytest.fixture
def eye(viewer: Any, tmp_path: Path) -> Any:
    """A colour picture of vessels in a world of its own, and two small networks to look into."""
    session = session_of(viewer)
    for role, name in (("teacher", "rskd-micro"), ("student", "rskd-nano")):
        path = tmp_path / f"{role}.safetensors"
        save(path, Segmenter(fresh_spec(name, in_channels=3, classes=["vessel"])), card={})
        setattr(session, role, session.learn(Model(role.capitalize(), str(path))))
    viewer.layers.clear()
    image, _ = vessel_phantom(np.random.default_rng(3), SIZE)
    return viewer.add_image(image, name="eye", scale=(0.5, 0.25), translate=(3, -2), rotate=20, units=("mm", "mm"))


def click(qtbot: Any, button: Any) -> None:
    qtbot.mouseClick(button, Qt.MouseButton.LeftButton, pos=QPoint(8, button.height() // 2))


def run(qtbot: Any, panel: Any, button: Any) -> None:
    """Press a button, wait, and expect no error."""
    click(qtbot, button)
    qtbot.waitUntil(lambda: panel.work is None, timeout=LONG)
    assert panel.error_label.text() == ""


def corners(layer: Any, shape: tuple[int, ...]) -> np.ndarray:
    return np.array([layer.data_to_world((y - 0.5, x - 0.5)) for y in (0, shape[0]) for x in (0, shape[1])])


def test_contourlet_story(qtbot, viewer, eye, open_panel) -> None:
    panel = open_panel("Contourlet")
    panel.options.set_value(ContourletOptions(levels=(2, 2)))
    run(qtbot, panel, panel.button)
    assert len(panel.gains.sliders) == 9
    qtbot.waitUntil(lambda: len(viewer.layers) == 1 + 9, timeout=LONG)
    (energies,) = panel.rose.energies.values()
    assert sum(share for *_, share in energies) == pytest.approx(1)
    assert panel.rose.isVisible()

    slider = panel.gains.sliders["lowpass"]
    slider.setFocus()
    for _ in range(5):
        qtbot.keyClick(slider, Qt.Key.Key_PageDown)
    qtbot.waitUntil(lambda: not panel._rebuilding.busy and "Reconstruction" in viewer.layers, timeout=LONG)
    weaker = viewer.layers["Reconstruction"]
    np.testing.assert_allclose(corners(weaker, weaker.data.shape), corners(eye, (SIZE, SIZE)), atol=1e-9)
    assert weaker.data.mean() == pytest.approx(slider.value() / 100 * eye.data[..., 1].mean(), rel=0.02)
    click(qtbot, panel.gains.reset)
    qtbot.waitUntil(lambda: not panel._rebuilding.busy, timeout=LONG)
    np.testing.assert_allclose(viewer.layers["Reconstruction"].data, eye.data[..., 1], atol=1e-2)

    panel.arrangement.setCurrentIndex(1)
    assert viewer.canvas.grid.enabled
    assert all(layer.visible for layer in viewer.layers)
    panel.arrangement.setCurrentIndex(0)
    assert not viewer.canvas.grid.enabled


def test_splitting_again_replaces_the_sub_bands(qtbot, viewer, eye, open_panel) -> None:
    panel = open_panel("Contourlet")
    panel.options.set_value(ContourletOptions(levels=(2,)))
    run(qtbot, panel, panel.button)
    qtbot.waitUntil(lambda: len(viewer.layers) == 1 + 5, timeout=LONG)
    edges = next(layer for layer in viewer.layers if layer.name.startswith("Edges"))
    edges.colormap = "red"
    eye.translate = (30, 40)
    panel.options.set_value(ContourletOptions(levels=(0,)))
    run(qtbot, panel, panel.button)
    qtbot.waitUntil(lambda: len(viewer.layers) == 1 + 2, timeout=LONG)
    assert edges in viewer.layers
    assert edges.colormap.name == "red"  # what the user chose stays
    np.testing.assert_allclose(edges.affine.affine_matrix, eye.affine.affine_matrix)
    np.testing.assert_allclose(edges.data_to_world((-0.5, -0.5)), eye.data_to_world((-0.5, -0.5)), atol=1)


def test_denoising_and_the_maps_of_the_networks(qtbot, viewer, eye, open_panel) -> None:
    panel = open_panel("Contourlet")
    panel.options.set_value(ContourletOptions(levels=(2,)))
    run(qtbot, panel, panel.denoise)
    clean = viewer.layers["eye (denoised)"]
    assert clean.rgb
    assert clean.data.shape == eye.data.shape
    run(qtbot, panel, panel.split_map)
    qtbot.waitUntil(lambda: "Feature map (student)" in viewer.layers, timeout=LONG)
    for role in ("teacher", "student"):
        layer = viewer.layers[f"Feature map ({role})"]
        np.testing.assert_allclose(corners(layer, layer.data.shape), corners(eye, (SIZE, SIZE)), atol=1e-9)
        assert role.capitalize() in panel.energies.text()
        assert role in panel.rose.energies


def test_token_story(qtbot, viewer, eye, open_panel, tmp_path) -> None:
    panel = open_panel("Token ranking")
    assert not panel.block.isEnabled()
    run(qtbot, panel, panel.button)
    qtbot.waitUntil(lambda: "Agreement" in panel.agreement.text(), timeout=LONG)
    qtbot.waitUntil(lambda: len(viewer.layers) == 1 + 6, timeout=LONG)
    for role in ("teacher", "student"):
        grid, cover = viewer.layers[f"Token importance ({role})"], viewer.layers[f"Outside of the top ({role})"]
        for layer in (grid, cover):
            np.testing.assert_allclose(corners(layer, layer.data.shape), corners(eye, (SIZE, SIZE)), atol=1e-9)
        assert cover.data.size - cover.data.sum() == round(0.25 * cover.data.size)

    panel.keep.setFocus()
    qtbot.keyClick(panel.keep, Qt.Key.Key_End)
    assert cover.data.sum() == 0
    assert "Share of the top in common: 1.00" in panel.agreement.text()
    click(qtbot, panel.mask)
    assert not cover.visible

    before = grid.data.copy()
    panel.block.setFocus()
    qtbot.keyClick(panel.block, Qt.Key.Key_Home)
    assert panel.block_number.text().startswith("Block 1 of")
    assert not np.array_equal(viewer.layers["Token importance (student)"].data, before)
    panel.head.setCurrentIndex(1)

    panel._ask(eye.data_to_world((70, 20)))
    qtbot.waitUntil(lambda: "Attention of one token (student)" in viewer.layers, timeout=LONG)
    assert viewer.layers["Attention of one token (student)"].data.sum() == pytest.approx(1, abs=1e-4)

    run(qtbot, panel, panel.deletion)
    assert "deleting the top tokens first" in panel.status.text()
    panel.save(tmp_path / "out")
    qtbot.waitUntil(lambda: (tmp_path / "out" / "agreement.json").exists(), timeout=LONG)
    assert (tmp_path / "out" / "ranking.svg").exists()

    run(qtbot, panel, panel.button)
    assert panel.agreement.text() == "" or "Agreement" in panel.agreement.text()
    qtbot.waitUntil(lambda: len(viewer.layers) == 1 + 6, timeout=LONG)  # no second set, and no old attention
