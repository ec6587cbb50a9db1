import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rskd.cases import Case, case_id
from rskd.config import DataOptions
from rskd.errors import DataError
from rskd.evaluate import evaluate
from rskd.events import Progress, drain
from rskd.io import write_image
from rskd.jobs import EvaluateJob
from rskd.models import weights
from rskd.models.presets import fresh_spec
from rskd.models.segmenter import Segmenter
from rskd.scan import Scan
from rskd.segment import segment

COUNT = 3


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, a network with fixed random weights, masks that agree with it in part, and regions."""
    root = tmp_path_factory.mktemp("data")
    torch.manual_seed(0)
    model = Segmenter(fresh_spec("rskd-nano", in_channels=1, classes=["organ", "absent"])).eval()
    with torch.no_grad():
        model.decoder.head.bias[2] = -1e4  # never predicted
    weights.save(root / "net.safetensors", model, card={})
    rng = np.random.default_rng(0)
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
    options = DataOptions(images=data / "images", masks=data / "masks", regions=regions)
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
    bare = job(data).model_copy(update={"data": DataOptions(images=data / "images")})
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
