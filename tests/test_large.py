"""Results that are written region by region: the same as in memory, whatever interrupts them."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from ome_zarr.format import FormatV04, FormatV05
from ome_zarr.io import parse_url
from ome_zarr.reader import Reader

from rskd.config import BACKGROUND, ClassInfo, ModelSpec, SegmentOptions
from rskd.errors import FileError, ParameterError
from rskd.events import Message, Progress, drain
from rskd.io import ome_zarr, read_scan, write_image
from rskd.large import segment_into
from rskd.ledger import Ledger, Place, Store
from rskd.plan import Plan
from rskd.recipe import Setting
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
    write = Store.write
    monkeypatch.setattr(Store, "write", lambda self, box, *values: written.append(box) or write(self, box, *values))
    monkeypatch.setattr("rskd.box.measure", lambda *_: pytest.fail("the range is known"))
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


def messages(task: object) -> list[str]:
    return [event.text for event in task if isinstance(event, Message)]  # type: ignore[attr-defined]


AFFINE = np.diag([2.0, 2.0, 1.0])


@pytest.mark.parametrize(
    "other",
    [
        Scan(255 - noise(100, 100), "yx"),
        Scan(noise(100, 100), "yx", spacing=(2, 2), units="mm"),
        Scan(noise(100, 100), "yx", spacing=(2, 2), units="mm", affine=AFFINE),
    ],
    ids=["values", "spacing", "affine"],
)
def test_another_image_of_the_same_shape_is_begun_anew(tmp_path: Path, other: Scan) -> None:
    interrupted(tmp_path / "a.zarr", Scan(noise(100, 100), "yx"), OPTIONS, after=2)
    said = messages(segment_into(tmp_path / "a.zarr", Small(), other, OPTIONS))
    assert "begun anew" in said[0]
    found = read_scan(tmp_path / "a.zarr")
    np.testing.assert_array_equal(found.data, drain(segment(Small(), other, OPTIONS)).labels.data)
    assert found.spacing == other.spacing


def test_an_image_that_has_changed_on_disk_is_begun_anew(tmp_path: Path) -> None:
    for data in (noise(200, 200), 255 - noise(200, 200)):
        write_image(tmp_path / "image.zarr", Scan(data, "yx"))
        scan = read_scan(tmp_path / "image.zarr")
        output = tmp_path / "image.zarr" / "labels" / "cells"
        interrupted(output, scan, OPTIONS, after=5)
        said = messages(segment_into(output, Small(), read_scan(tmp_path / "image.zarr"), OPTIONS))
        assert said[0] == "Going on: 5 of 16 regions are done."  # what grows inside of it does not count
        interrupted(tmp_path / "a.zarr", scan, OPTIONS, after=5)
    assert "Going on" in messages(segment_into(tmp_path / "a.zarr", Small(), scan, OPTIONS))[0]
    interrupted(tmp_path / "a.zarr", scan, OPTIONS, after=5)
    write_image(tmp_path / "image.zarr", Scan(noise(200, 200), "yx"))
    scan = read_scan(tmp_path / "image.zarr")
    assert "begun anew" in messages(segment_into(tmp_path / "a.zarr", Small(), scan, OPTIONS))[0]
    expected = drain(segment(Small(), scan, OPTIONS)).labels.data
    np.testing.assert_array_equal(read_scan(tmp_path / "a.zarr").data, expected)


class Stored:
    """An array that says in which blocks it is stored."""

    def __init__(self, data: np.ndarray, *chunks: int) -> None:
        self.data, self.chunks = data, chunks
        self.shape, self.dtype, self.ndim = data.shape, data.dtype, data.ndim

    def __getitem__(self, index: object) -> np.ndarray:
        return self.data[index]  # type: ignore[index]


def test_the_same_values_in_other_blocks_are_begun_anew(tmp_path: Path) -> None:
    data = noise(24, 40, 40)
    small = OPTIONS.model_copy(update={"region": 32})
    first, second = (Scan(Stored(data, depth, 40, 40), "zyx") for depth in (1, 8))
    interrupted(tmp_path / "a.zarr", first, small, after=2)
    said = messages(segment_into(tmp_path / "a.zarr", Small(), second, small))
    assert "begun anew" in said[0]
    expected = drain(segment(Small(), first, small)).labels.data
    np.testing.assert_array_equal(read_scan(tmp_path / "a.zarr").data, expected)


class Killed(BaseException):
    """As a kill does, it passes by every `except Exception`."""


def by_hand(place: Place, plan: Plan, values: np.ndarray) -> None:
    """Do what `segment_into` does, without a network."""
    ledger = Ledger(place, plan)
    with ledger.opened():
        if not ledger.resume({}, device="cpu"):
            ledger.start({}, Setting(32, 1, "cpu"))
        for number in ledger.left:
            box = ledger.boxes[number]
            ledger.store.write(box, values[box], np.stack([values[box]] * 3).astype(np.float32))
            ledger.check_off(number)
        ledger.finish({"recipe": {}})


def test_killed_before_any_step_of_the_end_it_can_be_called_again(tmp_path: Path) -> None:
    write_image(tmp_path / "image.zarr", Scan(noise(20, 20), "yx"))
    scan = read_scan(tmp_path / "image.zarr")
    plan = Plan.of(scan, Small().spec, OPTIONS.model_copy(update={"probabilities": True}))
    place = Place(tmp_path / "image.zarr" / "labels" / "cells")
    by_hand(place, plan, noise(20, 20) % 3)
    kills = 0
    while True:
        work = partial(by_hand, place, plan, noise(20, 20) % (2 + kills % 2))
        if not killed_at(kills, work):
            break
        work()
        for path in (place.output, place.probabilities):
            assert int(np.asarray(read_scan(path).data).max()) == 1 + kills % 2
        assert not [path for path in tmp_path.rglob(".*") if path.name.endswith((".growing", ".old"))]
        kills += 1
    assert kills >= 12
    assert json.loads((tmp_path / "image.zarr" / "labels" / ".zattrs").read_text())["labels"] == ["cells"]


def killed_at(point: int, work: Callable[[], None]) -> bool:
    """Work, and die before one of the steps of the end; returns whether there are so many."""
    steps, first = list[object](), ome_zarr.complete

    def killing(step: Any) -> Any:
        def die_or_step(*arguments: Any, **named: Any) -> Any:
            if steps or step is first:
                steps.append(step)
            if len(steps) == point + 1:
                raise Killed
            return step(*arguments, **named)

        return die_or_step

    system = SimpleNamespace(replace=killing(os.replace), fsync=killing(os.fsync))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rskd.ledger.os", system)
        patch.setattr("rskd.ledger.shutil", SimpleNamespace(rmtree=killing(shutil.rmtree)))
        patch.setattr(ome_zarr, "enlist_labels", killing(ome_zarr.enlist_labels))
        patch.setattr(ome_zarr, "complete", killing(ome_zarr.complete))
        try:
            work()
        except Killed:
            return True
    return False


def test_late_values_of_another_result_are_refused(tmp_path: Path) -> None:
    scan = Scan(noise(200, 200), "yx")
    late: list[tuple[Store, Any]] = []
    write = Store.write
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Store, "write", lambda self, *values: late.append((self, values)) or write(self, *values))
        interrupted(tmp_path / "a.zarr", scan, OPTIONS, after=5)
    other = OPTIONS.model_copy(update={"overlap": 0.5})
    task = segment_into(tmp_path / "a.zarr", Small(), scan, other)
    for event in task:
        if isinstance(event, Progress) and event.done > 20:
            for store, (box, labels, probabilities) in late:
                with pytest.raises(FileError, match="begun anew"):
                    store.write(box, 1 - np.minimum(labels, 1), probabilities)
    expected = drain(segment(Small(), scan, other)).labels.data
    np.testing.assert_array_equal(read_scan(tmp_path / "a.zarr").data, expected)


def test_probabilities_replace_nothing_that_is_not_theirs(tmp_path: Path) -> None:
    scan, options = Scan(noise(90, 90), "yx"), OPTIONS.model_copy(update={"probabilities": True})
    for name in ("p.v1.zarr", "p.v2.zarr"):
        drain(segment_into(tmp_path / name, Small(), scan, options))
    names = ["p.v1.zarr", "p.v1_probabilities.zarr", "p.v2.zarr", "p.v2_probabilities.zarr"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    drain(segment_into(tmp_path / "p.v1.zarr", Small(), scan, options))  # once more
    write_image(tmp_path / "a_probabilities.zarr", scan)
    with pytest.raises(FileError, match=r"a_probabilities\.zarr, where the probabilities would go, is no result"):
        next(segment_into(tmp_path / "a.zarr", Small(), scan, options))
    np.testing.assert_array_equal(read_scan(tmp_path / "a_probabilities.zarr").data, scan.data)
    image = read_scan(tmp_path / "p.v1_probabilities.zarr")
    with pytest.raises(ParameterError, match="is the image itself"):
        next(segment_into(tmp_path / "p.v1.zarr", Small(3), image, options))


def test_a_refused_setting_leaves_nothing_behind(tmp_path: Path) -> None:
    scan = Scan(noise(90, 90), "yx")
    with pytest.raises(ParameterError, match="no multiple of the patch size"):
        next(segment_into(tmp_path / "a.zarr", Small(), scan, SegmentOptions(tile=33)))
    ledger = Ledger(Place(tmp_path / "a.zarr"), Plan.of(scan, Small().spec, OPTIONS))
    with pytest.raises(ParameterError, match="no"), ledger.opened():
        raise ParameterError("no")
    assert not list(tmp_path.iterdir())


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


@pytest.mark.slow
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
