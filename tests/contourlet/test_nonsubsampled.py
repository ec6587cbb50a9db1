"""The nonsubsampled transform: reconstruction alone would pass on a wrong one, so its passbands are tested too."""

import numpy as np
import pytest
import torch

from rskd.contourlet import inonsubsampled_contourlet, nonsubsampled_contourlet
from rskd.contourlet.directional import directional_responses
from rskd.contourlet.filters import PYRAMID_FILTERS

SHAPE = (45, 64)


def responses(levels: tuple[int, ...]) -> list[np.ndarray]:
    """Measure every sub-band's frequency response by transforming a point."""
    point = np.zeros(SHAPE)
    point[0, 0] = 1
    return [np.fft.fft2(array) for array in nonsubsampled_contourlet(point, levels).arrays()]


def lowpass_response(side: str, dilation: int) -> np.ndarray:
    """Sum the separable filter's taps directly, at `dilation` times the frequency; unit gain at zero."""
    taps = np.array(getattr(PYRAMID_FILTERS["9-7"], side)) / np.sqrt(2)
    n = np.arange(len(taps)) - len(taps) // 2
    rows, columns = (
        (taps * np.exp(-2j * np.pi * dilation * np.outer(np.arange(size) / size, n))).sum(1) for size in SHAPE
    )
    return np.outer(rows, columns)


def test_every_level_has_its_passband() -> None:
    """Level j is Π_{i<j} H(2ⁱω) · (1 − H(2ʲω) G(2ʲω)) · direction(2ʲω), the lowpass is the whole product."""
    levels = (3, 2, 0)
    measured = iter(responses(levels))
    before = np.ones(SHAPE, complex)
    for level, order in enumerate(levels):
        h, g = (lowpass_response(side, 2**level) for side in ("analysis", "synthesis"))
        if order:
            directions, _ = directional_responses(order, SHAPE, filters="pkva12", dilation=2**level)
        else:
            directions = [np.ones(SHAPE)]
        for direction in directions:
            np.testing.assert_allclose(next(measured), before * (1 - h * g) * direction, atol=1e-10)
        before = before * h
    np.testing.assert_allclose(next(measured), before, atol=1e-10)


@pytest.mark.parametrize("levels", [(0, 0, 0), (2, 2, 2)])
def test_levels_pass_octaves_one_below_the_other(levels: tuple[int, ...]) -> None:
    """A wave of 0.75 · 2⁻ʲ⁻¹ cycles per pixel, in the middle of level j, has its energy there."""
    columns = np.mgrid[:128, :128][1]
    for level in range(3):
        wave = np.cos(2 * np.pi * round(128 * 0.75 * 0.5 ** (level + 1)) / 128 * columns)
        subbands = nonsubsampled_contourlet(wave, levels)
        energies = [sum(float((band**2).sum()) for band in bands) for bands in subbands.bands]
        assert int(np.argmax(energies)) == level
        assert max(energies) > 0.8 * sum(energies)


@pytest.mark.parametrize("shape", [(32, 32), (37, 53)])
def test_any_roll_of_the_image_rolls_every_sub_band(shape: tuple[int, int]) -> None:
    x = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    before = nonsubsampled_contourlet(x, (3, 2))
    for shift in [(1, 0), (0, 1), (5, -7)]:
        after = nonsubsampled_contourlet(x.roll(shift, (0, 1)), (3, 2))
        for a, b in zip(after.arrays(), before.arrays(), strict=True):
            torch.testing.assert_close(a, b.roll(shift, (0, 1)), atol=1e-12, rtol=0)


def test_size_redundancy_and_gain() -> None:
    subbands = nonsubsampled_contourlet(np.full((37, 53), 3.0), (3, 2))
    assert {array.shape for array in subbands.arrays()} == {(37, 53)}
    assert subbands.layout.redundancy == len(subbands.arrays()) == 1 + 8 + 4
    np.testing.assert_allclose(subbands.lowpass, 3.0)
    assert max(np.abs(band).max() for band in subbands.arrays()[:-1]) < 1e-11


def test_changed_coefficients_are_averaged_by_the_inverse() -> None:
    """Independent noise in all sub-bands comes back weaker than the same noise in the image."""
    subbands = nonsubsampled_contourlet(np.zeros((64, 64)), (3, 2))
    rng = np.random.default_rng(0)
    noise = inonsubsampled_contourlet(subbands.map(lambda band: rng.standard_normal(band.shape)))
    assert noise.std() < 0.8


def test_gradients() -> None:
    x = torch.randn(9, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()

    def squared(x: torch.Tensor) -> torch.Tensor:
        return inonsubsampled_contourlet(nonsubsampled_contourlet(x, (2,)).map(lambda band: band**2))

    assert torch.autograd.gradcheck(squared, x)
