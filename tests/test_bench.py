"""The bench measures what is done for an image, counts multiply-adds as by hand, and says what it cannot measure."""

import importlib.util
import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from rskd import bench_words
from rskd.bench import Candidate, bench, fastest, labels_of, multiply_adds, peak_memory
from rskd.cli import main
from rskd.config import ComputeOptions, ModelSpec
from rskd.errors import ParameterError
from rskd.events import Message, drain, retold
from rskd.jobs import BenchJob
from rskd.models import weights
from rskd.models.exported import available_runtimes
from rskd.models.normalise import normalise
from rskd.models.presets import fresh_spec
from rskd.models.segmenter import Segmenter
from rskd.onnx_export import export_onnx

runs = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxruntime")), reason="needs the extra `onnx`"
)


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    """A small network in a weight file."""
    torch.manual_seed(0)
    spec = fresh_spec("rskd-nano", in_channels=3, classes=["a", "b"]).model_copy(update={"image_size": 32})
    path = tmp_path_factory.mktemp("bench") / "net.safetensors"
    weights.save(path, Segmenter(spec), card={})
    return path


class Convolution(torch.nn.Module):
    spec = ModelSpec(name="convolution", in_channels=3)

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Conv2d(3, 2, 5, padding=2)

    def forward(self, images):
        return self.layer(images)


def test_multiply_adds_are_those_counted_by_hand():
    assert multiply_adds(Convolution(), 32) == pytest.approx(32 * 32 * 2 * 3 * 5 * 5 / 1e9)


def test_labels_are_the_strongest_class_of_the_normalised_image():
    image = np.random.default_rng(0).integers(0, 255, (3, 32, 32), np.uint8)
    network = Convolution().eval()
    with torch.no_grad():
        logits = network(torch.from_numpy(normalise(image, network.spec))[None])[0]
    np.testing.assert_array_equal(labels_of(network, image), logits.numpy().argmax(0))
    network.spec = network.spec.model_copy(update={"overlapping": True})
    np.testing.assert_array_equal(labels_of(network, image), logits.numpy() > 0)


def test_every_runtime_is_measured_in_turn(net, tmp_path):
    job = BenchJob(
        models=(net, "rskd-nano"), sizes=(32, 64), rounds=4, memory=False,
        output=tmp_path / "bench.json", figure=tmp_path / "bench.svg",
    )  # fmt: skip
    value = drain(bench(job)).value
    runtimes = ["torch", *available_runtimes()]
    assert {(row["network"], row["runtime"], row["size"]) for row in value["rows"]} == {
        (name, runtime, size) for name in ("net", "rskd-nano") for runtime in runtimes for size in (32, 64)
    }
    for row in value["rows"]:
        assert row["rounds"] == 4
        assert 0 < row["p50"] <= row["p95"]
        assert row["fps"] == pytest.approx(1000 / row["p50"])
        if row["network"] == "net":
            assert row["ratio"] == 1
    small, large = value["networks"]["net"]["gmacs"].values()
    assert 3.5 * small < large
    assert value["networks"]["net"]["parameters"] == weights.inspect(net).parameters
    assert value["networks"]["net"]["bytes"] == net.stat().st_size
    assert json.loads((tmp_path / "bench.json").read_text()) == value
    assert "<svg" in (tmp_path / "bench.svg").read_text()
    assert fastest(value, "net", 32)["p50"] == min(
        row["p50"] for row in value["rows"] if row["network"] == "net" and row["size"] == 32
    )


def test_networks_of_the_same_file_name_are_told_apart(tmp_path):
    files = [tmp_path / run / "best.safetensors" for run in ("a", "b")]
    for file, name in zip(files, ("rskd-nano", "rskd-micro"), strict=True):
        file.parent.mkdir()
        weights.save(file, Segmenter(fresh_spec(name, in_channels=1, classes=["organ"])), card={})
    value = drain(bench(BenchJob(models=tuple(files), sizes=(32,), rounds=3, seconds=0.001, memory=False))).value
    first, second = value["networks"]["a/best"], value["networks"]["b/best"]
    assert (first["parameters"], second["parameters"]) == tuple(weights.inspect(file).parameters for file in files)
    assert first["gmacs"]["32"] < second["gmacs"]["32"]
    runtimes = {(row["network"], row["runtime"]) for row in value["rows"]}
    assert runtimes == {
        (name, runtime) for name in ("a/best", "b/best") for runtime in ("torch", *available_runtimes())
    }
    assert {row["rounds"] for row in value["rows"]} == {3}  # no more than there must be


def test_a_figure_that_cannot_be_is_refused_before_anything_is_measured(net):
    with pytest.raises(ParameterError, match=r"let its name end in \.svg or \.png"):
        next(bench(BenchJob(models=(net,), sizes=(32,), figure="figure.pdf")))


def test_memory_is_measured_where_the_network_runs(net):
    compute = ComputeOptions(device="cpu", threads=3)
    torch_, other = (Candidate("a", net, runtime, 32, None) for runtime in ("torch", "onnx"))
    assert torch_.place(compute) == compute
    assert other.place(compute) == ComputeOptions(threads=3)


def test_percentiles_and_ratio_leave_the_warm_up_out(net):
    from rskd import bench as module

    first = Candidate("a", net, "torch", 32, None, wall=[900, 900, 10, 20, 30], cpu=[900, 900, 10, 10, 10])
    other = Candidate("b", net, "torch", 32, None, wall=[1, 1, 40, 40, 40], cpu=[1, 1, 20, 40, 60])
    row = module._row(first, [first, other], None)
    assert (row["p50"], row["p95"], row["cpu"]) == (20, 29, 10)
    assert module._row(other, [first, other], None)["ratio"] == 4


@runs
def test_an_exported_network_is_measured_at_its_own_size_alone(net, tmp_path):
    path = tmp_path / "net.onnx"
    export_onnx(weights.load(net), path)
    told = []
    job = BenchJob(models=(path,), sizes=(32, 64), rounds=3, memory=False)
    value = drain(retold(bench(job), lambda event: told.append(event) or event)).value
    assert [row["runtime"] for row in value["rows"]] == available_runtimes()
    assert value["networks"]["net.onnx"]["gmacs"] == {"32": None, "64": None}
    assert [e.text for e in told if isinstance(e, Message)] == [
        "net.onnx takes images of 32 pixels alone: it is left out at 64."
    ]
    with pytest.raises(ParameterError, match="None of these networks takes images of such a size"):
        drain(bench(BenchJob(models=(path,), sizes=(64,), rounds=3, memory=False)))


def test_memory_is_that_of_a_process_by_itself(net, monkeypatch):
    monkeypatch.setattr("rskd.bench.available_runtimes", list)  # one process of its own is enough here
    (row,) = drain(bench(BenchJob(models=(net,), sizes=(32,), rounds=3))).value["rows"]
    assert 50 < row["peak_mib"] < 5000
    code = "from rskd.bench import peak_memory; a = bytearray(200 << 20); del a; print(peak_memory())"
    peak = float(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
    assert peak > 200
    assert peak_memory() > 50


def test_the_command_prints_a_table(net, capsys):
    with pytest.raises(SystemExit) as end:
        main(["bench", str(net), "--sizes", "32", "--rounds", "3", "--no-memory"])
    assert not end.value.code
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ["network", "M", "par."]
    assert len(lines) == 1 + 1 + len(available_runtimes()) + 1
    assert "normalise, run, strongest class" in lines[-1]


def test_a_figure_is_svg_or_png(net, tmp_path):
    job = BenchJob(models=(net,), sizes=(32,), rounds=3, memory=False)
    value = drain(bench(job)).value
    with pytest.raises(ParameterError, match=r"let its name end in \.svg or \.png"):
        bench_words.draw(value, tmp_path / "figure.pdf")
    bench_words.draw(value, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert bench_words.markdown(value).startswith("| network | M par. |")
