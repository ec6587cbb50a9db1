"""Results that are written region by region: the same as in memory, whatever interrupts them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from ome_zarr.format import FormatV04, FormatV05
from ome_zarr.io import parse_url
from ome_zarr.reader import Reader

from rskd.config import BACKGROUND, ClassInfo, ModelSpec, SegmentOptions
from rskd.errors import FileError, ParameterError
from rskd.events import Message, drain
from rskd.io import read_scan, write_image
from rskd.large import segment_into
from rskd.ledger import Ledger
from rskd.scan import Scan
from rskd.segment import segment


class Small(torch.nn.Module):
    """A fast network of three classes that sees its neighbourhood."""

    def __init__(self, channels: int = 1) -> None:
        super().__init__()
        names = (BACKGROUND, ClassInfo(name="a"), ClassInfo(name="b"))
        self.spec = ModelSpec(name="small", image_size=32, in_channels=channels, classes=names)
        generator = torch.Generator().manual_seed(0)
        self.weight = torch.nn.Parameter(torch.randn(3, channels, 5, 5, generator=generator))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.conv2d(images, self.weight, padding=2)


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, shape).astype(np.uint8)


OPTIONS = SegmentOptions(region=64, batch_size=4)


@pytest.mark.parametrize(
    ("axes", "shape", "axis"),
    [
        ("yx", (300, 210), "auto"),
        ("yxc", (90, 70, 2), "auto"),
        ("tzyx", (2, 3, 70, 90), "auto"),
        ("zyx", (70, 20, 90), "y"),
        ("zyx", (20, 70, 40), "all"),
        ("tczyx", (2, 2, 3, 40, 70), "z"),
    ],
)
def test_on_disk_as_in_memory(tmp_path: Path, axes: str, shape: tuple[int, ...], axis: str) -> None:
    spacing = tuple(1.0 for letter in axes if letter in "zyx")
    scan = Scan(noise(*shape), axes, spacing=spacing, units="mm", affine=np.diag([*spacing, 1.0]))
    model = Small(2 if "c" in axes else 1)
    options = OPTIONS.model_copy(update={"axis": axis, "probabilities": True})
    expected = drain(segment(model, scan, options))
    found = drain(segment_into(tmp_path / "a.zarr", model, scan, options))
    assert expected.probabilities is not None
    assert found.probabilities is not None
    axes_found = found.probabilities.axes
    order = [axes_found.index(letter) for letter in expected.probabilities.axes]
    values = np.asarray(found.probabilities.data).transpose(order)
    np.testing.assert_allclose(values, expected.probabilities.data, rtol=0, atol=1e-6)
    second, first = np.sort(values, axis=0)[-2:]
    clear = first - second > 2e-5
    np.testing.assert_array_equal(np.asarray(found.labels.data)[clear], expected.labels.data[clear])
    read = read_scan(tmp_path / "a.zarr")
    assert (read.axes, read.spacing, read.units, read.meaning) == (found.labels.axes, spacing, "mm", "labels")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zarr", "a_probabilities.zarr"]


def attributes(folder: Path) -> dict:
    import zarr

    return dict(zarr.open_group(folder, mode="r").attrs)


def test_the_recipe_is_written_beside_the_labels(tmp_path: Path) -> None:
    result = drain(segment_into(tmp_path / "a.zarr", Small(), Scan(noise(90, 90), "yx"), OPTIONS))
    assert attributes(tmp_path / "a.zarr")["rskd"]["recipe"] == json.loads(result.recipe.model_dump_json())


def test_a_pyramid_that_the_ome_zarr_library_reads(tmp_path: Path) -> None:
    scan = Scan(noise(700, 600), "yx", spacing=(0.5, 0.25), units="um")
    result = drain(segment_into(tmp_path / "a.zarr", Small(), scan, SegmentOptions(region=512)))
    node = next(iter(Reader(parse_url(tmp_path / "a.zarr", fmt=FormatV04()))()))
    labels = np.asarray(result.labels.data)
    assert labels.any()
    assert [level.shape for level in node.data] == [(700, 600), (350, 300), (175, 150)]
    np.testing.assert_array_equal(node.data[0], labels)
    np.testing.assert_array_equal(node.data[2], labels[::4, ::4])
    assert node.metadata["coordinateTransformations"][2][0]["scale"] == [2, 1]


@pytest.mark.parametrize("name", ["", "labels/cells"])
def test_labels_join_their_image(tmp_path: Path, name: str) -> None:
    write_image(tmp_path / "a.zarr", Scan(noise(90, 70), "yx", spacing=(2, 1), units="um"))
    scan = read_scan(tmp_path / "a.zarr")
    result = drain(segment_into(tmp_path / "a.zarr" / name, Small(), scan, OPTIONS))
    place = tmp_path / "a.zarr" / (name or "labels/rskd")
    nodes = list(Reader(parse_url(tmp_path / "a.zarr", fmt=FormatV04()))())
    found = next(node for node in nodes if place.name in str(node.zarr))
    np.testing.assert_array_equal(np.squeeze(found.data[0]), result.labels.data)
    np.testing.assert_array_equal(nodes[0].data[0], scan.data)
    assert [path.name for path in place.parent.iterdir() if path.is_dir()] == [place.name]


def interrupted(output: Path, scan: Scan, options: SegmentOptions, *, after: int) -> None:
    """Close a task when some regions are done."""
    task = segment_into(output, Small(), scan, options)
    finished = []
    check_off = Ledger.check_off

    def count(self: Ledger, number: int) -> None:
        check_off(self, number)
        finished.append(number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Ledger, "check_off", count)
        for _ in task:
            if len(finished) >= after:
                break
    task.close()


def test_it_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scan = Scan(noise(200, 200), "yx")
    options = OPTIONS.model_copy(update={"probabilities": True})
    whole = drain(segment_into(tmp_path / "whole.zarr", Small(), scan, options))
    interrupted(tmp_path / "a.zarr", scan, options, after=5)
    assert [path.name for path in tmp_path.glob("*a.zarr*")] == [".a.zarr.growing"]
    written = []
    write = Ledger.write
    monkeypatch.setattr(Ledger, "write", lambda self, box, *values: written.append(box) or write(self, box, *values))
    monkeypatch.setattr("rskd.segment.measure", lambda *_: pytest.fail("the range is known"))
    task, said = segment_into(tmp_path / "a.zarr", Small(), scan, options), []
    try:
        while True:
            said.append(next(task))
    except StopIteration as end:
        result = end.value
    assert said[0] == Message("Going on: 5 of 16 regions are done.")
    assert len(written) == 11
    np.testing.assert_array_equal(result.labels.data, whole.labels.data)
    np.testing.assert_array_equal(result.probabilities.data, whole.probabilities.data)


def test_what_was_made_otherwise_is_begun_anew(tmp_path: Path) -> None:
    scan = Scan(noise(200, 200), "yx")
    interrupted(tmp_path / "a.zarr", scan, OPTIONS, after=5)
    other = OPTIONS.model_copy(update={"overlap": 0.5})
    said = [event for event in segment_into(tmp_path / "a.zarr", Small(), scan, other) if isinstance(event, Message)]
    assert said[0].warning
    assert "begun anew" in said[0].text
    expected = drain(segment(Small(), scan, other))
    np.testing.assert_array_equal(read_scan(tmp_path / "a.zarr").data, expected.labels.data)


@pytest.mark.parametrize("cut", [b"", b'{"bo', b"\xff"])
def test_a_ledger_cut_off_by_a_crash(tmp_path: Path, cut: bytes) -> None:
    scan = Scan(noise(200, 200), "yx")
    interrupted(tmp_path / "a.zarr", scan, OPTIONS, after=5)
    ledger = tmp_path / ".a.zarr.growing" / "ledger.jsonl"
    ledger.write_bytes(ledger.read_bytes()[:-4] + cut)
    result = drain(segment_into(tmp_path / "a.zarr", Small(), scan, OPTIONS))
    np.testing.assert_array_equal(result.labels.data, drain(segment(Small(), scan, OPTIONS)).labels.data)


SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_large import OPTIONS, Small
from rskd.events import drain
from rskd.io import read_scan
from rskd.large import segment_into
options = OPTIONS.model_copy(update={"region": 128})
drain(segment_into(Path(sys.argv[3]), Small(), read_scan(Path(sys.argv[2])), options))
"""


def test_killed_in_the_middle_and_resumed_it_is_the_same(tmp_path: Path) -> None:
    write_image(tmp_path / "image.zarr", Scan(noise(1000, 1000), "yx"))
    command = [
        sys.executable,
        "-c",
        SCRIPT,
        str(Path(__file__).parent),
        str(tmp_path / "image.zarr"),
        str(tmp_path / "a.zarr"),
    ]
    process = subprocess.Popen(command)
    ledger = tmp_path / ".a.zarr.growing" / "ledger.jsonl"
    until = time.monotonic() + 120
    while time.monotonic() < until and not (ledger.exists() and ledger.read_text("utf-8").count("box") >= 10):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = ledger.read_text("utf-8").count("box")
    assert 10 <= done < 64
    options = OPTIONS.model_copy(update={"region": 128})
    scan = read_scan(tmp_path / "image.zarr")
    result = drain(segment_into(tmp_path / "a.zarr", Small(), scan, options))
    whole = drain(segment_into(tmp_path / "whole.zarr", Small(), scan, options))
    np.testing.assert_array_equal(result.labels.data, whole.labels.data)


def test_a_smaller_tile_begins_anew_and_is_what_the_recipe_says(tmp_path: Path) -> None:
    class Tight(Small):
        calls = 0

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            if self.calls > 7 and images.shape[-1] > 16:
                raise MemoryError
            return super().forward(images)

    scan = Scan(noise(150, 150), "yx")
    events: list[object] = []
    task = segment_into(tmp_path / "a.zarr", Tight(), scan, OPTIONS.model_copy(update={"batch_size": 1}))
    try:
        while True:
            events.append(next(task))
    except StopIteration as end:
        result = end.value
    assert result.recipe.tile == 16
    assert [event.text for event in events if isinstance(event, Message) and event.warning] == [*result.recipe.setbacks]
    expected = drain(segment(Small(), scan, SegmentOptions(tile=16)))
    np.testing.assert_array_equal(result.labels.data, expected.labels.data)


def test_a_place_that_cannot_be_written_to_is_said_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "thesis.zarr").mkdir()
    (tmp_path / "thesis.zarr" / "text").touch()
    scan = Scan(noise(90, 90), "yx")
    for output, words in (
        (tmp_path / "file" / "a.zarr", "cannot be written"),
        (tmp_path / "thesis.zarr", "something else"),
    ):
        with pytest.raises(FileError, match=words):
            next(segment_into(output, Small(), scan, OPTIONS))
    with pytest.raises(ParameterError, match="in the order z, y, x"):
        next(segment_into(tmp_path / "a.zarr", Small(), Scan(noise(40, 40, 4), "xyz"), OPTIONS))


def test_two_at_once_are_one_too_many(tmp_path: Path) -> None:
    scan = Scan(noise(90, 90), "yx")
    first = segment_into(tmp_path / "a.zarr", Small(), scan, OPTIONS)
    next(first)
    with pytest.raises(ParameterError, match=r"a\.zarr is being written by another process"):
        next(segment_into(tmp_path / "a.zarr", Small(), scan, OPTIONS))
    first.close()


def test_an_older_result_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    scan = Scan(noise(200, 200), "yx")
    old = np.asarray(drain(segment_into(tmp_path / "a.zarr", Small(), scan, OPTIONS)).labels.data)
    other = OPTIONS.model_copy(update={"overlap": 0.5})
    interrupted(tmp_path / "a.zarr", scan, other, after=5)
    np.testing.assert_array_equal(read_scan(tmp_path / "a.zarr").data, old)
    new = drain(segment_into(tmp_path / "a.zarr", Small(), scan, other))
    np.testing.assert_array_equal(read_scan(tmp_path / "a.zarr").data, new.labels.data)


def test_labels_of_an_image_of_version_0_5(tmp_path: Path) -> None:
    import zarr
    from ome_zarr.writer import write_image as write_with_ome_zarr

    group = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=3)
    write_with_ome_zarr(noise(90, 70), group, scale_factors=[], fmt=FormatV05(), axes="yx")
    result = drain(segment_into(tmp_path / "a.zarr", Small(), read_scan(tmp_path / "a.zarr"), OPTIONS))
    nodes = list(Reader(parse_url(tmp_path / "a.zarr", fmt=FormatV05()))())
    found = next(node for node in nodes if "rskd" in str(node.zarr))
    np.testing.assert_array_equal(np.squeeze(found.data[0]), result.labels.data)
