"""What is said before a distillation starts, on small volumes made for each fault."""

import shutil

import nibabel as nib
import numpy as np
import pytest

from rskd.config import DataOptions, DistillOptions, TrainOptions
from rskd.errors import DataError
from rskd.events import Progress, drain
from rskd.jobs import PreflightJob
from rskd.models import weights
from rskd.models.presets import fresh_spec
from rskd.models.segmenter import Segmenter
from rskd.preflight import preflight
from rskd.run import run

CLASSES = ["organ", "tumour"]
TRAINING = TrainOptions(epochs=2, steps_per_epoch=10, batch_size=2, patch=32)


def write(path, data, spacing=(1.5, 1.5, 5.0)):
    path.parent.mkdir(exist_ok=True)
    image = nib.Nifti1Image(data, np.diag([*spacing, 1]))
    image.header.set_xyzt_units("mm")
    nib.save(image, path)


def volume(*values, seed=0):
    """A noisy image and a mask that shows each of `values` in a plane of its own."""
    image = np.random.default_rng(seed).normal(100, 20, (32, 32, 4)).astype(np.float32)
    mask = np.zeros(image.shape, np.uint8)
    for plane, value in enumerate(values):
        mask[8:20, 8:20, plane] = value
    return image, mask


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    path = tmp_path_factory.mktemp("networks") / "teacher.safetensors"
    spec = fresh_spec("rskd-nano", in_channels=1, classes=CLASSES).model_copy(update={"image_size": 32})
    weights.save(path, Segmenter(spec), card={})
    return path


@pytest.fixture
def folder(tmp_path):
    """Three patients with two images each, all with both classes."""
    for patient in (1, 2, 3):
        for frame in (1, 9):
            image, mask = volume(1, 2, seed=10 * patient + frame)
            write(tmp_path / "images" / f"p{patient:02}_f{frame}.nii.gz", image)
            write(tmp_path / "masks" / f"p{patient:02}_f{frame}.nii.gz", mask)
    return tmp_path


def look(folder, teacher, *, task=1.0, **data):
    places = {"images": folder / "images", "masks": folder / "masks", "validation": ("p03_f1", "p03_f9")}
    options = DataOptions.model_validate(places | data)
    terms = DistillOptions(task=task)
    job = PreflightJob(teacher=teacher, student="rskd-nano", data=options, training=TRAINING, distillation=terms)
    value = drain(run(job)).value
    said = {"fact": [], "warning": [], "problem": []}
    for finding in value["findings"]:
        said[finding["kind"]].append(finding["text"])
    return value, said


def test_sound_data_are_described_in_words_and_cost_time_and_memory(folder, teacher):
    value, said = look(folder, teacher)
    assert said["problem"] == []
    assert "6 images of 4 slices, 32 rows, 32 columns." in said["fact"]
    assert "A pixel measures 5 × 1.5 × 1.5 mm." in said["fact"]
    assert (
        "To learn from: 4 images of 2 patients (16 planes), 4 with a mask; planes that show organ: 4, tumour: 4."
        in said["fact"]
    )
    assert value["training"] == {
        "images": 4, "patients": 2, "labelled": 4, "empty": 0, "planes": 16, "per_class": {"organ": 4, "tumour": 4},
    }  # fmt: skip
    low, median, high = value["seconds"]
    assert 0 < low <= median <= high
    images = 24 * 32 * 32 * (4 + 8)  # planes of a float and a class number per pixel
    assert value["memory"] > images
    assert said["fact"][-1].startswith("It will take about")


def test_it_tells_how_far_it_is_and_writes_nothing(folder, teacher):
    before = sorted(path for path in folder.rglob("*"))
    options = DataOptions(images=folder / "images", masks=folder / "masks")
    job = PreflightJob(teacher=teacher, student="rskd-nano", data=options, training=TRAINING)
    events = list(preflight(job))
    assert events[-1] == Progress(6, 6, "images read")
    assert sorted(path for path in folder.rglob("*")) == before


def change_mask(folder, name, *values):
    write(folder / "masks" / f"{name}.nii.gz", volume(*values)[1])


def lose_class_for_validation(folder):
    change_mask(folder, "p03_f1", 1)
    change_mask(folder, "p03_f9", 1)


def lose_class_for_training(folder):
    for name in ("p01_f1", "p01_f9", "p02_f1", "p02_f9"):
        change_mask(folder, name, 2)


def empty_mask(folder):
    change_mask(folder, "p01_f1")


def twin(folder):
    shutil.copy(folder / "images" / "p01_f1.nii.gz", folder / "images" / "p03_f1.nii.gz")


def coarse(folder):
    image, mask = volume(1, 2)
    write(folder / "images" / "p01_f1.nii.gz", image, (3.0, 3.0, 5.0))
    write(folder / "masks" / "p01_f1.nii.gz", mask, (3.0, 3.0, 5.0))


@pytest.mark.parametrize(
    ("spoil", "warning"),
    [
        (lose_class_for_validation, "No mask to check with shows tumour"),
        (lose_class_for_training, "No mask to learn from shows organ"),
        (empty_mask, "1 masks of these show nothing but background"),
        (twin, "1 images to check with are also learnt from, under another name (p03_f1 is p01_f1)"),
        (coarse, "2.0 times as large"),
    ],
)
def test_every_fault_of_the_data_is_said(folder, teacher, spoil, warning):
    assert not any(warning in text for text in look(folder, teacher)[1]["warning"])
    spoil(folder)
    assert any(warning in text for text in look(folder, teacher)[1]["warning"])


def test_one_patient_on_both_sides_is_said(folder, teacher):
    said = look(folder, teacher, validation=("p03_f1",))[1]
    assert any("1 patient (p03_f1, p03_f9 …) lie on both sides" in text for text in said["warning"])


def test_a_broken_image_is_a_problem_and_nothing_is_timed(folder, teacher):
    (folder / "images" / "p02_f9.nii.gz").write_bytes(b"no image")
    value, said = look(folder, teacher)
    assert len(said["problem"]) == 1
    assert "p02_f9.nii.gz" in said["problem"][0]
    assert value["seconds"] is None


@pytest.mark.parametrize("task", [0.0, 1.0])
def test_images_without_any_mask_are_a_problem_only_if_masks_are_to_be_learnt(folder, teacher, task):
    value, said = look(folder, teacher, task=task, masks=None)
    assert any("No image to check with has a mask" in text for text in said["warning"])
    assert value["training"]["labelled"] == 0
    assert any("set the weight of the task to 0" in text for text in said["problem"]) is bool(task)
    assert (value["seconds"] is None) is bool(task)


def test_masks_on_the_wrong_side_of_the_split_are_a_problem(folder, teacher):
    for name in ("p01_f1", "p01_f9", "p02_f1", "p02_f9"):
        (folder / "masks" / f"{name}.nii.gz").unlink()
    assert look(folder, teacher, unlabelled=True)[1]["problem"]


def test_a_broken_image_is_no_problem_where_it_is_left_out(folder, teacher):
    (folder / "images" / "p02_f9.nii.gz").write_bytes(b"no image")
    value, said = look(folder, teacher, skip_unreadable=True)
    assert said["problem"] == []
    assert any("p02_f9.nii.gz" in text and "left out" in text for text in said["warning"])
    assert value["seconds"] is not None


def test_patients_are_told_apart_by_all_images_and_not_by_those_of_one_side(folder, teacher):
    value, said = look(folder, teacher)
    assert (value["training"]["patients"], value["validation"]["patients"]) == (2, 1)
    assert any(text.startswith("To check with: 2 images of 1 patient (8 planes)") for text in said["fact"])


def test_no_images_at_all_are_an_error(tmp_path, teacher):
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    with pytest.raises(DataError, match="no images"):
        look(tmp_path, teacher)
