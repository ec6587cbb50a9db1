"""The losses on logits against sums written out by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from rskd.distillation.logits import class_shares, logits_loss
from rskd.distillation.task import soft_dice_loss, task_loss


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def softmax(values):
    top = max(values)
    powers = [math.exp(v - top) for v in values]
    return [p / sum(powers) for p in powers]


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_distillation_is_the_mean_divergence_of_the_pixels(temperature):
    student, teacher = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    total = 0.0
    for b in range(2):
        for y in range(4):
            for x in range(5):
                p = softmax((teacher[b, :, y, x] / temperature).tolist())
                q = softmax((student[b, :, y, x] / temperature).tolist())
                total += sum(a * math.log(a / c) for a, c in zip(p, q, strict=True))
    expected = temperature**2 * total / 40
    assert logits_loss(student, teacher, temperature=temperature).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("overlapping", [False, True])
def test_balanced_distillation_is_the_mean_over_images_and_the_classes_in_them(overlapping):
    student, teacher = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    teacher[0, 2] = -50  # which is then nowhere the strongest
    means = []
    for b in range(2):
        decisions = [(teacher[b, k : k + 1], student[b, k : k + 1]) for k in range(3)] if overlapping else None
        for t, s in decisions or [(teacher[b], student[b])]:
            t, s = ((torch.cat([0 * x, x]) if overlapping else x) for x in (t, s))
            found: dict[int, list[float]] = {}
            for y in range(4):
                for x in range(5):
                    p, q = softmax((t[:, y, x] / 2).tolist()), softmax((s[:, y, x] / 2).tolist())
                    divergence = sum(a * math.log(a / c) for a, c in zip(p, q, strict=True) if a)
                    found.setdefault(p.index(max(p)), []).append(divergence)
            means.append(sum(sum(values) / len(values) for values in found.values()) / len(found))
    loss = logits_loss(student, teacher, temperature=2, overlapping=overlapping, balanced=True)
    assert loss.item() == pytest.approx(4 * sum(means) / len(means), rel=1e-5)


def test_a_rare_class_counts_as_much_as_the_background_where_classes_are_balanced():
    """The student misses the one pixel of a class; of a larger image that is as bad as of a small one."""
    losses = {True: [], False: []}
    for side in (4, 32):
        teacher = torch.zeros(1, 2, side, side)
        teacher[:, 0] = 5
        student = teacher.clone()
        teacher[0, :, 1, 2] = torch.tensor([0.0, 5.0])
        for balanced, found in losses.items():
            found.append(logits_loss(student, teacher, temperature=1, balanced=balanced).item())
    assert losses[True][0] == pytest.approx(losses[True][1])
    assert losses[False][0] == pytest.approx(64 * losses[False][1])


@given(st.integers(1, 3), st.integers(1, 5), st.integers(0, 10_000))
def test_shares_of_classes_are_alike_in_every_image(batch, classes, seed):
    labels = torch.randint(0, classes, (batch, 6, 5), generator=torch.Generator().manual_seed(seed))
    for image, shares in zip(labels, class_shares(labels), strict=True):
        sums = [shares[image == label].sum().item() for label in image.unique()]
        assert sums == pytest.approx([1 / len(sums)] * len(sums))


def test_distillation_by_hand():
    """One pixel, two classes: the teacher says ¾ : ¼, the student ½ : ½."""
    teacher = torch.tensor([math.log(3), 0.0]).view(1, 2, 1, 1)
    loss = logits_loss(torch.zeros(1, 2, 1, 1), teacher, temperature=1)
    assert loss.item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5))


def test_distillation_leaves_the_teacher_alone_and_pulls_towards_it():
    student, teacher = torch.randn(1, 3, 2, 2, requires_grad=True), torch.randn(1, 3, 2, 2, requires_grad=True)
    logits_loss(student, teacher, temperature=2).backward()
    assert teacher.grad is None
    expected = 2 * (F.softmax(student / 2, 1) - F.softmax(teacher / 2, 1)) / 4  # T² · ∂KL/∂z = T (q − p) per pixel
    torch.testing.assert_close(student.grad, expected.detach())


def test_distillation_survives_half_precision_and_large_logits():
    student = (1e4 * torch.randn(1, 3, 4, 4)).bfloat16().requires_grad_()
    loss = logits_loss(student, -student.detach())
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(student.grad).all()


def test_dice_is_the_formula():
    logits, target = torch.randn(2, 3, 4, 4), torch.randint(0, 3, (2, 4, 4))
    target[0, 0] = -1
    probability = logits.softmax(1)
    scores = []
    for k in (1, 2):
        both = total = 0.0
        for b, y, x in torch.nonzero(target >= 0).tolist():
            p, t = probability[b, k, y, x].item(), float(target[b, y, x] == k)
            both, total = both + p * t, total + p + t
        scores.append(2 * both / total)
    assert soft_dice_loss(logits, target).item() == pytest.approx(1 - sum(scores) / 2, rel=1e-5)


def test_dice_of_an_empty_target_is_that_of_the_background():
    logits = torch.tensor([50.0, -50.0]).view(1, 2, 1, 1).expand(1, 2, 3, 3)
    assert soft_dice_loss(logits, torch.zeros(1, 3, 3, dtype=torch.long)).item() == pytest.approx(0, abs=1e-6)


def test_task_loss_does_not_see_pixels_without_a_label():
    logits, target = torch.randn(1, 2, 6, 6, requires_grad=True), torch.randint(0, 2, (1, 6, 6))
    target[0, :3] = -1
    loss = task_loss(logits, target)
    loss.backward()
    assert logits.grad[0, :, :3].abs().max() == 0
    assert logits.grad[0, :, 3:].abs().min() > 0
    torch.testing.assert_close(loss, task_loss(logits[..., 3:, :], target[..., 3:, :]))


def test_task_loss_without_any_label_is_zero_and_can_be_added():
    logits = torch.randn(1, 2, 3, 3, requires_grad=True)
    loss = task_loss(logits, torch.full((1, 3, 3), -1))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad.abs().max() == 0
