"""Patches: geometry against direct indexing and torchvision, mask and image moved together, no hidden randomness."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from torchvision import tv_tensors
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as V

from rskd.config import AugmentOptions
from rskd.data import IGNORE, Slice, augmented, cut
from rskd.data.augmentation import blurred, coarsened, random_bend, random_turn, recoloured

OFF = AugmentOptions(
    flip=False, rotation=0, scale=1, brightness=0, contrast=1, noise=0, elastic=0, blur=0, low_resolution=1
)
MOVES_ONLY = AugmentOptions(brightness=0, contrast=1, noise=0, blur=0, low_resolution=1, elastic=0.05, share=1)
EVERYTHING = AugmentOptions(share=1, elastic=0.05, blur=3, low_resolution=4)
seeds = st.integers(0, 2**32)


def rng(seed=0):
    return np.random.default_rng(seed)


def plane(height=40, width=30, channels=2):
    image = torch.from_numpy(rng().standard_normal((channels, height, width), np.float32))
    return Slice("a", image, torch.from_numpy(rng().integers(0, 3, (height, width))))


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


# ---------------------------------------------------------------------------------------- torchvision is the oracle


def test_turn_and_scale_are_those_of_torchvision():
    """torchvision moves the content, a turn says where to look: the one is the inverse of the other."""
    source = plane(33, 33)
    turn = torch.tensor([[math.cos(0.4), -math.sin(0.4)], [math.sin(0.4), math.cos(0.4)]]) / 1.2
    image, target = cut(source, (16, 16), turn, 33)
    expected_image, expected_target = (
        V.affine(x, angle=-math.degrees(0.4), translate=[0, 0], scale=1.2, shear=[0.0], fill=IGNORE, interpolation=mode)
        for x, mode in (
            (tv_tensors.Image(source.image), InterpolationMode.BILINEAR),
            (tv_tensors.Mask(source.target[None].float()), InterpolationMode.NEAREST),
        )
    )
    assert (target == expected_target[0]).float().mean() > 0.995  # a place between two pixels may be rounded either way
    inside = ndimage.binary_erosion(target >= 0)
    torch.testing.assert_close(image[:, inside], expected_image.as_subclass(torch.Tensor)[:, inside], atol=1e-4, rtol=0)


def test_elastic_deformation_is_that_of_torchvision():
    source = plane(24, 24)
    bend = random_bend(0.05, 24, rng())
    image, target = cut(source, (11.5, 11.5), torch.eye(2), 24, bend=bend)
    displacement = (bend * 2 / 24).permute(1, 2, 0)[None]
    expected_image = V.elastic(tv_tensors.Image(source.image), displacement)
    mask = tv_tensors.Mask(source.target[None].float())
    expected_target = V.elastic(mask, displacement, interpolation=InterpolationMode.NEAREST, fill=IGNORE)
    assert (target == expected_target[0]).float().mean() > 0.995
    inside = ndimage.binary_erosion(target >= 0)
    torch.testing.assert_close(image[:, inside], expected_image.as_subclass(torch.Tensor)[:, inside], atol=1e-4, rtol=0)


@pytest.mark.parametrize("sigma", [0.4, 1.0, 2.3])
def test_blur_is_a_gaussian(sigma):
    image = plane().image
    radius = math.ceil(3 * sigma)
    expected = [ndimage.gaussian_filter(x, sigma, mode="mirror", radius=radius) for x in image.numpy()]
    torch.testing.assert_close(blurred(image, sigma), torch.from_numpy(np.stack(expected)), atol=1e-5, rtol=0)


def test_low_resolution_takes_detail_and_leaves_the_rest():
    stripes = torch.tensor([-1.0, 1.0]).repeat(16).expand(1, 32, 32)
    ramp = torch.linspace(0, 1, 32).expand(1, 32, 32)
    assert coarsened(stripes, 2)[0, 4:-4, 4:-4].abs().max() < 0.3
    torch.testing.assert_close(coarsened(ramp, 2)[..., 4:-4], ramp[..., 4:-4], atol=5e-3, rtol=0)
    torch.testing.assert_close(coarsened(stripes, 1), stripes)


# ------------------------------------------------------------------------------------------------------- properties


@settings(deadline=None, max_examples=40)
@given(seeds, st.floats(-10, 50), st.floats(-10, 50))
def test_mask_and_image_stay_aligned(seed, row, column):
    """The image says where each pixel came from, so the mask must be what lies there."""
    rows, columns = torch.meshgrid(torch.arange(40.0), torch.arange(40.0), indexing="ij")
    labels = torch.from_numpy(rng(1).integers(0, 5, (40, 40)))
    source = Slice("a", torch.stack([rows, columns]), labels)
    image, target = augmented(source, (row, column), 24, MOVES_ONLY, rng(seed))
    inside = (image > 0.01).all(0) & (image < 38.99).all(0) & (target >= 0)
    told = (image - image.floor() - 0.5).abs().min(0).values > 1e-3  # not halfway between two pixels
    came_from = image.round().long()
    assert torch.equal(target[inside & told], labels[came_from[0], came_from[1]][inside & told])


@settings(deadline=None, max_examples=40)
@given(seeds, st.floats(-30, 60), st.floats(-30, 60), st.integers(8, 40))
def test_no_label_is_invented_and_every_value_is_finite(seed, row, column, patch):
    source = plane()
    image, target = augmented(source, (row, column), patch, EVERYTHING, rng(seed))
    assert set(target.unique().tolist()) <= {IGNORE, 0, 1, 2}
    assert image.shape == (2, patch, patch)
    assert torch.isfinite(image).all()


@settings(deadline=None, max_examples=20)
@given(seeds)
def test_what_is_ignored_stays_ignored(seed):
    source = plane()
    source.target[:] = IGNORE
    _, target = augmented(source, (20, 15), 16, EVERYTHING, rng(seed))
    assert (target == IGNORE).all()


@settings(deadline=None, max_examples=20)
@given(seeds)
def test_with_everything_off_nothing_happens(seed):
    source = plane()
    image, target = augmented(source, (11.5, 13.5), 16, OFF, rng(seed))
    torch.testing.assert_close(image, source.image[:, 4:20, 6:22], atol=1e-5, rtol=0)
    assert torch.equal(target, source.target[4:20, 6:22])
    assert torch.equal(recoloured(source.image, OFF, rng(seed)), source.image)


def test_only_the_generator_decides():
    def draw(global_seed):
        torch.manual_seed(global_seed)
        np.random.seed(global_seed)
        before = torch.get_rng_state(), np.random.get_state()[1].copy()
        drawn = augmented(plane(), (20, 15), 24, EVERYTHING, rng(7))
        assert torch.equal(before[0], torch.get_rng_state())
        assert (before[1] == np.random.get_state()[1]).all()
        return drawn

    with torch.random.fork_rng():
        (image, target), (again, target_again) = draw(1), draw(2)
    assert torch.equal(image, again)
    assert torch.equal(target, target_again)
    assert not torch.equal(image, augmented(plane(), (20, 15), 24, EVERYTHING, rng(8))[0])


def test_turns_stay_in_their_range():
    options = AugmentOptions(flip=False, rotation=30, scale=1.5)
    turns = torch.stack([random_turn(options, rng(seed)) for seed in range(300)])
    scales = torch.linalg.det(turns).sqrt()
    angles = torch.rad2deg(torch.atan2(turns[:, 1, 0], turns[:, 0, 0]))
    for values, low, high in ((scales.log(), -math.log(1.5), math.log(1.5)), (angles, -30, 30)):
        assert low <= values.min() < 0.9 * low
        assert 0.9 * high < values.max() <= high
    mirrored = torch.stack([random_turn(AugmentOptions(rotation=0, scale=1), rng(seed)) for seed in range(100)])
    assert {tuple(turn.flatten().tolist()) for turn in mirrored} == {(x, 0, 0, y) for x in (-1, 1) for y in (-1, 1)}


@pytest.mark.parametrize("seed", range(30))
def test_the_strongest_bend_does_not_fold_the_patch(seed):
    patch = 48
    x, y = random_bend(0.05, patch, rng(seed))
    xx, xy = x.diff(dim=1)[1:] + 1, x.diff(dim=0)[:, 1:]
    yx, yy = y.diff(dim=1)[1:], y.diff(dim=0)[:, 1:] + 1
    assert (xx * yy - xy * yx).min() > 0


def test_intensities_change_by_what_the_options_say():
    flat = torch.ones(500, 8, 8)
    gain = recoloured(flat, OFF.model_copy(update={"contrast": 1.25}), rng())[:, 0, 0]
    assert 0.8 <= gain.min() < 0.82
    assert 1.22 < gain.max() <= 1.25
    offset = recoloured(flat, OFF.model_copy(update={"brightness": 0.15}), rng())[:, 0, 0] - 1
    assert offset.std().item() == pytest.approx(0.15, rel=0.1)
    spreads = [recoloured(flat, OFF.model_copy(update={"noise": 0.1}), rng(seed)).std().item() for seed in range(50)]
    assert max(spreads) == pytest.approx(0.1, rel=0.1)
    assert min(spreads) < 0.01
