"""Classes that may overlap, through the whole program: two discs of which a pixel can belong to both."""

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import tifffile
import torch
from lightning_fabric import Fabric

from rskd.cases import Case, CaseArrays, find_cases, read_case
from rskd.clean_up import clean_up
from rskd.config import (
    BACKGROUND,
    AugmentOptions,
    ClassInfo,
    CleanUpOptions,
    DataOptions,
    ModelSpec,
    RankOptions,
    SamplingOptions,
    ScoreOptions,
    SegmentOptions,
    TrainOptions,
)
from rskd.data import IGNORE, Slice, cut, load_slices
from rskd.data.sampling import Places
from rskd.distillation.baselines.table import BASELINES, chosen, method
from rskd.distillation.feasible import feasible
from rskd.distillation.logits import logits_loss
from rskd.distillation.objective import Objective
from rskd.errors import DataError, ModelError, ParameterError
from rskd.evaluate import compare, evaluate
from rskd.events import Epoch, drain
from rskd.io import check_place, read_labels, read_scan, write_image, write_labels
from rskd.jobs import BatchJob, DistillJob, EvaluateJob, PreflightJob, ReportJob, SegmentJob, TrainJob
from rskd.large import segment_into
from rskd.measure import measure
from rskd.metrics import border_distances
from rskd.models import weights
from rskd.models.augmented import Augmented
from rskd.models.exported import OnnxSegmenter
from rskd.models.foreign import load_foreign
from rskd.models.presets import fresh_spec
from rskd.models.segmenter import Segmenter
from rskd.onnx_export import export_onnx
from rskd.pair import networks_for
from rskd.preflight import preflight
from rskd.rank import rank
from rskd.records import read_json
from rskd.report.measure import Plane
from rskd.report.pictures import EXTRA, MISSED, MIXED_UP, mistakes, overlay
from rskd.run import Session
from rskd.runs import RunFolder
from rskd.scan import Scan
from rskd.segment import segment
from rskd.train import distill, train
from rskd.training.validation import mean_scores, validate
from rskd.uncertainty import divergence, entropy, of_every_class
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


def test_a_fresh_network_is_of_the_kind_that_a_training_asks_for(data, tmp_path):
    job = TrainJob(model="rskd-nano", data=data, run=tmp_path / "run", classes=NAMES, overlapping=True)
    student, _ = networks_for(job, find_cases(data)[0])
    assert [info.name for info in student.spec.outputs] == [*NAMES]


def test_what_counts_for_its_answer_can_be_ranked():
    model = Segmenter(network())
    value = drain(rank({"student": model}, Scan(discs(0)[0], "cyx"), RankOptions(definition="grad"))).value
    assert value["student"]["definition"] == "grad"


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
    options = TRAINING.model_copy(update={"batch_size": 1})
    job = PreflightJob(teacher=trained[0].best, student="rskd-nano", data=data, training=options)
    value = drain(preflight(job)).value
    assert value["training"]["per_class"] == {NAMES[0]: 5, NAMES[1]: 5}
    assert value["seconds"] is not None
    assert not [finding for finding in value["findings"] if finding["kind"] == "problem"]


# ------------------------------------------------------------------------------------------------------------- results


def cut_at_the_mean(image):
    """Return what `Bright` finds in a picture or volume with the channels first."""
    axes = (-2, -1)
    return image >= image.mean(axes, keepdims=True)


@pytest.fixture
def volume():
    image = np.random.default_rng(1).normal(size=(2, 3, 40, 50)).astype(np.float32)
    affine = np.array([[0, 2.0, 0, 5], [3, 0, 0, 6], [0, 0, 2, 7], [0, 0, 0, 1]])
    return Scan(image, "czyx", spacing=(3, 2, 2), units="mm", affine=affine, anatomical=True)


def test_a_segmentation_has_a_plane_per_class_in_the_world_of_the_scan(volume):
    found = drain(segment(Bright(), volume, SegmentOptions(probabilities=True, axis="z")))
    labels, probabilities = found.labels, found.probabilities
    assert (labels.axes, labels.channels, labels.data.dtype) == ("czyx", NAMES, np.uint8)
    assert (labels.spacing, labels.units, labels.affine is volume.affine) == ((3, 2, 2), "mm", True)
    np.testing.assert_array_equal(labels.data, cut_at_the_mean(volume.data))
    z = (volume.data - volume.data.mean((2, 3), keepdims=True)) / volume.data.std((2, 3), keepdims=True)
    np.testing.assert_allclose(probabilities.data, 1 / (1 + np.exp(-z)), atol=1e-5)
    np.testing.assert_array_equal(labels.data, probabilities.data >= 0.5)
    turned = Scan(volume.data.transpose(3, 2, 0, 1), "xycz")
    again = drain(segment(Bright(), turned, SegmentOptions(axis="z")))
    assert again.labels.axes == "cxyz"
    np.testing.assert_array_equal(again.labels.data, labels.data.transpose(0, 3, 2, 1))


def test_the_mean_over_three_axes_decides_on_every_class(volume):
    cube = Scan(volume.data, "czyx")
    wanted = SegmentOptions(axis="all", probabilities=True)
    whole = drain(segment(Bright(), cube, wanted))
    views = [
        drain(segment(Bright(), cube, wanted.model_copy(update={"axis": axis}))).probabilities.data for axis in "zyx"
    ]
    np.testing.assert_allclose(whole.probabilities.data, np.mean(views, 0), atol=1e-6)
    np.testing.assert_array_equal(whole.labels.data, whole.probabilities.data >= 0.5)
    alone = drain(segment(Bright(), cube, SegmentOptions(axis="all")))
    np.testing.assert_array_equal(alone.labels.data, whole.labels.data)


def test_a_tile_that_is_skipped_has_none_of_the_classes():
    image = np.zeros((2, 64, 64), np.float32)
    image[:, :, 40:] = np.random.default_rng(0).normal(9, 1, (2, 64, 24))
    found = drain(segment(Bright(frame=None), Scan(image, "cyx"), SegmentOptions(skip_flat=0, tile=16, overlap=0)))
    assert not found.labels.data[:, :, :32].any()
    assert found.labels.data[:, :, 48:].any()


@pytest.mark.parametrize("probabilities", [False, True])
def test_a_large_image_is_segmented_alike(tmp_path, volume, probabilities):
    options = SegmentOptions(probabilities=probabilities, region=32, axis="z")
    whole = drain(segment(Bright(), volume, options))
    parts = drain(segment_into(tmp_path / "labels.zarr", Bright(), volume, options))
    assert (parts.labels.axes, parts.labels.channels) == ("czyx", NAMES)
    np.testing.assert_array_equal(parts.labels.data, whole.labels.data)
    np.testing.assert_array_equal(read_labels(tmp_path / "labels.zarr").affine, volume.affine)
    if probabilities:
        np.testing.assert_allclose(parts.probabilities.data, whole.probabilities.data, atol=1e-6)


def test_labels_beside_an_image_in_its_ome_zarr(tmp_path):
    image = Scan(discs(0)[0], "cyx")
    write_image(tmp_path / "image.zarr", image)
    found = drain(
        segment_into(tmp_path / "image.zarr" / "labels" / "discs", Bright(), read_scan(tmp_path / "image.zarr"))
    )
    np.testing.assert_array_equal(found.labels.data, cut_at_the_mean(image.data))


@pytest.mark.parametrize("ending", [".tif", ".nii.gz", ".npy", ".nrrd", ".mha", ".zarr"])
@pytest.mark.parametrize("axes", ["zyx", "yx"])
def test_planes_of_classes_come_back_from_every_kind_of_file(tmp_path, ending, axes):
    masks = np.random.default_rng(0).random((3, 4, 6, 7)) < 0.5
    scan = Scan(np.zeros((4, 6, 7), np.float32), "zyx", spacing=(3.0, 2.0, 2.0), units="mm")
    if axes == "yx":
        masks, scan = masks[:, 0], Scan(np.zeros((6, 7), np.float32), "yx")
    write_image(tmp_path / "image.nii", scan)
    write_labels(tmp_path / f"mask{ending}", masks.astype(np.uint8), scan, names=("one", "two", "three"))
    found = read_case(Case("image", tmp_path / "image.nii", tmp_path / f"mask{ending}"), spec_of(3)).mask
    np.testing.assert_array_equal(found, masks.reshape(3, -1, 6, 7).swapaxes(0, 1))
    if ending in (".tif", ".zarr"):
        assert read_labels(tmp_path / f"mask{ending}").channels == ("one", "two", "three")
    if ending == ".nii.gz":
        assert nibabel.load(tmp_path / "mask.nii.gz").shape == (7, 6, len(masks[0]) if axes == "zyx" else 1, 3)


def test_a_picture_of_colours_holds_no_planes_of_classes(tmp_path):
    scan = Scan(np.zeros((6, 7), np.uint8), "yx")
    for refuse in (
        lambda path: check_place(path, scan, overlapping=True),
        lambda path: write_labels(path, np.zeros((3, 6, 7), np.uint8), scan),
    ):
        with pytest.raises(ParameterError, match=r"mask.png holds one picture, .* use .tif"):
            refuse(tmp_path / "mask.png")
    with pytest.raises(DataError, match="Planes of classes go up to 2: write 1 where a class is"):
        write_labels(tmp_path / "mask.tif", np.full((3, 6, 7), 2, np.uint8), scan)


def test_every_class_is_cleaned_up_and_measured_by_itself():
    large, ring = np.zeros((2, 8, 8), np.uint8)
    large[:6, :6] = 1  # covers the ring
    ring[1:4, 1:4], ring[2, 2], ring[7, 7] = 1, 0, 1
    labels = Scan(np.stack([large, ring]), "cyx", spacing=(2.0, 2.0), units="mm", channels=NAMES)
    options = CleanUpOptions(keep_largest=(NAMES[1],), fill_holes=("all",))
    found = clean_up(labels, options, NAMES)
    np.testing.assert_array_equal(found.data[0], large)
    assert found.data[1].sum() == 9
    assert (found.channels, found.data.dtype) == (NAMES, np.uint8)
    image = Scan(np.arange(64.0).reshape(8, 8), "yx")
    rows = measure(labels, image, names=NAMES)
    assert [(row.label, row.name, row.voxels, row.size, row.components) for row in rows] == [
        (1, NAMES[0], 36, 144.0, 1),
        (2, NAMES[1], 9, 36.0, 2),
    ]
    assert rows[1].intensities[0].maximum == 63


def test_how_sure_a_network_is_of_every_class_by_hand():
    p, q = np.array([[0.5, 1.0], [0.25, 0.0]]), np.array([[0.5, 0.0], [0.25, 0.0]])
    np.testing.assert_allclose(of_every_class(entropy)(p), [[1, 0], [0.8112781, 0]], atol=1e-6)
    np.testing.assert_allclose(of_every_class(divergence)(p, q), [[0, 1], [0, 0]], atol=1e-6)


def test_a_session_segments_measures_and_writes_every_class(trained, data, tmp_path):
    output = tmp_path / "labels.tif"
    job = SegmentJob(
        model=trained[0].best, image=data.images / "5.tif", output=output, measure="classes", uncertainty=("entropy",),
        compare_with=trained[0].best, tta="flips", clean_up=CleanUpOptions(keep_largest=("all",)),
    )  # fmt: skip
    outcome = drain(Session().run(job, {}))
    _, masks = discs(5)
    labels = outcome.arrays["labels"]
    assert outcome.value["overlapping"]
    for own, true in zip(labels > 0, masks, strict=True):
        assert 2 * (own & true).sum() / (own.sum() + true.sum()) > 0.8
    assert (labels[0] & labels[1]).any()
    assert outcome.value["measurements"]["voxels"] == labels.sum((1, 2)).tolist()
    assert outcome.arrays["entropy"].shape == outcome.arrays["divergence"].shape == labels.shape
    assert not outcome.arrays["disagreement"].any()
    np.testing.assert_array_equal(read_labels(output).data, labels)
    assert read_labels(tmp_path / "labels_entropy.tif").data.shape == labels.shape


def test_a_batch_writes_planes_beside_pictures(trained, tmp_path):
    (tmp_path / "in").mkdir()
    write_image(tmp_path / "in" / "a.tif", Scan(discs(0)[0], "cyx"))
    value = drain(
        Session().run(BatchJob(model=trained[0].best, images=tmp_path / "in", output=tmp_path / "out"), {})
    ).value
    assert (value["done"], value["failed"]) == (1, 0)
    assert read_labels(tmp_path / "out" / "a.tif").data.shape == (2, SIZE, SIZE)


def test_networks_of_different_kinds_are_not_compared(trained, data, tmp_path):
    weights.save(tmp_path / "other.safetensors", Segmenter(network(overlapping=False)), card={})
    job = SegmentJob(model=trained[0].best, image=data.images / "5.tif", compare_with=tmp_path / "other.safetensors")
    with pytest.raises(ModelError, match="may overlap"):
        drain(Session().run(job, {}))


def test_an_exported_network_says_the_same(tmp_path, trained):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    model = weights.load(trained[0].best)
    export_onnx(model, tmp_path / "net.onnx", size=32)
    exported = OnnxSegmenter(tmp_path / "net.onnx")
    assert exported.spec.outputs == model.spec.outputs
    scan = Scan(discs(3)[0], "cyx")
    found = [drain(segment(network, scan)).labels.data for network in (model, exported)]
    assert (found[0] != found[1]).mean() < 1e-3


# ------------------------------------------------------------------------------------------------------------- scores


def test_an_evaluation_measures_every_class_by_itself(trained, data):
    job = EvaluateJob(model=trained[0].best, data=data, scores=ScoreOptions(surface=True, tolerance=1.0))
    value = drain(evaluate(job)).value
    assert value["classes"] == [*NAMES]
    model = weights.load(trained[0].best)
    for seed, row in enumerate(value["cases"]):
        image, masks = discs(seed)
        labels = drain(segment(model, Scan(image, "cyx"))).labels.data > 0
        for own, true, name in zip(labels, masks, NAMES, strict=True):
            both, either = (own & true).sum(), (own | true).sum()
            assert row["dice"][name] == pytest.approx(2 * both / (own.sum() + true.sum()))
            assert row["iou"][name] == pytest.approx(both / either)
            apart = border_distances(own, true)
            assert row["hd95"][name] == pytest.approx(apart.hausdorff())
            assert row["surface_dice"][name] == pytest.approx(apart.surface_dice(1.0))
    assert value["unit"] == "voxel"


def test_scores_count_inside_of_the_region_alone():
    rng = np.random.default_rng(0)
    labels, truth = rng.integers(0, 2, (2, 3, 2, 6, 7))  # S K H W
    region = rng.random((3, 6, 7)) < 0.7
    scan = Scan(np.zeros((3, 6, 7)), "zyx")
    row = compare(labels, CaseArrays(np.zeros((3, 1, 6, 7)), truth, region), scan, NAMES, ScoreOptions(surface=True))
    for k, name in enumerate(NAMES):
        own, true = (side[:, k].astype(bool) & region for side in (labels, truth))
        assert row["dice"][name] == pytest.approx(2 * (own & true).sum() / (own.sum() + true.sum()))
        assert row["hd95"][name] == pytest.approx(border_distances(own, true).hausdorff())
    assert row["unit"] == "voxel"


def test_mistakes_by_hand_and_both_classes_in_a_picture():
    truth = np.array([[[1, 1, 0, 1, 1]], [[0, 1, 0, 0, 0]]])
    labels = np.array([[[1, 0, 1, 0, 0]], [[0, 1, 0, 1, 0]]])
    region = np.array([[True, True, True, True, False]])
    plane = Plane("a", 1, 1, np.zeros((1, 1, 5)), truth, region, {"student": labels})
    assert mistakes(plane, labels).tolist() == [[0, MISSED, EXTRA, MIXED_UP, 0]]
    colors = ("#000000", "#ff0000", "#0000ff")
    nothing = overlay(plane, np.zeros_like(labels), colors)
    assert (
        len({nothing, *(overlay(plane, labels * np.array(k)[:, None, None], colors) for k in ((1, 0), (0, 1), (1, 1)))})
        == 4
    )


def test_the_report_of_a_run_shows_its_pictures(trained, tmp_path):
    run, events = trained
    outcome = drain(Session().run(ReportJob(run=run.path, output=tmp_path / "report.html"), {}))
    (epoch,) = [event for event in events if isinstance(event, Epoch)]
    assert outcome.value["dice"]["student"] == pytest.approx(epoch.dice, abs=0.02)
    page = (tmp_path / "report.html").read_text()
    assert "no pictures" not in page
    assert all(name in page for name in NAMES)
