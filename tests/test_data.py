"""Patches: geometry against direct indexing, and the promise that seed and step decide everything."""

import numpy as np
import pytest
import torch

from rskd.data import IGNORE, PatchSampler, Slice, cut
from rskd.errors import DataError


def plane(height=40, width=30, channels=2):
    rng = np.random.default_rng(0)
    image = torch.from_numpy(rng.standard_normal((channels, height, width), np.float32))
    return Slice("a", image, torch.from_numpy(rng.integers(0, 3, (height, width))))


@pytest.mark.parametrize("size", [8, 9])
def test_a_patch_without_turn_is_a_slice(size):
    source = plane()
    image, target = cut(source, (4 + (size - 1) / 2, 7 + (size - 1) / 2), torch.eye(2), size)
    torch.testing.assert_close(image, source.image[:, 4 : 4 + size, 7 : 7 + size], atol=1e-4, rtol=0)
    assert torch.equal(target, source.target[4 : 4 + size, 7 : 7 + size])


@pytest.mark.parametrize(
    ("turn", "expected"),
    [
        ([[-1.0, 0.0], [0.0, 1.0]], lambda x: x.flip(-1)),
        ([[1.0, 0.0], [0.0, -1.0]], lambda x: x.flip(-2)),
        ([[0.0, 1.0], [1.0, 0.0]], lambda x: x.mT),
        ([[0.0, -1.0], [1.0, 0.0]], lambda x: x.rot90(1, (-2, -1))),
    ],
)
def test_flips_and_quarter_turns_move_image_and_mask_together(turn, expected):
    source = plane()
    image, target = cut(source, (13.5, 15.5), torch.tensor(turn), 12)
    torch.testing.assert_close(image, expected(source.image[:, 8:20, 10:22]), atol=1e-4, rtol=0)
    assert torch.equal(target, expected(source.target[8:20, 10:22]))


def test_pixels_outside_of_the_image_have_no_label():
    _, target = cut(plane(), (0, 0), torch.eye(2), 20)
    assert (target[:9] == IGNORE).all()
    assert (target[:, :9] == IGNORE).all()
    assert (target[10:, 10:] >= 0).all()


def test_a_patch_larger_than_the_image_is_filled_by_reflection():
    image, target = cut(plane(10, 8), (4.5, 3.5), torch.eye(2), 32)
    assert torch.isfinite(image).all()
    assert (target >= 0).sum() == 80


def test_seed_and_step_decide_the_batch():
    def batches(seed, steps):
        sampler = PatchSampler([plane(), plane(50, 20)], patch=16, batch_size=3, seed=seed)
        return [sampler.batch(step) for step in steps]

    first, again, later = batches(1, [0, 5])[1], batches(1, [5])[0], batches(1, [6])[0]
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.targets, again.targets)
    assert not torch.equal(first.images, later.images)
    assert not torch.equal(first.images, batches(2, [5])[0].images)


def test_half_of_the_patches_look_for_the_foreground():
    """One foreground pixel in 200 × 200: about half of the patches contain it, by chance it would be 1 in 40."""
    target = torch.zeros(200, 200, dtype=torch.long)
    target[100, 100] = 1
    source = Slice("a", torch.zeros(1, 200, 200), target)
    sampler = PatchSampler([source], patch=32, batch_size=200, augment=False)
    share = (sampler.batch(0).targets == 1).any(2).any(1).float().mean().item()
    assert 0.4 < share < 0.65


def test_no_image_is_refused():
    with pytest.raises(DataError, match="no image"):
        PatchSampler([], patch=16, batch_size=1)
