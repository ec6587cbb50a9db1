"""The filter table: published identities, and the closed forms against written-out numbers."""

from typing import get_args

import numpy as np
import pytest
import pywt

from rskd.config import DirectionalFilter, PyramidFilter
from rskd.contourlet import DIRECTIONAL_FILTERS, PYRAMID_FILTERS
from rskd.contourlet.directional import directional_responses, directions
from rskd.contourlet.filters import directional_pair, fan_kernel, pyramid_pair
from rskd.errors import ParameterError


@pytest.mark.parametrize("name", PYRAMID_FILTERS)
def test_pyramid_filters_are_biorthogonal_and_sum_to_root_two(name: str) -> None:
    h, g = np.array(PYRAMID_FILTERS[name].analysis), np.array(PYRAMID_FILTERS[name].synthesis)
    product = np.convolve(h, g)
    even = product[(len(product) // 2) % 2 :: 2]
    delta = np.zeros_like(even)
    delta[len(even) // 2] = 1
    np.testing.assert_allclose(even, delta, atol=2e-14)
    np.testing.assert_allclose([h.sum(), g.sum()], np.sqrt(2), atol=1e-13)
    np.testing.assert_array_equal(h, h[::-1])
    np.testing.assert_array_equal(g, g[::-1])


@pytest.mark.parametrize(("name", "wavelet"), [("9-7", "bior4.4"), ("5-3", "bior2.2")])
def test_pyramid_filters_are_those_of_pywavelets(name: str, wavelet: str) -> None:
    theirs, pair = pywt.Wavelet(wavelet), PYRAMID_FILTERS[name]
    np.testing.assert_allclose(np.trim_zeros(theirs.dec_lo), pair.analysis, atol=1e-12)
    np.testing.assert_allclose(np.trim_zeros(theirs.rec_lo), pair.synthesis, atol=1e-12)


@pytest.mark.parametrize("name", DIRECTIONAL_FILTERS)
def test_prototypes_are_half_band(name: str) -> None:
    pair = DIRECTIONAL_FILTERS[name]
    product = np.polynomial.polynomial.polymul(pair.analysis, pair.synthesis)
    np.testing.assert_allclose(product[::2], [1, *[0] * (len(product[::2]) - 1)], atol=1e-15)


@pytest.mark.parametrize("name", DIRECTIONAL_FILTERS)
def test_fan_kernels_are_even_and_change_sign_by_pi(name: str) -> None:
    taps = DIRECTIONAL_FILTERS[name].kernel()
    np.testing.assert_allclose(taps, taps[::-1, ::-1], atol=1e-15)
    positions, _ = fan_kernel(name)
    assert (positions.sum(1) % 2 == 1).all()
    np.testing.assert_allclose(taps, -taps.T, atol=1e-15)  # exchanging rows and columns exchanges the fans


def test_maximally_flat_kernel_of_order_6_has_the_coefficient_that_the_published_table_misprints() -> None:
    taps = DIRECTIONAL_FILTERS["dmaxflat6"].kernel() * 2**20
    diamond = taps * (-1.0) ** np.arange(-6, 7)
    np.testing.assert_allclose(diamond[1, :7], [-63, 0, 882, 0, 495, 0, 444], atol=1e-9)
    np.testing.assert_allclose(diamond[6, :7], [0, 444, 0, 16460, 0, 389112, 0], atol=1e-9)


@pytest.mark.parametrize("order", range(1, 8))
def test_maximally_flat_kernels_are_flat_at_the_centres_of_the_fans(order: int) -> None:
    taps = DIRECTIONAL_FILTERS[f"dmaxflat{order}"].kernel()
    n = np.arange(-order, order + 1)
    signs = np.where(n % 2, -1.0, 1.0)
    assert (taps * signs).sum() == pytest.approx(1)  # at ω = (0, π)
    for i in range(2 * order):  # all derivatives of a total order below 2 · order vanish there
        for j in range(2 * order - i):
            if i + j:
                moment = ((n[:, None] / order) ** i * (n / order) ** j * taps * signs).sum()
                assert abs(moment) < 1e-9, (i, j)


def test_ladder_kernel_is_the_product_of_two_square_waves() -> None:
    v = [0.6300, -0.1930, 0.0972, -0.0526, 0.0272, -0.0144]

    def wave(nu: float) -> float:
        return sum(2 * (-1) ** i * tap * np.sin((i + 0.5) * nu) for i, tap in enumerate(v))

    positions, values = fan_kernel("pkva12")
    for omega in np.random.default_rng(0).uniform(-np.pi, np.pi, (20, 2)):
        expected = wave(omega[0] + omega[1]) * wave(omega[1] - omega[0])
        assert values @ np.cos(positions @ omega) == pytest.approx(expected, abs=1e-14)


@pytest.mark.parametrize("order", [2, 3, 4])
@pytest.mark.parametrize("name", ["pkva6", "pkva12", "dmaxflat4"])
def test_undecimated_directions_add_up_to_a_constant(name: str, order: int) -> None:
    analysis, synthesis = directional_responses(order, (18, 31), filters=name)
    np.testing.assert_allclose(sum(h * g for h, g in zip(analysis, synthesis, strict=True)), 2**order, atol=1e-12)


def test_white_noise_gains_of_the_ladder_bank() -> None:
    """The figures were published with the construction, rounded to three digits."""
    expected = {2: [1.032, 0.898, 1.032, 1.171], 3: [1.067, 1.043, 0.984, 0.836, 1.077, 1.014, 1.073, 1.312]}
    for order, gains in expected.items():
        analysis, _ = directional_responses(order, (64, 64), filters="pkva12")
        np.testing.assert_allclose([np.sqrt((h**2).mean()) for h in analysis], gains, atol=6e-4)


@pytest.mark.parametrize("order", [2, 3, 4, 5])
def test_sampling_lattice_of_every_direction_is_rectangular(order: int) -> None:
    """Follow the matrices of the tree once more: the lattice they generate is that of the stated decimation."""
    leaves = directions(order)
    assert len(leaves) == 2**order
    for leaf in leaves:
        *_, (matrix, sign, _) = leaf.path
        quincunx = np.array([[1, -1], [1, 1]]) if sign == 1 else np.array([[1, 1], [-1, 1]])
        generator = np.reshape(matrix, (2, 2)) @ quincunx
        assert abs(round(np.linalg.det(generator))) == np.prod(leaf.decimation)
        assert (generator % np.array(leaf.decimation)[:, None] == 0).all()


def test_every_filter_of_the_configuration_is_in_the_table() -> None:
    assert set(get_args(PyramidFilter)) <= set(PYRAMID_FILTERS)
    assert set(get_args(DirectionalFilter)) <= set(DIRECTIONAL_FILTERS)


def test_unknown_filters_are_refused_with_the_choice() -> None:
    with pytest.raises(ParameterError, match=r"pyramid='haar'.*use one of 9-7, 5-3, burt"):
        pyramid_pair("haar")
    with pytest.raises(ParameterError, match=r"directional='cd'.*pkva12"):
        directional_pair("cd")
