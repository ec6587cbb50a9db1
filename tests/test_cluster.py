"""A local cluster of two workers gives the same as this process alone, also when one of them is killed."""

import os
import shutil
import signal
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from rskd.cluster import connected, segment_on, spread
from rskd.config import ClusterOptions, SegmentOptions
from rskd.errors import EngineError, ParameterError, ResourceError
from rskd.events import Command, Message, Progress, drain
from rskd.io import read_scan, write_image
from rskd.jobs import BatchJob, SegmentJob
from rskd.large import segment_into
from rskd.models import weights
from rskd.models.presets import fresh_spec
from rskd.models.segmenter import Segmenter
from rskd.run import run
from rskd.scan import Scan
from rskd.tiling import predict_tiled

LOCAL = ClusterOptions(cluster="local", workers=2)
OPTIONS = SegmentOptions(region=256, tile=64, batch_size=4)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    noise = np.random.default_rng(0).integers(0, 255, (1000, 1000)).astype(np.uint8)
    write_image(folder / "image.zarr", Scan(noise, "yx", spacing=(1, 1), units="um"))
    spec = fresh_spec("rskd-nano", in_channels=1, classes=["cell"])
    small = {"embed_dim": 16, "depth": 1, "num_heads": 1, "stem_widths": (4, 8), "decoder_width": 4, "image_size": 64}
    torch.manual_seed(0)
    model = Segmenter(spec.model_copy(update=small)).eval()
    with torch.no_grad():  # both classes shall occur
        background, cell = model(torch.randn(1, 1, 64, 64))[0]
        head = [module for module in model.modules() if isinstance(module, torch.nn.Conv2d)][-1]
        head.bias[1] -= (cell - background).median()
    weights.save(folder / "net.safetensors", model, card={})
    return folder


@pytest.mark.slow
def test_a_killed_worker_is_survived_and_nothing_is_done_twice(files, tmp_path):
    task = segment_on(LOCAL, tmp_path / "a.zarr", files / "net.safetensors", files / "image.zarr", OPTIONS)
    ledger, killed, counts = tmp_path / ".a.zarr.growing" / "ledger.jsonl", [], []
    try:
        while True:
            event = next(task)
            if isinstance(event, Progress) and event.what == "regions":
                counts.append((event.done, event.total))
                if event.done >= 3 and not killed:
                    killed.append(one_worker())
                    os.kill(killed[0], signal.SIGKILL)
                lines = ledger.read_text("utf-8").splitlines()
    except StopIteration as end:
        result = end.value
    assert killed
    assert counts[-1] == (16, 16)
    boxes = [line for line in lines if "box" in line]
    assert len(boxes) == len(set(boxes)) == 16
    assert sum('"plane"' in line for line in lines) == 1  # measured once
    model, scan = weights.load(files / "net.safetensors"), read_scan(files / "image.zarr")
    alone = drain(segment_into(tmp_path / "alone.zarr", model, scan, OPTIONS))
    labels = np.asarray(alone.labels.data)
    assert 0.05 < labels.mean() < 0.95
    np.testing.assert_array_equal(result.labels.data, labels)
    assert result.recipe == alone.recipe


def one_worker() -> int:
    """The process of a worker that this process started."""
    import psutil

    workers = [p for p in psutil.Process().children(recursive=True) if "spawn_main" in " ".join(p.cmdline())]
    return workers[0].pid


@pytest.fixture
def threads(monkeypatch):
    """Workers in threads of this process: started at once."""
    distributed = pytest.importorskip("distributed")

    @contextmanager
    def connected(options):
        workers = {"n_workers": options.workers, "threads_per_worker": 1, "dashboard_address": None}
        with distributed.Client(processes=False, **workers) as client:
            yield client

    monkeypatch.setattr("rskd.cluster.connected", connected)


@pytest.mark.usefixtures("threads")
def test_the_job_of_the_command_line(files, tmp_path):
    job = SegmentJob(
        model=files / "net.safetensors", image=files / "image.zarr", output=tmp_path / "a.zarr", options=OPTIONS
    )
    alone = drain(run(job))
    together = drain(run(job.model_copy(update={"output": tmp_path / "b.zarr", "spread": LOCAL})))
    assert together.value["made_with"] == alone.value["made_with"]
    np.testing.assert_array_equal(read_scan(tmp_path / "a.zarr").data, read_scan(tmp_path / "b.zarr").data)
    for changes in ({"output": tmp_path / "a.tif"}, {"measure": "classes"}):
        with pytest.raises(ParameterError, match="A cluster segments image files into OME-Zarr"):
            drain(run(job.model_copy(update={"spread": LOCAL, **changes})))


@pytest.mark.usefixtures("threads")
def test_a_folder(files, tmp_path, monkeypatch):
    for seed in range(3):
        noise = np.random.default_rng(seed).integers(0, 255, (80, 90)).astype(np.uint8)
        write_image(tmp_path / "in" / f"{seed}.png", Scan(noise, "yx"))
    (tmp_path / "in" / "broken.png").write_text("no picture")
    monkeypatch.chdir(tmp_path)
    job = BatchJob(model=files / "net.safetensors", images="in", output="together", spread=LOCAL)
    events, value = [], None
    task = run(job)
    try:
        while True:
            events.append(next(task))
    except StopIteration as end:
        value = end.value.value
    assert [value[name] for name in ("images", "done", "skipped", "failed", "stopped")] == [4, 3, 0, 1, False]
    assert [e for e in events if isinstance(e, Progress)][-1] == Progress(4, 4, "images")
    assert sum("is left out" in event.text for event in events if isinstance(event, Message)) == 1
    alone = job.model_copy(update={"output": Path("alone"), "spread": ClusterOptions()})
    drain(run(alone))
    for name in ("0.png", "1.png", "2.png"):
        assert Path("together", name).read_bytes() == Path("alone", name).read_bytes()
    assert Path("together/measurements.csv").read_text() == Path("alone/measurements.csv").read_text()
    again = alone.model_copy(update={"output": Path("together")})  # a cluster is no part of the recipe
    assert drain(run(again)).value["skipped"] == 3
    shutil.rmtree("together")
    task = run(job)
    while not isinstance(next(task), Progress):
        pass
    with pytest.raises(StopIteration) as stopped:
        task.send(Command.STOP)
    assert stopped.value.value.value["stopped"]


def work(number: int, folder: str) -> int:
    """Fails at the first attempt."""
    mark = Path(folder) / str(number)
    if number % 2 and not mark.exists():
        mark.touch()
        raise ValueError("not now")
    return number**2


def refuse(number: int) -> int:
    raise ParameterError("never")


@pytest.mark.slow
def test_parts_are_tried_again(tmp_path):
    with connected(LOCAL) as client:
        parts = [(number, str(tmp_path)) for number in range(5)]
        found = sorted(answer for answer in spread(client, 1, work, parts) if answer is not None)
        assert found == [(n, n**2) for n in range(5)]
        for mark in tmp_path.iterdir():
            mark.unlink()
        with pytest.raises(EngineError, match=r"A worker of the cluster failed 1 times: not now"):
            list(spread(client, 0, work, parts))
        with pytest.raises(ParameterError, match="never"):
            list(spread(client, 0, refuse, [(1,)]))


def test_a_cluster_that_does_not_answer(monkeypatch):
    with (
        pytest.raises(ResourceError, match="No cluster answers at nonsense"),
        connected(ClusterOptions(cluster="nonsense")),
    ):
        pass


@pytest.mark.usefixtures("threads")
def test_what_a_worker_has_to_give_up_is_told_and_recorded(files, tmp_path, monkeypatch):
    def tight(network, work, tiling, *, batch_size):
        if batch_size > 2:
            raise MemoryError
        return predict_tiled(network, work, tiling, batch_size=batch_size)

    monkeypatch.setattr("rskd.box.predict_tiled", tight)
    write_image(tmp_path / "image.zarr", Scan(np.eye(200), "yx"))
    task = segment_on(LOCAL, tmp_path / "a.zarr", files / "net.safetensors", tmp_path / "image.zarr", OPTIONS)
    said = []
    try:
        while True:
            said.append(next(task))
    except StopIteration as end:
        recipe = end.value.recipe
    assert recipe.batch_size == 2
    assert [e.text for e in said if isinstance(e, Message) and e.warning] == list(recipe.setbacks)
    assert ["going on with 2 at a time" in text for text in recipe.setbacks] == [True]
