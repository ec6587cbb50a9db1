"""The weighted energy of the sub-bands, against the sub-bands themselves."""

import pytest
import torch

from rskd.contourlet import contourlet, nonsubsampled_contourlet, weighted_energy


@pytest.mark.parametrize("transform", [contourlet, nonsubsampled_contourlet])
@pytest.mark.parametrize("levels", [(2,), (3, 2), (0,), (0, 3), (4, 0, 2)])
@pytest.mark.parametrize("shape", [(32, 48), (37, 26), (16, 16)])
def test_value_and_gradient_are_those_of_the_sub_bands(transform, levels, shape):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, *shape, generator=generator, dtype=torch.float64).requires_grad_()
    subbands = transform(images, levels)
    weights = torch.rand(len(subbands.arrays()), generator=generator, dtype=torch.float64).tolist()
    expected = sum(w * band.square().sum() for w, band in zip(weights, subbands.arrays(), strict=True))
    energy = weighted_energy(images, subbands.layout, weights)
    assert energy.item() == pytest.approx(expected.item(), rel=1e-12)
    (wanted,), (found,) = torch.autograd.grad(expected, images), torch.autograd.grad(3 * energy, images)
    assert torch.allclose(found, 3 * wanted, atol=1e-10)


def test_many_images_are_taken_in_parts():
    """More pixels than one part holds, so that several parts are added up."""
    images = torch.randn(12, 128, 128, generator=torch.Generator().manual_seed(0)).requires_grad_()
    subbands = contourlet(images, (3, 2))
    weights = [1.0] * len(subbands.arrays())
    energy = weighted_energy(images, subbands.layout, weights)
    (gradient,) = torch.autograd.grad(energy, images)
    assert energy.item() == pytest.approx(sum(band.square().sum().item() for band in subbands.arrays()), rel=1e-5)
    assert (images * gradient).sum().item() == pytest.approx(2 * energy.item(), rel=1e-5)  # a quadratic form


def test_a_constant_image_by_hand():
    """With weight on the lowpass alone, an image of threes has (2 · 3)² on a quarter of its pixels."""
    layout = contourlet(torch.zeros(8, 8), (2,)).layout
    assert weighted_energy(torch.full((8, 8), 3.0), layout, [0, 0, 0, 0, 1]).item() == pytest.approx(36 * 16)
    assert weighted_energy(torch.full((8, 8), 3.0), layout, [1, 1, 1, 1, 0]).item() == pytest.approx(0, abs=1e-8)


def test_half_precision_is_computed_in_float32_and_nothing_is_kept_without_a_gradient():
    layout = contourlet(torch.zeros(16, 16), (2,)).layout
    energy = weighted_energy(torch.ones(1, 16, 16, dtype=torch.bfloat16), layout, [1.0] * 5)
    assert energy.dtype == torch.float32
    assert energy.grad_fn is None
