"""The CDM term: hand-computed cases, invariances, and where its gradients go."""

import math
import warnings

import pytest
import torch
from torch import Tensor

from rskd.config import TextureOptions
from rskd.contourlet import contourlet, noise_gains
from rskd.distillation.texture import TextureTerm, levels_for, standardise, texture_loss
from rskd.errors import ParameterError

LOSSES = ["mse", "energy", "cosine", "cwd"]


def maps(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("nonsubsampled", [False, True])
@pytest.mark.parametrize("loss", LOSSES)
def test_equal_maps_cost_nothing_and_others_do(loss: str, nonsubsampled: bool) -> None:
    student, teacher = maps(2, 3, 32, 32), maps(2, 3, 32, 32, seed=1)
    equal = texture_loss(teacher, teacher, loss=loss, nonsubsampled=nonsubsampled)
    assert abs(float(equal)) < 1e-12
    assert float(texture_loss(student, teacher, loss=loss, nonsubsampled=nonsubsampled)) > 0.01


@pytest.mark.parametrize("loss", LOSSES)
def test_a_constant_offset_is_no_texture_unless_the_lowpass_counts(loss: str) -> None:
    teacher = maps(1, 2, 32, 32)
    assert abs(float(texture_loss(teacher + 5, teacher, loss=loss))) < 1e-12
    with_lowpass = float(texture_loss(teacher + 5, teacher, loss=loss, lowpass=True))
    if loss == "cwd":  # a softmax over space does not see an offset
        assert abs(with_lowpass) < 1e-12
    else:
        assert with_lowpass > 0.01


def test_mse_equals_the_formula_written_out() -> None:
    """Mean over levels of the mean over directions of the mean square, each in units of its response to noise."""
    student, teacher = maps(2, 3, 32, 48), maps(2, 3, 32, 48, seed=1)
    ours, theirs = contourlet(student, (3, 2)), contourlet(teacher, (3, 2))
    gains = iter(noise_gains(ours.layout))
    total = 0.0
    for level in range(2):
        for k in range(2 ** (3 - level)):
            difference = (ours.bands[level][k] - theirs.bands[level][k]) / next(gains)
            total += float(difference.square().mean()) / 2 ** (3 - level) / 2
    assert float(texture_loss(student, teacher, levels=(3, 2))) == pytest.approx(total, rel=1e-12)


def test_white_noise_costs_its_variance_whatever_the_transform() -> None:
    """This is what the normalisation is for: no level and no direction outweighs the others."""
    student, teacher = maps(40, 1, 32, 32), torch.zeros(40, 1, 32, 32, dtype=torch.float64)
    for options in [
        {"levels": (2,)},
        {"levels": (4, 2), "pyramid": "burt"},
        {"nonsubsampled": True},
        {"lowpass": True},
    ]:
        assert float(texture_loss(3 * student, teacher, **options)) == pytest.approx(9, rel=0.03)


def test_cwd_is_the_mean_divergence_over_channels_and_directions() -> None:
    student, teacher = maps(1, 2, 16, 16), maps(1, 2, 16, 16, seed=1)
    gains = noise_gains(contourlet(student, (2,)).layout)
    expected = 0.0
    for k in range(4):
        for channel in range(2):
            p, q = (
                torch.softmax((contourlet(y, (2,)).bands[0][k][0, channel] / gains[k]).flatten(), 0)
                for y in (teacher, student)
            )
            expected += float((p * (p / q).log()).sum()) / 8
    assert float(texture_loss(student, teacher, levels=(2,), loss="cwd")) == pytest.approx(expected, rel=1e-10)


def test_cosine_ignores_scale_and_reaches_two_for_opposites() -> None:
    teacher = maps(1, 2, 32, 32)
    assert abs(float(texture_loss(7 * teacher, teacher, loss="cosine"))) < 1e-12
    assert float(texture_loss(-teacher, teacher, loss="cosine")) == pytest.approx(2)


def test_energy_tolerates_a_small_shift_that_mse_does_not() -> None:
    teacher = maps(4, 2, 64, 64)
    shifted = teacher.roll((1, 1), (-2, -1))
    unrelated = maps(4, 2, 64, 64, seed=1)
    for loss, low, high in [("mse", 0.9, 2.0), ("energy", 0.0, 0.75)]:
        ratio = float(texture_loss(shifted, teacher, loss=loss) / texture_loss(unrelated, teacher, loss=loss))
        assert low <= ratio < high, loss


def test_mse_commutes_with_the_projector() -> None:
    """Project then transform, or transform then project: the residual of either costs the same."""
    term = TextureTerm(6, 4, TextureOptions(levels=(3, 2))).double()
    student = maps(2, 6, 32, 32)
    weight = term.projector.weight.flatten(1)
    projected_after = contourlet(student, (3, 2)).map(lambda band: torch.einsum("oc,bchw->bohw", weight, band))
    projected_before = contourlet(torch.einsum("oc,bchw->bohw", weight, student), (3, 2))
    for a, b in zip(projected_after.arrays(), projected_before.arrays(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=0)


@pytest.mark.parametrize("loss", LOSSES)
def test_gradient_reaches_the_student_and_the_projector_alone(loss: str) -> None:
    term = TextureTerm(6, 4, TextureOptions(loss=loss))
    student = maps(2, 6, 28, 28, dtype=torch.float32).requires_grad_()
    teacher = maps(2, 4, 28, 28, seed=1, dtype=torch.float32).requires_grad_()
    term(student, teacher).backward()
    assert teacher.grad is None
    for gradient in (student.grad, term.projector.weight.grad):
        assert gradient is not None
        assert torch.isfinite(gradient).all()
        assert gradient.abs().max() > 0
    assert [name for name, _ in term.named_parameters()] == ["projector.weight"]


@pytest.mark.parametrize("fast", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_are_exact(loss: str, fast: bool) -> None:
    """In a random direction, and where there is time in every one."""
    teacher = maps(1, 2, 16, 16, seed=1)
    student = maps(1, 2, 16, 16).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: texture_loss(x, teacher, levels=(2,), loss=loss), student, fast_mode=fast)


@pytest.mark.parametrize(("student", "teacher"), [((56, 56), (28, 28)), ((14, 20), (28, 40)), ((15, 30), (31, 17))])
def test_the_larger_map_is_pooled(student: tuple[int, int], teacher: tuple[int, int]) -> None:
    term = TextureTerm(3, 5, TextureOptions())
    value = term(maps(2, 3, *student, dtype=torch.float32), maps(2, 5, *teacher, dtype=torch.float32))
    assert value.shape == ()
    assert math.isfinite(value)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_left_at_the_door(dtype: torch.dtype) -> None:
    term = TextureTerm(3, 5, TextureOptions())
    student, teacher = maps(2, 3, 28, 28).to(dtype), maps(2, 5, 28, 28, seed=1).to(dtype)
    exact = term(student.float(), teacher.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = term(student, teacher)
    assert value.dtype == torch.float32
    assert torch.equal(value, exact)
    assert torch.isfinite(term.to(torch.bfloat16)(student, teacher))


def test_scale_and_offset_of_the_teacher_do_not_matter() -> None:
    term = TextureTerm(3, 4, TextureOptions())
    student, teacher = maps(2, 3, 28, 28, dtype=torch.float32), maps(2, 4, 28, 28, seed=1, dtype=torch.float32)
    scale = torch.tensor([0.5, 1, 4, 20]).reshape(4, 1, 1)
    torch.testing.assert_close(term(student, teacher * scale - 3), term(student, teacher), rtol=1e-4, atol=0)


def test_standardise_leaves_dead_channels_at_zero() -> None:
    teacher = maps(2, 3, 16, 16)
    teacher[:, 1] = 7
    teacher[:, 2] *= 1e-9
    scaled = standardise(teacher)
    assert torch.equal(scaled[:, 1], torch.zeros_like(scaled[:, 1]))
    assert scaled[:, 2].abs().max() < 1e-4
    torch.testing.assert_close(scaled[:, 0].std(correction=0), torch.tensor(1.0, dtype=torch.float64))
    assert torch.equal(standardise(torch.ones(1, 2, 4, 4)), torch.zeros(1, 2, 4, 4))


def test_levels_follow_the_grid_and_too_small_ones_are_told() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert levels_for((28, 100)) == (3, 2)
        assert levels_for((14, 14)) == (2,)
    with pytest.warns(UserWarning, match="a 7×9 map carries no directions"):
        assert levels_for((7, 9)) == (0,)


def test_a_descent_on_the_term_recovers_the_texture() -> None:
    """Gradient descent on the map itself: everything but the mean and the lowpass comes back."""
    teacher = maps(1, 1, 32, 32, dtype=torch.float32)
    student = torch.zeros_like(teacher).requires_grad_()
    optimiser = torch.optim.Adam([student], lr=0.1)
    for _ in range(150):
        optimiser.zero_grad()
        loss = texture_loss(student, teacher)
        loss.backward()
        optimiser.step()
    assert float(loss) < 0.05
    bands = zip(contourlet(student.detach(), (3,)).bands[0], contourlet(teacher, (3,)).bands[0], strict=True)
    assert all(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1] > 0.95 for a, b in bands)


def test_what_is_impossible_is_refused() -> None:
    with pytest.raises(ParameterError, match=r"student \(1, 2, 16, 16\) and teacher \(1, 3, 16, 16\)"):
        texture_loss(maps(1, 2, 16, 16), maps(1, 3, 16, 16))
    with pytest.raises(ParameterError, match="loss='l1' is not known: use one of mse, energy, cosine, cwd"):
        texture_loss(maps(1, 2, 16, 16), maps(1, 2, 16, 16), loss="l1")
    with pytest.raises(ParameterError, match="levels contains 1"):
        texture_loss(maps(1, 2, 16, 16), maps(1, 2, 16, 16), levels=(1,))
