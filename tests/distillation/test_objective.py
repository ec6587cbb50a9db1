"""The objective: labelled, partly labelled and unlabelled images in one run, matched stages, calibrated weights."""

import math

import pytest
import torch
from pydantic import ValidationError

from rskd.config import DistillOptions, TaskLossOptions
from rskd.distillation import calibration
from rskd.distillation.calibration import Calibration, gradient_norms
from rskd.distillation.objective import Objective
from rskd.errors import ParameterError
from rskd.models.presets import fresh_spec
from rskd.models.segmenter import Segmenter


@pytest.fixture
def networks():
    torch.manual_seed(0)
    depths = {"rskd-nano": 3, "rskd-micro": 4}
    specs = [
        fresh_spec(name, in_channels=1, classes=["a"]).model_copy(update={"depth": depths[name]}) for name in depths
    ]
    return [Segmenter(spec).eval() for spec in specs]


@pytest.fixture
def batch():
    torch.manual_seed(1)
    return torch.randn(3, 1, 32, 32), torch.randint(0, 2, (3, 32, 32))


def test_unlabelled_images_teach_through_the_teacher_and_leave_the_task_alone(networks, batch):
    images, targets = batch
    mixed = targets.clone()
    mixed[1], mixed[2, :, 16:] = -1, -1  # one without a mask, one half scribbled
    objective = Objective(*networks, DistillOptions())
    losses = objective(images, mixed)
    labelled = torch.cat([targets[:1], targets[2:]])
    labelled[1, :, 16:] = -1
    alone = objective(images[[0, 2]], labelled)
    torch.testing.assert_close(losses["task"], alone["task"])
    bare = objective(images, torch.full_like(targets, -1))
    assert bare["task"].item() == 0
    for name in ("logits", "ranking", "texture", "fusion"):
        torch.testing.assert_close(bare[name], losses[name])


def test_the_decoders_maps_join_the_cascade_at_its_fine_end(networks, batch):
    student, teacher = networks
    objective = Objective(student, teacher, fusion(stages=2, decoder_maps=2))
    found = objective(*batch)["fusion"]
    maps = [recorded(model, batch[0], blocks) for model, blocks in zip(networks, ((1, 2), (2, 3)), strict=True)]
    term = objective.terms["fusion"]
    torch.testing.assert_close(found, term(*maps))
    found.backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert student.decoder.joins[1][0].weight.grad.abs().sum() > 0
    assert student.decoder.joins[2][0].weight.grad is None  # finer than what is compared


def recorded(model, images, blocks):
    """The decoder's maps at a quarter and an eighth of the image's size, then those of two blocks."""
    seen = {}
    places = [model.decoder.joins[1], model.decoder.joins[0], *(model.encoder.blocks[i] for i in blocks)]
    hooks = [m.register_forward_hook(lambda m, i, out: seen.update({m: out})) for m in places]
    model(images)
    for hook in hooks:
        hook.remove()
    side = images.shape[-1] // model.spec.patch_size
    tokens = [seen[block][:, 1:].mT.unflatten(2, (side, side)) for block in places[2:]]
    return [seen[places[0]], seen[places[1]], *tokens]


def test_decoders_without_a_common_resolution_are_refused(networks):
    student, _ = networks
    linear = Segmenter(student.spec.model_copy(update={"decoder": "linear", "name": "plain"}))
    with pytest.raises(ParameterError, match="rskd-nano and plain decode at no common resolution"):
        Objective(student, linear, fusion(decoder_maps=1))


def test_the_task_loss_is_the_one_asked_for(networks, batch):
    focal = Objective(*networks, DistillOptions(), TaskLossOptions(pixel="focal"))(*batch)
    plain = Objective(*networks, DistillOptions())(*batch)
    assert focal["task"] < plain["task"]
    assert focal["logits"] == plain["logits"]


def fusion(**fields):
    return DistillOptions.model_validate({"fusion": fields})


def test_stages_can_be_paired_by_hand(networks, batch):
    by_hand = fusion(student_stages=(0, 1, 2), teacher_stages=(0, 2, 3))
    torch.manual_seed(2)
    objective = Objective(*networks, by_hand)
    assert objective._student_taps.stages == (0, 1, 2)
    assert objective._teacher_taps.stages == (0, 2, 3)
    torch.manual_seed(2)
    automatic = Objective(*networks, fusion(stages=3))
    assert automatic._teacher_taps.stages == (0, 2, 3)
    assert torch.equal(objective(*batch)["fusion"], automatic(*batch)["fusion"])


@pytest.mark.parametrize(
    ("pairs", "message"),
    [(((0, 3), (0, 3)), r"student_stages=\(0, 3\): name stages from 0 to 2"), (((1, 0), (0, 1)), "shallow to deep")],
)
def test_stages_that_do_not_exist_are_named(networks, pairs, message):
    with pytest.raises(ParameterError, match=message):
        Objective(*networks, fusion(student_stages=pairs[0], teacher_stages=pairs[1]))
    with pytest.raises(ValidationError, match="name as many of each"):
        fusion(student_stages=(0, 1), teacher_stages=(0,))


def test_gradient_norms_are_those_of_the_formula():
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    unused = torch.zeros(3, requires_grad=True)
    norms = gradient_norms({"a": (x**3).sum(), "b": unused.sum()}, [x])
    assert norms == {"a": pytest.approx(math.hypot(3, 12)), "b": 0}


def test_calibration_brings_every_gradient_to_the_wanted_share(networks, batch, monkeypatch):
    monkeypatch.setattr(calibration, "AFTER", 2)
    objective = Objective(*networks, DistillOptions(calibrate=0.5))
    before = {name: objective.weight(name) for name in ("task", "logits", "ranking", "texture", "fusion")}
    for _ in range(3):
        losses = objective(*batch)
        objective.calibrate(losses)
    norms = gradient_norms(losses, list(objective.student.parameters()))
    for name in ("logits", "ranking", "texture", "fusion"):
        factor = objective.weight(name) / before[name]
        assert factor != 1
        assert factor * norms[name] == pytest.approx(0.5 * norms["task"], rel=1e-6)
    assert objective.weight("task") == before["task"]


def test_calibration_is_part_of_the_checkpoint(networks, batch, monkeypatch):
    monkeypatch.setattr(calibration, "AFTER", 0)
    objective, resumed = (Objective(*networks, DistillOptions(calibrate=0.5)) for _ in range(2))
    losses = objective(*batch)
    objective.calibrate(losses)
    resumed.load_state_dict(objective.state_dict())
    resumed.calibrate(losses)
    assert torch.equal(resumed.total(losses), objective.total(losses))
    assert resumed.weight("fusion") == objective.weight("fusion") != 1


def test_calibration_waits_for_a_step_with_a_label(networks, batch, monkeypatch):
    """A batch without any says nothing about the task: its weights would stay as they are for the whole run."""
    monkeypatch.setattr(calibration, "AFTER", 1)
    waited, never = (Objective(*networks, DistillOptions(calibrate=0.5)) for _ in range(2))
    waited.load_state_dict(never.state_dict())
    images, targets = batch
    steps = [targets, torch.full_like(targets, -1), torch.full_like(targets, -1), targets, targets]
    assert [waited.calibrate(waited(images, target)) for target in steps] == [False, False, False, True, False]
    assert [never.calibrate(never(images, targets)) for _ in range(2)] == [False, True]
    assert torch.equal(waited.calibration.factors, never.calibration.factors)
    assert waited.weight("fusion") != 1


def test_processes_without_a_label_leave_the_weights_to_the_others():
    x = torch.ones(2, requires_grad=True)
    losses = {"task": x.sum(), "logits": x.sum() * 4}
    theirs = torch.zeros(Calibration.NAMES_AT_MOST + 1, dtype=torch.float64)
    theirs[1], theirs[-1] = 0.25, 1
    for mine, factor in ((losses, (0.125 + 0.25) / 2), (losses | {"task": x.sum() * 0}, 0.25)):
        scale = Calibration(0.5)
        scale.steps += calibration.AFTER
        assert scale.see(mine, [x], lambda values: values + theirs)
        assert scale.factor("logits") == pytest.approx(factor)


def test_a_term_without_gradient_is_not_blown_up():
    x = torch.ones(2, requires_grad=True)
    scale = Calibration(0.5)
    scale.steps += calibration.AFTER
    scale.see({"task": x.sum(), "dead": x.sum() * 0, "faint": x.sum() * 1e-9}, [x])
    assert [scale.factor(name) for name in ("task", "dead", "faint")] == [1, 1, calibration.LIMITS[1]]


def test_without_calibration_nothing_is_added_to_the_checkpoint(networks):
    assert not [name for name in Objective(*networks, DistillOptions()).state_dict() if "calibration" in name]


def test_the_student_is_the_same_with_and_without_what_is_learnt_beside_it(networks, batch):
    student = networks[0]
    before = student(batch[0])
    keys = list(student.state_dict())
    objective = Objective(*networks, DistillOptions.model_validate({"baselines": {"mgd": {"weight": 1}}}))
    objective(*batch)
    assert list(student.state_dict()) == keys
    assert torch.equal(student(batch[0]), before)


def test_a_teacher_in_bfloat16_says_almost_the_same(networks, batch):
    torch.manual_seed(2)
    exact = Objective(*networks, DistillOptions())
    torch.manual_seed(2)
    rough = Objective(*networks, DistillOptions(teacher_bfloat16=True))
    mine, theirs = rough(*batch), exact(*batch)
    for name, loss in theirs.items():
        assert mine[name].dtype == torch.float32
        assert mine[name].item() == pytest.approx(loss.item(), rel=0.05)
    assert mine["logits"] != theirs["logits"]
    assert mine["task"] == theirs["task"]
