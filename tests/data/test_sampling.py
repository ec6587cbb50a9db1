"""Where patches are cut: as often here and there as the options say."""

from collections import Counter

import numpy as np
import pytest
import torch

from rskd.config import SamplingOptions
from rskd.data.sampling import JITTER, Places
from rskd.data.slices import IGNORE, Slice

DRAWS = 2000


def plane(case="a", classes=(), size=64):
    """A plane with one pixel at (10 k, 10 k) for every class k."""
    target = torch.zeros(size, size, dtype=torch.long)
    for number in classes:
        target[10 * number, 10 * number] = number
    return Slice(case, torch.zeros(1, size, size), target)


def unlabelled(case):
    return Slice(case, torch.zeros(1, 64, 64), torch.full((64, 64), IGNORE))


def draw(slices, **options):
    rng = np.random.default_rng(0)
    places = Places(slices, 16, SamplingOptions(**options))
    return [places.draw(rng) for _ in range(DRAWS)]


def shares(values):
    return {value: count / DRAWS for value, count in Counter(values).items()}


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_as_many_patches_look_for_the_foreground_as_asked(share):
    """One foreground pixel: by chance, a patch would be around it in 1 of 40 cases."""
    found = [abs(row - 30) <= 4 and abs(column - 30) <= 4 for _, (row, column) in draw([plane(classes=[3])],
             foreground=share)]  # fmt: skip
    assert np.mean(found) == pytest.approx(share + (1 - share) * (8 / 48) ** 2, abs=0.04)


def test_a_pixel_that_is_looked_for_is_in_the_patch():
    for _, centre in draw([plane(classes=[1])], foreground=1):
        assert max(abs(place - 10) for place in centre) <= JITTER * 16


@pytest.mark.parametrize(("balance", "rare"), [(1.0, 0.5), (0.5, 1 / 11), (0.0, 1 / 101)])
def test_a_rare_class_is_drawn_as_often_as_asked(balance, rare):
    """Class 1 has 100 pixels, class 2 has one: even, by the square root of 100 : 1, or as the pixels are."""
    source = plane(classes=[2])
    source.target[40:50, 40:50] = 1
    near = [row < 30 for _, (row, _) in draw([source], foreground=1, class_balance=balance)]
    assert np.mean(near) == pytest.approx(rare, abs=0.04)


def test_a_class_is_looked_for_only_where_it_is():
    slices = [plane("a", [1]), plane("b", [2]), plane("c")]
    drawn = draw(slices, foreground=1)
    assert {index for index, _ in drawn} == {0, 1}
    for index, (row, _) in drawn:
        assert abs(row - 10 * (index + 1)) <= 4


@pytest.mark.parametrize(("even", "share"), [(True, 0.5), (False, 0.1)])
@pytest.mark.parametrize("foreground", [0.0, 1.0])
def test_cases_are_drawn_alike_however_many_planes_they_have(even, share, foreground):
    slices = [plane("large", [1]) for _ in range(9)] + [plane("small", [1])]
    found = shares(slices[index].case for index, _ in draw(slices, even_cases=even, foreground=foreground))
    assert found["small"] == pytest.approx(share, abs=0.04)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_labelled_and_unlabelled_images_are_drawn_in_the_stated_proportion(share):
    slices = [plane("a", [1]), *(unlabelled(f"u{i}") for i in range(5))]
    found = shares(slices[index].case[0] for index, _ in draw(slices, labelled=share))
    assert found.get("a", 0) == pytest.approx(share, abs=0.04)


@pytest.mark.parametrize("slices", [[unlabelled("u")], [plane("a")]])
def test_without_foreground_patches_come_from_anywhere_inside(slices):
    rows = [row for _, (row, _) in draw(slices, labelled=0.5)]
    assert 7.5 <= min(rows) < 9
    assert 54 < max(rows) <= 55.5
