"""Every result lies exactly on its image, in any world. The oracle is napari's own `data_to_world`."""

import itertools
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from napari.components import Dims, ViewerModel
from napari.layers import Image, Layer

from napari_rskd._layers import class_colors, importance_layers, segmentation_layers, subband_layers
from napari_rskd._picture import slice_picture, whole_picture
from napari_rskd._source import Source, axes_of, slice_of, visible_slice, whole
from rskd.errors import ParameterError, ResourceError
from rskd.jobs import Geometry

CLASSES = [{"name": "background", "color": "#000000"}, {"name": "vessel", "color": "#e4572e"}]


def rotation(degrees: float, ndim: int) -> np.ndarray:
    """Rotate the last two axes, and a little the first and the last."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    matrix = np.eye(ndim)
    matrix[-2:, -2:] = [[c, -s], [s, c]]
    if ndim > 2:
        tilt = np.eye(ndim)
        tilt[np.ix_([0, -1], [0, -1])] = [[np.cos(0.2), -np.sin(0.2)], [np.sin(0.2), np.cos(0.2)]]
        matrix = matrix @ tilt
    return matrix


def world(shape: tuple[int, ...], *, rgb: bool = False, degrees: float = 31.0) -> Image:
    """Return a rotated, sheared, anisotropic, translated layer with units and labels."""
    ndim = len(shape) - rgb
    affine = np.eye(ndim + 1)
    affine[:-1, :-1] += 0.05 * np.arange(ndim * ndim).reshape(ndim, ndim)
    affine[:-1, -1] = np.arange(ndim) - 4.0
    return Image(
        np.zeros(shape, np.uint8 if rgb else np.float32),
        rgb=rgb,
        name="scan",
        scale=np.linspace(0.3, 2.5, ndim),
        translate=np.linspace(-7, 11, ndim),
        rotate=rotation(degrees, ndim),
        shear=np.linspace(0.1, 0.3, ndim * (ndim - 1) // 2),
        affine=affine,
        units=("mm", "um", "um")[-ndim:],
        axis_labels=("z", "y", "x")[-ndim:],
        metadata={"header": "of the file"},
    )


def to_world(layer: Any, index: Any) -> np.ndarray:
    return np.asarray(layer.data_to_world(tuple(index)))


def looking_at(layer: Any, order: tuple[int, ...] = (0, 1, 2)) -> Dims:
    """Return the sliders of a viewer over a layer, in the middle of the axis that they cut."""
    viewer = ViewerModel()
    viewer.add_layer(layer)
    viewer.dims.order = order
    viewer.dims.set_current_step(order[0], viewer.dims.nsteps[order[0]] // 2)
    return viewer.dims


def corners(shape: tuple[int, ...]) -> list[tuple[float, ...]]:
    return list(itertools.product(*[(-0.5, n - 0.5) for n in shape]))


def made(data: tuple[Any, dict[str, Any], str]) -> Any:
    return Layer.create(*data)


@pytest.mark.parametrize("shape", [(12, 18), (5, 12, 18)])
def test_segmentation_covers_its_image_corner_by_corner(shape: tuple[int, ...]) -> None:
    layer = world(shape)
    arrays = {"labels": np.ones(shape, np.uint8), "probabilities": np.full((2, *shape), 0.5, np.float32)}
    labels, probability = map(made, segmentation_layers(arrays, CLASSES, Source.of(layer), by="student", axes="zyx"))
    for result in (labels, probability):
        assert result.data.shape == shape
        for corner in corners(shape):
            np.testing.assert_allclose(to_world(result, corner), to_world(layer, corner), atol=1e-9)
        assert result.units == layer.units
        assert result.axis_labels == layer.axis_labels
        assert result.metadata["header"] == "of the file"


def test_segmentation_of_rgb_has_the_axes_of_the_picture() -> None:
    layer = world((12, 18, 3), rgb=True)
    (labels,) = map(
        made,
        segmentation_layers({"labels": np.ones((12, 18), int)}, CLASSES, Source.of(layer), by="x", axes="yxc"),
    )
    for corner in corners((12, 18)):
        np.testing.assert_allclose(to_world(labels, corner), to_world(layer, corner), atol=1e-9)


def test_classes_that_may_overlap_have_a_layer_each() -> None:
    classes = [*CLASSES, {"name": "tumour", "color": "#0000ff"}]
    planes = np.random.default_rng(0).integers(0, 2, (2, 4, 6, 8)).astype(np.uint8)
    layer = world((4, 6, 8))
    arrays = {"labels": planes, "probabilities": planes * np.float32(0.7)}
    vessel, tumour, *probable = map(
        made, segmentation_layers(arrays, classes, Source.of(layer), by="student", axes="zyx", overlapping=True)
    )
    for own, plane, info in zip((vessel, tumour), planes, classes[1:], strict=True):
        np.testing.assert_array_equal(own.data, plane)
        assert own.name == f"{info['name'].capitalize()} (student)"
        assert [*own.features["class"]] == ["background", info["name"]]
        red, green, blue = (int(info["color"][at : at + 2], 16) / 255 for at in (1, 3, 5))
        np.testing.assert_allclose(own.colormap.map(1), (red, green, blue, 1), atol=1e-6)
        np.testing.assert_allclose(to_world(own, (1, 2, 3)), to_world(layer, (1, 2, 3)), atol=1e-9)
    assert [own.name for own in probable] == ["Probability of vessel (student)", "Probability of tumour (student)"]
    np.testing.assert_array_equal(probable[1].data, arrays["probabilities"][1])


@pytest.mark.parametrize("axes", ["czyx", "zcyx"])
def test_a_channel_axis_disappears_from_the_geometry(axes: str) -> None:
    """The channel axis has no part in rotation here, so the oracle is the layer itself at channel 0."""
    channel = axes.index("c")
    spatial = world((4, 6, 8))
    keep = [i for i in range(4) if i != channel]
    linear, shift = np.eye(4), np.zeros(4)
    matrix = full(spatial)
    linear[np.ix_(keep, keep)] = matrix[:-1, :-1]
    shift[keep] = matrix[:-1, -1]
    affine = np.eye(5)
    affine[:4, :4], affine[:4, 4] = linear, shift
    shape = tuple(np.insert((4, 6, 8), channel, 2))
    layer = Image(np.zeros(shape), affine=affine, rgb=False, axis_labels=tuple(axes))
    (labels,) = map(
        made, segmentation_layers({"labels": np.ones((4, 6, 8), int)}, CLASSES, Source.of(layer), by="x", axes=axes)
    )
    for corner in corners((4, 6, 8)):
        inside = np.insert(np.array(corner), channel, 0.0)
        np.testing.assert_allclose(to_world(labels, corner), np.delete(to_world(layer, inside), channel), atol=1e-9)


def full(layer: Any) -> np.ndarray:
    """Return a layer's index-to-world matrix, read off by probing it."""
    ndim = layer.ndim
    origin = to_world(layer, np.zeros(ndim))
    matrix = np.eye(ndim + 1)
    for axis, unit in enumerate(np.eye(ndim)):
        matrix[:-1, axis] = to_world(layer, unit) - origin
    matrix[:-1, -1] = origin
    return matrix


@given(degrees=st.floats(-180, 180), token=st.tuples(st.floats(1.5, 33), st.floats(1.5, 33)))
@settings(max_examples=25, deadline=None)
def test_token_grid_lies_on_its_tokens(degrees: float, token: tuple[float, float]) -> None:
    """Token (i, j) covers the pixels from i·p up to (i + 1)·p: the outer edges of the grid are those of the image."""
    grid = (3, 4)
    layer = world((32, 48), degrees=degrees)
    importance = np.arange(12, dtype=np.float32).reshape(grid)
    facts = {"token": token, "top": 3, "definition": "received", "block": 1}
    image, points = map(made, importance_layers("student", facts, importance, np.arange(12)[::-1], Source.of(layer)))
    for i, j in itertools.product(range(grid[0] + 1), range(grid[1] + 1)):
        pixel_edge = np.array([i * token[0], j * token[1]]) - 0.5
        np.testing.assert_allclose(to_world(image, (i - 0.5, j - 0.5)), to_world(layer, pixel_edge), atol=1e-8)
    np.testing.assert_array_equal(points.data, [[2, 3], [2, 2], [2, 1]])
    np.testing.assert_array_equal(points.features["rank"], [1, 2, 3])
    np.testing.assert_allclose(to_world(points, points.data[0]), to_world(image, (2, 3)), atol=1e-9)


def test_result_of_a_slice_lies_in_that_slice() -> None:
    layer = world((5, 32, 48))
    plane, axes, source = visible_slice(layer, looking_at(layer))
    ((at,),) = [source.slice_at]
    assert (plane.shape, axes) == ((32, 48), "yx")
    facts = {"token": (8.0, 8.0), "top": 2, "definition": "received", "block": 1}
    image, points = map(made, importance_layers("teacher", facts, np.ones((4, 6), np.float32), np.arange(24), source))
    assert image.data.shape == (1, 4, 6)
    for i, j in ((0, 0), (3, 5)):
        middle = (at, 8 * i + 3.5, 8 * j + 3.5)
        np.testing.assert_allclose(to_world(image, (0, i, j)), to_world(layer, middle), atol=1e-9)
    np.testing.assert_allclose(to_world(points, points.data[1]), to_world(layer, (at, 3.5, 11.5)), atol=1e-9)


@pytest.mark.parametrize("order", [(1, 0, 2), (2, 1, 0), (2, 0, 1)])
def test_a_slice_along_another_axis_lies_there(order: tuple[int, int, int]) -> None:
    layer = world((5, 32, 48))
    layer.data[:] = np.random.default_rng(0).random(layer.data.shape)
    cut = order[0]
    plane, _, source = visible_slice(layer, looking_at(layer, order))
    seen = layer._slice.image.raw
    np.testing.assert_array_equal(plane, seen if order[1] < order[2] else seen.T)
    np.testing.assert_array_equal(plane, np.take(layer.data, source.slice_at[0], axis=cut))
    (labels,) = map(
        made, segmentation_layers({"labels": np.ones(plane.shape, int)}, CLASSES, source, by="x", axes="zyx")
    )
    assert labels.data.shape == tuple(1 if axis == cut else n for axis, n in enumerate(layer.data.shape))
    middle = np.array([2.0, 4.0, 6.0])
    middle[cut] = 0
    there = middle + np.eye(3)[cut] * source.slice_at[0]
    np.testing.assert_allclose(to_world(labels, middle), to_world(layer, there), atol=1e-9)
    facts = {"token": (8.0, 8.0), "top": 2, "definition": "received", "block": 1}
    importance = np.ones((plane.shape[0] // 8 or 1, plane.shape[1] // 8), np.float32)
    image, points = map(made, importance_layers("teacher", facts, importance, np.arange(importance.size), source))
    np.testing.assert_allclose(to_world(points, points.data[0]), to_world(image, (0, 0, 0)), atol=1e-9)


def test_a_flat_layer_in_a_deep_viewer_is_seen_as_it_is() -> None:
    layer = world((32, 48))
    plane, _, source = visible_slice(layer, Dims(ndim=3, order=(1, 0, 2)))
    assert (plane.shape, source.slice_at) == ((32, 48), ())


def test_a_slice_to_segment_has_all_its_channels_and_its_pixel_size() -> None:
    data = np.random.default_rng(0).random((4, 2, 6, 8))
    place = {"scale": (5.0, 1.0, 0.5, 0.25), "units": ("mm", "pixel", "mm", "mm"), "translate": (9.0, 0.0, 2.0, 3.0)}
    layer = Image(data, rgb=False, axis_labels=tuple("zcyx"), **place)
    dims = Dims(ndim=4, range=[(-100, 100, 0.01)] * 4, point=(9.0 + 5.0 * 3, 1.0, 0.0, 0.0))
    picture = slice_picture(layer, dims)
    assert (picture.axes, picture.where) == ("cyx", "z=3")
    np.testing.assert_array_equal(picture.pixels(), data[3])
    assert (picture.geometry.spacing, picture.geometry.units) == ((0.5, 0.25), "mm")
    arrays = {"labels": np.ones((6, 8), int), "entropy": np.zeros((6, 8), np.float32)}
    for result in map(made, segmentation_layers(arrays, CLASSES, picture.source, by="x", axes=picture.layer_axes)):
        assert result.data.shape == (1, 6, 8)
        np.testing.assert_allclose(to_world(result, (0, 2, 3)), to_world(layer, (3, 1, 2, 3))[[0, 2, 3]], atol=1e-9)
    sideways = slice_picture(layer, dims.model_copy(update={"order": (3, 1, 0, 2)}))
    assert (sideways.axes, sideways.geometry.spacing, sideways.where) == ("ycx", (5.0, 0.5), "x=0")


def test_a_job_knows_where_a_layer_lies() -> None:
    layer = Image(np.zeros((4, 6, 8)), scale=(5, 0.5, 0.25), translate=(1, 2, 3), units=("mm",) * 3, rotate=(10, 0, 0))
    geometry = whole_picture(layer).geometry
    assert geometry.spacing == pytest.approx((5, 0.5, 0.25))
    np.testing.assert_allclose(geometry.affine, layer._transforms[1:].simplified.affine_matrix, atol=1e-9)
    assert whole_picture(Image(np.zeros((4, 6, 8)))).geometry == Geometry()


def test_sub_bands_have_their_own_scale_per_axis() -> None:
    layer = world((32, 48))
    band = {"array": "level1_band0", "name": "b", "level": 1, "direction": 0, "edge_angle": 67.5, "energy": 2.0}
    band |= {"scale": (2.0, 8.0), "translate": (0.5, 3.5)}
    arrays = {"level1_band0": np.random.default_rng(0).normal(size=(16, 6))}
    (image,) = map(made, subband_layers([band], arrays, Source.of(layer)))
    for i, j in ((0, 0), (15, 5), (7, 2)):
        np.testing.assert_allclose(to_world(image, (i, j)), to_world(layer, (2 * i + 0.5, 8 * j + 3.5)), atol=1e-9)
    low, high = image.contrast_limits
    assert low == -high


def test_only_the_strongest_direction_is_shown_at_first() -> None:
    common = {"scale": (2, 2), "translate": (0.5, 0.5), "direction": 0}
    bands = [
        {"array": "lowpass", "name": "rest", "level": 2, "edge_angle": None, "energy": 9.0, **common},
        {"array": "a", "name": "a", "level": 0, "edge_angle": 0.0, "energy": 1.0, **common},
        {"array": "b", "name": "b", "level": 0, "edge_angle": 90.0, "energy": 2.0, **common},
    ]
    arrays = {name: np.ones((4, 4)) for name in ("lowpass", "a", "b")}
    layers = map(made, subband_layers(bands, arrays, Source.of(world((8, 8)))))
    assert {layer.name: layer.visible for layer in layers} == {
        "Rest": False,
        "Edges at 0° (level 0)": False,
        "Edges at 90° (level 0)": True,
    }


@pytest.mark.parametrize("count", [3, 4])
def test_three_or_four_classes_are_no_rgb_picture(count: int) -> None:
    classes = [{"name": f"c{i}", "color": "#102030"} for i in range(count)]
    shape = (40, 50)
    arrays = {"labels": np.zeros(shape, np.uint8), "probabilities": np.zeros((count, *shape), np.float32)}
    layers = [made(d) for d in segmentation_layers(arrays, classes, Source.of(world(shape)), by="x", axes="yx")]
    assert len(layers) == count
    assert not any(getattr(layer, "rgb", False) for layer in layers)
    assert all(layer.data.shape == shape for layer in layers)


def test_classes_have_their_colours_and_names() -> None:
    colors = class_colors(CLASSES)
    np.testing.assert_allclose(colors.map(1), np.array([0xE4, 0x57, 0x2E, 0xFF]) / 255, atol=1 / 255)
    assert colors.map(0)[3] == 0
    data = segmentation_layers({"labels": np.ones((4, 4), int)}, CLASSES, Source.of(world((4, 4))), by="x", axes="yx")
    labels = made(data[0])
    assert list(labels.features["class"]) == ["background", "vessel"]
    assert "class: vessel" in str(labels.get_status(to_world(labels, (1, 1)), world=True)["coordinates"])


@pytest.mark.parametrize(
    ("shape", "labels", "axes"),
    [
        ((4, 4), None, "yx"),
        ((3, 4, 4), None, "zyx"),
        ((3, 4, 4), ("t", "y", "x"), "tyx"),
        ((3, 4, 4), ("Channel", "Y", "X"), "cyx"),
        ((2, 3, 4, 4), None, "tzyx"),
        ((3, 4, 4), ("a", "b", "c"), "zyx"),
    ],
)
def test_axes_come_from_the_labels_or_from_the_number(shape: tuple[int, ...], labels: Any, axes: str) -> None:
    assert axes_of(Image(np.zeros(shape), axis_labels=labels, rgb=False)) == axes


class Slide:
    """Pixels that are read when they are asked for, more than any memory holds."""

    shape, dtype, ndim = (1 << 24, 1 << 24), np.dtype(np.uint8), 2

    def __getitem__(self, index: Any) -> "Slide":
        return self

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise AssertionError("it was read")


def test_a_slide_too_large_for_the_memory_is_refused_before_it_is_read() -> None:
    layer = SimpleNamespace(name="slide", data=Slide(), multiscale=False, ndim=2)
    source = Source.of(Image(np.zeros((4, 4))))
    for read in (lambda: whole(layer), lambda: slice_of(layer, source)):
        with pytest.raises(ResourceError, match=r"^'slide' is 281475.0 GB unpacked, .* GB of memory are free"):
            read()


def test_too_many_axes_are_refused_in_a_sentence() -> None:
    with pytest.raises(ParameterError, match="'big' has 6 axes"):
        axes_of(Image(np.zeros((1,) * 6), name="big"))
