"""Test-time augmentation against turning and flipping by hand."""

import numpy as np
import pytest
import torch
from torch import nn

from rskd.config import BACKGROUND, ClassInfo, ModelSpec
from rskd.models.augmented import Augmented


class Skewed(nn.Module):
    """A convolution that sees left and right, up and down differently."""

    spec = ModelSpec(name="skewed", image_size=32, classes=(BACKGROUND, ClassInfo(name="a"), ClassInfo(name="b")))

    def __init__(self, *, symmetric: bool = False) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, 3, 3, padding=1)
        kernel = torch.randn(3, 1, 3, 3, generator=torch.Generator().manual_seed(0))
        if symmetric:
            turned = [torch.rot90(kernel, k, (2, 3)) for k in range(4)]
            kernel = sum([*turned, *(t.flip(3) for t in turned)])
        self.convolution.weight.data = kernel

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.convolution(images)


IMAGES = torch.randn(2, 1, 16, 24, generator=torch.Generator().manual_seed(1))


def probabilities(model: nn.Module, images: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        return model(images).softmax(1).double().numpy()


@pytest.mark.parametrize("rotations", [False, True])
def test_the_mean_over_all_sides_by_numpy(rotations: bool) -> None:
    model = Skewed()
    array = IMAGES.numpy()
    sides = []
    for vertical in (False, True):
        for horizontal in (False, True):
            axes = tuple(axis for axis, on in ((2, vertical), (3, horizontal)) if on)
            flipped = np.flip(array, axes).copy()
            sides.append(np.flip(probabilities(model, torch.from_numpy(flipped)), axes))
            if rotations:  # the transposed picture, flipped
                turned = np.ascontiguousarray(flipped.swapaxes(2, 3))
                sides.append(np.flip(probabilities(model, torch.from_numpy(turned)).swapaxes(2, 3), axes))
    assert len(sides) == (8 if rotations else 4)
    found = probabilities(Augmented(model, rotations=rotations), IMAGES)
    np.testing.assert_allclose(found, np.mean(sides, 0), atol=1e-6)
    assert np.abs(found - probabilities(model, IMAGES)).max() > 0.01


@pytest.mark.parametrize("rotations", [False, True])
def test_it_turns_with_the_image(rotations: bool) -> None:
    model = Augmented(Skewed(), rotations=rotations)
    expected = probabilities(model, IMAGES)
    np.testing.assert_allclose(np.flip(probabilities(model, IMAGES.flip(2)), 2), expected, atol=1e-6)
    turned = np.rot90(probabilities(model, torch.rot90(IMAGES, 1, (2, 3))), -1, (2, 3))
    assert np.allclose(turned, expected, atol=1e-6) == rotations


def test_a_network_that_turns_with_the_image_is_left_as_it_is() -> None:
    model = Skewed(symmetric=True)
    found = probabilities(Augmented(model, rotations=True), IMAGES)
    np.testing.assert_allclose(found, probabilities(model, IMAGES), atol=1e-6)
