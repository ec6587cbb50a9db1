"""The range of an image is the same however the image is cut, and that of numpy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from rskd.config import ModelSpec
from rskd.models import normalise as module
from rskd.models.normalise import measure, normalise, scaled

DTYPES = [np.uint8, np.int16, np.uint16, np.int32, np.float16, np.float32, np.float64, bool]
KINDS = ["zscore", "percentile"]


def spec(kind):
    return ModelSpec(name="any", normalisation=kind)


def random_image(dtype, *shape):
    values = np.random.default_rng(0).normal(20, 60, shape)
    return (values > 0 if dtype is bool else np.clip(values, 0, 250)).astype(dtype)


def by_numpy(channel, kind):
    values = np.asarray(channel, np.float32).astype(np.float64)
    if kind == "zscore":
        return values.mean(), values.std()
    low, high = np.percentile(values, (1, 99))
    return (high + low) / 2, (high - low) / 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_ranges_are_those_of_numpy(dtype, kind):
    image = random_image(dtype, 3, 57, 83)
    expected = [by_numpy(channel, kind) for channel in image]
    np.testing.assert_allclose(measure(lambda: [image], spec(kind)), expected, rtol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_ranges_do_not_depend_on_the_cut(dtype, kind, monkeypatch):
    image = random_image(dtype, 2, 57, 83)
    whole = measure(lambda: [image], spec(kind))
    monkeypatch.setattr(module, "_PIECE", 101)
    cut = measure(lambda: [image[:, :20], image[:, 20:, 30:], image[:, 20:, :30]], spec(kind))
    exact = kind == "percentile" or (np.dtype(dtype).kind in "biu" and np.dtype(dtype).itemsize <= 2)
    np.testing.assert_allclose(cut, whole, rtol=0 if exact else 1e-13)


@settings(deadline=None, max_examples=150)
@given(arrays.arrays(np.float32, (1, 7, 5), elements=st.floats(-(2.0**90), 2.0**90, width=32)))
def test_percentiles_of_any_floats(image):
    low, high = np.percentile(image.astype(np.float64), (1, 99))
    ((centre, width),) = measure(lambda: [image], spec("percentile"))
    np.testing.assert_allclose(
        (centre - width, centre + width), (low, high), rtol=0, atol=1e-12 * float(np.abs(image).max())
    )


def test_a_small_spread_far_from_zero_is_not_lost():
    image = (1e6 + np.array([[[0, 1], [2, 3]]])).astype(np.float64)
    ((mean, deviation),) = measure(lambda: [image[:, :1], image[:, 1:]], spec("zscore"))
    assert (mean, deviation) == (1e6 + 1.5, pytest.approx(1.25**0.5, rel=1e-12))


@pytest.mark.parametrize("kind", KINDS)
def test_values_that_are_not_finite_count_as_zero(kind):
    image = np.array([[[np.nan, 1, np.inf], [-np.inf, 4, 2]]], np.float32)
    np.testing.assert_array_equal(
        normalise(image, spec(kind)), normalise(np.array([[[0, 1, 0], [0, 4, 2]]]), spec(kind))
    )


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_scaled_is_the_same_however_an_image_lies_in_memory(dtype, monkeypatch):
    stored = np.random.default_rng(0).integers(0, 200, (9, 7, 3)).astype(dtype)  # H W C, as pictures are stored
    ranges = [(60, 20), (100, 50), (120, 0)]
    expected = np.stack([(stored[..., k] - np.float32(c)) * np.float32(w and 1 / w) for k, (c, w) in enumerate(ranges)])
    for piece in (1 << 20, 20):
        monkeypatch.setattr(module, "_PIECE", piece)
        found = scaled(stored.transpose(2, 0, 1), ranges)
        np.testing.assert_array_equal(found, expected)
        assert found.flags.c_contiguous
    with pytest.raises(ValueError, match="2 ranges for 3 channels"):
        scaled(stored.transpose(2, 0, 1), ranges[:2])


def test_scaled_leaves_its_argument_alone():
    image = np.array([[[4, 6]], [[1, 1]]], np.float32)
    np.testing.assert_array_equal(scaled(image, [(5, 2), (1, 0)]), [[[-0.5, 0.5]], [[0, 0]]])
    assert image[0, 0, 0] == 4
