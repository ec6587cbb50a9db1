"""The two stages on their own, the cache, and the denoiser."""

import numpy as np
import pytest
import torch

from rskd.contourlet import (
    contourlet,
    denoise,
    directional_bank,
    icontourlet,
    idirectional_bank,
    laplacian_pyramid,
    nonsubsampled_contourlet,
)
from rskd.contourlet.banks import OPERATORS
from rskd.contourlet.cache import OperatorCache
from rskd.errors import ParameterError


@pytest.mark.parametrize("shape", [(32, 32), (2, 3, 17, 41)])
@pytest.mark.parametrize("order", [2, 3, 4])
def test_directional_bank_is_critically_sampled_and_invertible(order: int, shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).standard_normal(shape)
    bands = directional_bank(x, order, directional="dmaxflat4")
    if shape == (32, 32):
        assert sum(band.size for band in bands) == x.size
    np.testing.assert_allclose(idirectional_bank(bands, shape, directional="dmaxflat4"), x, atol=1e-12)


def test_directional_bank_refuses_what_does_not_exist() -> None:
    with pytest.raises(ParameterError, match="order=1"):
        directional_bank(np.zeros((8, 8)), 1)
    bands = directional_bank(np.zeros((16, 16)), 3)
    with pytest.raises(ParameterError, match=r"7 sub-bands .* do not belong to one directional bank"):
        idirectional_bank(bands[:7], (16, 16))
    with pytest.raises(ParameterError, match="do not belong to one directional bank"):
        idirectional_bank(bands[::-1], (16, 16))


@pytest.mark.parametrize("border", ["periodic", "symmetric"])
def test_laplacian_pyramid_reconstructs_odd_sizes(border: str) -> None:
    x = np.random.default_rng(0).standard_normal((2, 45, 31))
    pyramid = laplacian_pyramid(x, 3, pyramid="burt", border=border)
    assert [len(level) for level in pyramid.bands] == [1, 1, 1]
    np.testing.assert_allclose(icontourlet(pyramid), x, atol=1e-13)


def test_inverse_of_the_pyramid_removes_what_no_image_could_have_caused() -> None:
    """The dual-frame inverse is a projection: noise in the redundant sub-bands shrinks."""
    rng = np.random.default_rng(0)
    zero = laplacian_pyramid(np.zeros((64, 64)), 1, pyramid="burt")
    noise = zero.map(lambda band: rng.standard_normal(band.shape))
    energy = sum(float(e) for e in laplacian_pyramid(icontourlet(noise), 1, pyramid="burt").energy())
    assert energy < 0.9 * sum(float(e) for e in noise.energy())


def test_cache_is_bounded_and_keeps_what_was_used_last() -> None:
    cache, built = OperatorCache(limit=0), []
    x = torch.zeros(16, 16)
    contourlet(x, (2,))
    operators = next(reversed(OPERATORS._entries.values()))
    size = sum(op.nbytes for op in operators)
    cache.limit = 2 * size

    def build(name: str) -> object:
        built.append(name)
        return operators

    for name in ["a", "b", "a", "c", "a", "b"]:
        cache.get(name, lambda name=name: build(name))
    assert built == ["a", "b", "c", "b"]  # c pushed b out, not a
    assert len(cache) == 2
    assert cache.nbytes == 2 * size
    cache.limit = size - 1
    assert cache.get("d", lambda: build("d")) is operators
    assert len(cache) == 0


def test_operators_are_built_once_per_size_and_type() -> None:
    OPERATORS.clear()
    for _ in range(2):
        contourlet(torch.zeros(24, 24), (3, 2))
    assert len(OPERATORS) == 2
    contourlet(torch.zeros(24, 24, dtype=torch.float64), (3, 2))
    assert len(OPERATORS) == 4
    nonsubsampled_contourlet(torch.zeros(24, 24), (3, 2))
    assert len(OPERATORS) == 5


def square(size: int = 96) -> np.ndarray:
    image = np.zeros((size, size))
    image[size // 4 : size // 2, size // 4 : -size // 4] = 1
    return image


def test_denoising_brings_a_noisy_square_back() -> None:
    noisy = square() + 0.1 * np.random.default_rng(0).standard_normal((96, 96))
    error = np.std(denoise(noisy, 0.1) - square())
    assert error < 0.04
    assert abs(np.std(denoise(noisy) - square()) - error) < 0.003  # the estimated noise is as good


def test_denoising_without_noise_changes_nothing() -> None:
    x = torch.rand(2, 33, 47, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(denoise(x, 0.0), x, atol=1e-12, rtol=0)


def test_denoising_keeps_images_of_a_batch_and_types_apart() -> None:
    x = torch.rand(2, 40, 40, generator=torch.Generator().manual_seed(0))
    together = denoise(x)
    torch.testing.assert_close(together[1], denoise(x[1]))
    assert denoise(x.half(), 0.1).dtype == torch.float16
    with pytest.raises(ParameterError, match=r"sigma=-1.* is negative"):
        denoise(x, -1.0)


@pytest.mark.slow
def test_denoising_beats_wavelets_on_photographs() -> None:
    skimage = pytest.importorskip("skimage")
    from skimage import data, restoration

    images = {"camera": data.camera() / 255, "retina": data.retina()[..., 1] / 255}
    sigma = 25 / 255
    for name, image in images.items():
        noisy = image + sigma * np.random.default_rng(0).standard_normal(image.shape)
        theirs = restoration.cycle_spin(
            noisy, func=restoration.denoise_wavelet, max_shifts=3, func_kw={"method": "BayesShrink", "sigma": sigma}
        )
        ours = denoise(noisy, sigma)
        errors = [float(((y - image) ** 2).mean()) for y in (ours, theirs)]
        assert errors[0] <= errors[1], (name, skimage.__version__, errors)
