import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from rskd.cases import Case, CaseArrays, case_id
from rskd.config import CaseOptions, ScoreOptions
from rskd.errors import DataError
from rskd.evaluate import compare, evaluate, table
from rskd.events import Progress, drain
from rskd.io import write_image
from rskd.jobs import JOB, EvaluateJob
from rskd.metrics import border_distances
from rskd.models import weights
from rskd.models.presets import fresh_spec
from rskd.models.segmenter import Segmenter
from rskd.scan import Scan
from rskd.segment import segment

COUNT = 3


def random_network(seed: int) -> Segmenter:
    torch.manual_seed(seed)
    model = Segmenter(fresh_spec("rskd-nano", in_channels=1, classes=["organ", "absent"])).eval()
    with torch.no_grad():
        model.decoder.head.bias[2] = -1e4  # never predicted
    return model


def sees_both(model: Segmenter, image: Scan) -> bool:
    """Whether a random network finds background as well as the organ, which chance does not promise."""
    return 0.2 < drain(segment(model, image)).labels.data.mean() < 0.8


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, a network with fixed random weights, masks that agree with it in part, and regions."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    sample = Scan(rng.integers(0, 255, (40, 50), dtype=np.uint8), "yx")
    model = next(model for model in map(random_network, range(100)) if sees_both(model, sample))
    weights.save(root / "net.safetensors", model, card={})
    for index in range(COUNT):
        image = Scan(rng.integers(0, 255, (40, 50), dtype=np.uint8), "yx")
        mask = np.array(drain(segment(model, image)).labels.data)
        mask[:, : 10 * index] = rng.integers(0, 2, (40, 10 * index))
        region = np.zeros((40, 50), np.uint8)
        region[:, 15:] = 255
        for folder, pixels in (("images", image.data), ("masks", mask), ("regions", region)):
            write_image(root / folder / f"{index}.png", Scan(pixels, "yx"))
    return root


def job(data: Path, **fields: object) -> EvaluateJob:
    regions = fields.pop("regions", None)
    options = CaseOptions(images=data / "images", masks=data / "masks", regions=regions)
    return EvaluateJob.model_validate({"model": data / "net.safetensors", "data": options, **fields})


def expected_dice(data: Path, index: int, left: int) -> float:
    """Count by hand, from column `left` on."""
    model = weights.load(data / "net.safetensors")
    image, mask = (np.asarray(Image.open(data / f / f"{index}.png")) for f in ("images", "masks"))
    found = np.asarray(drain(segment(model, Scan(image, "yx"))).labels.data)[:, left:] == 1
    true = mask[:, left:] == 1
    return float(2 * (found & true).sum() / (found.sum() + true.sum()))


@pytest.mark.parametrize("region", [False, True])
def test_scores_per_case_and_their_mean(data: Path, region: bool) -> None:
    value = drain(evaluate(job(data, regions=data / "regions" if region else None))).value
    assert value["classes"] == ["organ", "absent"]
    scores = [case["dice"]["organ"] for case in value["cases"]]
    expected = [expected_dice(data, index, 15 if region else 0) for index in range(COUNT)]
    np.testing.assert_allclose(scores, expected, rtol=1e-12)
    assert scores[0] == 1
    assert scores[2] < 0.99
    assert (scores[1] == 1) == region  # what differs lies left of the region
    assert value["dice"] == {"organ": pytest.approx(np.mean(expected)), "absent": None}
    for case in value["cases"]:
        d, i = case["dice"]["organ"], case["iou"]["organ"]
        assert i == pytest.approx(d / (2 - d))
        assert case["dice"]["absent"] is None


def test_the_table(data: Path, tmp_path: Path) -> None:
    value = drain(evaluate(job(data, output=tmp_path / "table.csv"))).value
    rows = list(csv.DictReader((tmp_path / "table.csv").open()))
    assert len(rows) == 2 * (COUNT + 1)
    assert rows[-2]["case"] == "mean"
    assert float(rows[-2]["dice"]) == pytest.approx(value["dice"]["organ"], abs=1e-6)
    assert rows[-1] == {"case": "mean", "class": "absent", "dice": "", "iou": ""}


def test_progress_counts_images_and_may_be_closed_anywhere(data: Path) -> None:
    task = evaluate(job(data))
    assert next(task) == Progress(0, COUNT, "images")
    events = [next(task)]
    while events[-1].done == 0:
        events.append(next(task))
    assert events[-1] == Progress(1, COUNT, "images")
    task.close()


def test_without_masks_there_is_nothing_to_compare_with(data: Path) -> None:
    bare = job(data).model_copy(update={"data": CaseOptions(images=data / "images")})
    with pytest.raises(DataError, match="name a folder of masks"):
        drain(evaluate(bare))


def test_a_report_names_no_file(data: Path, tmp_path: Path) -> None:
    """A file's name may be a patient's; the table calls a case by a hash of its image instead."""
    source = data / "images" / "0.png"
    renamed = tmp_path / "Jane Doe.png"
    shutil.copy(source, renamed)
    other = data / "images" / "1.png"
    assert case_id(Case("Jane Doe", renamed)) == case_id(Case("0", source)) != case_id(Case("1", other))
    (first, *_) = drain(evaluate(job(data))).value["cases"]
    assert first["case"] == case_id(Case("0", source))


def test_borders_are_measured_on_request(data: Path, tmp_path: Path) -> None:
    """In pixels, since a PNG knows no size; the table names the unit."""
    asked = job(data, scores={"surface": True, "tolerance": 2}, output=tmp_path / "table.csv")
    value = drain(evaluate(asked)).value
    assert (value["unit"], value["tolerance"], value["missed"]) == ("voxel", 2, {"organ": 0, "absent": 0})
    model = weights.load(data / "net.safetensors")
    image, mask = (np.asarray(Image.open(data / folder / "2.png")) for folder in ("images", "masks"))
    found = border_distances(drain(segment(model, Scan(image, "yx"))).labels.data == 1, mask == 1)
    third = value["cases"][2]
    assert third["hd95"]["organ"] == pytest.approx(found.hausdorff()) != 0
    assert third["surface_dice"]["organ"] == pytest.approx(found.surface_dice(2))
    assert value["hd95"]["organ"] == pytest.approx(np.mean([row["hd95"]["organ"] for row in value["cases"]]))
    rows = list(csv.DictReader((tmp_path / "table.csv").open()))
    assert [rows[-2][column] for column in ("case", "unit")] == ["mean", "voxel"]
    assert float(rows[4]["hd95"]) == pytest.approx(found.hausdorff(), abs=1e-6)


def volume(axes: str, shape: tuple[int, ...], **facts: object) -> Scan:
    return Scan(np.zeros(shape), axes, **facts)  # type: ignore[arg-type]


def case(mask: np.ndarray) -> CaseArrays:
    return CaseArrays(np.zeros((len(mask), 1, *mask.shape[1:])), mask, None)


SURFACE = ScoreOptions(surface=True)


def test_a_volume_is_measured_in_its_own_unit() -> None:
    truth = np.zeros((4, 5, 6), np.int64)
    truth[1, 2, 3] = 1
    scan = volume("xyz", (6, 5, 4), spacing=(0.5, 2.0, 7.0), units="mm")
    for axis, distance in enumerate((7, 2, 0.5)):
        row = compare(np.roll(truth, 1, axis), case(truth), scan, ["organ"], SURFACE)
        assert (row["hd95"], row["unit"]) == ({"organ": distance}, "mm")
        assert row["surface_dice"]["organ"] == (distance <= 1)


@pytest.mark.parametrize(("axes", "shape"), [("zyx", (1, 30, 40)), ("xyz", (40, 30, 1)), ("tzyx", (1, 1, 30, 40))])
def test_a_slice_that_is_stored_as_a_volume_has_the_borders_of_a_slice(axes: str, shape: tuple[int, ...]) -> None:
    found, truth = np.zeros((2, 1, 30, 40), np.int64)
    found[0, 5:15, 5:25], truth[0, 9:19, 5:25] = 1, 1
    flat = compare(found, case(truth), volume("yx", (30, 40), spacing=(2.0, 0.5), units="mm"), ["organ"], SURFACE)
    spacing = {"z": 7.0, "y": 2.0, "x": 0.5}
    known = tuple(spacing[axis] for axis in axes if axis in spacing)
    row = compare(found, case(truth), volume(axes, shape, spacing=known, units="mm"), ["organ"], SURFACE)
    assert row == flat
    assert row["hd95"]["organ"] == 8  # four pixels of 2 mm
    assert row["surface_dice"]["organ"] < 1


def test_planes_of_a_time_series_are_not_neighbours() -> None:
    truth = np.zeros((2, 5, 6), np.int64)
    truth[:, 2, 2] = 1
    found = truth.copy()
    found[1] = np.roll(truth[1], 2, 1)
    over_time = compare(found, case(truth), volume("tyx", (2, 5, 6)), ["organ"], SURFACE)
    assert over_time["hd95"]["organ"] == pytest.approx((0 + 2) / 2)
    assert compare(found, case(truth), volume("zyx", (2, 5, 6)), ["organ"], SURFACE)["hd95"]["organ"] < 2


@pytest.mark.parametrize(("axes", "shape"), [("tzyx", (2, 3, 5, 6)), ("ztyx", (3, 2, 5, 6))])
def test_volumes_over_time_whatever_the_order_of_the_axes(axes: str, shape: tuple[int, ...]) -> None:
    """A structure that moves by one plane at the second time point alone."""
    truth = np.zeros((2, 3, 5, 6), np.int64)
    truth[:, 1, 2, 2] = 1
    found = truth.copy()
    found[1] = np.roll(truth[1], 1, 0)
    if axes == "ztyx":
        found, truth = found.swapaxes(0, 1), truth.swapaxes(0, 1)
    planes = (found.reshape(-1, 5, 6), truth.reshape(-1, 5, 6))
    row = compare(planes[0], case(planes[1]), volume(axes, shape), ["organ"], SURFACE)
    assert row["hd95"]["organ"] == pytest.approx(0.5)


def test_a_missed_class_counts_in_the_surface_dice_and_is_counted_beside_the_distance() -> None:
    truth = np.zeros((1, 4, 4), np.int64)
    truth[0, 1, 1] = 1
    scan = volume("yx", (4, 4))
    rows = [
        {"case": name, **compare(found, case(truth), scan, ["organ"], SURFACE)}
        for name, found in (("seen", truth), ("missed", 0 * truth))
    ]
    value = table(rows, ["organ"], SURFACE)
    assert (value["hd95"], value["surface_dice"], value["missed"]) == ({"organ": 0}, {"organ": 0.5}, {"organ": 1})


def test_millimetres_and_voxels_are_not_averaged() -> None:
    mask = np.ones((1, 4, 4), np.int64)
    scans = (volume("yx", (4, 4), spacing=(1.0, 1.0), units="mm"), volume("yx", (4, 4)))
    rows = [{"case": "a", **compare(mask, case(mask), scan, ["organ"], SURFACE)} for scan in scans]
    value = table(rows, ["organ"], SURFACE)
    assert (value["unit"], value["hd95"], value["dice"]) == (None, {"organ": None}, {"organ": 1})


@pytest.mark.parametrize("field", ["validation", "validation_share", "unlabelled"])
def test_what_belongs_to_training_is_refused(field: str) -> None:
    with pytest.raises(ValidationError, match=field):
        JOB.validate_python({"kind": "evaluate", "model": "m", "data": {"images": "i", field: 0.5}})
