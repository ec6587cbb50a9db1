"""Classes that may overlap, through the whole program: two discs of which a pixel can belong to both."""

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import tifffile
import torch
from lightning_fabric import Fabric

from rskd.cases import Case, read_case
from rskd.config import (
    BACKGROUND,
    AugmentOptions,
    ClassInfo,
    DataOptions,
    ModelSpec,
    SamplingOptions,
    TrainOptions,
)
from rskd.data import IGNORE, Slice, cut, load_slices
from rskd.data.sampling import Places
from rskd.distillation.baselines.table import BASELINES, chosen, method
from rskd.distillation.feasible import feasible
from rskd.distillation.logits import logits_loss
from rskd.distillation.objective import Objective
from rskd.errors import DataError, ModelError
from rskd.events import Epoch, drain
from rskd.io import write_image
from rskd.jobs import DistillJob, PreflightJob, TrainJob
from rskd.models import weights
from rskd.models.augmented import Augmented
from rskd.models.foreign import load_foreign
from rskd.models.presets import fresh_spec
from rskd.models.segmenter import Segmenter
from rskd.preflight import preflight
from rskd.records import read_json
from rskd.runs import RunFolder
from rskd.scan import Scan
from rskd.train import distill, train
from rskd.training.validation import mean_scores, validate
from tests.running import collect

NAMES = ("red disc", "green disc")
SIZE = 64
TRAINING = TrainOptions(
    epochs=1, steps_per_epoch=20, batch_size=4, patch=32, learning_rate=3e-3, report=False,
    augmentation=AugmentOptions(elastic=0, blur=0, low_resolution=1, noise=0),
)  # fmt: skip


def discs(seed):
    """Return a picture (2, SIZE, SIZE) of two overlapping discs, each in a channel of its own, and their masks."""
    rng = np.random.default_rng(seed)
    middles = rng.uniform(24, 40, 2) + np.array([[-6, -6], [6, 6]]) * rng.choice((-1, 1), 2)
    rows, columns = np.indices((SIZE, SIZE))
    masks = np.stack([(rows - y) ** 2 + (columns - x) ** 2 < 13**2 for y, x in middles])
    assert (masks[0] & masks[1]).any()
    assert (masks[0] ^ masks[1]).any()
    return (100 * masks + rng.normal(50, 10, masks.shape)).astype(np.float32), masks


def network(**changes):
    spec = fresh_spec("rskd-nano", in_channels=2, classes=NAMES, overlapping=True)
    return ModelSpec.model_validate(spec.model_dump() | {"image_size": 32, "norm": "group"} | changes)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Six cases of two overlapping discs, as images and masks with one plane per class."""
    folder = tmp_path_factory.mktemp("discs")
    for kind in ("images", "masks"):
        (folder / kind).mkdir()
    for seed in range(6):
        image, masks = discs(seed)
        write_image(folder / "images" / f"{seed}.tif", Scan(image, "cyx"))
        write_image(folder / "masks" / f"{seed}.tif", Scan(masks.astype(np.uint8), "cyx"))
    return DataOptions(images=folder / "images", masks=folder / "masks", validation=("5",))


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """A run folder of a network that has learnt both discs."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "net.json").write_text(network().model_dump_json())
    events, _ = collect(
        train(TrainJob(model=str(folder / "net.json"), data=data, run=folder / "run", training=TRAINING))
    )
    return RunFolder(folder / "run"), events


# -------------------------------------------------------------------------------------------------------- the network


def test_a_network_has_an_output_for_every_class_but_the_background():
    spec = network()
    assert [info.name for info in spec.outputs] == [*NAMES]
    assert Segmenter(spec)(torch.zeros(1, 2, 32, 32)).shape == (1, 2, 32, 32)
    exclusive = spec.model_copy(update={"overlapping": False})
    assert exclusive.outputs == exclusive.classes
    assert Segmenter(exclusive)(torch.zeros(1, 2, 32, 32)).shape == (1, 3, 32, 32)


def test_the_kind_of_classes_travels_in_the_weight_file(tmp_path):
    weights.save(tmp_path / "net.safetensors", Segmenter(network()), card={})
    assert weights.load(tmp_path / "net.safetensors").spec == network()
    torch.save(Segmenter(network()).state_dict(), tmp_path / "bare.pt")
    (tmp_path / "bare.json").write_text('{"overlapping": true}')
    assert [info.name for info in weights.load(tmp_path / "bare.pt").spec.outputs] == ["class 1", "class 2"]


def test_a_network_from_elsewhere_answers_for_every_class_but_the_background(tmp_path):
    script = torch.jit.script(torch.nn.Conv2d(2, 1, 1))
    script.save(tmp_path / "net.pt")
    said = {"in_channels": 2, "classes": ["background", "cell"], "image_size": 32, "normalisation": "zscore"}
    for overlapping, count in ((True, 1), (False, 2)):
        (tmp_path / "net.json").write_text(json.dumps(said | {"overlapping": overlapping, "trusted": True}))
        assert load_foreign(tmp_path / "net.pt")(torch.zeros(1, 2, 32, 32)).shape[1] == count


def test_seen_from_several_sides_it_answers_with_the_logits_of_the_mean_probabilities():
    model = Segmenter(network()).eval()
    images = torch.randn(1, 2, 32, 32)
    with torch.no_grad():
        found = Augmented(model, rotations=False)(images).sigmoid()
        sides = [model(images.flip(axes)).flip(axes).sigmoid() for axes in ([], [2], [3], [2, 3])]
    torch.testing.assert_close(found, torch.stack(sides).mean(0), atol=1e-5, rtol=0)


# -------------------------------------------------------------------------------------------------------------- masks


def spec_of(classes):
    infos = (BACKGROUND, *(ClassInfo(name=f"class {k}") for k in range(1, classes + 1)))
    return ModelSpec(name="net", classes=infos, overlapping=True)


def written(folder: Path, kind: str, masks):
    """Write masks (K Z Y X) with one plane per class."""
    path = folder / f"mask{kind}"
    if kind == ".nii":
        nibabel.save(nibabel.Nifti1Image(masks.T.astype(np.uint8), np.eye(4)), path)  # x y z K
    elif kind == ".npy":
        np.save(path, masks.astype(np.uint8))
    elif kind == ".tif":
        tifffile.imwrite(path, masks.transpose(1, 0, 2, 3).astype(np.uint8), ome=True, metadata={"axes": "ZCYX"})
    else:
        write_image(path, Scan(masks.astype(np.uint8), "czyx"))
    return path


@pytest.mark.parametrize("kind", [".nii", ".npy", ".tif", ".zarr", ".nrrd"])
@pytest.mark.parametrize("planes", [1, 4])
@pytest.mark.parametrize("classes", [2, 3])
def test_masks_are_read_from_files_with_a_plane_per_class(tmp_path, kind, planes, classes):
    masks = np.random.default_rng(0).random((classes, planes, 6, 7)) < 0.5
    image = Scan(np.zeros((planes, 6, 7), np.float32), "zyx")
    write_image(tmp_path / "image.nii", image)
    case = Case("image", tmp_path / "image.nii", written(tmp_path, kind, masks))
    found = read_case(case, spec_of(classes)).mask
    np.testing.assert_array_equal(found, masks.swapaxes(0, 1))


def test_a_mask_of_a_picture_is_read_too(tmp_path):
    masks = np.random.default_rng(0).random((2, 6, 7)) < 0.5
    np.save(tmp_path / "image.npy", np.zeros((6, 7)))
    np.save(tmp_path / "mask.npy", 255 * masks.astype(np.uint8))
    found = read_case(Case("image", tmp_path / "image.npy", tmp_path / "mask.npy"), spec_of(2)).mask
    np.testing.assert_array_equal(found, masks[None])


def test_class_numbers_are_a_mask_without_overlap(tmp_path):
    numbers = np.array([[0, 1, 2, 2]], np.uint8)
    np.save(tmp_path / "image.npy", np.zeros((1, 4)))
    write_image(tmp_path / "mask.tif", Scan(numbers, "yx"))
    case = Case("image", tmp_path / "image.npy", tmp_path / "mask.tif")
    assert read_case(case, spec_of(2)).mask.tolist() == [[[[0, 1, 0, 0]], [[0, 0, 1, 1]]]]


@pytest.mark.parametrize(
    ("masks", "sentence"),
    [
        (np.zeros((3, 6, 7), np.uint8), "has 3 planes for every pixel: 2 classes need one each"),
        (np.full((2, 6, 7), 2, np.uint8), "has the values 2: 2 classes need 0 … 1 or 0 and 255"),
        (np.full((6, 7), 3, np.uint8), "has the values 3: 3 classes need 0 … 2"),
    ],
)
def test_masks_that_cannot_be_used_are_refused(tmp_path, masks, sentence):
    np.save(tmp_path / "image.npy", np.zeros((6, 7)))
    np.save(tmp_path / "mask.npy", masks)
    with pytest.raises(DataError, match=sentence):
        read_case(Case("image", tmp_path / "image.npy", tmp_path / "mask.npy"), spec_of(2))


# ------------------------------------------------------------------------------------------------------------ patches


def test_planes_know_what_of_each_class_is_there_and_where_nothing_is_known(tmp_path):
    image, masks = discs(0)
    write_image(tmp_path / "image.tif", Scan(image, "cyx"))
    write_image(tmp_path / "mask.tif", Scan(masks.astype(np.uint8), "cyx"))
    region = np.zeros((SIZE, SIZE), np.uint8)
    region[:, :40] = 1
    write_image(tmp_path / "region.tif", Scan(region, "yx"))
    files = [tmp_path / f"{name}.tif" for name in ("image", "mask", "region")]
    (plane,) = load_slices(Case("a", *files), network())
    np.testing.assert_array_equal(plane.target, np.where(region, masks, IGNORE))
    (unknown,) = load_slices(Case("a", files[0]), network())
    assert unknown.target.shape == (2, SIZE, SIZE)
    assert (unknown.target == IGNORE).all()
    (small,) = load_slices(Case("a", *files), network(frame=SIZE // 2))
    np.testing.assert_array_equal(small.target, plane.target[:, 1::2, 1::2])


def test_a_patch_moves_all_classes_alike():
    _, masks = discs(1)
    plane = Slice("a", torch.zeros(2, SIZE, SIZE), torch.from_numpy(masks.astype(np.int64)))
    turn = torch.tensor([[0.8, -0.5], [0.4, 1.1]])
    together = cut(plane, (20, 9), turn, 48)[1]
    alone = [cut(Slice("a", plane.image, own), (20, 9), turn, 48)[1] for own in plane.target]
    assert together.equal(torch.stack(alone))
    assert (together == IGNORE).any()


def test_patches_are_cut_around_every_class_alike():
    target = torch.zeros(2, 64, 64, dtype=torch.long)
    target[0, :32] = 1
    target[1, 31, 50] = 1  # rare, and inside of the other
    places = Places([Slice("a", torch.zeros(1, 64, 64), target)], 16, SamplingOptions(foreground=1))
    rng = np.random.default_rng(0)
    near = [abs(row - 31) <= 4 and abs(column - 50) <= 4 for _, (row, column) in (places.draw(rng) for _ in range(400))]
    assert 0.4 < np.mean(near) < 0.6


# ------------------------------------------------------------------------------------------------------------- losses


def test_distillation_of_a_single_class_is_that_of_the_softmax_with_nothing():
    student, teacher = torch.randn(2, 2, 1, 4, 4, dtype=torch.float64)
    found = logits_loss(student, teacher, temperature=3, overlapping=True)
    both = [torch.cat([torch.zeros_like(z), z], 1) for z in (student, teacher)]
    torch.testing.assert_close(found, logits_loss(*both, temperature=3), atol=1e-6, rtol=1e-5)


def test_distillation_of_overlapping_classes_by_hand():
    student, teacher = torch.zeros(1, 2, 1, 1), torch.tensor([np.log(3), 0]).view(1, 2, 1, 1)  # 3/4 and 1/2 to 1/2
    expected = (0.75 * np.log(1.5) + 0.25 * np.log(0.5) + 0) / 2
    assert logits_loss(student, teacher, temperature=1, overlapping=True).item() == pytest.approx(expected, abs=1e-6)
    assert logits_loss(teacher, teacher, overlapping=True).abs().item() < 1e-7


def test_distillation_is_finite_for_extreme_logits_and_reaches_the_student_alone():
    student = torch.full((1, 2, 2, 2), 1e4, requires_grad=True)
    teacher = torch.full((1, 2, 2, 2), -1e4, requires_grad=True)
    logits_loss(student, teacher, overlapping=True).backward()
    assert student.grad.isfinite().all()
    assert (student.grad > 0).all()
    assert teacher.grad is None


@pytest.mark.parametrize("name", BASELINES)
def test_every_method_is_computed_or_refused_in_a_sentence(name):
    student, teacher = Segmenter(network()), Segmenter(network()).eval()
    options = method(name)
    if BASELINES[name].exclusive:
        with pytest.raises(ModelError, match=f"'{name}' needs one class per pixel"):
            feasible(options, teacher)
        return
    assert feasible(options, teacher) == (options, [])
    target = torch.randint(-1, 2, (2, 2, 32, 32))
    losses = Objective(student, teacher, options)(torch.randn(2, 2, 32, 32), target)
    assert losses.keys() == {"task", "logits", *chosen(options.baselines)}
    assert all(loss.isfinite() for loss in losses.values())


# ------------------------------------------------------------------------------------------------------------ training


def test_a_network_learns_both_discs(trained):
    run, events = trained
    (epoch,) = [event for event in events if isinstance(event, Epoch)]
    assert epoch.dice_per_class.keys() == {*NAMES}
    assert min(epoch.dice_per_class.values()) > 0.8
    assert weights.load(run.best).spec.overlapping


class Bright(torch.nn.Module):
    """Finds a class wherever its channel is brighter than the mean."""

    def __init__(self, **changes):
        super().__init__()
        self.spec = network(**changes)
        self.place = torch.nn.Parameter(torch.zeros(1))

    def forward(self, images):
        return images + self.place


def test_validation_is_the_dice_of_every_class_on_its_own():
    rng = np.random.default_rng(0)
    images = rng.standard_normal((3, 2, 40, 40)).astype(np.float32)
    targets = rng.integers(-1, 2, (3, 2, 40, 40))
    cases = ("a", "a", "b")  # a case of two planes counts as one volume
    planes = [Slice(*found) for found in zip(cases, *map(torch.from_numpy, (images, targets)), strict=True)]
    scores = drain(validate(Bright(), planes, Fabric(accelerator="cpu")))
    for case, where in (("a", slice(0, 2)), ("b", slice(2, 3))):
        assert np.isnan(scores[case][0])
        for k in range(2):
            known = targets[where, k] >= 0
            found, true = ((values >= 0.5)[known] for values in (images[where, k] + 0.5, targets[where, k]))
            assert scores[case][k + 1] == pytest.approx(2 * (found & true).sum() / (found.sum() + true.sum()))
    assert mean_scores(scores, ["background", *NAMES])[0] == pytest.approx(np.mean([s[1:] for s in scores.values()]))


def test_a_run_records_the_pixels_of_every_class(trained):
    run, _ = trained
    pixels = {row["side"]: row["pixels"] for row in read_json(run.path / "data.json")["cases"]}["validation"]
    _, masks = discs(5)
    assert pixels == {
        "no label": 0, "background": int((~masks.any(0)).sum()), NAMES[0]: int(masks[0].sum()),
        NAMES[1]: int(masks[1].sum()),
    }  # fmt: skip


def test_a_student_learns_from_a_teacher_whose_classes_overlap(trained, data, tmp_path):
    run, _ = trained
    options = TRAINING.model_copy(update={"steps_per_epoch": 2})
    job = DistillJob(teacher=run.best, student="rskd-nano", data=data, run=tmp_path / "run", training=options)
    _, outcome = collect(distill(job))
    assert weights.load(Path(outcome.value["student"])).spec.outputs == network().outputs


def test_a_pair_must_agree_on_the_kind_of_classes(trained, data, tmp_path):
    (tmp_path / "student.json").write_text(network(overlapping=False).model_dump_json())
    job = DistillJob(teacher=trained[0].best, student=str(tmp_path / "student.json"), data=data, run=tmp_path / "run")
    with pytest.raises(ModelError, match=r"differ in their kind of classes: .* one class per pixel.*may overlap"):
        drain(distill(job))


def test_a_look_before_counts_the_planes_of_every_class(trained, data):
    job = PreflightJob(teacher=trained[0].best, student="rskd-nano", data=data, training=TRAINING)
    value = drain(preflight(job)).value
    assert value["training"]["per_class"] == {NAMES[0]: 5, NAMES[1]: 5}
    assert value["seconds"] is not None
    assert not [finding for finding in value["findings"] if finding["kind"] == "problem"]
