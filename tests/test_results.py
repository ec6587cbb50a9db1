"""What a segment job returns and writes besides the labels."""

import csv

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from rskd.clean_up import clean_up
from rskd.config import BACKGROUND, ClassInfo, ModelSpec, SegmentOptions
from rskd.errors import ModelError
from rskd.events import Message, drain
from rskd.io import read_scan
from rskd.jobs import SegmentJob
from rskd.measure import measure
from rskd.results import Results, segment_scan, write_results
from rskd.scan import Scan
from rskd.segment import segment
from rskd.uncertainty import divergence, entropy, margin


class Small(nn.Module):
    """A convolution with three classes."""

    def __init__(self, seed: int, *names: str) -> None:
        super().__init__()
        classes = (BACKGROUND, *(ClassInfo(name=name) for name in names or ("a", "b")))
        self.spec = ModelSpec(name=f"small {seed}", image_size=32, classes=classes)
        kernel = torch.randn(len(classes), 1, 5, 5, generator=torch.Generator().manual_seed(seed))
        self.weight = nn.Parameter(kernel)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return F.conv2d(images, self.weight, padding=2)


AFFINE = np.eye(4)
AFFINE[:3, :3] = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0] @ np.diag([3.0, 0.5, 0.7])
IMAGE = Scan(
    np.random.default_rng(0).normal(size=(3, 40, 36)).astype(np.float32),
    "zyx",
    spacing=(3.0, 0.5, 0.7),
    units="mm",
    affine=AFFINE,
    anatomical=True,
)


def job(**fields: object) -> SegmentJob:
    return SegmentJob.model_validate({"model": "net", **fields})


def found(scan: Scan = IMAGE, **fields: object) -> Results:
    second = Small(1) if "compare_with" in fields else None
    return drain(segment_scan(job(**fields), scan, Small(0), second))


def probabilities(seed: int) -> np.ndarray:
    result = drain(segment(Small(seed), IMAGE, SegmentOptions(probabilities=True)))
    return np.asarray(result.probabilities.data)


def test_maps_are_those_of_the_probabilities() -> None:
    results = found(uncertainty=("entropy", "margin"), compare_with="other")
    ours, theirs = probabilities(0), probabilities(1)
    assert set(results.maps) == {"entropy", "margin", "disagreement", "divergence"}
    expected = {
        "entropy": entropy(ours),
        "margin": margin(ours),
        "disagreement": ours.argmax(0) != theirs.argmax(0),
        "divergence": divergence(ours, theirs),
    }
    for name, values in expected.items():
        np.testing.assert_array_equal(results.maps[name].data, values)
        assert results.maps[name].axes == "zyx"
        assert results.maps[name].affine is IMAGE.affine
    np.testing.assert_array_equal(results.labels.data, ours.argmax(0))
    assert 0 < expected["disagreement"].mean() < 1


def test_several_sides_are_averaged_and_the_recipe_says_so() -> None:
    plain, flipped = found(options={"probabilities": True}), found(options={"probabilities": True}, tta="flips")
    assert plain.made_with["tta"] == "none"
    assert flipped.made_with["tta"] == "flips"
    assert flipped.made_with["weights"] == plain.made_with["weights"]
    assert np.abs(flipped.maps["probabilities"].data - plain.maps["probabilities"].data).max() > 0.01
    turned = found(IMAGE.like(IMAGE.data[:, ::-1].copy(), "zyx"), options={"probabilities": True}, tta="flips")
    np.testing.assert_allclose(
        turned.maps["probabilities"].data[:, :, ::-1], flipped.maps["probabilities"].data, atol=1e-4
    )


def test_labels_are_cleaned_up_and_then_measured() -> None:
    options = {"keep_largest": ("a",), "fill_holes": ("all",), "min_size": {"b": 2.5}}
    results = found(clean_up=options, measure="slices")
    expected = clean_up(found().labels, job(clean_up=options).clean_up, ["a", "b"])
    np.testing.assert_array_equal(results.labels.data, expected.data)
    assert (expected.data != found().labels.data).any()
    assert results.measurements == measure(expected, IMAGE, names=["a", "b"], slices=True)
    assert results.measurements[0].components == 1
    assert results.made_with["clean_up"]["keep_largest"] == ["a"]


def test_files_lie_where_the_image_lies(tmp_path) -> None:
    results = found(uncertainty=("entropy",), options={"probabilities": True}, measure="classes")
    written = write_results(tmp_path / "scan.1.nii.gz", results, ["a", "b"])
    assert [path.name for path in written] == [
        "scan.1.nii.gz", "scan.1_probabilities.nii.gz", "scan.1_entropy.nii.gz", "scan.1_measurements.csv",
    ]  # fmt: skip
    for path in written[:3]:
        np.testing.assert_allclose(read_scan(path).affine, AFFINE, atol=1e-6)
    np.testing.assert_allclose(read_scan(written[2]).data, results.maps["entropy"].data)
    with written[3].open(newline="") as file:
        (first, second) = csv.DictReader(file)
    assert (first["class"], second["unit"]) == ("a", "ml")
    assert float(first["size"]) == pytest.approx((results.labels.data == 1).sum() * 1.05 / 1000)


def test_a_level_of_a_pyramid_is_measured_and_written_as_such(tmp_path) -> None:
    half = IMAGE.data[:, ::2, ::2]
    scan = Scan(IMAGE.data, "zyx", spacing=(3.0, 0.5, 0.7), units="mm", pyramid=(half,))
    results = found(scan, options={"level": 1}, measure="classes")
    assert results.labels.data.shape == half.shape
    write_results(tmp_path / "half.tif", results, ["a", "b"])
    assert read_scan(tmp_path / "half.tif").spacing == (3.0, 1.0, 1.4)
    assert results.measurements[0].size == pytest.approx((results.labels.data == 1).sum() * 4.2 / 1000)


def test_sizes_that_count_voxels_are_told() -> None:
    scan = Scan(IMAGE.data, "zyx")
    task = segment_scan(job(clean_up={"min_size": {"all": 3}}), scan, Small(0))
    told = [event for event in task if isinstance(event, Message)]
    assert [event.text for event in told] == [
        "The image does not state the size of its voxels: min_size counts voxels."
    ]


def test_networks_of_other_classes_are_not_compared() -> None:
    with pytest.raises(ModelError, match="small 0 knows a, b, small 1 c: networks of the same classes"):
        drain(segment_scan(job(compare_with="other"), IMAGE, Small(0), Small(1, "c")))
