"""Networks from elsewhere teach and segment as they do at home, say what they cannot show, and run no pickle."""

import io
import json
import pickle
import shutil
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from rskd.batch import recipe_of
from rskd.config import ComputeOptions, DistillOptions, SegmentOptions
from rskd.distillation.feasible import feasible
from rskd.distillation.objective import Objective
from rskd.errors import FileError, ModelError
from rskd.events import Message, drain
from rskd.export import export
from rskd.importance import observe_attention
from rskd.io import write_image
from rskd.jobs import BatchJob, DistillJob, ExportJob
from rskd.models import foreign, weights
from rskd.models.presets import student_spec
from rskd.models.segmenter import Segmenter
from rskd.networks import Networks, inspect
from rskd.rank import observe_all, prepare
from rskd.recipe import fingerprint
from rskd.report.story import Story
from rskd.run import run
from rskd.runs import RunFolder
from rskd.scan import Scan
from rskd.segment import segment

SAID = {
    "in_channels": 1,
    "classes": ["background", "organ"],
    "image_size": 64,
    "normalisation": "zscore",
    "trusted": True,
}


class Small(nn.Module):
    def __init__(self, classes: int = 2):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, classes, 1)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def small(classes=2):
    torch.manual_seed(0)
    return Small(classes).eval()


def describe(path, **fields):
    path.with_suffix(".json").write_text(json.dumps(SAID | fields))
    return path


def scripted(path, model, **fields):
    torch.jit.script(model).save(str(path))
    return describe(path, **fields)


def exported(path, model, **fields):
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(model, (torch.zeros(2, 1, 64, 64),), dynamic_shapes=({0: batch},))
    torch.export.save(program, path)
    return describe(path, **({"patch_size": 64} | fields))


def of_smp(path, **fields):
    smp = pytest.importorskip("segmentation_models_pytorch")
    torch.manual_seed(0)
    model = smp.Unet("resnet18", encoder_weights=None, in_channels=1, classes=2).eval()
    torch.save({"state_dict": {f"model.{name}": value for name, value in model.state_dict().items()}}, path)
    describe(path, **({"architecture": "Unet", "encoder": "resnet18"} | fields))
    return model


PROGRAMS = {"scripted.pt": scripted, "exported.pt2": exported}
programs = pytest.mark.parametrize("name", sorted(PROGRAMS))


@pytest.fixture
def images():
    return torch.randn(3, 1, 64, 64, generator=torch.Generator().manual_seed(1))


@programs
def test_a_program_answers_as_at_home(name, tmp_path, images):
    model = small()
    found = weights.load(PROGRAMS[name](tmp_path / name, model))
    with torch.no_grad():
        torch.testing.assert_close(found(images), model(images))
        torch.testing.assert_close(found.train()(images), model(images))  # it never trains
    assert not found.training
    assert found.spec.classes[1].name == "organ"


@pytest.mark.parametrize("encoder", ["tu-hf-hub:someone/model", "tu-local-dir:/tmp/model", "../model"])
def test_a_description_sends_nobody_elsewhere_for_an_encoder(tmp_path, encoder, monkeypatch):
    smp = pytest.importorskip("segmentation_models_pytorch")
    path = tmp_path / "net.pt"
    of_smp(path, encoder=encoder)
    monkeypatch.setattr(smp, "create_model", lambda *_, **__: pytest.fail("it was made"))
    with pytest.raises(ModelError, match=r"net\.pt is said to have the encoder .*, which lies elsewhere"):
        weights.load(path)


@programs
def test_a_program_segments(name, tmp_path):
    found = weights.load(PROGRAMS[name](tmp_path / name, small()))
    scan = Scan(np.random.default_rng(0).normal(size=(100, 90)), "yx")
    result = drain(segment(found, scan, SegmentOptions(batch_size=3)))
    assert result.labels.data.shape == (100, 90)


def test_another_description_is_another_network(tmp_path):
    path, kept = scripted(tmp_path / "scripted.pt", small()), Networks()
    write_image(tmp_path / "in" / "a.png", Scan(np.zeros((8, 8), np.uint8), "yx"))
    job = BatchJob(model=path, images=tmp_path / "in", output=tmp_path / "out")
    first, recipe = kept.get(path, ComputeOptions()), recipe_of(job)
    assert kept.get(path, ComputeOptions()) is first
    describe(path, classes=["background", "tumour"], normalisation="percentile")
    second = kept.get(path, ComputeOptions())
    assert second.spec.classes[1].name == "tumour"
    assert fingerprint(second) != fingerprint(first)
    assert recipe_of(job) != recipe


def test_a_single_output_is_the_logit_of_the_second_class(tmp_path, images):
    model = small(classes=1)
    found = weights.load(scripted(tmp_path / "one.pt", model))
    with torch.no_grad():
        torch.testing.assert_close(found(images).softmax(1)[:, 1:], model(images).sigmoid())


def test_answers_in_tuples_and_mappings_are_understood(tmp_path, images):
    class Two(Small):
        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"aux": x, "out": self.layers(x)}

    model = Two().eval()
    network = foreign.ForeignNetwork(weights.load(scripted(tmp_path / "a.pt", small())).spec, model)
    torch.testing.assert_close(network(images), model(images)["out"])
    first = foreign.ForeignNetwork(network.spec, Both())
    torch.testing.assert_close(first(images), images.repeat(1, 2, 1, 1))


class Both(nn.Module):
    def forward(self, x):
        return x.repeat(1, 2, 1, 1), x


def test_smp_answers_and_shows_its_stages(tmp_path, images):
    model = of_smp(tmp_path / "unet.pt")
    found = weights.load(tmp_path / "unet.pt")
    with torch.no_grad():
        torch.testing.assert_close(found(images), model(images))
    student = Segmenter(student_spec("rskd-nano", found.spec))
    options, said = feasible(DistillOptions.model_validate({"baselines": {"at": {"weight": 1}}}), found)
    assert [sentence.split("'")[1] for sentence in said] == ["ranking"]
    objective = Objective(student, found, options)
    losses = objective(images, torch.zeros(3, 64, 64, dtype=torch.int64))
    assert {"task", "logits", "texture", "fusion", "at"} == set(losses)
    objective.total(losses).backward()
    assert all(parameter.grad is None for parameter in found.parameters())
    assert any(parameter.grad is not None for parameter in student.parameters())
    ranked = DistillOptions.model_validate({"ranking": {"definition": "at"}})
    assert feasible(ranked, found) == (ranked, [])
    assert "ranking" in Objective(student, found, ranked)(images, torch.zeros(3, 64, 64, dtype=torch.int64))


def test_tokens_of_an_smp_network_are_looked_at_without_its_decoder(tmp_path):
    of_smp(tmp_path / "unet.pt")
    found, scan = weights.load(tmp_path / "unet.pt"), Scan(np.random.default_rng(0).normal(size=(64, 64)), "yx")
    with torch.no_grad(), observe_attention(found, definition="at") as seen:
        found(prepare(found, scan))
    expected = {block: importance.scores for block, importance in seen.items()}
    (network,) = found._network
    network.decoder = nn.Identity()  # which does not take the maps of the encoder
    early = observe_all(found, scan, "at")
    assert len(early) == len(expected) == 5
    assert all(torch.equal(early[block].scores[:, 0], expected[block]) for block in expected)


@programs
def test_a_closed_teacher_teaches_by_its_logits_alone(name, tmp_path, images):
    teacher = weights.load(PROGRAMS[name](tmp_path / name, small()))
    options, said = feasible(DistillOptions(), teacher)
    assert [sentence.split("'")[1] for sentence in said] == ["ranking", "texture", "fusion"]
    assert all("shows its logits alone" in sentence for sentence in said)
    student = Segmenter(student_spec("rskd-nano", teacher.spec))
    losses = Objective(student, teacher, options)(images, torch.zeros(3, 64, 64, dtype=torch.int64))
    assert set(losses) == {"task", "logits"}
    again, nothing = feasible(options, teacher)
    assert (again, nothing) == (options, [])


@pytest.mark.parametrize(
    ("wanted", "term"),
    [
        ({"ranking": {"weight": 0.5}}, "ranking"),
        ({"fusion": {"weight": 3}}, "fusion"),
        ({"baselines": {"cwd_features": {"weight": 1}}}, "cwd_features"),
    ],
)
def test_a_term_that_was_asked_for_is_refused(wanted, term, tmp_path):
    teacher = weights.load(scripted(tmp_path / "a.pt", small()))
    with pytest.raises(ModelError, match=f"The term '{term}' cannot be used, since a .TorchScript. shows its logits"):
        feasible(DistillOptions.model_validate(wanted), teacher)
    assert feasible(DistillOptions.model_validate({"baselines": {"cwd": {"weight": 1}}}), teacher)[
        0
    ].baselines.cwd.weight


def test_the_passport_says_what_it_shows(tmp_path):
    passport = inspect(scripted(tmp_path / "a.pt", small(), name="Organ finder"))
    assert passport.spec.name == "Organ finder"
    assert passport.parameters == sum(parameter.numel() for parameter in small().parameters())
    assert passport.card["origin"] == "TorchScript"
    assert "terms on features, tokens or texture cannot be used" in passport.card["shows"]


@programs
def test_what_is_not_said_is_asked_for(name, tmp_path):
    path = PROGRAMS[name](tmp_path / name, small(), trusted=False)
    with pytest.raises(ModelError, match=f'is a program.*"trusted": true into {path.stem}.json'):
        weights.load(path)
    path.with_suffix(".json").unlink()
    with pytest.raises(ModelError, match=f"write {path.stem}.json with in_channels, classes, image_size and normalis"):
        weights.load(path)
    path.with_suffix(".json").write_text('{"in_channels": 1, "trusted": true}')
    with pytest.raises(ModelError, match=rf"network in {path.stem}\.json: classes: Field required"):
        weights.load(path)


def test_a_description_that_does_not_fit_is_noticed(tmp_path):
    path = scripted(tmp_path / "a.pt", small(), classes=["background", "b", "c"])
    with pytest.raises(ModelError, match=r"answers with \(2, 2, 64, 64\) instead of \(2, 3, 64, 64\)"):
        weights.load(path)
    describe(path, in_channels=3)
    with pytest.raises(ModelError, match=r"a does not take images of shape \(2, 3, 64, 64\)"):
        weights.load(path)
    of_smp(tmp_path / "unet.pt", encoder="resnet34")
    with pytest.raises(ModelError, match=r"unet\.pt is no Unet with resnet34"):
        weights.load(tmp_path / "unet.pt")


def test_it_cannot_be_exported(tmp_path):
    job = ExportJob(model=scripted(tmp_path / "a.pt", small()), output=tmp_path / "a.onnx")
    with pytest.raises(ModelError, match=r"a\.pt is a network from elsewhere"):
        drain(export(job))


def test_a_distillation_from_it_runs_and_says_what_is_off(tmp_path):
    rng = np.random.default_rng(0)
    for case in range(3):
        image = rng.integers(0, 255, (64, 64), np.uint8)
        write_image(tmp_path / "images" / f"{case}.tif", Scan(image, "yx"))
        write_image(tmp_path / "masks" / f"{case}.tif", Scan((image > 128).astype(np.uint8), "yx"))
    data = {"images": tmp_path / "images", "masks": tmp_path / "masks"}
    training = {"epochs": 1, "steps_per_epoch": 2, "batch_size": 2, "report": False}
    teacher = scripted(tmp_path / "a.pt", small())
    job = DistillJob.model_validate(
        {"teacher": teacher, "student": "rskd-nano", "data": data, "run": tmp_path / "run", "training": training}
    )
    events = list(run(job))
    warnings = [event.text for event in events if isinstance(event, Message) and event.warning]
    assert len([text for text in warnings if "is switched off, since a (TorchScript)" in text]) == 3
    logged = [event.text for event in RunFolder(job.run).events() if isinstance(event, Message) and event.warning]
    assert logged == warnings
    passport = weights.inspect(job.run / "best.safetensors")
    assert passport.spec.classes[1].name == "organ"
    used = Story.read(RunFolder(job.run)).objective
    assert used == DistillOptions.model_validate(json.loads(passport.card["recipe"])["distillation"])
    assert (used.logits.weight, used.ranking.weight, used.texture.weight, used.fusion.weight) == (1, 0, 0, 0)
    with pytest.raises(ModelError, match=r"a\.pt is a network from elsewhere: it can teach and segment, but not be tr"):
        drain(run(job.model_copy(update={"student": str(teacher), "run": tmp_path / "other"})))


class Malicious:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return open, (self.marker, "w")


@pytest.mark.parametrize(
    "place", ["data/sample_inputs/model.pt", "data/weights/weight_0", "data/constants/opaque_obj_0"]
)
def test_a_pickle_in_a_program_is_not_executed(place, tmp_path):
    marker = tmp_path / "marker"
    good, bad = exported(tmp_path / "good.pt2", small()), describe(tmp_path / "bad.pt2", patch_size=64)
    buffer = io.BytesIO()
    torch.save(Malicious(str(marker)), buffer)
    payload = pickle.dumps(Malicious(str(marker))) if "opaque" in place else buffer.getvalue()
    with zipfile.ZipFile(good) as source, zipfile.ZipFile(bad, "w") as target:
        for info in source.infolist():
            inner = info.filename.partition("/")[2]
            content = source.read(info)
            if inner == "data/weights/model_weights_config.json" and place == "data/weights/weight_0":
                content = content.replace(b'"use_pickle": false', b'"use_pickle": true', 1)
            if inner == "data/constants/model_constants_config.json" and "opaque" in place:
                meta = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}
                content = json.dumps({"config": {"x": meta}}).encode()
            target.writestr(info.filename, payload if inner == place else content)
        if "opaque" in place:
            target.writestr(f"good/{place}", payload)
    with pytest.raises((FileError, ModelError), match=r"bad\.pt2 .*Python objects"):
        weights.load(bad)
    assert not marker.exists()


def test_a_pickle_in_a_script_is_not_executed(tmp_path):
    marker = tmp_path / "marker"
    good, bad = scripted(tmp_path / "good.pt", small()), describe(tmp_path / "bad.pt")
    with zipfile.ZipFile(good) as source, zipfile.ZipFile(bad, "w") as target:
        for info in source.infolist():
            is_data = info.filename.endswith(("/data.pkl", "/constants.pkl"))
            target.writestr(info.filename, pickle.dumps(Malicious(str(marker)), 2) if is_data else source.read(info))
    with pytest.raises(FileError, match=r"bad\.pt is damaged"):
        weights.load(bad)
    assert not marker.exists()


def test_the_marker_would_be_written(tmp_path):
    pickle.loads(pickle.dumps(Malicious(str(tmp_path / "marker")))).close()
    assert (tmp_path / "marker").exists()


def test_damaged_programs_are_said_in_one_sentence(tmp_path):
    for name, build in PROGRAMS.items():
        path = build(tmp_path / name, small())
        shutil.copy(path, whole := tmp_path / f"whole-{name}")
        path.write_bytes(whole.read_bytes()[:500])
        with pytest.raises((FileError, ModelError)) as caught:
            weights.load(path)
        assert "\n" not in str(caught.value)
