"""SCCF: the gates against written-out ReviewKD and TransKD, HCL against brute force, and what must not happen."""

import math

import pytest
import torch
from torch.nn import functional as F

from rskd.config import FusionOptions
from rskd.distillation.fusion import (
    LOSSES,
    ChannelGate,
    Fusion,
    FusionTerm,
    channel_norm,
    channel_wise_loss,
    cosine_loss,
    hierarchical_context_loss,
)
from rskd.distillation.refine import REFINEMENTS, ChannelRefinement, SpatialRefinement


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def maps(channels, sizes=((16, 12), (8, 6), (4, 3)), batch=2):
    return [torch.randn(batch, channels, *size) for size in sizes]


def build(**options):
    return FusionTerm([6, 6, 6], [10, 10, 10], FusionOptions(width=16, **options))


def brute_force_hcl(student, teacher):
    def error(a, b):
        return sum((x - y) ** 2 for x, y in zip(a.flatten().tolist(), b.flatten().tolist(), strict=True)) / a.numel()

    def pool(x, side):
        height, width = x.shape[2:]
        out = torch.empty(*x.shape[:2], side, side)
        for i in range(side):
            for j in range(side):
                rows = slice(i * height // side, math.ceil((i + 1) * height / side))
                columns = slice(j * width // side, math.ceil((j + 1) * width / side))
                out[:, :, i, j] = x[:, :, rows, columns].mean((2, 3))
        return out

    loss, weights = error(student, teacher), 1.0
    n = 1
    for side in (4, 2, 1):
        if side >= min(student.shape[2:]):
            continue
        loss += 0.5**n * error(pool(student, side), pool(teacher, side))
        weights += 0.5**n
        n += 1
    return loss / weights


@pytest.mark.parametrize("size", [(9, 7), (8, 8), (4, 6), (3, 3), (2, 5), (1, 1)])
def test_hcl_is_the_formula(size):
    student, teacher = torch.randn(2, 3, *size), torch.randn(2, 3, *size)
    assert hierarchical_context_loss(student, teacher).item() == pytest.approx(brute_force_hcl(student, teacher), 1e-5)


@pytest.mark.parametrize("size", [(9, 7), (8, 8), (4, 6), (1, 1)])
def test_the_gradient_of_hcl_is_that_of_its_value(size):
    student, teacher = (torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(hierarchical_context_loss, (student, teacher))


def test_hcl_by_hand():
    """A difference of ±1 in a checkerboard: 1 at full size, 0 on every pooled map, weights 1, ½, ¼, ⅛."""
    sign = (torch.arange(8)[:, None] + torch.arange(8)) % 2 * 2.0 - 1
    loss = hierarchical_context_loss(sign[None, None], torch.zeros(1, 1, 8, 8))
    assert loss.item() == pytest.approx(1 / (1 + 1 / 2 + 1 / 4 + 1 / 8))


def test_spatial_gate_is_the_attention_based_fusion_of_reviewkd():
    fusion = Fusion(16, gate="space")
    stage, deeper = torch.randn(2, 16, 5, 7), torch.randn(2, 16, 5, 7)
    weight, bias = fusion.space.weight, fusion.space.bias
    gates = torch.einsum("oc,bchw->bohw", weight[:, :, 0, 0], torch.cat([stage, deeper], 1)) + bias[:, None, None]
    gates = 1 / (1 + torch.exp(-gates))
    expected = stage * gates[:, :1] + deeper * gates[:, 1:]
    torch.testing.assert_close(fusion(stage, deeper), expected, atol=1e-6, rtol=0)


def test_channel_gate_is_the_selective_fusion_of_transkd():
    fusion = Fusion(16, gate="channel").double()
    stage, deeper = torch.randn(2, 16, 5, 7).double(), torch.randn(2, 16, 5, 7).double()
    gate = fusion.channel
    pooled = (stage + deeper).mean((2, 3))
    hidden = pooled @ gate.squeeze[0].weight[:, :, 0, 0].T
    hidden = F.relu(F.group_norm(hidden, 4, gate.squeeze[1].weight, gate.squeeze[1].bias))
    both = (hidden @ gate.excite.weight[:, :, 0, 0].T).view(2, 2, 16)
    share = both.exp() / both.exp().sum(1, keepdim=True)
    expected = stage * share[:, 0, :, None, None] + deeper * share[:, 1, :, None, None]
    torch.testing.assert_close(fusion(stage, deeper), expected, atol=1e-6, rtol=0)


def test_both_weights_of_a_channel_add_up_to_one():
    first, second = ChannelGate(16)(torch.randn(3, 16, 4, 4))
    torch.testing.assert_close(first + second, torch.ones_like(first))


@pytest.mark.parametrize("refine", sorted(REFINEMENTS))
def test_refinement_changes_nothing_at_the_start(refine):
    student, teacher = maps(6), maps(10)
    term = build(refine=refine)
    plain = build(refine="none")
    plain.load_state_dict(term.state_dict(), strict=False)
    assert term(student, teacher).item() == plain(student, teacher).item()


@pytest.mark.parametrize("gate", ["space", "channel", "both"])
@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_gradient_reaches_every_part_of_the_student_and_none_of_the_teacher(gate, loss):
    student = [x.requires_grad_() for x in maps(6)]
    teacher = [x.requires_grad_() for x in maps(10)]
    term = build(gate=gate, loss=loss)
    term(student, teacher).backward()
    assert all(x.grad is None for x in teacher)
    assert all(x.grad.abs().sum() > 0 for x in student)
    silent = {name for name, p in term.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0}
    if loss == "cwd":  # a constant per channel drops out of a softmax over space
        silent -= {name for name in silent if name.startswith("leave") and name.endswith("bias")}
    assert all(name.startswith("refinements") for name in silent), silent
    assert term.strengths.grad.abs().min() > 0


def test_refinement_learns_once_its_strength_is_not_zero():
    term = build()
    torch.nn.init.constant_(term.strengths, 0.5)
    term(maps(6), maps(10)).backward()
    silent = {name for name, p in term.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0}
    assert not silent


@pytest.mark.parametrize("loss", [hierarchical_context_loss, channel_wise_loss, cosine_loss])
def test_losses_are_zero_for_equal_maps_and_positive_otherwise(loss):
    a, b = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8)
    assert loss(a, a).item() == pytest.approx(0, abs=1e-6)
    assert loss(a, b).item() > 0.01


def test_a_constant_output_cannot_beat_the_variance_of_the_teacher():
    """No collapse: the best constant leaves the variance of every pooled target."""
    teacher = channel_norm(torch.randn(2, 10, 8, 8))
    constant = teacher.mean((0, 2, 3), keepdim=True).expand_as(teacher)
    weights, bound = [1, 0.5, 0.25, 0.125], 0.0
    for weight, side in zip(weights, (8, 4, 2, 1), strict=True):
        pooled = F.adaptive_avg_pool2d(teacher, side)
        bound += weight * (pooled - pooled.mean((0, 2, 3), keepdim=True)).pow(2).mean().item()
    assert hierarchical_context_loss(constant, teacher).item() >= bound / sum(weights) - 1e-6


def test_a_teacher_of_another_grid_is_pooled():
    term = build()
    teacher = maps(10, sizes=((32, 24), (8, 6), (2, 2)))
    assert torch.isfinite(term(maps(6), teacher))


def test_two_way_softmax_of_the_channel_refinement():
    refine = ChannelRefinement(16)
    x = torch.randn(2, 16, 5, 5)
    rich, plain = x.chunk(2, 1)
    rich, plain = refine.squeeze_rich(rich), refine.squeeze_plain(plain)
    first = refine.groupwise(rich) + refine.pointwise_rich(rich)
    second = torch.cat([refine.pointwise_plain(plain), plain], 1)
    a, b = first.mean((2, 3)).exp(), second.mean((2, 3)).exp()
    expected = (a / (a + b))[:, :, None, None] * first + (b / (a + b))[:, :, None, None] * second
    torch.testing.assert_close(refine(x), expected, atol=1e-6, rtol=1e-5)


def test_spatial_refinement_weighs_the_whole_map_where_nothing_is_informative():
    refine = SpatialRefinement(8, threshold=1.0)
    x = torch.randn(2, 8, 4, 4)
    normed = F.group_norm(x, 4)
    weighted = torch.sigmoid(normed / 8) * x
    first, second = weighted.chunk(2, 1)
    expected = torch.cat([first + second, second + first], 1)
    torch.testing.assert_close(refine(x), expected, atol=1e-5, rtol=1e-4)


def test_spatial_refinement_keeps_what_informs_and_weighs_the_rest():
    """By its formula, place by place; and the gradient, by choosing instead of multiplying."""
    torch.manual_seed(5)
    refine, x = SpatialRefinement(8), torch.randn(2, 8, 4, 4, requires_grad=True)
    with torch.no_grad():
        refine.norm.weight.copy_(torch.linspace(-1, 1, 8))
    normed = refine.norm(x)
    weight = torch.sigmoid(normed * (refine.norm.weight.abs() / refine.norm.weight.abs().sum())[:, None, None])
    informs = weight > 0.5
    assert 0 < informs.float().mean() < 1
    strong, weak = torch.where(informs, x, weight * x), torch.where(informs, 0.0, weight * x)
    expected = strong + torch.cat([weak[:, 4:], weak[:, :4]], 1)
    torch.testing.assert_close(refine(x), expected, atol=1e-6, rtol=1e-5)
    factors, inputs = torch.randn_like(x), [x, refine.norm.weight]
    grads = [torch.autograd.grad((y * factors).sum(), inputs) for y in (refine(x), expected)]
    torch.testing.assert_close(*grads, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("refine", sorted(REFINEMENTS))
def test_finite_in_bfloat16(refine):
    term = build(refine=refine)
    torch.nn.init.constant_(term.strengths, 0.5)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.isfinite(term(maps(6), maps(10)))


def test_stages_must_match():
    with pytest.raises(ValueError, match="2 stages and the teacher 3"):
        FusionTerm([8, 8], [8, 8, 8], FusionOptions())


def test_stages_are_weighed_from_shallow_to_deep():
    student, teacher = maps(6), maps(10)
    term = build(gate="space", refine="none")
    state, losses = term.state_dict(), []
    for i in range(3):
        single = build(gate="space", refine="none", stage_weights=tuple(float(i == k) for k in range(3)))
        single.load_state_dict(state)
        losses.append(single(student, teacher))
    assert torch.stack(losses).mean().item() == pytest.approx(term(student, teacher).item(), rel=1e-6)
    weighted = build(gate="space", refine="none", stage_weights=(0.1, 0.5, 1))
    weighted.load_state_dict(state)
    expected = (0.1 * losses[0] + 0.5 * losses[1] + losses[2]) / 1.6
    assert weighted(student, teacher).item() == pytest.approx(expected.item(), rel=1e-6)
    deepest = build(gate="space", refine="none", stage_weights=(0, 0, 1))
    deepest.load_state_dict(state)
    assert deepest([x * 9 for x in student[:2]] + student[2:], teacher) == losses[2]  # sees nothing of the shallow ones


def test_stage_weights_are_one_for_each_stage():
    with pytest.raises(ValueError, match="names 2 weights, 3 stages are matched"):
        build(stage_weights=(1, 2))
    with pytest.raises(ValueError, match="all 0"):
        build(stage_weights=(0, 0, 0))
