"""The measures of borders beside MONAI, brute force, and a case worked out by hand."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from monai.metrics import compute_hausdorff_distance, compute_surface_dice

from rskd.errors import DataError
from rskd.metrics import BorderDistances, VoxelSize, border_distances, surface_scores
from rskd.scan import Scan

FEW = settings(max_examples=30, deadline=None)
MASKS = arrays.arrays(bool, (4, 6, 5))
SPACINGS = st.tuples(*[st.sampled_from([0.5, 0.9765620231628418, 1.0, 3.27])] * 3)


def border_points(mask: np.ndarray) -> np.ndarray:
    """Voxels of which at least one of the six neighbours is not in the mask."""
    padded = np.pad(mask, 1)
    points = []
    for place in np.argwhere(padded):
        neighbours = [place + step for step in np.vstack([np.eye(mask.ndim, dtype=int), -np.eye(mask.ndim, dtype=int)])]
        if not all(padded[tuple(neighbour)] for neighbour in neighbours):
            points.append(place - 1)
    return np.array(points, dtype=float).reshape(-1, mask.ndim)


def brute_force(prediction: np.ndarray, truth: np.ndarray, spacing: tuple[float, ...]) -> list[np.ndarray]:
    a, b = border_points(prediction) * spacing, border_points(truth) * spacing
    distances = np.linalg.norm(a[:, None] - b[None], axis=-1)
    return [distances.min(1), distances.min(0)]


@FEW
@given(MASKS, MASKS, SPACINGS)
def test_distances_agree_with_brute_force(prediction, truth, spacing):
    assume(prediction.any() and truth.any())
    found = border_distances(prediction, truth, spacing=spacing)
    expected = brute_force(prediction, truth, spacing)
    np.testing.assert_allclose(np.sort(found.of_prediction), np.sort(expected[0]), atol=1e-12)
    np.testing.assert_allclose(np.sort(found.of_truth), np.sort(expected[1]), atol=1e-12)


def one_hot(mask: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.stack([~mask, mask]))[None].float()


@FEW
@given(MASKS, MASKS, SPACINGS, st.sampled_from([0.0, 0.6, 1.0, 2.0]))
def test_scores_agree_with_monai(prediction, truth, spacing, tolerance):
    assume(prediction.any() and truth.any())
    found = border_distances(prediction, truth, spacing=spacing)
    pair = (one_hot(prediction), one_hot(truth))
    hausdorff = compute_hausdorff_distance(*pair, percentile=95, spacing=spacing)
    assert found.hausdorff() == pytest.approx(hausdorff.item(), rel=1e-4, abs=1e-6)  # MONAI computes in 32 bits
    dice = compute_surface_dice(*pair, class_thresholds=[tolerance], spacing=spacing)
    assert found.surface_dice(tolerance) == pytest.approx(dice.item(), rel=1e-5)


@FEW
@given(MASKS, MASKS, SPACINGS)
def test_both_measures_are_symmetric_and_scale_with_the_spacing(prediction, truth, spacing):
    assume(prediction.any() or truth.any())
    found = border_distances(prediction, truth, spacing=spacing)
    swapped = border_distances(truth, prediction, spacing=spacing)
    doubled = border_distances(prediction, truth, spacing=[2 * n for n in spacing])
    assert found.hausdorff() == swapped.hausdorff()
    assert doubled.hausdorff() == pytest.approx(2 * found.hausdorff())
    for tolerance in (0.0, 0.7, 1.5):
        assert found.surface_dice(tolerance) == swapped.surface_dice(tolerance)
        assert doubled.surface_dice(2 * tolerance) == found.surface_dice(tolerance)


@FEW
@given(MASKS, MASKS)
def test_a_larger_tolerance_never_lowers_the_surface_dice(prediction, truth):
    assume(prediction.any() and truth.any())
    found = border_distances(prediction, truth)
    shares = [found.surface_dice(tolerance) for tolerance in (0, 1, 2, 4, 100)]
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert found.hausdorff(50) <= found.hausdorff() <= found.hausdorff(100)


@FEW
@given(MASKS, SPACINGS)
def test_a_perfect_prediction(mask, spacing):
    assume(mask.any())
    found = border_distances(mask, mask, spacing=spacing)
    assert (found.hausdorff(), found.surface_dice(0)) == (0, 1)


def test_by_hand():
    """Two rectangles of 3 x 3 pixels, one shifted by 2 columns of 3 mm; rows are 1 mm apart.

    Each border has the 8 outer pixels. Of the left one, the column on its left is 6 mm from the other's first column;
    that is nearer than anything else, for its three pixels; the two middle ones (top and bottom) are 3 mm away; the
    right column coincides with the left column of the other: 0. The other side mirrors it.
    """
    left, right = np.zeros((2, 5, 8), bool)
    left[1:4, 1:4] = right[1:4, 3:6] = True
    found = border_distances(left, right, spacing=(1, 3))
    np.testing.assert_allclose(np.sort(found.of_prediction), [0, 0, 0, 3, 3, 6, 6, 6])
    np.testing.assert_allclose(np.sort(found.of_truth), [0, 0, 0, 3, 3, 6, 6, 6])
    assert found.hausdorff() == pytest.approx(6)
    assert found.surface_dice(2.9) == pytest.approx(6 / 16)
    assert found.surface_dice(3) == pytest.approx(10 / 16)


def test_the_direction_of_a_shift_matters_where_spacing_differs():
    mask = np.zeros((9, 9, 9), bool)
    mask[3:6, 3:6, 3:6] = True
    shifts = [border_distances(np.roll(mask, 1, axis), mask, spacing=(5, 2, 1)).hausdorff() for axis in range(3)]
    assert shifts == [5, 2, 1]


def test_where_a_class_is_missing():
    mask, nothing = np.zeros((2, 4, 4), bool)
    mask[1, 1] = True
    for found in (border_distances(mask, nothing), border_distances(nothing, mask)):
        assert (found.hausdorff(), found.surface_dice(100)) == (math.inf, 0)
    neither = border_distances(nothing, nothing)
    assert math.isnan(neither.hausdorff())
    assert math.isnan(neither.surface_dice(1))


def test_a_class_that_fills_the_image_ends_at_its_edge():
    full = np.ones((5, 5), bool)
    inner = np.zeros((5, 5), bool)
    inner[1:4, 1:4] = True
    assert border_distances(full, inner).hausdorff(100) == pytest.approx(math.sqrt(2))
    assert border_distances(full, full).of_truth.size == 16


def test_rounding_of_the_spacing_does_not_decide():
    spacing = float(np.float32(1.1))
    assert spacing > 1.1
    found = border_distances([1, 0], [0, 1], spacing=[spacing])
    assert found.surface_dice(1.1) == 1


def test_the_larger_percentile_of_both_sides_counts():
    found = BorderDistances(np.zeros(10), np.r_[np.zeros(9), 8.0])
    assert found.hausdorff() == pytest.approx(np.percentile(found.of_truth, 95)) == pytest.approx(4.4)


def test_classes_are_measured_one_by_one_inside_of_the_region():
    truth = np.array([[1, 1, 0, 2, 2, 2]])
    prediction = np.array([[1, 0, 0, 0, 2, 0]])
    scores = surface_scores(prediction, truth, 4, spacing=(1, 2.0), tolerance=0)
    np.testing.assert_allclose(scores.surface_dice, [2 / 3, 1 / 2, np.nan])
    region = np.array([[0, 0, 0, 0, 1, 1]], bool)
    inside = surface_scores(prediction, truth, 4, spacing=(1, 2.0), tolerance=0, region=region)
    np.testing.assert_allclose(inside.surface_dice, [np.nan, 2 / 3, np.nan])
    np.testing.assert_allclose(inside.hd95, [np.nan, np.percentile([0, 2], 95), np.nan])


def test_other_shapes_are_refused():
    with pytest.raises(DataError, match=r"same shape, they have \(2, 2\), \(2,\)"):
        border_distances(np.ones((2, 2)), np.ones(2))


def test_a_spacing_counts_only_with_its_unit():
    data = np.zeros((2, 3, 4))
    assert VoxelSize.of(Scan(data, "zyx", spacing=(3.0, 1.0, 0.5), units="mm")) == VoxelSize((3.0, 1.0, 0.5), "mm")
    for spacing, units in (((3.0, 1.0, 0.5), None), (None, "mm"), (None, None)):
        assert VoxelSize.of(Scan(data, "zyx", spacing=spacing, units=units)) == VoxelSize((1, 1, 1), "voxel")
    assert VoxelSize.of(Scan(data, "xyc")).spacing == (1, 1)
    assert VoxelSize.of(Scan(data, "xyz", spacing=(1.0, 2.0, 3.0), units="um")) == VoxelSize((3.0, 2.0, 1.0), "um")
