import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rskd.errors import ParameterError
from rskd.scan import AXES, Scan, move_axes

AXES_STRINGS = st.permutations(AXES).flatmap(
    lambda letters: st.integers(2, 5).map(lambda count: "".join(letters[:count]))
)


def array(axes: str) -> np.ndarray:
    """An array whose value at (t, c, z, y, x) tells the place, whatever the order of its axes."""
    sizes, weights = dict(zip(AXES, (2, 3, 4, 5, 6), strict=True)), dict(zip(AXES, 10 ** np.arange(5), strict=True))
    places = np.indices([sizes[axis] for axis in axes])
    return sum(place * weights[axis] for place, axis in zip(places, axes, strict=True))


@given(AXES_STRINGS, st.permutations(AXES))
def test_moving_axes_keeps_every_value_at_its_place(axes: str, order: list[str]) -> None:
    moved = move_axes(array(axes), axes, order)
    kept = "".join(axis for axis in order if axis in axes)
    assert [n for n, axis in zip(moved.shape, order, strict=True) if axis not in axes] == [1] * (5 - len(axes))
    np.testing.assert_array_equal(moved.reshape(array(kept).shape), array(kept))


def test_axes_that_have_no_place_are_refused() -> None:
    with pytest.raises(ParameterError, match="'zyx' cannot be brought into the order 'yx'"):
        move_axes(array("zyx"), "zyx", "yx")


@given(AXES_STRINGS)
def test_shape_of_space_and_number_of_channels(axes: str) -> None:
    if not {"y", "x"} <= set(axes):
        with pytest.raises(ParameterError, match="must contain y and x"):
            Scan(array(axes), axes)
        return
    scan = Scan(array(axes), axes)
    assert scan.spatial_axes == "".join(axis for axis in axes if axis in "zyx")
    assert scan.spatial_shape == tuple({"z": 4, "y": 5, "x": 6}[axis] for axis in scan.spatial_axes)
    assert scan.channel_count == (3 if "c" in axes else 1)


@pytest.mark.parametrize(
    ("axes", "fields", "words"),
    [
        ("yy", {}, "different letters"),
        ("yq", {}, "different letters"),
        ("zyx", {}, "names 3 dimensions, the image has 2"),
        ("yx", {"spacing": (1.0,)}, r"must be 2 positive numbers, for yx"),
        ("yx", {"spacing": (1.0, 0.0)}, "positive"),
        ("yx", {"spacing": (1.0, float("nan"))}, "positive"),
        ("yx", {"affine": np.eye(4)}, r"2 spatial axes need \(3, 3\)"),
    ],
)
def test_descriptions_that_do_not_fit_are_refused(axes: str, fields: dict, words: str) -> None:
    with pytest.raises(ParameterError, match=words):
        Scan(np.zeros((5, 6)), axes, **fields)


def test_results_stay_in_the_world_of_their_scan() -> None:
    scan = Scan(array("zyxc"), "zyxc", spacing=(3.0, 2.0, 1.0), units="mm", affine=np.eye(4), channels=("r", "g", "b"))
    labels = scan.like(array("zyx"), "zyx")
    assert (labels.spacing, labels.units, labels.channels) == ((3.0, 2.0, 1.0), "mm", ())
    assert labels.affine is scan.affine
