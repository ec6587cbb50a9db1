"""The promise that seed and step decide everything, with views without end and with a pool of them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rskd.config import AugmentOptions, SamplingOptions
from rskd.data import PatchSampler, Slice
from rskd.errors import DataError


def plane(height=40, width=30, channels=2):
    rng = np.random.default_rng(0)
    image = torch.from_numpy(rng.standard_normal((channels, height, width), np.float32))
    return Slice("a", image, torch.from_numpy(rng.integers(0, 3, (height, width))))


PLANES = [plane(), plane(50, 20)]


def sampler(planes=PLANES, **options):
    return PatchSampler(planes, **{"patch": 16, "batch_size": 3, "seed": 1, **options})


def same(first, second):
    tensors = all(torch.equal(getattr(first, name), getattr(second, name)) for name in ("images", "targets"))
    return tensors and (first.cases, first.views) == (second.cases, second.views)


@pytest.mark.parametrize("views", [None, 5, 2])
def test_seed_and_step_decide_the_batch(views):
    run = [sampler(views=views).batch(step) for step in range(7)]
    resumed = sampler(views=views)
    assert all(same(resumed.batch(step), run[step]) for step in (5, 6, 2))
    assert not torch.equal(run[5].images, run[6].images)
    assert not torch.equal(run[5].images, sampler(views=views, seed=2).batch(5).images)


@settings(deadline=None)
@given(st.integers(1, 20), st.integers(1, 7), st.integers(0, 100))
def test_every_pass_over_the_pool_meets_every_view_once(views, batch_size, seed):
    drawn = sampler(views=views, batch_size=batch_size, seed=seed)
    steps = -(-3 * views // batch_size)
    met = [number for step in range(steps) for number in drawn.numbers(step)]
    for turn in range(3):
        assert sorted(met[turn * views : (turn + 1) * views]) == list(range(views))


def test_passes_differ_in_their_order():
    drawn = sampler(views=50, batch_size=50)
    assert drawn.numbers(0) != drawn.numbers(1)


def test_a_view_is_the_same_whenever_it_is_met():
    drawn = sampler(views=4, batch_size=4)
    first, second = drawn.batch(0), drawn.batch(1)
    for place, number in enumerate(first.views):
        again = second.views.index(number)
        assert torch.equal(first.images[place], second.images[again])
        assert torch.equal(first.targets[place], second.targets[again])


def test_without_a_pool_no_view_comes_twice():
    drawn = sampler()
    numbers = [number for step in range(5) for number in drawn.numbers(step)]
    assert numbers == list(range(15))


def test_the_digest_tells_views_apart():
    other = Slice("a", PLANES[0].image + 1, PLANES[0].target)
    relabelled = Slice("a", PLANES[0].image, PLANES[0].target.clamp(max=1))
    digests = [
        sampler(views=4).digest(),
        sampler(views=5).digest(),
        sampler(views=4, seed=2).digest(),
        sampler(views=4, patch=32).digest(),
        sampler(views=4, augment=None).digest(),
        sampler(views=4, augment=AugmentOptions(share=0.2)).digest(),
        sampler(views=4, sampling=SamplingOptions(foreground=0.4)).digest(),
        sampler([other, PLANES[1]], views=4).digest(),
        sampler([relabelled, PLANES[1]], views=4).digest(),
    ]
    assert len(set(digests)) == len(digests)
    assert digests[0] == sampler(views=4, batch_size=5).digest()  # how views are batched does not change them


def test_no_image_is_refused():
    with pytest.raises(DataError, match="no image"):
        sampler([])
