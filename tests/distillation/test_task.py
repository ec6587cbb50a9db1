"""The losses on the masks against sums written out pixel by pixel."""

import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from rskd.config import TaskLossOptions
from rskd.distillation.task import boundary_loss, focal_loss, soft_dice_loss, task_loss, tversky_loss
from rskd.errors import ParameterError


@pytest.fixture
def batch():
    torch.manual_seed(0)
    logits, target = torch.randn(2, 3, 4, 5, dtype=torch.float64), torch.randint(0, 3, (2, 4, 5))
    target[0, 0] = -1
    return logits, target


def options(**fields):
    return TaskLossOptions(**fields)


def pixels(logits, target):
    """Probabilities and class of every labelled pixel."""
    probability = torch.softmax(logits, 1)
    return [(probability[b, :, y, x].tolist(), int(target[b, y, x])) for b, y, x in torch.nonzero(target >= 0).tolist()]


@pytest.mark.parametrize("gamma", [0.0, 2.0, 0.5])
@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (0.2, 1.0, 3.0)])
def test_focal_loss_is_the_weighted_mean_of_its_formula(batch, gamma, weights):
    seen = pixels(*batch)
    total = sum(weights[k] * -((1 - p[k]) ** gamma) * math.log(p[k]) for p, k in seen)
    expected = total / sum(weights[k] for _, k in seen)
    loss = focal_loss(*batch, gamma=gamma, weights=torch.tensor(weights, dtype=torch.float64))
    assert loss.item() == pytest.approx(expected)


def test_weighted_cross_entropy_is_that_of_torch(batch):
    weights = torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64)
    expected = torch.nn.functional.cross_entropy(*batch, weight=weights, ignore_index=-1)
    torch.testing.assert_close(focal_loss(*batch, gamma=0, weights=weights), expected)


@pytest.mark.parametrize("alpha", [0.5, 0.3, 0.9])
def test_tversky_loss_is_its_formula(batch, alpha):
    seen = pixels(*batch)
    scores = []
    for k in (1, 2):
        hit = sum(p[k] for p, truth in seen if truth == k)
        false_alarm = sum(p[k] for p, truth in seen if truth != k)
        miss = sum(1 - p[k] for p, truth in seen if truth == k)
        scores.append(hit / (hit + alpha * false_alarm + (1 - alpha) * miss))
    assert tversky_loss(*batch, false_alarms=alpha).item() == pytest.approx(1 - sum(scores) / 2)


def test_tversky_with_equal_prices_is_dice(batch):
    torch.testing.assert_close(tversky_loss(*batch, false_alarms=0.5), soft_dice_loss(*batch))


def test_boundary_loss_is_probability_times_signed_distance():
    """One class in the left three of six columns: distances −3, −2, −1, 1, 2, 3, in units of half the longer side."""
    target = torch.tensor([[[1, 1, 1, 0, 0, 0]] * 4])
    logits = torch.randn(1, 2, 4, 6, generator=torch.Generator().manual_seed(0))
    probability = logits.softmax(1)[0, 1].numpy()
    expected = np.mean(probability * np.array([-3, -2, -1, 1, 2, 3]) / 3)
    assert boundary_loss(logits, target).item() == pytest.approx(expected, rel=1e-5)


def test_boundary_loss_is_least_for_the_truth_and_counts_labels_only():
    target = torch.zeros(1, 8, 8, dtype=torch.long)
    target[:, 2:5, 3:7] = 1
    truth = torch.nn.functional.one_hot(target, 2).movedim(-1, 1).float()
    best = boundary_loss(100 * truth, target)
    for shift in ((1, 0), (0, -1), (2, 2)):
        assert boundary_loss(100 * truth.roll(shift, (2, 3)), target) > best
    target[:, :, 0] = -1
    logits = torch.randn(1, 2, 8, 8, requires_grad=True)
    boundary_loss(logits, target).backward()
    assert logits.grad[..., 0].abs().max() == 0
    assert logits.grad[..., 1:].abs().min() > 0


def test_a_class_that_is_nowhere_has_no_border():
    logits = torch.randn(1, 3, 4, 4)
    assert boundary_loss(logits, torch.zeros(1, 4, 4, dtype=torch.long)).item() == 0


EVERY = [
    {},
    {"pixel": "focal"},
    {"region": "tversky"},
    {"pixel": "none"},
    {"region": "none"},
    {"boundary": 0.5},
    {"class_weights": (1, 2, 3)},
    {"pixel": "focal", "region": "tversky", "boundary": 1, "class_weights": (1, 2, 3)},
]


@pytest.mark.parametrize("chosen", EVERY, ids=str)
def test_pixels_without_a_label_count_nowhere(chosen):
    torch.manual_seed(0)
    logits = torch.randn(1, 3, 8, 8, requires_grad=True)
    target = torch.randint(0, 3, (1, 8, 8))
    target[:, :4] = -1
    task_loss(logits, target, options(**chosen)).backward()
    assert logits.grad[:, :, :4].abs().max() == 0
    assert logits.grad[:, :, 4:].abs().min() > 0


@pytest.mark.parametrize("chosen", EVERY, ids=str)
@pytest.mark.parametrize("shape", [(1, 4, 4), (1, 3, 4, 4)], ids=["classes", "multi-label"])
def test_nothing_labelled_is_zero_and_can_be_added(chosen, shape):
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    loss = task_loss(logits, torch.full(shape, -1), options(**chosen))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad.abs().max() == 0


@pytest.mark.parametrize("chosen", EVERY, ids=str)
@pytest.mark.parametrize("multi", [False, True], ids=["classes", "multi-label"])
def test_finite_for_certain_and_wrong_predictions_in_bfloat16(chosen, multi):
    target = torch.randint(0, 3, (2, 8, 8), generator=torch.Generator().manual_seed(0))
    if multi:
        target = torch.nn.functional.one_hot(target, 3).movedim(-1, 1)
    for scale in (0.0, 1e4):
        logits = (scale * torch.randn(2, 3, 8, 8)).bfloat16().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            loss = task_loss(logits, target, options(**chosen))
        loss.backward()
        assert torch.isfinite(loss)
        assert torch.isfinite(logits.grad).all()


def test_overlapping_classes_are_decisions_of_their_own():
    torch.manual_seed(0)
    logits, target = torch.randn(2, 3, 4, 4, dtype=torch.float64), torch.randint(-1, 2, (2, 3, 4, 4))
    labelled = target >= 0
    cross_entropy = torch.nn.functional.binary_cross_entropy_with_logits(logits[labelled], target[labelled].double())
    dice = []
    for k in range(3):
        p, t = torch.sigmoid(logits[:, k][labelled[:, k]]), target[:, k][labelled[:, k]].double()
        dice.append(2 * (p * t).sum() / (p.sum() + t.sum()))
    expected = cross_entropy + 1 - sum(dice) / 3
    torch.testing.assert_close(task_loss(logits, target), expected)


def test_class_weights_are_one_for_each_class():
    with pytest.raises(ParameterError, match="names 2 weights, the network has 3 classes"):
        task_loss(torch.zeros(1, 3, 2, 2), torch.zeros(1, 2, 2, dtype=torch.long), options(class_weights=(1, 2)))
    with pytest.raises(ValidationError, match="all 0"):
        options(class_weights=(0, 0))
