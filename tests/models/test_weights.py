"""Weight files: what goes in comes out, nothing is executed, and every mismatch is named."""

import json
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from rskd.errors import FileError, ModelError
from rskd.io import files
from rskd.models import weights
from rskd.models.presets import PRESETS, fresh_spec, student_spec
from rskd.models.segmenter import Segmenter


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    network = Segmenter(fresh_spec("rskd-nano", in_channels=3, classes=["vessel"]))
    network(torch.randn(2, 3, 64, 64))  # moves the running statistics off their defaults
    return network.eval()


def test_round_trip_is_exact(model, tmp_path):
    weights.save(tmp_path / "a.safetensors", model, card={"licence": "none"})
    loaded = weights.load(tmp_path / "a.safetensors")
    image = torch.randn(1, 3, 64, 96)
    assert loaded.spec == model.spec
    assert not loaded.training
    assert torch.equal(loaded(image), model(image))


def test_equal_networks_are_equal_files(model, tmp_path):
    card = dict.fromkeys("abcdefgh", "x")
    contents = set()
    for index in range(8):
        weights.save(tmp_path / f"{index}.safetensors", model, card=card)
        contents.add((tmp_path / f"{index}.safetensors").read_bytes())
    assert len(contents) == 1


def test_half_precision_halves_the_file_and_loads_as_single(model, tmp_path):
    weights.save(tmp_path / "a.safetensors", model, card={})
    weights.save(tmp_path / "b.safetensors", model, card={}, half=True)
    assert (tmp_path / "b.safetensors").stat().st_size < 0.6 * (tmp_path / "a.safetensors").stat().st_size
    loaded = weights.load(tmp_path / "b.safetensors")
    assert all(p.dtype == torch.float32 for p in loaded.parameters())
    for name, tensor in loaded.state_dict().items():
        torch.testing.assert_close(tensor, model.state_dict()[name], atol=1e-3, rtol=1e-3)


def test_the_passport_says_what_the_file_holds(model, tmp_path):
    path = tmp_path / "a.safetensors"
    weights.save(path, model, card={"licence": "none"})
    passport = weights.inspect(path)
    assert passport.spec == model.spec
    assert passport.card == {"licence": "none"}
    assert passport.parameters == sum(p.numel() for p in model.parameters())
    assert passport.bytes == path.stat().st_size
    assert len(passport.sha256) == 64


class Malicious:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), "w")


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_malicious_pickle_is_refused_and_not_executed(tmp_path, protocol):
    marker = tmp_path / "executed"
    path = tmp_path / "evil.pt"
    path.write_bytes(pickle.dumps({"state_dict": Malicious(marker)}, protocol=protocol))
    with pytest.raises(ModelError, match="never run"):
        weights.load(path)
    assert not marker.exists()
    pickle.loads(path.read_bytes())  # the trap is real: plain pickle falls into it
    assert marker.exists()


def test_a_malicious_torch_archive_is_refused_and_not_executed(tmp_path):
    marker = tmp_path / "executed"
    torch.save({"state_dict": Malicious(marker)}, tmp_path / "evil.pt")
    with pytest.raises(ModelError, match="never run"):
        weights.load(tmp_path / "evil.pt")
    assert not marker.exists()


def junk():
    """Bytes that begin like a pickle and are none."""
    noise = np.random.default_rng(0).integers(0, 256, 5000, np.uint8).tobytes()
    yield from (start + noise for start in (b"c", b"(", b"}", b"]", b"\x80", b"\x80\x02"))
    yield from (b"case,age,side\nfirst,64,left\nsecond,71,right\n", b"(see the other file)\n", b"c", b"\x80")


@pytest.mark.parametrize("content", junk(), ids=lambda content: repr(content[:6]))
@pytest.mark.parametrize("ending", [".pt", ".pth"])
def test_a_file_of_something_else_is_no_weight_file(tmp_path, content, ending):
    path = tmp_path / f"renamed{ending}"
    path.write_bytes(content)
    with pytest.raises(FileError) as caught:
        weights.load(path)
    assert str(caught.value) == f"renamed{ending} is no weight file: choose a .safetensors or .pt file."


def test_a_plain_torch_file_with_a_description_is_welcome(model, tmp_path):
    torch.save({"spec": model.spec.model_dump_json(), "state_dict": model.state_dict()}, tmp_path / "a.pt")
    image = torch.randn(1, 3, 64, 64)
    assert torch.equal(weights.load(tmp_path / "a.pt")(image), model(image))


def spoil(path, model, *, spec=None, **changes):
    spec = model.spec.model_copy(update=spec or {})
    save_file({**model.state_dict(), **changes}, path, described(spec.model_dump_json()))


def described(spec):
    return {"rskd": json.dumps({"spec": spec, "card": {}})}


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda path, model: None, FileError, "no weight file"),
        (lambda path, model: path.write_bytes(b""), FileError, "damaged"),
        (lambda path, model: path.write_bytes(b"\xff" * 400), FileError, "damaged"),
        (lambda path, model: save_file({"a": torch.zeros(1)}, path), ModelError, "does not say which network"),
        (lambda path, model: save_file({"a": torch.zeros(1)}, path, {"rskd": "[1"}), ModelError, "damaged"),
        (lambda path, model: save_file({"a": torch.zeros(1)}, path, {"rskd": "[1]"}), ModelError, "damaged"),
        (
            lambda path, model: save_file({"a": torch.zeros(1)}, path, described("{}")),
            ModelError,
            "name: Field required",
        ),
        (lambda path, model: spoil(path, model, spec={"depth": 5}), ModelError, "is missing"),
        (lambda path, model: spoil(path, model, extra=torch.zeros(1)), ModelError, "extra is unknown"),
        (
            lambda path, model: spoil(path, model, **{"decoder.head.bias": torch.zeros(5)}),
            ModelError,
            r"decoder.head.bias has shape \(5,\) instead of \(2,\)",
        ),
        (lambda path, model: spoil(path, model, spec={"encoder": "resnet18"}), ModelError, "resnet18"),
    ],
)
def test_every_mismatch_gets_its_own_sentence(model, tmp_path, make, error, message):
    path = tmp_path / "a.safetensors"
    make(path, model)
    with pytest.raises(error, match=message) as caught:
        weights.load(path)
    assert str(tmp_path) not in str(caught.value) or error is FileError
    assert "\n" not in str(caught.value)


def test_a_failed_write_leaves_the_old_file(model, tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "replace", full)
    with pytest.raises(FileError, match="No space left"):
        weights.save(path, model, card={})
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_spec_survives_json(model):
    assert json.loads(model.spec.model_dump_json())["classes"][1]["name"] == "vessel"
    assert type(model.spec).model_validate_json(model.spec.model_dump_json()) == model.spec


def test_a_student_sees_and_says_what_its_teacher_does():
    teacher = fresh_spec("rskd-teacher", in_channels=3, classes=["a", "b"]).model_copy(
        update={"frame": 584, "normalisation": "percentile", "modality": "x"}
    )
    student = student_spec("rskd-nano", teacher)
    for field in ("in_channels", "classes", "frame", "normalisation", "modality", "image_size"):
        assert getattr(student, field) == getattr(teacher, field)
    assert student.embed_dim == PRESETS["rskd-nano"].embed_dim


def test_an_unknown_network_names_the_known_ones():
    with pytest.raises(ModelError, match="rskd-nano, rskd-micro"):
        fresh_spec("rskd-huge", in_channels=1, classes=["a"])
