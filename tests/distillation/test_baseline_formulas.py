"""Every published formula against a version written out pixel by pixel from its paper."""

import itertools
import math

import numpy as np
import pytest
import torch

from rskd.config import FusionOptions
from rskd.distillation.baselines import attention_transfer as at
from rskd.distillation.baselines.generation import HiddenPlaces, MaskedGeneration, ShallowDeep
from rskd.distillation.baselines.hints import hint_loss
from rskd.distillation.baselines.regions import intra_class_loss, region_affinity_loss
from rskd.distillation.baselines.relations import relation_loss
from rskd.distillation.baselines.similarity import cross_image_loss, pairwise_loss
from rskd.distillation.baselines.stages import classes_on_grid, labels_or_prediction
from rskd.distillation.baselines.wavelet import haar, wavelet_loss
from rskd.distillation.features import Features
from rskd.distillation.fusion import FusionTerm, channel_wise_loss


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def pair(rng):
    """Student (3 channels) and teacher (5) on a 4 × 6 grid, two images."""
    return rng.normal(size=(2, 3, 4, 6)), rng.normal(size=(2, 5, 4, 6))


def tensor(*arrays):
    return [torch.from_numpy(np.ascontiguousarray(a)) for a in arrays]


def softmax(v):
    e = np.exp(v - v.max())
    return e / e.sum()


def divergence(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p.ravel(), q.ravel(), strict=True))


def cosine(a, b):
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def places(x):
    return [x[:, y, c] for y in range(x.shape[1]) for c in range(x.shape[2])]


def test_hint_is_the_mean_squared_difference(rng):
    s, t = rng.normal(size=(2, 2, 3, 4, 6))
    expected = sum((a - b) ** 2 for a, b in zip(s.ravel(), t.ravel(), strict=True)) / s.size
    assert hint_loss(*tensor(s, t)).item() == pytest.approx(expected)


@pytest.mark.parametrize("power", [1, 2, 4])
def test_attention_transfer(pair, power):
    total = 0.0
    for images in zip(*pair, strict=True):
        maps = []
        for x in images:
            q = np.array([np.mean(np.abs(v) ** power) for v in places(x)])
            maps.append(q / math.sqrt((q**2).sum()))
        total += ((maps[0] - maps[1]) ** 2).sum()
    assert at.attention_transfer_loss(*tensor(*pair), power=power).item() == pytest.approx(total / 2)


def test_pixel_similarity_of_dsd(rng):
    student = [rng.normal(size=(2, c, 3, 4)) for c in (2, 3, 4)]
    teacher = [rng.normal(size=(2, c, 3, 4)) for c in (5, 6, 7)]

    def unit(v):
        return v / np.linalg.norm(v)

    def attention(x):
        return unit(np.array([np.mean(v**2) for v in places(x)]))

    total = 0.0
    for image, (m, n) in itertools.product(range(2), itertools.combinations(range(3), 2)):
        residual = [unit(attention(side[n][image]) - attention(side[m][image])) for side in (student, teacher)]
        total += ((residual[0] - residual[1]) ** 2).sum() / (2 * 3)
    assert at.pixel_similarity_loss(tensor(*student), tensor(*teacher)).item() == pytest.approx(total)


def test_category_similarity_of_dsd(rng):
    logits = rng.normal(size=(2, 2, 3, 4, 6)) * 5
    total = 0.0
    for image in range(2):
        grams = []
        for side in logits:
            cells = [
                softmax(np.array([side[image, k, y : y + 2, x : x + 2].mean() for y in (0, 2) for x in (0, 2, 4)]) / 4)
                for k in range(3)
            ]
            grams.append(np.array([[a @ b for b in cells] for a in cells]))
        total += ((grams[0] - grams[1]) ** 2).mean() / 2
    assert at.category_similarity_loss(*tensor(*logits)).item() == pytest.approx(total)


@pytest.mark.parametrize("pool", [1, 2])
def test_pairwise_similarity_of_skd(pair, pool):
    total = 0.0
    for images in zip(*pair, strict=True):
        similar = []
        for x in images:
            rows, columns = range(0, 4, pool), range(0, 6, pool)
            cells = [x[:, y : y + pool, c : c + pool].max((1, 2)) for y in rows for c in columns]
            similar.append(np.array([[cosine(a, b) for b in cells] for a in cells]))
        total += ((similar[0] - similar[1]) ** 2).mean() / 2
    assert pairwise_loss(*tensor(*pair), pool=pool).item() == pytest.approx(total)


@pytest.mark.parametrize("pool", [1, 2])
def test_cross_image_similarity_of_cirkd(pair, pool):
    total, count = 0.0, 0
    for i, j in itertools.product(range(2), repeat=2):
        cells = []
        for x in pair:
            means = [
                [x[n][:, y : y + pool, c : c + pool].mean((1, 2)) for y in range(0, 4, pool) for c in range(0, 6, pool)]
                for n in (i, j)
            ]
            cells.append([softmax(np.array([cosine(a, b) for b in means[1]]) / 0.1) for a in means[0]])
        for p_student, p_teacher in zip(*cells, strict=True):
            total, count = total + divergence(p_teacher, p_student), count + 1
    assert cross_image_loss(*tensor(*pair), temperature=0.1, pool=pool).item() == pytest.approx(total / count)


def test_channel_wise_distillation(rng):
    s, t = rng.normal(size=(2, 2, 3, 4, 6)) * 3
    total = sum(
        divergence(softmax(t[b, c] / 4), softmax(s[b, c] / 4)) for b, c in itertools.product(range(2), range(3))
    )
    assert channel_wise_loss(*tensor(s, t), temperature=4).item() == pytest.approx(4**2 * total / 6)


def test_relations_of_dist(rng):
    s, t = rng.normal(size=(2, 2, 4, 3, 3))
    p, q = (np.array([softmax(v / 2) for image in z for v in places(image)]) for z in (s, t))
    inter = np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(p, q, strict=True)])
    intra = np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(p.T, q.T, strict=True)])
    expected = 4 * (0.7 * (1 - inter) + 1.3 * (1 - intra))
    assert relation_loss(*tensor(s, t), inter=0.7, intra=1.3, temperature=2).item() == pytest.approx(expected)


def test_two_classes_have_no_relation_within_a_pixel():
    """Why DIST is half a method for two classes: the correlation of two numbers is ±1."""
    student = torch.randn(1, 2, 4, 4, requires_grad=True)
    relation_loss(student, torch.randn(1, 2, 4, 4), intra=0).backward()
    assert student.grad.abs().max() < 1e-5


CLASSES = torch.tensor([[[0, 0, 1, 1, 2, 2]] * 4, [[1, 1, 1, 0, 0, 0]] * 4])


def test_intra_class_variation_of_ifvd(pair):
    total, count = 0.0, 0
    for b in range(2):
        for y, x in itertools.product(range(4), range(6)):
            same = (CLASSES[b] == CLASSES[b, y, x]).numpy()
            values = [cosine(side[b][:, y, x], side[b][:, same].mean(1)) for side in pair]
            total, count = total + (values[0] - values[1]) ** 2, count + 1
    assert intra_class_loss(*tensor(*pair), CLASSES).item() == pytest.approx(total / count)


def test_region_affinity_of_emkd(pair):
    squares = []
    for b in range(2):
        present = sorted(set(CLASSES[b].flatten().tolist()))
        for k, m in itertools.combinations(present, 2):
            values = [cosine(*(side[b][:, (CLASSES[b] == c).numpy()].mean(1) for c in (k, m))) for side in pair]
            squares.append((values[0] - values[1]) ** 2)
    assert len(squares) == 4
    assert region_affinity_loss(*tensor(*pair), CLASSES).item() == pytest.approx(np.mean(squares))


def test_an_image_of_one_class_has_no_affinity(pair):
    assert region_affinity_loss(*tensor(*pair), torch.zeros(2, 4, 6, dtype=torch.long)).item() == 0


def test_masks_come_to_the_grid_by_the_nearest_label():
    classes = torch.tensor([[[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 1, 1], [2, 2, 1, 1]]])
    member = classes_on_grid(classes, torch.zeros(1, 7, 2, 2), 3)
    assert member.argmax(1).tolist() == [[0, 1, 2, 1]]


def test_where_there_is_no_label_the_teacher_says_the_class():
    logits = torch.tensor([[[[0.0, 5.0]], [[1.0, 0.0]]]])
    assert labels_or_prediction(torch.tensor([[[-1, -1]]]), logits).tolist() == [[[1, 0]]]
    assert labels_or_prediction(torch.tensor([[[0, -1]]]), logits).tolist() == [[[0, 0]]]


def test_haar_keeps_the_energy_and_a_ramp_has_a_constant_slope():
    x = torch.randn(2, 3, 8, 6, dtype=torch.float64)
    low, details = haar(x)
    torch.testing.assert_close(low.square().sum() + details.square().sum(), x.square().sum())
    ramp = torch.arange(6.0).expand(1, 1, 4, 6)
    _, details = haar(ramp)
    assert (details[:, 0] == -1).all()  # (a − b + c − d) / 2 of a slope of one over x
    assert (details[:, 1:] == 0).all()


def test_wavelet_against_pywavelets(rng):
    pywt = pytest.importorskip("pywt")
    s, t = rng.normal(size=(2, 2, 3, 8, 12))
    bands = pywt.wavedec2(s - t, "haar", level=2, axes=(2, 3))
    expected = np.mean([np.mean([np.mean(band**2) for band in level]) for level in bands[1:]])
    assert wavelet_loss(*tensor(s, t), levels=2).item() == pytest.approx(expected)


def test_wavelet_of_a_map_that_is_too_small_is_zero():
    assert wavelet_loss(torch.ones(1, 1, 1, 5), torch.zeros(1, 1, 1, 5)).item() == 0
    assert wavelet_loss(torch.ones(1, 1, 3, 5), torch.zeros(1, 1, 3, 5), levels=6).item() == 0


def seen(*stages):
    return Features(torch.zeros(1, 2, 4, 4), (4, 4), stages)


def test_masked_generation_of_mgd():
    torch.manual_seed(0)
    term = MaskedGeneration(3, 5, mask_ratio=0.5).double()
    student, teacher = torch.randn(1, 3, 4, 4).double(), torch.randn(1, 5, 4, 4).double()
    loss = term(seen(student), seen(teacher), None)
    hidden = HiddenPlaces(0.5)(teacher)
    assert 0 < hidden.sum() < 16
    projected = torch.einsum("oc,bchw->bohw", term.project.weight[:, :, 0, 0], student)
    projected = projected + term.project.bias[:, None, None]
    first, _, second = term.generate
    generated = conv3(torch.relu(conv3(projected * (hidden == 0), first)), second)
    assert loss.item() == pytest.approx((generated - teacher).pow(2).mean().item())


def test_shallow_and_deep_blocks_of_vitkd():
    torch.manual_seed(0)
    term = ShallowDeep((3, 3, 3), (5, 5, 5), generation=0.25, mask_ratio=0.5).double()
    torch.nn.init.normal_(term.token)
    student = [torch.randn(1, 3, 4, 4).double() for _ in range(3)]
    teacher = [torch.randn(1, 5, 4, 4).double() for _ in range(3)]
    loss = term(seen(*student), seen(*teacher), None)
    aligned = [
        torch.einsum("oc,bchw->bohw", p.weight[:, :, 0, 0], s) + p.bias[:, None, None]
        for p, s in zip(term.project, student, strict=True)
    ]
    copied = sum((a - t).pow(2).mean() for a, t in zip(aligned[:2], teacher[:2], strict=True))
    hidden = HiddenPlaces(0.5)(teacher[2])[0, 0] > 0
    deep = aligned[2].clone()
    deep[0, :, hidden] = term.token[0, :, 0]
    first, _, second = term.generate
    generated = conv3(torch.relu(conv3(deep, first)), second)
    error = (generated - teacher[2])[0, :, hidden].pow(2).mean()
    assert loss.item() == pytest.approx((copied + 0.25 * error).item(), rel=1e-6)


def conv3(x, layer):
    """A 3 × 3 convolution with zeros around, as nine shifted products."""
    padded = torch.nn.functional.pad(x, (1, 1, 1, 1))
    height, width = x.shape[2:]
    shifts = itertools.product(range(3), range(3))
    total = sum(
        torch.einsum("oc,bchw->bohw", layer.weight[:, :, i, j], padded[:, :, i : i + height, j : j + width])
        for i, j in shifts
    )
    return total + layer.bias[:, None, None]


def test_hidden_places_are_new_at_every_call_and_go_on_after_a_resume():
    first, second = HiddenPlaces(0.5), HiddenPlaces(0.5)
    like = torch.zeros(2, 1, 16, 16)
    once, twice = first(like), first(like)
    assert not torch.equal(once, twice)
    second.load_state_dict({"calls": torch.tensor(1)})
    assert torch.equal(second(like), twice)
    assert abs(once.mean().item() - 0.5) < 0.06


def test_review_is_the_cascade_of_the_paper_written_out():
    """ABF from deep to shallow with its 3 × 3 exits and the HCL, on a raw teacher, with copied weights."""
    torch.manual_seed(0)
    options = FusionOptions(gate="space", refine="none", loss="hcl", target="raw", width=16)
    term = FusionTerm([3, 4], [5, 6], options).double()
    student = [torch.randn(2, 3, 8, 6).double(), torch.randn(2, 4, 4, 3).double()]
    teacher = [torch.randn(2, 5, 8, 6).double(), torch.randn(2, 6, 4, 3).double()]
    residual, losses = None, []
    for i in (1, 0):
        conv, norm = term.enter[i]
        x = torch.einsum("oc,bchw->bohw", conv.weight[:, :, 0, 0], student[i])
        groups = x.reshape(2, 4, 4, *x.shape[2:])
        x = (groups - groups.mean((2, 3, 4), keepdim=True)) / torch.sqrt(
            groups.var((2, 3, 4), keepdim=True, unbiased=False) + norm.eps
        )
        x = x.reshape(2, 16, *student[i].shape[2:])
        if residual is not None:
            up = residual.repeat_interleave(2, 2).repeat_interleave(2, 3)
            gate = term.fusions[i].space
            z = torch.einsum("oc,bchw->bohw", gate.weight[:, :, 0, 0], torch.cat([x, up], 1))
            z = 1 / (1 + torch.exp(-(z + gate.bias[:, None, None])))
            x = x * z[:, :1] + up * z[:, 1:]
        residual = x
        out, target = conv3(x, term.leave[i]), teacher[i]
        loss, total, weight = (out - target).pow(2).mean(), 1.0, 1.0
        for side in (4, 2, 1):
            if side >= min(out.shape[2:]):
                continue
            weight /= 2
            pooled = [torch.nn.functional.adaptive_avg_pool2d(m, side) for m in (out, target)]
            loss, total = loss + weight * (pooled[0] - pooled[1]).pow(2).mean(), total + weight
        losses.append(loss / total)
    assert term(student, teacher).item() == pytest.approx((sum(losses) / 2).item(), rel=1e-9)
