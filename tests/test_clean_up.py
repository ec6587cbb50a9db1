"""Clean-up of labels against scipy, scikit-image and plain loops."""

from collections import deque
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pydantic import ValidationError
from scipy import ndimage
from skimage import measure, morphology

from rskd.clean_up import clean_up, counts_voxels
from rskd.config import CleanUpOptions
from rskd.errors import ParameterError
from rskd.scan import Scan

NAMES = ["a", "b", "c"]


def cleaned(labels: np.ndarray, axes: str = "", **options: object) -> np.ndarray:
    scan = Scan(labels, axes or "zyx"[3 - labels.ndim :])
    result = clean_up(scan, CleanUpOptions.model_validate(options), NAMES)
    assert result.data.dtype == labels.dtype
    return result.data


def noise(*shape: int, seed: int = 0, classes: int = 3) -> np.ndarray:
    """Blobs of several classes, with islands and holes."""
    generator = np.random.default_rng(seed)
    fields = [ndimage.gaussian_filter(generator.normal(size=shape), 1.0) for _ in range(classes + 1)]
    return np.argmax(fields, axis=0).astype(np.uint8)


LABELS = st.one_of(
    arrays.arrays(
        np.uint8, arrays.array_shapes(min_dims=2, max_dims=3, min_side=1, max_side=7), elements=st.integers(0, 3)
    ),
    st.integers(0, 10_000).map(lambda seed: noise(9, 10, seed=seed)),
)
OPTIONS = st.fixed_dictionaries(
    {
        "min_size": st.dictionaries(st.sampled_from([*NAMES, "all"]), st.integers(0, 9)),
        "size_unit": st.just("voxels"),
        "keep_largest": st.lists(st.sampled_from([*NAMES, "all"]), max_size=2),
        "fill_holes": st.lists(st.sampled_from([*NAMES, "all"]), max_size=2),
        "holes_in": st.sampled_from(["volume", "slices"]),
    }
)


@pytest.mark.parametrize("shape", [(40, 50), (12, 20, 22)])
@pytest.mark.parametrize("least", [1, 2, 17, 1000])
def test_islands_against_scikit_image(shape: tuple[int, ...], least: int) -> None:
    labels = noise(*shape)
    expected = labels.copy()
    for label in (1, 2, 3):
        numbered = measure.label(labels == label, connectivity=labels.ndim)
        for region in measure.regionprops(numbered):
            if region.area < least:
                expected[numbered == region.label] = 0
    found = cleaned(labels, min_size={"all": least}, size_unit="voxels")
    np.testing.assert_array_equal(found, expected)
    assert (found != labels).any() == (least > 1)


@pytest.mark.parametrize("shape", [(40, 50), (12, 20, 22)])
def test_the_largest_component_against_scikit_image(shape: tuple[int, ...]) -> None:
    labels = noise(*shape)
    found = cleaned(labels, keep_largest=["b"])
    numbered = measure.label(labels == 2, connectivity=labels.ndim)
    largest = max(measure.regionprops(numbered), key=lambda region: region.area)
    np.testing.assert_array_equal(found == 2, numbered == largest.label)
    np.testing.assert_array_equal(found[labels != 2], labels[labels != 2])


@pytest.mark.parametrize("shape", [(40, 50), (12, 20, 22)])
def test_holes_of_a_single_class_against_scipy_and_scikit_image(shape: tuple[int, ...]) -> None:
    mask = noise(*shape, classes=1)
    found = cleaned(mask, fill_holes=["a"])
    np.testing.assert_array_equal(found, ndimage.binary_fill_holes(mask))
    np.testing.assert_array_equal(found, ~morphology.remove_small_objects(mask == 0, max_size=0) | _enclosed(mask == 0))
    assert (found != mask).any()


def _enclosed(background: np.ndarray) -> np.ndarray:
    """Background that does not reach the border, by scikit-image."""
    numbered = measure.label(background, connectivity=1)
    border = np.ones_like(background)
    border[(slice(1, -1),) * background.ndim] = False
    return background & ~np.isin(numbered, numbered[border])


def flood(labels: np.ndarray, label: int) -> np.ndarray:
    """Fill the holes of a class with plain loops."""
    shape, result, seen = labels.shape, labels.copy(), set()
    steps = [step for step in product((-1, 0, 1), repeat=labels.ndim) if sum(map(abs, step)) == 1]

    def around(place):
        return [tuple(np.add(place, step).tolist()) for step in steps]

    def inside(place):
        return all(0 <= i < n for i, n in zip(place, shape, strict=True))

    def reach(start, stop):
        """Places that can be reached over faces without entering `stop`; None if these leave the image."""
        found, queue = {start}, deque([start])
        while queue:
            for place in around(queue.popleft()):
                if not inside(place):
                    return None
                if place not in found and not stop(place):
                    found.add(place)
                    queue.append(place)
        return found

    for start in map(tuple, np.argwhere(labels == 0).tolist()):
        if start in seen or reach(start, lambda place: labels[place] == label) is None:
            continue
        region = reach(start, lambda place: labels[place] != 0)
        seen |= region
        if any(labels[place] == label for member in region for place in around(member)):
            for member in region:
                result[member] = label
    return result


@settings(max_examples=30, deadline=None)
@given(labels=LABELS)
def test_holes_against_plain_loops(labels: np.ndarray) -> None:
    expected = labels
    for label in (1, 3):
        expected = flood(expected, label)
    np.testing.assert_array_equal(cleaned(labels, fill_holes=["a", "c"]), expected)


@settings(max_examples=100, deadline=None)
@given(labels=LABELS, options=OPTIONS)
def test_cleaning_up_twice_is_once_and_every_step_moves_voxels_one_way(
    labels: np.ndarray, options: dict[str, object]
) -> None:
    before = labels.copy()
    once = cleaned(labels, **options)
    np.testing.assert_array_equal(labels, before)
    np.testing.assert_array_equal(cleaned(once, **options), once)
    removing = cleaned(labels, **(options | {"fill_holes": []}))
    assert (removing[removing > 0] == labels[removing > 0]).all()
    filling = cleaned(removing, fill_holes=options["fill_holes"], holes_in=options["holes_in"])
    np.testing.assert_array_equal(once, filling)
    assert (filling[removing > 0] == removing[removing > 0]).all()


def test_a_picture_by_hand() -> None:
    labels = np.array(
        [
            [1, 1, 1, 1, 1, 0, 2],
            [1, 0, 0, 0, 1, 0, 0],
            [1, 0, 2, 0, 1, 0, 1],
            [1, 0, 0, 0, 1, 0, 0],
            [1, 1, 1, 1, 1, 0, 0],
        ]
    )
    filled = cleaned(labels, fill_holes=["all"])
    np.testing.assert_array_equal(filled[:, :5], [[1] * 5, [1] * 5, [1, 1, 2, 1, 1], [1] * 5, [1] * 5])
    tidy = cleaned(labels, min_size=["all=2"], size_unit="voxels", fill_holes=["a"])
    np.testing.assert_array_equal(tidy, [[1] * 5 + [0, 0]] * 5)


def test_a_hole_of_another_class_stays_empty() -> None:
    labels = np.full((7, 7), 1)
    labels[2:5, 2:5] = 2
    labels[3, 3] = 0  # enclosed by both, touches b alone
    np.testing.assert_array_equal(cleaned(labels, fill_holes=["a"]), labels)
    assert cleaned(labels, fill_holes=["a", "b"])[3, 3] == 2


def test_holes_in_slices_and_in_the_volume() -> None:
    labels = np.zeros((3, 5, 5), int)
    labels[:, 1:4, 1:4] = 1
    labels[:, 2, 2] = 0  # a tunnel along z
    np.testing.assert_array_equal(cleaned(labels, fill_holes=["a"]), labels)
    assert (cleaned(labels, fill_holes=["a"], holes_in="slices")[:, 1:4, 1:4] == 1).all()
    turned = labels.transpose(1, 2, 0)
    np.testing.assert_array_equal(
        cleaned(turned, "yxz", fill_holes=["a"], holes_in="slices"),
        cleaned(labels, fill_holes=["a"], holes_in="slices").transpose(1, 2, 0),
    )


@pytest.mark.parametrize(
    ("spacing", "units", "unit", "size", "kept"),
    [
        ((2.0, 0.5, 0.5), "mm", "mm", 4.5, True),  # 9 voxels of 0.5 mm³
        ((2.0, 0.5, 0.5), "mm", "mm", 4.51, False),
        ((2.0, 0.5, 0.5), "mm", "ml", 0.0045, True),
        ((2.0, 0.5, 0.5), "mm", "ml", 0.00451, False),
        ((2.0, 0.5, 0.5), "um", "um", 4.5, True),
        ((2.0, 0.5, 0.5), "um", "mm", 4.6e-9, False),
        ((2.0, 0.5, 0.5), "mm", "voxels", 9, True),
        (None, None, "mm", 9, True),
        (None, None, "mm", 10, False),
    ],
)
def test_sizes_in_physical_units(spacing, units, unit, size, kept) -> None:
    labels = np.zeros((4, 6, 6), np.uint8)
    labels[1, 1:4, 1:4] = 1
    affine = None
    if spacing is not None:  # oblique: only the determinant counts
        turn = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
        affine = np.eye(4)
        affine[:3, :3] = turn @ np.diag(spacing)
    scan = Scan(labels, "zyx", spacing=spacing, units=units, affine=affine)
    options = CleanUpOptions(min_size={"a": size}, size_unit=unit)
    assert clean_up(scan, options, NAMES).data.any() == kept
    assert counts_voxels(scan, options) == (spacing is None)


def test_every_time_is_a_volume_of_its_own() -> None:
    times = np.stack([noise(8, 9, 10, seed=seed) for seed in range(3)])
    options = {"min_size": {"all": 5}, "size_unit": "voxels", "keep_largest": ["a"], "fill_holes": ["all"]}
    expected = np.stack([cleaned(volume, **options) for volume in times])
    np.testing.assert_array_equal(cleaned(times, "tzyx", **options), expected)
    np.testing.assert_array_equal(
        cleaned(times.transpose(3, 0, 2, 1), "xtyz", **options), expected.transpose(3, 0, 2, 1)
    )


def test_a_size_by_name_comes_before_that_of_all() -> None:
    assert CleanUpOptions(min_size=("a=3", "all=9")).sizes == {"all": 9, "a": 3}
    labels = np.zeros((3, 8), np.uint8)
    labels[1, :3], labels[1, 4:7] = 1, 2
    found = cleaned(labels, min_size=("a=3", "all=9"), size_unit="voxels")
    assert set(np.unique(found)) == {0, 1}


@pytest.mark.parametrize("entry", ["a", "a=", "=3", "a=-1", "a=many", "a=inf", "a=nan"])
def test_a_size_that_is_none(entry: str) -> None:
    with pytest.raises(ValidationError, match="names no class and size"):
        CleanUpOptions(min_size=(entry,))


def test_a_class_that_is_none() -> None:
    with pytest.raises(ParameterError, match="no class 'liver' to clean up: choose from a, b, c, or all"):
        cleaned(noise(8, 8), keep_largest=["liver"])
    with pytest.raises(ParameterError, match="this image is a picture"):
        cleaned(noise(8, 8), min_size={"a": 1}, size_unit="ml")
