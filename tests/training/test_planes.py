"""A network is measured on planes of the kind that it was trained on, at the same size of a pixel."""

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from rskd.cases import Case
from rskd.config import CaseOptions, ComputeOptions, DataOptions, ModelSpec, RankOptions, SegmentOptions
from rskd.data.slices import Slice, load_slices, trained_on
from rskd.errors import ModelError
from rskd.evaluate import evaluate
from rskd.events import Epoch, Reference, drain
from rskd.io import read_scan
from rskd.io.slices import across
from rskd.jobs import DistillJob, EvaluateJob, TrainJob
from rskd.models import weights
from rskd.models.presets import fresh_spec, student_spec
from rskd.models.segmenter import Segmenter
from rskd.pair import networks_for
from rskd.plan import Plan
from rskd.rank import rank
from rskd.records import read_json
from rskd.scan import Scan
from rskd.train import distill, train
from tests.running import collect
from tests.training.conftest import TINY

CPU = ComputeOptions(device="cpu", threads=1)


def write_volumes(folder, spacings, shape=(16, 24, 4)):
    """Write volumes (x, y, z in the file) of random blobs that are to be found again."""
    rng = np.random.default_rng(5)
    for number, spacing in enumerate(spacings):
        smooth = ndimage.gaussian_filter(rng.normal(size=shape), 3)
        mask = (smooth > np.quantile(smooth, 0.7)).astype(np.uint8)
        image = (mask + 0.3 * rng.normal(size=shape)).astype(np.float32)
        affine = np.diag([*spacing, 1])
        for name, values in (("images", image), ("masks", mask)):
            (folder / name).mkdir(exist_ok=True)
            file = nib.Nifti1Image(values, affine)
            file.header.set_xyzt_units("mm")
            nib.save(file, folder / name / f"case{number}.nii.gz")
    return DataOptions(images=folder / "images", masks=folder / "masks", validation=("case0",))


def training(data, run):
    options = TINY.model_copy(update={"patch": 32, "learning_rate": 3e-3, "report": True})
    return TrainJob(model="rskd-nano", data=data, run=run, training=options, compute=CPU)


def best(events):
    return [event for event in events if isinstance(event, Epoch) and event.best][-1]


@pytest.fixture(scope="module")
def sagittal(tmp_path_factory):
    """A run on volumes whose squarest planes are not those that are trained on."""
    folder = tmp_path_factory.mktemp("sagittal")
    data = write_volumes(folder, [(5, 1, 1)] * 3)
    events, _ = collect(train(training(data, folder / "run")))
    return folder, data, events


def test_the_best_network_is_as_good_as_the_run_says(sagittal):
    folder, data, events = sagittal
    assert across(read_scan(data.images / "case0.nii.gz")) == "x"
    expected = best(events).dice
    assert expected > 0.05
    case = CaseOptions(images=data.images / "case0.nii.gz", masks=data.masks / "case0.nii.gz")
    found = drain(evaluate(EvaluateJob(model=folder / "run" / "best.safetensors", data=case, compute=CPU)))
    assert found.value["dice"]["foreground"] == pytest.approx(expected, abs=1e-6)
    reported = read_json(folder / "run" / "validation.json")["tables"]["student"]
    assert reported["dice"]["foreground"] == pytest.approx(expected, abs=1e-6)


def test_the_report_measures_the_teacher_on_the_planes_of_the_run(sagittal, tmp_path):
    folder, data, _ = sagittal
    teacher = weights.load(folder / "run" / "best.safetensors")
    teacher.spec = teacher.spec.model_copy(update={"axis": None})  # as in a file of an older version
    weights.save(tmp_path / "teacher.safetensors", teacher, card={})
    shared = training(data, tmp_path / "run").model_dump(include={"data", "run", "training", "compute"})
    shared["training"] |= {"epochs": 1, "steps_per_epoch": 1}
    pair = DistillJob(teacher=tmp_path / "teacher.safetensors", student="rskd-nano", **shared)
    events, _ = collect(distill(pair))
    reference = next(event for event in events if isinstance(event, Reference) and event.name == "teacher")
    reported = read_json(tmp_path / "run" / "validation.json")["tables"]["teacher"]
    assert reported["dice"]["foreground"] == pytest.approx(reference.dice, abs=1e-6)


def test_a_file_says_what_it_was_trained_on(sagittal):
    spec = weights.load(sagittal[0] / "run" / "best.safetensors").spec
    assert (spec.axis, spec.spacing) == ("z", None)  # planes y-x of 1 x 5 mm have no one size


@pytest.mark.parametrize(
    ("spacings", "expected"),
    [
        ([(0.7, 0.7, 3)] * 3, 0.7),
        ([(0.7, 0.7, 3), (0.7, 0.7, 5), (0.704, 0.7, 1)], 0.702),
        ([(0.7, 0.7, 3), (0.7, 0.7, 3), (0.8, 0.8, 3)], None),
        ([(0.7, 0.9, 3)] * 3, None),
        ([(2000, 2000, 3)] * 3, None),
    ],
)
def test_one_size_of_a_pixel_is_written_down(tmp_path, spacings, expected):
    data = write_volumes(tmp_path, spacings, shape=(8, 8, 2))
    spec = fresh_spec("rskd-nano", in_channels=1, classes=["foreground"])
    planes = [plane for path in sorted(data.images.iterdir()) for plane in load_slices(Case(path.name, path), spec)]
    assert trained_on(spec, planes).spacing == (expected and pytest.approx(expected))
    assert trained_on(spec.model_copy(update={"frame": 64}), planes).spacing is None


def test_pictures_of_unknown_size_leave_it_unknown():
    planes = [Slice("a", *np.zeros((2, 1, 4, 4)))]
    assert trained_on(ModelSpec(name="net"), planes).spacing is None


def test_a_network_for_one_size_of_a_pixel_is_trained_on_it(tmp_path):
    """Half the pixels where theirs are half as large; what it says of itself stays."""
    data = write_volumes(tmp_path, [(0.5, 0.5, 3), (1, 1, 3)], shape=(20, 36, 2))
    spec = ModelSpec(name="net", spacing=1.0)
    planes = [load_slices(Case(path.name, path, mask), spec) for path, mask in pairs(data)]
    assert [tuple(found[0].image.shape) for found in planes] == [(1, 18, 10), (1, 36, 20)]
    assert [tuple(found[0].target.shape) for found in planes] == [(18, 10), (36, 20)]
    assert all(plane.pixel == pytest.approx((1, 1)) for found in planes for plane in found)
    assert trained_on(spec, planes[0]).spacing == 1.0


def pairs(data):
    return zip(sorted(data.images.iterdir()), sorted(data.masks.iterdir()), strict=True)


def networks(tmp_path, **sizes):
    """Return the student and the teacher of a distillation, described by the size of a pixel of each."""
    specs = {role: fresh_spec("rskd-nano", in_channels=1, classes=["organ"]) for role in ("teacher", "student")}
    specs = {role: spec.model_copy(update={"spacing": sizes[role]}) for role, spec in specs.items()}
    weights.save(tmp_path / "teacher.safetensors", Segmenter(specs["teacher"]), card={})
    (tmp_path / "student.json").write_text(specs["student"].model_dump_json())
    data = DataOptions(images=tmp_path)
    teacher, student = tmp_path / "teacher.safetensors", str(tmp_path / "student.json")
    return networks_for(DistillJob(teacher=teacher, student=student, data=data, run=tmp_path), Case("a", tmp_path))


@pytest.mark.parametrize(("student", "teacher", "seen"), [(None, 0.7, 0.7), (0.7, None, 0.7), (0.7, 0.702, 0.7)])
def test_a_teacher_sees_pixels_of_the_size_that_it_was_trained_at(tmp_path, student, teacher, seen):
    assert student_spec("rskd-nano", ModelSpec(name="teacher", spacing=0.7)).spacing == 0.7
    assert networks(tmp_path, student=student, teacher=teacher)[0].spec.spacing == seen


def test_a_student_for_pixels_of_another_size_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"pixels of 1.4 mm, its teacher .* for those of 0.7 mm: choose a pair"):
        networks(tmp_path, student=1.4, teacher=0.7)


def test_tokens_are_those_of_the_pixels_of_the_training():
    """Pixels half as large as those of the training: half as many tokens along either axis, each twice as wide."""
    spec = fresh_spec("rskd-nano", in_channels=1, classes=["organ"]).model_copy(update={"spacing": 1.0})
    scan = Scan(np.random.default_rng(0).random((128, 192)), "yx", spacing=(0.5, 0.5), units="mm")
    found = drain(rank({"student": Segmenter(spec)}, scan, RankOptions())).value["student"]
    assert (found["grid"], found["token"]) == ([4, 6], [32, 32])


@pytest.mark.parametrize(("trained", "asked", "expected"), [("z", "auto", "z"), (None, "auto", "x"), ("z", "y", "y")])
def test_auto_means_as_in_the_training(trained, asked, expected):
    scan = Scan(np.zeros((9, 8, 7)), "zyx", spacing=(1, 1, 5), units="mm")
    spec = ModelSpec(name="net", axis=trained)
    assert Plan.of(scan, spec, SegmentOptions(axis=asked)).axis == expected


def test_an_image_without_depth_has_one_axis_whatever_the_training_had():
    assert Plan.of(Scan(np.zeros((8, 7)), "yx"), ModelSpec(name="net", axis="x"), SegmentOptions()).axis == "z"
