"""Descriptions are read off weights as far as these tell; what leaves no trace is asked for."""

import json

import pytest
import torch
from safetensors.torch import save_file

from rskd.config import ModelSpec
from rskd.errors import FileError, ModelError, ParameterError
from rskd.jobs import TrainJob
from rskd.models import encoders, weights
from rskd.models.inference import find_weights
from rskd.models.presets import PRESETS, fresh_spec
from rskd.models.segmenter import Segmenter
from rskd.pair import networks_for


def network(spec):
    torch.manual_seed(0)
    return Segmenter(spec).eval()


def same(found, model):
    images = torch.randn(1, model.spec.in_channels, 128, 128)
    with torch.no_grad():
        assert torch.equal(found(images), model(images))


@pytest.mark.parametrize("name", sorted(PRESETS))
@pytest.mark.parametrize("prefix", ["", "module.", "model.module."])
def test_a_named_network_is_recognised_by_its_weights(name, prefix, tmp_path):
    model = network(fresh_spec(name, in_channels=2, classes=["a", "b"]))
    path = tmp_path / "weights.pt"
    torch.save({prefix + key: value for key, value in model.state_dict().items()}, path)
    found = weights.load(path)
    same(found, model)
    told = {"name": "weights", "classes": found.spec.classes}
    assert found.spec == model.spec.model_copy(update=told)
    assert [info.name for info in found.spec.classes] == ["background", "class 1", "class 2"]
    assert "leave no trace" in weights.inspect(path).card["note"]


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize("decoder", ["linear", "mlp", "fpn", "unet", "upsample"])
def test_every_decoder_is_recognised(decoder, norm, tmp_path):
    spec = fresh_spec("rskd-nano", in_channels=1, classes=["a"]).model_copy(update={"decoder": decoder, "norm": norm})
    model = network(spec)
    path = tmp_path / "weights.safetensors"
    save_file(model.state_dict(), path)
    path.with_suffix(".json").write_text(json.dumps({"num_heads": spec.num_heads, "normalisation": "percentile"}))
    found = weights.load(path)
    same(found, model)
    assert (found.spec.decoder, found.spec.normalisation) == (decoder, "percentile")


def test_heads_leave_no_trace(tmp_path):
    model = network(ModelSpec(name="own", embed_dim=48, depth=2, num_heads=3, image_size=64))
    path = tmp_path / "own.pt"
    torch.save(model.state_dict(), path)
    with pytest.raises(ModelError, match=r"own\.pt .*attention heads leaves no trace .* as {\"num_heads\": 3}"):
        weights.load(path)
    path.with_suffix(".json").write_text('{"num_heads": 3}')
    same(weights.load(path), model)
    path.with_suffix(".json").write_text('{"num_heads": 5}')
    with pytest.raises(ModelError, match="cannot be built as described"):
        weights.load(path)
    path.with_suffix(".json").write_text('{"num_heads": "three"}')
    with pytest.raises(ModelError, match=r"network in own\.pt: num_heads: Input should be a valid integer"):
        weights.load(path)
    path.with_suffix(".json").write_text("no JSON")
    with pytest.raises(FileError, match=r"own\.json cannot be read as JSON"):
        weights.load(path)


def test_the_student_in_a_checkpoint_is_found():
    bias, term = torch.zeros(2), torch.ones(1)
    content = {"step": 3, "objective": {"student.head.bias": bias, "terms.fusion.x": term}}
    assert find_weights(content) == {"head.bias": bias}


@pytest.mark.parametrize("content", [{"step": 1}, {"state_dict": {}}, [1, 2], {"a": {"b": torch.zeros(1)}}])
def test_where_there_are_no_weights(content, tmp_path):
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(ModelError, match=r"a\.pt is no weight file of a network: there are no weights by name in it"):
        weights.load(tmp_path / "a.pt")


def test_an_encoder_alone_is_for_a_fresh_network(tmp_path):
    spec = ModelSpec(name="own", embed_dim=48, depth=2, num_heads=3, image_size=64)
    donor = network(spec)
    path = tmp_path / "encoder.safetensors"
    save_file(donor.encoder.state_dict(), path)
    with pytest.raises(ModelError, match="weights of an encoder alone: name the file as `pretrained`"):
        weights.load(path)
    described = tmp_path / "student.json"
    described.write_text(spec.model_dump_json())
    job = {"data": {"images": tmp_path}, "run": tmp_path / "run", "pretrained": path}
    model, _ = networks_for(TrainJob.model_validate(job | {"model": str(described)}), None)
    for name, value in donor.encoder.state_dict().items():
        assert torch.equal(model.encoder.state_dict()[name], value)
    weights.save(tmp_path / "whole.safetensors", donor, card={})
    with pytest.raises(ParameterError, match=r"whole\.safetensors holds weights already"):
        networks_for(TrainJob.model_validate(job | {"model": str(tmp_path / "whole.safetensors")}), None)


def test_weights_of_nothing_that_is_known(tmp_path):
    torch.save({"layer.weight": torch.zeros(2)}, tmp_path / "a.pt")
    with pytest.raises(ModelError, match="not the weights of a plain transformer with one of our decoders"):
        weights.load(tmp_path / "a.pt")


@pytest.mark.parametrize("pretrained", [None, encoders.DOWNLOAD])
def test_nothing_is_downloaded_unless_it_is_asked_for(pretrained, monkeypatch):
    asked = []
    create = encoders.timm.create_model

    def watch(name, **arguments):
        asked.append(arguments.pop("pretrained"))
        return create(name, pretrained=False, **arguments)

    monkeypatch.setattr(encoders.timm, "create_model", watch)
    Segmenter(ModelSpec(name="own", embed_dim=48, depth=1, num_heads=3), pretrained=pretrained)
    assert asked == [pretrained is not None]


def test_a_download_that_fails_is_one_sentence(monkeypatch):
    def fail(name, **arguments):
        raise ConnectionError("no route")

    monkeypatch.setattr(encoders.timm, "create_model", fail)
    with pytest.raises(FileError, match=r"cannot be fetched \(ConnectionError\): name a file instead"):
        Segmenter(ModelSpec(name="own"), pretrained=encoders.DOWNLOAD)
