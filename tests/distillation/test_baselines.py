"""What every method of the table owes: it teaches the student alone, stays finite, costs nothing when it is off."""

from dataclasses import replace

import pytest
import torch

from rskd.config import BaselineOptions, DistillOptions
from rskd.distillation.baselines.stages import Widths
from rskd.distillation.baselines.table import BASELINES, METHODS, method, stage_pairs
from rskd.distillation.features import Features, Taps
from rskd.distillation.objective import Objective
from rskd.distillation.texture import standardise
from rskd.errors import ParameterError
from rskd.models.presets import fresh_spec
from rskd.models.segmenter import Segmenter

EVERY = pytest.mark.parametrize("name", sorted(BASELINES))
TARGET = torch.tensor([[[0, 0, 1, 1]] * 4, [[1, -1, 0, 0]] * 4]).repeat_interleave(4, 1).repeat_interleave(4, 2)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def seen(widths, *, grad=False, grid=4):
    stages = tuple(torch.randn(2, c, grid, grid).requires_grad_(grad) for c in widths.stages)
    texture = standardise(torch.randn(2, widths.texture, 8, 8)).requires_grad_(grad)
    logits = torch.randn(2, 3, 16, 16).requires_grad_(grad)
    return Features(logits, (grid, grid), stages, (), texture)


def leaves(features):
    return [features.logits, *features.stages, features.texture]


def build(name, student, teacher):
    stages = len(stage_pairs(BASELINES[name].sees, 4, 4)) or 1
    narrow, wide = (replace(w, stages=w.stages[-stages:]) for w in (student, teacher))
    return BASELINES[name].build(narrow, wide, getattr(BaselineOptions(), name)), narrow, wide


NARROW, WIDE = Widths((8, 8, 8, 8), 4), Widths((12, 12, 12, 12), 6)


def test_every_method_has_options_and_every_option_a_method():
    assert set(BASELINES) == set(BaselineOptions.model_fields)


@EVERY
def test_only_the_student_is_taught(name):
    term, narrow, wide = build(name, NARROW, WIDE)
    student, teacher = seen(narrow, grad=True), seen(wide, grad=True, grid=8)
    term(student, teacher, TARGET).backward()
    assert all(x.grad is None for x in leaves(teacher))
    assert any(x.grad is not None and x.grad.abs().sum() > 0 for x in leaves(student))
    silent = [n for n, p in term.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    if name == "cwd_features":  # a constant per channel drops out of a softmax over space
        silent = [n for n in silent if n != "project.bias"]
    assert not silent


@EVERY
def test_finite_in_bfloat16_and_with_large_values(name):
    term, narrow, wide = build(name, NARROW, WIDE)
    student, teacher = seen(narrow, grad=True), seen(wide)
    with torch.autocast("cpu", torch.bfloat16):
        loss = term(student, teacher, TARGET)
    loss.backward()
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)
    large = replace(student, stages=tuple(1e3 * x for x in student.stages), logits=1e3 * student.logits)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.isfinite(term(large, teacher, TARGET))


def _make_identity(module):
    for layer in module.modules():
        if isinstance(layer, torch.nn.Conv2d) and layer.kernel_size == (1, 1) and layer.weight.shape[0] > 2:
            torch.nn.init.dirac_(layer.weight)
            if layer.bias is not None:
                torch.nn.init.zeros_(layer.bias)


@pytest.mark.parametrize("name", sorted(n for n, b in BASELINES.items() if not b.masked))
def test_zero_where_student_and_teacher_are_equal(name):
    term, widths, _ = build(name, WIDE, WIDE)
    _make_identity(term)
    if name == "reviewkd":  # entries and exits that change nothing, gates that let nothing through from below
        term.fusion.enter = torch.nn.ModuleList(torch.nn.Identity() for _ in widths.stages)
        term.fusion.leave = torch.nn.ModuleList(torch.nn.Identity() for _ in widths.stages)
        for gate in term.fusion.fusions:
            gate.space = torch.nn.Conv2d(24, 2, 1)
            torch.nn.init.zeros_(gate.space.weight)
            gate.space.bias.data = torch.tensor([100.0, -100.0])
    same = seen(widths)
    assert term(same, same, TARGET).abs().item() < 1e-5
    other = seen(widths)
    assert term(other, same, TARGET).item() > 1e-7


@pytest.mark.parametrize("name", ["ifvd", "emkd"])
def test_methods_on_masks_work_without_any_mask(name):
    term, narrow, wide = build(name, NARROW, WIDE)
    student, teacher = seen(narrow), seen(wide)
    bare = torch.full_like(TARGET, -1)
    assert term(student, teacher, bare).item() == term(student, teacher, teacher.logits.argmax(1)).item() > 0


@pytest.fixture(scope="module")
def networks():
    torch.manual_seed(0)
    return [Segmenter(fresh_spec(name, in_channels=1, classes=["a", "b"])) for name in ("rskd-nano", "rskd-micro")]


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_is_an_objective(name, networks):
    objective = Objective(*networks, method(name))
    images = torch.randn(2, 1, 32, 32)
    losses = objective(images, torch.randint(-1, 3, (2, 32, 32)))
    expected = {"alone": set(), "kd": {"logits"}, "balanced_kd": {"logits"}, "kl_importance": {"logits", "ranking"}}
    expected["rskd"] = {"logits", "ranking", "texture", "fusion"}
    assert set(losses) == {"task"} | expected.get(name, {"logits", name})
    assert all(torch.isfinite(loss) for loss in losses.values())
    weights = {n: objective.weight(n, ramp=0.5) for n in losses}
    total = sum(weights[n] * loss for n, loss in losses.items())
    torch.testing.assert_close(objective.total(losses, ramp=0.5), total)
    if name in BASELINES:
        assert weights[name] == pytest.approx(0.5 * BASELINES[name].weight)


def test_what_has_no_weight_is_neither_built_nor_observed(networks):
    objective = Objective(*networks, method("kd"))
    assert not objective.terms
    assert objective._student_taps == objective._teacher_taps == Taps()
    assert {n for n, _ in objective.named_parameters()} == {f"student.{n}" for n, _ in networks[0].named_parameters()}


def test_several_terms_share_what_is_observed(networks):
    options = DistillOptions.model_validate(
        {"baselines": {"fitnets": {"weight": 1}, "vitkd": {"weight": 1}, "at": {"weight": 1}}}
    )
    objective = Objective(*networks, options)
    images, targets = torch.randn(1, 1, 32, 32), torch.randint(0, 3, (1, 32, 32))
    losses = objective(images, targets)
    for name in ("fitnets", "at"):
        alone = Objective(*networks, DistillOptions.model_validate(method(name).model_dump() | {"task": 0}))
        alone.terms.load_state_dict({k: v for k, v in objective.terms.state_dict().items() if k.startswith(name)})
        torch.testing.assert_close(alone(images, targets)[name], losses[name])


def test_an_unknown_method_is_named():
    with pytest.raises(ParameterError, match="no method named 'hope': choose one of alone, kd, balanced_kd, rskd"):
        method("hope")
