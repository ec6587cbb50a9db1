"""Properties of the decimated transform."""

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rskd.config import ContourletOptions
from rskd.contourlet import (
    DIRECTIONAL_FILTERS,
    PYRAMID_FILTERS,
    Subbands,
    contourlet,
    directional_bank,
    icontourlet,
    max_levels,
    noise_gains,
    nonsubsampled_contourlet,
)
from rskd.contourlet.subbands import Layout
from rskd.errors import ParameterError

ORDERS = st.sampled_from([0, 2, 3, 4])


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def flat(subbands: Subbands[Tensor]) -> Tensor:
    return torch.cat([array.flatten() for array in subbands.arrays()])


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(8, 300),
    width=st.integers(8, 300),
    batch=st.sampled_from([(), (2,), (1, 3)]),
    levels=st.lists(ORDERS, min_size=1, max_size=3),
    pyramid=st.sampled_from(sorted(PYRAMID_FILTERS)),
    directional=st.sampled_from(sorted(DIRECTIONAL_FILTERS)),
    border=st.sampled_from(["periodic", "symmetric"]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    nonsubsampled=st.booleans(),
)
def test_reconstruction_is_perfect(
    height: int,
    width: int,
    batch: tuple[int, ...],
    levels: list[int],
    pyramid: str,
    directional: str,
    border: str,
    dtype: torch.dtype,
    nonsubsampled: bool,
) -> None:
    if nonsubsampled:  # the same arithmetic at every size: keep the memory small
        height, width = 8 + height // 4, 8 + width // 4
    x = noise(*batch, height, width, dtype=dtype)
    transform = nonsubsampled_contourlet if nonsubsampled else contourlet
    subbands = transform(x, levels, pyramid=pyramid, directional=directional, border=border)
    y = icontourlet(subbands)
    assert y.shape == x.shape
    assert y.dtype == x.dtype
    limit = 1e-12 if dtype == torch.float64 else 1e-5
    assert (y - x).abs().max() <= limit * x.abs().max()


@pytest.mark.parametrize("levels", [(3,), (3, 2), (4, 3, 2), (0, 3)])
def test_number_of_coefficients_is_that_of_the_laplacian_pyramid(levels: tuple[int, ...]) -> None:
    subbands = contourlet(noise(64, 96), levels)
    depth = len(levels)
    expected = 64 * 96 * (sum(0.25**j for j in range(depth)) + 0.25**depth)
    assert sum(array.numel() for array in subbands.arrays()) == expected == subbands.layout.coefficients
    assert subbands.layout.redundancy < 4 / 3


@pytest.mark.parametrize("shape", [(32, 32), (48, 80)])
@pytest.mark.parametrize("levels", [(2,), (3,), (4,), (3, 2)])
def test_shift_of_the_lattice_shifts_the_sub_bands(levels: tuple[int, ...], shape: tuple[int, int]) -> None:
    x = noise(*shape)
    for k, (band, before) in enumerate(contourlet(x, levels).items()):
        after = contourlet(x.roll(band.decimation, (0, 1)), levels).arrays()[k]
        torch.testing.assert_close(after, before.roll((1, 1), (0, 1)), atol=1e-12, rtol=0)


def test_transform_is_linear_and_commutes_with_mixing_of_channels() -> None:
    x, mixing = noise(2, 5, 28, 36), noise(3, 5, seed=1)
    mixed_after = contourlet(x, (3, 2)).map(lambda band: torch.einsum("oc,bchw->bohw", mixing, band))
    mixed_before = contourlet(torch.einsum("oc,bchw->bohw", mixing, x), (3, 2))
    torch.testing.assert_close(flat(mixed_before), flat(mixed_after), atol=1e-12, rtol=0)


def test_a_constant_has_no_bandpass() -> None:
    *bands, lowpass = contourlet(torch.full((64, 64), 3.0, dtype=torch.float64), (3, 2)).arrays()
    assert max(band.abs().max() for band in bands) < 1e-11
    torch.testing.assert_close(lowpass, torch.full_like(lowpass, 12.0))


@pytest.mark.parametrize("border", ["periodic", "symmetric"])
def test_backward_is_the_adjoint(border: str) -> None:
    x = noise(21, 30).requires_grad_()
    y = flat(contourlet(x, (3, 2), border=border))
    other = noise(y.numel(), seed=1)
    (transposed,) = torch.autograd.grad(y, x, other)
    assert torch.dot(y.detach(), other) == pytest.approx(float((x.detach() * transposed).sum()), abs=1e-10)


@pytest.mark.parametrize("levels", [(2,), (3, 0), (0, 2)])
def test_gradients_of_first_and_second_order(levels: tuple[int, ...]) -> None:
    x = noise(16, 16).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: contourlet(x, levels).arrays(), x)

    def cubed(x: Tensor) -> Tensor:
        return icontourlet(contourlet(x, levels).map(lambda band: band**3))

    assert torch.autograd.gradcheck(cubed, x[:8, :12].detach().requires_grad_())
    assert torch.autograd.gradgradcheck(cubed, x[:4, :8].detach().requires_grad_())


def energy(x: Tensor) -> Tensor:
    return icontourlet(contourlet(x, (3,)).map(lambda band: band**3)).square().sum()


def test_forward_mode_and_vmap_agree_with_the_plain_transform() -> None:
    x, tangent = noise(3, 16, 24), noise(3, 16, 24, seed=1)
    mapped = torch.func.vmap(torch.func.grad(energy))(x)
    torch.testing.assert_close(mapped, torch.stack([torch.func.grad(energy)(image) for image in x]))
    value, derivative = torch.func.jvp(energy, (x,), (tangent,))
    torch.testing.assert_close(value, energy(x))
    torch.testing.assert_close(derivative, (torch.func.grad(energy)(x) * tangent).sum())


@pytest.mark.slow
def test_compiled_it_agrees_with_the_plain_transform() -> None:
    x = noise(3, 16, 24)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.compile imports what it deprecates
        compiled = torch.compile(energy, backend="aot_eager")
        torch.testing.assert_close(compiled(x), energy(x))
        torch.testing.assert_close(
            torch.func.grad(energy)(x), torch.autograd.grad(compiled(y := x.clone().requires_grad_()), y)[0]
        )


def dense(transform: object, size: int) -> Tensor:
    units = torch.eye(size * size, dtype=torch.float64).reshape(-1, size, size)
    return torch.cat([array.flatten(1) for array in transform(units)], dim=1)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("levels", "pyramid", "bounds"),
    [
        ((0,), "9-7", (0.801, 1.747)),
        ((0,), "burt", (0.912, 1.030)),
        ((0,), "5-3", (0.934, 4.000)),
        ((3,), "9-7", (0.247, 4.285)),
        ((3, 2), "9-7", (0.247, 4.285)),
    ],
)
def test_frame_bounds(levels: tuple[int, ...], pyramid: str, bounds: tuple[float, float]) -> None:
    operator = dense(lambda x: contourlet(x, levels, pyramid=pyramid).arrays(), 32)
    eigenvalues = torch.linalg.eigvalsh(operator @ operator.T)
    assert (float(eigenvalues[0]), float(eigenvalues[-1])) == pytest.approx(bounds, abs=2e-3)


@pytest.mark.parametrize(("order", "bounds"), [(2, (0.320, 3.12)), (3, (0.195, 5.14)), (4, (0.110, 9.12))])
def test_frame_bounds_of_the_directional_bank(order: int, bounds: tuple[float, float]) -> None:
    operator = dense(lambda x: directional_bank(x, order), 32)
    assert operator.shape == (1024, 1024)
    singular = torch.linalg.svdvals(operator).square()
    assert (float(singular[-1]), float(singular[0])) == pytest.approx(bounds, abs=5e-3)


def predicted_direction(down: float, right: float, order: int) -> int:
    """Which direction a plane wave with these frequencies along rows and columns belongs to."""
    n = 2**order
    if abs(right) >= abs(down):
        return min(math.floor((down / right + 1) * n / 4), n // 2 - 1)
    return n // 2 + min(math.floor((1 - right / down) * n / 4), n // 2 - 1)


@pytest.mark.parametrize(("order", "share"), [(2, 0.99), (3, 0.9), (4, 0.5)])
def test_plane_waves_excite_the_sub_band_of_their_direction(order: int, share: float) -> None:
    size, hit = 256, set()
    rows, columns = np.mgrid[:size, :size]
    for k in range(2**order):
        half = 2 ** (order - 1)
        slope = 2 * (k % half + 0.5) / half - 1  # the middle of the wedge
        down, right = (slope, 1.0) if k < half else (1.0, -slope)
        scale = 0.33 * size / math.hypot(down, right)
        down, right = round(down * scale), round(right * scale)
        wave = np.cos(2 * np.pi * (down * rows + right * columns) / size)
        energies = np.array([(band**2).sum() for band in directional_bank(wave, order)])
        assert predicted_direction(down, right, order) == energies.argmax() == k
        assert energies.max() / energies.sum() > share
        hit.add(int(energies.argmax()))
    assert len(hit) == 2**order


@pytest.mark.parametrize("angle", range(3, 180, 12))
def test_described_angles_and_frequencies_are_those_of_the_strongest_sub_band(angle: int) -> None:
    """A wave seen on a screen (rows point down) at this angle, in the middle of the second level's passband."""
    x, y = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    cycles = 0.19 * 256 / max(abs(x), abs(y))
    rows, columns = np.mgrid[:256, :256] / 256
    wave = np.cos(2 * np.pi * (round(cycles * x) * columns - round(cycles * y) * rows))  # whole cycles: no seam
    subbands = contourlet(wave, (3, 3))
    facts, _ = max(list(subbands.items())[:-1], key=lambda item: float((item[1] ** 2).mean()))
    assert facts.level == 1
    assert facts.frequency[0] < 0.19 < facts.frequency[1]
    assert facts.wedge is not None
    assert facts.wave_angle is not None
    assert facts.wedge[0] <= angle <= facts.wedge[1]
    assert facts.edge_angle == pytest.approx((facts.wave_angle + 90) % 180)


@pytest.mark.parametrize("levels", [(0,), (2,), (3, 2), (4, 0, 3)])
@pytest.mark.parametrize("border", ["periodic", "symmetric"])
def test_described_geometry_places_every_sample(levels: tuple[int, ...], border: str) -> None:
    """The energy of the response to a point lies, on average over its phase, around the point."""
    x = torch.zeros(120, 136, dtype=torch.float64)
    x[60, 70] = 1
    for facts, band in contourlet(x, levels, border=border).items():
        assert tuple(band.shape) == facts.shape
        rows = facts.origin[0] + facts.decimation[0] * torch.arange(facts.shape[0])
        columns = facts.origin[1] + facts.decimation[1] * torch.arange(facts.shape[1])
        inside = ((rows >= 0) & (rows < 120))[:, None] & ((columns >= 0) & (columns < 136))  # not its mirror images
        power = band.square() * inside
        power /= power.sum()
        centre = float((power.sum(1) * rows).sum()), float((power.sum(0) * columns).sum())
        assert abs(centre[0] - 60) < facts.decimation[0], facts.name
        assert abs(centre[1] - 70) < facts.decimation[1], facts.name


@pytest.mark.parametrize("nonsubsampled", [False, True])
def test_nothing_leaks_to_the_opposite_edge_with_a_symmetric_border(nonsubsampled: bool) -> None:
    x = torch.zeros(96, 160, dtype=torch.float64)
    x[:, :4] = 1
    transform = nonsubsampled_contourlet if nonsubsampled else contourlet
    traces = {}
    for border in ("periodic", "symmetric"):
        subbands = transform(x, (2,), directional="pkva6", border=border)
        traces[border] = 0.0
        for facts, band in subbands.items():
            columns = facts.origin[1] + facts.decimation[1] * torch.arange(facts.shape[1])
            edge = (columns >= 140) & (columns < 160)
            traces[border] = max(traces[border], float(band[:, edge].abs().max()))
    assert traces["symmetric"] < 1e-13
    assert traces["periodic"] > 0.1


def test_symmetric_border_continues_even_images_without_a_seam() -> None:
    """A ramp jumps at the edge of the torus; extended symmetrically it has no strong detail anywhere."""
    ramp = torch.linspace(0, 1, 128, dtype=torch.float64).expand(64, 128)
    strongest = {
        border: max(float(band.abs().max()) for band in contourlet(ramp, (3, 2), border=border).arrays()[:-1])
        for border in ("periodic", "symmetric")
    }
    assert strongest["symmetric"] < 0.05 * strongest["periodic"]


@pytest.mark.parametrize("nonsubsampled", [False, True])
def test_noise_gains_are_those_of_simulated_noise(nonsubsampled: bool) -> None:
    x = noise(400, 32, 48)
    subbands = (nonsubsampled_contourlet if nonsubsampled else contourlet)(x, (3, 0, 2))
    for gain, (facts, band) in zip(noise_gains(subbands.layout), subbands.items(), strict=True):
        assert float(band.std()) == pytest.approx(gain, rel=0.03), facts.name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_are_computed_in_single_precision(dtype: torch.dtype) -> None:
    x = noise(2, 28, 28).to(dtype)
    subbands = contourlet(x, (3, 2))
    for ours, exact in zip(subbands.arrays(), contourlet(x.float(), (3, 2)).arrays(), strict=True):
        assert ours.dtype == dtype
        assert torch.equal(ours, exact.to(dtype))
    assert icontourlet(subbands).dtype == dtype


def test_autocast_changes_nothing() -> None:
    x = noise(2, 28, 28, dtype=torch.float32)
    plain = contourlet(x, (3, 2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = contourlet(x, (3, 2))
        assert torch.equal(icontourlet(cast), icontourlet(plain))
    assert torch.equal(flat(cast), flat(plain))


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "uint8", "int32", "bool"])
def test_numpy_in_numpy_out(dtype: str) -> None:
    x = (np.random.default_rng(0).random((3, 20, 33)) * 2).astype(dtype)
    y = icontourlet(contourlet(x, (3,)))
    assert isinstance(y, np.ndarray)
    assert y.dtype == (x.dtype if x.dtype.kind == "f" else np.float64)
    np.testing.assert_allclose(y, x, atol=2e-2 if dtype == "float16" else 1e-5)


def test_the_input_is_not_written_to() -> None:
    x = np.random.default_rng(0).random((32, 32))
    copy = x.copy()
    subbands = contourlet(x, (3, 2))
    kept = [array.copy() for array in subbands.arrays()]
    icontourlet(subbands)
    np.testing.assert_array_equal(x, copy)
    for array, before in zip(subbands.arrays(), kept, strict=True):
        np.testing.assert_array_equal(array, before)


def test_an_empty_batch_stays_empty() -> None:
    subbands = contourlet(torch.zeros(0, 3, 32, 32), (3,))
    assert subbands.bands[0][0].shape == (0, 3, 8, 16)
    assert icontourlet(subbands).shape == (0, 3, 32, 32)


def test_images_are_worked_on_in_chunks_without_a_trace() -> None:
    images = noise(40, 64, 64)  # more than fit into one chunk
    ours = contourlet(images, (3, 2))
    for k, image in enumerate(images):
        torch.testing.assert_close(ours.bands[1][2][k], contourlet(image, (3, 2)).bands[1][2], atol=1e-13, rtol=0)
    torch.testing.assert_close(icontourlet(ours), images, atol=1e-12, rtol=0)


def test_energy_and_rearranging() -> None:
    subbands = contourlet(noise(2, 32, 32), (2, 0))
    again = subbands.with_arrays(subbands.arrays())
    assert [len(level) for level in again.bands] == [4, 1]
    assert all(torch.equal(a, b) for a, b in zip(again.arrays(), subbands.arrays(), strict=True))
    for energy, array in zip(subbands.energy(), subbands.arrays(), strict=True):
        torch.testing.assert_close(energy, torch.stack([image.square().sum() for image in array]))


def test_names_are_for_people() -> None:
    names = [facts.name for facts in contourlet(noise(64, 64), (2, 0, 2)).describe()]
    assert names[:2] == ["level 1 (fine), edges at 112°", "level 1 (fine), edges at 68°"]
    assert names[4] == "level 2, all directions"
    assert names[-2:] == ["level 3 (coarse), edges at 158°", "lowpass"]
    assert len(set(names)) == len(names)


def test_defaults_are_those_of_the_configuration() -> None:
    options, layout = ContourletOptions(), contourlet(noise(64, 64)).layout
    assert (layout.pyramid, layout.directional) == (options.pyramid, options.directional)


@pytest.mark.parametrize(
    ("shape", "levels", "message"),
    [
        ((48, 64), (2,) * 6, "6 levels need 64 pixels along both axes, the image has 48×64: use at most 5 levels"),
        ((64, 64), (3, 1), "levels contains 1: two directions live on a quincunx lattice"),
        ((64, 64), (9,), "levels contains 9: .* 0 or 2 … 8"),
        ((64, 64), (), "levels is empty"),
        ((64,), (2,), r"shape \(64,\) is no image"),
        ((1, 64), (2,), "1 levels need 2 pixels"),
    ],
)
def test_what_is_impossible_is_refused_with_the_way_out(
    shape: tuple[int, ...], levels: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ParameterError, match=message):
        contourlet(torch.zeros(shape), levels)


def test_wrong_types_borders_and_shapes_are_refused() -> None:
    with pytest.raises(ParameterError, match=r"tensor of torch.int64 cannot be transformed: convert it with .float"):
        contourlet(torch.zeros(8, 8, dtype=torch.int64))
    with pytest.raises(ParameterError, match="complex128 cannot be transformed"):
        contourlet(np.zeros((8, 8), complex))
    with pytest.raises(ParameterError, match="border='zero' is not known: use one of periodic, symmetric"):
        contourlet(torch.zeros(8, 8), (2,), border="zero")
    subbands = contourlet(torch.zeros(32, 32), (3,))
    with pytest.raises(ParameterError, match=r"'level 1, edges at 126°' has shape \(3, 3\), expected \(8, 16\)"):
        icontourlet(subbands.with_arrays([torch.zeros(3, 3), *subbands.arrays()[1:]]))


@pytest.mark.parametrize(("shape", "most"), [((48, 512), 5), ((64, 64), 6), ((3, 1, 7), 0), ((2, 2), 1)])
def test_max_levels(shape: tuple[int, ...], most: int) -> None:
    assert max_levels(shape) == most
    if most:
        assert isinstance(contourlet(torch.zeros(shape), (0,) * most).layout, Layout)
