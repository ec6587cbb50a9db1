"""Exported students say what the originals say, carry their description, and need no torch."""

import importlib.util
import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from rskd import onnx_export
from rskd.config import DataOptions, DistillOptions, InferenceOptions, ModelSpec, SegmentOptions
from rskd.distillation.objective import Objective
from rskd.errors import FileError, ModelError, ParameterError, ResourceError, is_out_of_memory
from rskd.events import drain
from rskd.export import tiles_of
from rskd.io import read_scan, write_image
from rskd.jobs import EvaluateJob, ExportJob, InspectJob, RankJob, SegmentJob
from rskd.models import exported, weights
from rskd.models.normalise import normalise
from rskd.models.presets import BUNDLED, PRESETS, fresh_spec
from rskd.models.segmenter import Segmenter
from rskd.phantom import vessel_phantom
from rskd.run import run
from rskd.scan import Scan
from rskd.segment import segment

runs = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxruntime")),
    reason="needs the extra `onnx`",
)


def network(name="rskd-nano", **fields):
    torch.manual_seed(0)
    spec = fresh_spec(name, in_channels=3, classes=["a", "b"]).model_copy(update={"image_size": 64} | fields)
    model = Segmenter(spec)
    for module in model.modules():  # statistics of their own, as after training
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
    return model.eval()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "student.onnx"


def compare(model, path, side):
    images = np.random.default_rng(1).normal(size=(3, model.spec.in_channels, side, side)).astype(np.float32)
    with torch.no_grad():
        expected = model(torch.from_numpy(images)).numpy()
    found = exported.OnnxSegmenter(path)(images)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-4 * max(1, np.abs(expected).max()), rtol=0)


@runs
@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_named_network_is_the_same_outside_of_torch(name, path):
    model = network(name)
    assert onnx_export.export_onnx(model, path).difference <= 1e-4
    compare(model, path, 64)


@runs
@pytest.mark.parametrize("name", sorted(BUNDLED))
def test_the_bundled_pair_is_the_same_outside_of_torch(name, path, tmp_path):
    picture, model = tmp_path / "picture.tif", weights.load(BUNDLED[name])
    colours = vessel_phantom(np.random.default_rng(3), 584)[0]
    write_image(picture, Scan(colours, "yxc") if model.spec.in_channels == 3 else Scan(colours[..., 1], "yx"))
    value = drain(run(ExportJob(model=name, output=path, image=picture))).value
    assert value["difference"] <= value["allowed"] == 1e-4
    assert value["tiles"] == 8
    compare(model, path, value["size"])


@runs
@pytest.mark.parametrize("decoder", ["linear", "mlp", "fpn", "unet"])
def test_every_decoder_can_be_exported(decoder, path):
    model = network(decoder=decoder)
    assert onnx_export.export_onnx(model, path).difference <= 1e-4
    compare(model, path, 64)


@runs
@pytest.mark.parametrize("encoder", ["test_resnet", "efficientvit_b0", "pvt_v2_b0"])
def test_other_encoders_can_be_exported(encoder, path):
    torch.manual_seed(0)
    spec = ModelSpec(name="x", encoder=encoder, patch_size=32, image_size=64, in_channels=3, decoder="fpn")
    model = Segmenter(spec).eval()
    assert onnx_export.export_onnx(model, path).difference <= 1e-4
    compare(model, path, 64)


@runs
@pytest.mark.parametrize("side", [32, 96])
def test_another_size_is_what_the_network_says_at_that_size(side, path):
    model = network()
    onnx_export.export_onnx(model, path, size=side)
    assert exported.OnnxSegmenter(path).spec.image_size == side
    assert model.spec.image_size == 64
    compare(model, path, side)


@runs
def test_description_and_card_travel_inside(path):
    model = network()
    onnx_export.export_onnx(model, path, card={"data": "drawn"})
    again = exported.OnnxSegmenter(path)
    assert again.spec == model.spec
    assert again.card == {"data": "drawn"}
    assert [p.name for p in path.parent.iterdir()] == ["student.onnx"]


@runs
def test_a_scan_is_segmented_alike(path):
    model = network()
    onnx_export.export_onnx(model, path)
    scan = Scan(vessel_phantom(np.random.default_rng(0), 150)[0], "yxc", spacing=(0.5, 0.5), units="mm")
    options = SegmentOptions(probabilities=True, batch_size=3)
    mine, theirs = (drain(segment(m, scan, options)) for m in (exported.OnnxSegmenter(path), model))
    np.testing.assert_allclose(mine.probabilities.data, theirs.probabilities.data, atol=1e-4)
    assert (mine.labels.data != theirs.labels.data).mean() < 1e-3
    assert mine.labels.spacing == (0.5, 0.5)


@runs
def test_memory_that_does_not_suffice(path, monkeypatch):
    from onnxruntime.capi.onnxruntime_pybind11_state import RuntimeException

    def refuse(*_):
        raise RuntimeException("[ONNXRuntimeError] : 6 : Failed to allocate memory for requested buffer")

    onnx_export.export_onnx(network(), path)
    model, said = exported.OnnxSegmenter(path), []
    monkeypatch.setattr(model, "_session", SimpleNamespace(run=refuse))
    task = segment(model, Scan(np.zeros((90, 90, 3), np.uint8), "yxc"), SegmentOptions(batch_size=2))
    with pytest.raises(ResourceError, match="1 tile of 64 x 64 pixels, and the network takes no smaller ones: close"):
        said.extend(task)
    assert not is_out_of_memory(RuntimeException("Invalid graph"))


@runs
def test_no_torch_is_needed_to_run_it(path):
    onnx_export.export_onnx(network(), path)
    code = (
        "import sys, pathlib, numpy as np\n"
        "from rskd.models.exported import OnnxSegmenter\n"
        "model = OnnxSegmenter(pathlib.Path(sys.argv[1]))\n"
        "print(model(np.zeros((2, 3, 64, 64), np.float32)).shape, 'torch' in sys.modules, 'timm' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "(2, 3, 64, 64) False False"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A weight file, the same network exported, a picture and its mask."""
    folder = tmp_path_factory.mktemp("exported")
    model = network()
    pixels, mask = vessel_phantom(np.random.default_rng(0), 100)
    with torch.no_grad():  # every class shall occur
        tile = torch.from_numpy(normalise(pixels.transpose(2, 0, 1), model.spec))[None, :, :64, :64]
        model.decoder.head.bias -= model(tile)[0].flatten(1).median(1).values
    weights.save(folder / "student.safetensors", model, card={"licence": "none"})
    write_image(folder / "picture.tif", Scan(pixels, "yxc"))
    write_image(folder / "mask.tif", Scan((mask > 0).astype(np.uint8), "yx"))
    job = ExportJob(model=folder / "student.safetensors", output=folder / "new" / "student.onnx")
    drain(run(job))
    return folder


@runs
def test_an_exported_network_has_the_passport_of_the_original(files):
    mine, theirs = (
        drain(run(InspectJob(model=files / name))).value for name in ("new/student.onnx", "student.safetensors")
    )
    assert all(mine[key] == theirs[key] for key in ("spec", "card", "parameters"))
    assert mine["bytes"] == (files / "new/student.onnx").stat().st_size
    assert mine["sha256"] != theirs["sha256"]


@runs
def test_export_is_checked_on_tiles_of_the_image_at_the_size_asked_for(files, path):
    job = ExportJob(model=files / "student.safetensors", output=path, size=32, image=files / "picture.tif")
    value = drain(run(job)).value
    assert (value["size"], value["tiles"]) == (32, 8)
    assert value["difference"] <= 1e-4
    tiles = tiles_of(read_scan(files / "picture.tif"), exported.OnnxSegmenter(path).spec)
    assert tiles.shape == (8, 3, 32, 32)
    assert len({tile.tobytes() for tile in tiles}) == 8


@runs
def test_an_exported_network_is_evaluated_like_the_original(files):
    data = DataOptions(images=files / "picture.tif", masks=files / "mask.tif")
    mine, theirs = (
        drain(run(EvaluateJob(model=files / name, data=data))).value["dice"]
        for name in ("new/student.onnx", "student.safetensors")
    )
    assert mine == pytest.approx(theirs, abs=1e-3, nan_ok=True)


@runs
def test_an_exported_network_is_refused_where_it_cannot_do_the_work(files):
    model, picture = files / "new/student.onnx", files / "picture.tif"
    with pytest.raises(ModelError, match=r"student\.onnx was exported to be run: it cannot be trained"):
        weights.load(model)
    with pytest.raises(ModelError, match="cannot be trained, looked into or exported again"):
        drain(run(RankJob(student=model, image=picture)))
    with pytest.raises(ResourceError, match="runs on the CPU, not on cuda"):
        drain(run(SegmentJob(model=model, image=picture, compute=InferenceOptions(device="cuda"))))
    with pytest.raises(ParameterError, match=r"let its name end in \.onnx"):
        drain(run(ExportJob(model=files / "student.safetensors", output=files / "student.pt")))


@runs
def test_the_command_line_segments_without_torch(files, tmp_path):
    code = (
        "import sys\n"
        "from rskd.cli import main\n"
        "try:\n"
        "    main(sys.argv[1:])\n"
        "except SystemExit as end:\n"
        "    assert not end.code\n"
        "print({'torch', 'timm', 'triton', 'onnx'} & set(sys.modules))"
    )
    labels = {}
    for name in ("new/student.onnx", "student.safetensors"):
        line = ["segment", files / name, files / "picture.tif", "--output", tmp_path / "labels.tif"]
        done = subprocess.run([sys.executable, "-c", code, *line], capture_output=True, text=True, check=True)
        labels[name] = read_scan(tmp_path / "labels.tif").data
        assert ("'torch'" in done.stdout.splitlines()[-1]) == name.endswith("safetensors"), done.stdout
    mine, theirs = labels.values()
    assert len(np.unique(theirs)) > 1
    assert (mine != theirs).mean() < 1e-3


@runs
def test_nothing_of_the_training_is_exported(path):
    import onnx

    student, teacher = network(), network("rskd-micro")
    onnx_export.export_onnx(student, path)
    before = path.read_bytes()
    outputs = exported.OnnxSegmenter(path)(noise := np.random.default_rng(0).normal(size=(2, 3, 64, 64)))
    objective = Objective(student, teacher, DistillOptions())
    path.unlink()
    onnx_export.export_onnx(objective.student, path)
    assert path.read_bytes() == before
    assert exported.OnnxSegmenter(path)(noise).tobytes() == outputs.tobytes()
    names = {i.name for i in onnx.load(str(path)).graph.initializer}
    assert not [n for n in names if n.startswith("terms")]


@runs
@pytest.mark.parametrize(("difference", "words"), [(0.5, r"5\.0e-01"), (float("nan"), "nan")])
def test_what_differs_is_not_kept(path, monkeypatch, difference, words):
    monkeypatch.setattr(onnx_export, "_check", lambda *_: onnx_export.Check(difference, 1.0))
    with pytest.raises(ModelError, match=rf"differs from rskd-nano by {words} of its largest logit"):
        onnx_export.export_onnx(network(), path)
    assert not list(path.parent.iterdir())


@runs
def test_problems_are_said_in_one_sentence(path, tmp_path):
    import onnx

    occupied = tmp_path / "file"
    occupied.touch()
    with pytest.raises(ParameterError, match="size=50 is no multiple of the patch size 16"):
        onnx_export.export_onnx(network(), path, size=50)
    with pytest.raises(FileError, match="cannot be written"):
        onnx_export.export_onnx(network(), occupied / "student.onnx")
    with pytest.raises(FileError, match="There is no weight file"):
        exported.OnnxSegmenter(path)
    path.write_bytes(b"no network")
    with pytest.raises(FileError, match=r"student\.onnx is damaged or no ONNX file"):
        exported.OnnxSegmenter(path)
    onnx_export.export_onnx(network(), path)
    with pytest.raises(ParameterError, match="use tiles of 64 pixels"):
        exported.OnnxSegmenter(path)(np.zeros((1, 3, 32, 32), np.float32))
    graph = onnx.load(str(path))
    onnx.helper.set_model_props(graph, {"format": "rskd-onnx-1", "spec": json.dumps({"nothing": 1}), "card": "{}"})
    onnx.save(graph, str(path))
    with pytest.raises(ModelError, match=r"The description in student\.onnx"):
        exported.OnnxSegmenter(path)
    del graph.metadata_props[:]
    onnx.save(graph, str(path))
    with pytest.raises(ModelError, match="was not exported by this program"):
        exported.OnnxSegmenter(path)


def test_a_missing_extra_is_named(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    path.touch()
    with pytest.raises(ResourceError, match=r"need onnxruntime, which is not installed: .*napari-rskd\[onnx\]"):
        exported.OnnxSegmenter(path)
