from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import label

from rskd.cases import find_cases, read_case
from rskd.config import DataOptions, ModelSpec
from rskd.errors import ParameterError
from rskd.phantom import vessel_phantom, write_phantoms


@pytest.mark.parametrize("size", [16, 64, 129, 256])
@pytest.mark.parametrize("seed", range(5))
def test_a_phantom_is_a_picture_with_vessels_in_it(size: int, seed: int) -> None:
    image, mask = vessel_phantom(np.random.default_rng(seed), size)
    assert (image.shape, image.dtype) == ((size, size, 3), np.uint8)
    assert (mask.shape, mask.dtype) == ((size, size), np.uint8)
    assert set(np.unique(mask)) == {0, 255}
    assert 0.02 < (mask > 0).mean() < 0.6
    assert image.std() > 5


@pytest.mark.parametrize("seed", range(5))
def test_vessels_are_darker_thin_and_connected(seed: int) -> None:
    image, mask = vessel_phantom(np.random.default_rng(seed), 192)
    green, vessels = image[..., 1].astype(float), mask > 0
    assert green[vessels].mean() < 0.9 * green[~vessels].mean()
    assert label(vessels, np.ones((3, 3)))[1] <= 3  # no more pieces than trees
    widest = vessels
    for _ in range(6):  # nothing is wider than a twentieth of the picture
        widest = widest[1:-1, 1:-1] & widest[:-2, 1:-1] & widest[2:, 1:-1] & widest[1:-1, :-2] & widest[1:-1, 2:]
    assert widest.mean() < 0.02


def test_chance_comes_from_the_generator_alone() -> None:
    first, again, other = (vessel_phantom(np.random.default_rng(seed), 64) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    assert (first[1] != other[1]).any()


def test_a_written_set_is_a_training_set(tmp_path: Path) -> None:
    write_phantoms(tmp_path, count=3, size=32, seed=5)
    cases = find_cases(DataOptions(images=tmp_path / "images", masks=tmp_path / "masks"))
    assert len(cases) == 3
    expected = vessel_phantom(np.random.default_rng((5, 1)), 32)
    arrays = read_case(cases[1], ModelSpec(name="colour", in_channels=3))
    np.testing.assert_array_equal(arrays.image[0], expected[0].transpose(2, 0, 1))
    assert arrays.mask is not None
    np.testing.assert_array_equal(arrays.mask[0], expected[1] > 0)


def test_more_phantoms_begin_with_the_same_ones(tmp_path: Path) -> None:
    write_phantoms(tmp_path / "few", count=1, size=32)
    write_phantoms(tmp_path / "many", count=2, size=32)
    name = Path("images") / "phantom_000.png"
    assert (tmp_path / "few" / name).read_bytes() == (tmp_path / "many" / name).read_bytes()


def test_too_small_is_refused() -> None:
    with pytest.raises(ParameterError, match="size=8 leaves no room"):
        vessel_phantom(np.random.default_rng(0), 8)
