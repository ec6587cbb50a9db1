"""Resampling whole and in windows, beside torch's own."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from rskd.backend import NumpyBackend
from rskd.backend_torch import TorchBackend
from rskd.resampling import AxisGrid, PlaneGrid

LENGTHS = st.integers(2, 40)
NUMPY = NumpyBackend()


def noise(*shape):
    return np.random.default_rng(0).normal(0, 3, shape).astype(np.float32)


def whole(values, shape, backend=NUMPY):
    grid = PlaneGrid.between(values.shape[1:], shape)
    return backend.get(grid.apply(backend.put(values), slice(0, shape[0]), slice(0, shape[1]), backend))


@settings(deadline=None)
@given(LENGTHS, LENGTHS, LENGTHS, LENGTHS)
def test_it_is_torchs_bilinear_with_antialiasing(height, width, new_height, new_width):
    values = noise(2, height, width)
    expected = F.interpolate(torch.from_numpy(values)[None], (new_height, new_width), mode="bilinear", antialias=True)
    for backend in (NUMPY, TorchBackend()):
        np.testing.assert_allclose(whole(values, (new_height, new_width), backend), expected[0], rtol=0, atol=5e-5)


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 9))
def test_windows_are_parts_of_the_whole(source, target, step):
    values = noise(2, source, 3)
    grid = AxisGrid(source, target)
    expected = grid.apply(values, slice(0, target), NUMPY)
    for first in range(0, target, step):
        window = slice(first, min(first + step, target))
        under = grid.under(window)
        assert 0 <= under.start < under.stop <= source
        np.testing.assert_allclose(grid.apply(values[:, under], window, NUMPY), expected[:, window], atol=1e-6)


def test_a_constant_stays_constant_and_a_ramp_a_ramp():
    np.testing.assert_allclose(whole(np.full((1, 5, 7), 3, np.float32), (11, 2)), 3, atol=1e-6)
    ramp = np.arange(8, dtype=np.float32)[None, None]
    np.testing.assert_allclose(whole(ramp, (1, 4))[0, 0, 1:3], [2.5, 4.5], atol=1e-6)  # by hand
    np.testing.assert_array_equal(whole(ramp, (1, 8)), ramp)
