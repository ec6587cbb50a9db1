"""One `segment()` in torch, ONNX Runtime and OpenVINO; files in fp16 and int8 say nearly what the original says."""

import importlib.util

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from rskd import export, networks, onnx_export
from rskd.config import InferenceOptions
from rskd.errors import ModelError, ResourceError
from rskd.events import Message, drain
from rskd.io import read_scan, write_image
from rskd.jobs import EvaluateJob, ExportJob, SegmentJob
from rskd.models import exported, weights
from rskd.models.presets import fresh_spec
from rskd.models.quantise import halve, quantise
from rskd.models.segmenter import Segmenter
from rskd.phantom import vessel_phantom
from rskd.run import Session, run
from rskd.scan import Scan

pytestmark = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxruntime")), reason="needs the extra `onnx`"
)
openvino = pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="needs the extra `openvino`")
RUNTIMES = ["onnx", pytest.param("openvino", marks=openvino)]
SIDE = 64


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A network that has learned to tell vessels from the rest, and pictures with masks."""
    folder = tmp_path_factory.mktemp("runtimes")
    for number in range(3):
        pixels, mask = vessel_phantom(np.random.default_rng(number), 96)
        write_image(folder / "images" / f"{number}.tif", Scan(pixels, "yxc"))
        write_image(folder / "masks" / f"{number}.tif", Scan((mask > 0).astype(np.uint8), "yx"))
    torch.manual_seed(0)
    spec = fresh_spec("rskd-nano", in_channels=3, classes=["vessel"]).model_copy(update={"image_size": SIDE})
    model = Segmenter(spec).train()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    scans = [read_scan(folder / "images" / f"{number}.tif") for number in range(3)]
    images = torch.from_numpy(np.concatenate([export.tiles_of(scan, spec) for scan in scans]))
    green = images[:, 1]
    targets = (green < green.flatten(1).median(1).values[:, None, None]).long()  # a rule that it learns in a moment
    for _ in range(40):
        loss = torch.nn.functional.cross_entropy(model(images), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    weights.save(folder / "net.safetensors", model, card={"licence": "CC0"})
    return folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(networks, "user_cache_path", lambda *_, **__: tmp_path / "cache")
    return tmp_path / "cache"


def labels(files, **options):
    job = SegmentJob(model=files / "net.safetensors", image=files / "images" / "0.tif", **options)
    return drain(run(job)).arrays["labels"]


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_runtime_is_a_choice_behind_the_same_segment(files, own_cache, runtime):
    there = labels(files, compute={"runtime": runtime})
    here = labels(files, compute={"runtime": "torch"})
    assert 0.1 < here.mean() < 0.9
    assert (there != here).mean() < 1e-3
    (kept,) = (own_cache / "exported").iterdir()
    written = kept.stat().st_mtime_ns
    labels(files, compute={"runtime": runtime})
    assert kept.stat().st_mtime_ns == written  # exported once
    larger = labels(files, compute={"runtime": runtime}, options={"tile": 96})
    assert (larger != labels(files, options={"tile": 96})).mean() < 1e-3
    assert len(list((own_cache / "exported").iterdir())) == 2


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_runtimes_agree_number_by_number(files, tmp_path, runtime):
    model, path = weights.load(files / "net.safetensors"), tmp_path / "net.onnx"
    onnx_export.export_onnx(model, path)
    images = np.random.default_rng(1).normal(size=(3, 3, SIDE, SIDE)).astype(np.float32)
    with torch.no_grad():
        expected = model(torch.from_numpy(images)).numpy()
    network = exported.open_exported(path, runtime, threads=1)
    first = network(images)
    np.testing.assert_allclose(first, expected, atol=1e-4 * np.abs(expected).max())
    network(images[::-1])
    np.testing.assert_allclose(first, expected, atol=1e-4 * np.abs(expected).max())  # it is no view of what follows
    assert (network.spec, network.card, network.parameter_count) == (
        model.spec, {}, sum(p.numel() for p in model.parameters()),
    )  # fmt: skip


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_evaluation_in_another_runtime_gives_the_same_dice(files, runtime):
    data = {"images": files / "images", "masks": files / "masks"}
    scores = [
        drain(run(EvaluateJob(model=files / "net.safetensors", data=data, compute={"runtime": name}))).value["dice"]
        for name in (runtime, "torch")
    ]
    assert scores[0]["vessel"] == pytest.approx(scores[1]["vessel"], abs=1e-3)


def test_what_a_runtime_cannot_do_is_said(files, monkeypatch):
    with pytest.raises(ModelError, match="use the file it was made from, with torch"):
        labels(files, compute={"runtime": "onnx"}, tta="flips")
    with pytest.raises(ResourceError, match="with the runtime torch"):
        labels(files, compute={"runtime": "onnx", "device": "cuda"})
    import sys

    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ResourceError, match=r"need openvino, which is not installed: .*napari-rskd\[openvino\]"):
        labels(files, compute={"runtime": "openvino"})


def settled(session, files, **options):
    job = SegmentJob(model=files / "net.safetensors", image=files / "images" / "0.tif", fastest=True, **options)
    task, told = session.run(job), []
    while True:
        try:
            told.append(next(task))
        except StopIteration as end:
            return end.value, [event for event in told if isinstance(event, Message)]


@pytest.mark.parametrize("faster", ["torch", "onnx"])
def test_the_faster_program_is_taken_and_named_and_does_the_very_same_again(files, monkeypatch, faster):
    seconds = {"torch": 1.0, "onnx": 1.0, faster: 0.5}
    monkeypatch.setattr(networks, "_seconds", lambda model, side: seconds[networks.runtime_name(model)])
    session = Session()
    outcome, told = settled(session, files)
    assert outcome.value["runtime"] == faster
    assert [message.text.partition(":")[0] for message in told] == ["Trying out which program runs this network faster"]
    again, told = settled(session, files)
    assert told == []
    named = labels(files, compute={"runtime": faster})
    for found in (outcome, again):
        np.testing.assert_array_equal(found.arrays["labels"], named)


def test_torch_remains_where_onnx_runtime_is_no_choice(files, monkeypatch):
    assert settled(Session(), files, tta="flips")[0].value["runtime"] == "torch"
    assert settled(Session(), files, compute={"runtime": "torch"})[0].value["runtime"] == "torch"
    monkeypatch.setattr(networks, "_seconds", lambda model, side: 1.0 if networks.runtime_name(model) == "torch" else 0)
    with monkeypatch.context() as patch:
        patch.setattr(networks, "find_spec", lambda name: None)
        assert settled(Session(), files)[0].value["runtime"] == "torch"
    with monkeypatch.context() as patch:

        def refuse(*_, **__):
            raise ModelError("It cannot be exported faithfully.")

        patch.setattr(networks, "exported_copy", refuse)
        assert settled(Session(), files)[0].value["runtime"] == "torch"
    both = {"compare_with": files / "net.safetensors"}
    assert settled(Session(), files, **both)[0].value["runtime"] == "onnx"


def test_the_time_of_a_tile_is_taken_in_every_runtime(files):
    for runtime in ("torch", "onnx"):
        model = networks.Networks().get(files / "net.safetensors", InferenceOptions(runtime=runtime))
        assert 0 < networks._seconds(model, SIDE) < 60


def test_auto_takes_the_runtime_that_is_installed(files, tmp_path, monkeypatch):
    path = tmp_path / "net.onnx"
    onnx_export.export_onnx(weights.load(files / "net.safetensors"), path)
    assert type(networks.open_network(path)) is exported.OnnxSegmenter
    monkeypatch.setattr(exported, "available_runtimes", lambda: ["openvino"])
    if importlib.util.find_spec("openvino"):
        assert type(networks.open_network(path)) is exported.OpenVinoSegmenter
    assert isinstance(networks.open_network(files / "net.safetensors"), Segmenter)
    assert InferenceOptions().runtime == "auto"


def test_half_precision_halves_the_file_and_little_else(files, tmp_path):
    job = ExportJob(model=files / "net.safetensors", output=tmp_path / "half.onnx", precision="fp16")
    value = drain(run(job)).value
    full = drain(run(job.model_copy(update={"output": tmp_path / "full.onnx", "precision": "fp32"}))).value
    assert value["bytes"] < 0.6 * full["bytes"]
    assert full["difference"] < value["difference"] < 5e-3
    assert value["agreement"] > 0.999


def test_rounding_to_half_is_that_of_the_weights(tmp_path):
    """A network with one weight matrix, by hand: what comes out is what the rounded matrix makes of the input."""
    import onnx
    import onnxruntime

    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(16, 16)).astype(np.float32)
    node = onnx.helper.make_node("MatMul", ["images", "w"], ["logits"])
    kind = onnx.TensorProto.FLOAT
    shapes = [onnx.helper.make_tensor_value_info(name, kind, [1, 16]) for name in ("images", "logits")]
    graph = onnx.helper.make_graph([node], "g", shapes[:1], shapes[1:], [onnx.numpy_helper.from_array(matrix, "w")])
    path = tmp_path / "one.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8), str(path))
    halve(path)
    x = rng.normal(size=(1, 16)).astype(np.float32)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"images": x})
    np.testing.assert_allclose(found, x @ matrix.astype(np.float16).astype(np.float32), rtol=1e-5, atol=1e-6)
    assert not np.allclose(found, x @ matrix, rtol=1e-5, atol=1e-6)


def test_integers_are_calibrated_checked_and_measured(files, tmp_path):
    job = ExportJob(
        model=files / "net.safetensors",
        output=tmp_path / "small.onnx",
        precision="int8",
        calibration=files / "images",
        test_images=files / "images",
        test_masks=files / "masks",
    )
    value = drain(run(job)).value
    assert value["difference"] > 1e-4
    assert value["allowed"] is None
    assert value["agreement"] > 0.95
    dice = value["dice"]
    assert dice["lost"] == pytest.approx(dice["original"] - dice["exported"])
    alone = drain(run(EvaluateJob(model=job.output, data={"images": files / "images", "masks": files / "masks"})))
    assert alone.value["dice"]["vessel"] == pytest.approx(dice["exported"])
    import onnx

    kinds = {tensor.data_type for tensor in onnx.load(str(job.output)).graph.initializer}
    assert onnx.TensorProto.INT8 in kinds
    again = exported.OnnxSegmenter(job.output)
    assert again.card == {"licence": "CC0"}
    assert again.spec.image_size == SIDE


def test_lost_dice_is_warned_of(files, tmp_path, monkeypatch):
    scores = iter([0.8, 0.79])

    def evaluate(job):
        yield from ()
        return type("Outcome", (), {"value": {"dice": {"vessel": next(scores)}}})()

    monkeypatch.setattr(export, "evaluate", evaluate)
    job = ExportJob(
        model=files / "net.safetensors", output=tmp_path / "x.onnx",
        test_images=files / "images", test_masks=files / "masks",
    )  # fmt: skip
    told = [event for event in export.export(job) if isinstance(event, Message) and event.warning]
    assert [event.text for event in told] == [
        "The exported network loses 0.0100 Dice on the test images (more than 0.005): calibrate with more images, or "
        "use fp16."
    ]


def test_a_quantised_network_that_says_something_else_is_refused(files, tmp_path):
    dark = np.full((1, 3, SIDE, SIDE), 1e-3, np.float32)  # ranges of nothing
    scan = read_scan(files / "images" / "0.tif")
    model = weights.load(files / "net.safetensors")
    images = export.tiles_of(scan, model.spec)
    with pytest.raises(ModelError, match="calibrate with more images of the kind it was trained on"):
        onnx_export.export_onnx(model, tmp_path / "x.onnx", images=images, precision="int8", calibration=dark)
    assert not list(tmp_path.glob("*.onnx"))


def test_what_an_export_needs_is_asked_for(files, tmp_path):
    wanted = {"model": files / "net.safetensors", "output": tmp_path / "x.onnx"}
    with pytest.raises(ValidationError, match="int8 needs images to calibrate with"):
        ExportJob(**wanted, precision="int8")
    with pytest.raises(ValidationError, match="name both --test-images and --test-masks"):
        ExportJob(**wanted, test_masks=files / "masks")


@openvino
def test_integers_run_in_openvino_too(files, tmp_path):
    model = weights.load(files / "net.safetensors")
    images = export.tiles_of(read_scan(files / "images" / "0.tif"), model.spec)
    path = tmp_path / "net.onnx"
    onnx_export.export_onnx(model, path)
    quantise(path, images)
    ours, theirs = (exported.open_exported(path, name)(images).argmax(1) for name in ("onnx", "openvino"))
    assert (ours == theirs).mean() > 0.97
