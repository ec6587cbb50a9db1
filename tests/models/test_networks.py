"""Any encoder with any decoder: shapes, what is observed of them, and that they learn from one another."""

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from torch.nn import functional as F

from rskd.config import DistillOptions, ModelSpec
from rskd.distillation.features import Taps, observe, stage_widths, texture_width
from rskd.distillation.objective import Objective
from rskd.errors import FileError, ModelError
from rskd.events import drain
from rskd.importance import observe_attention
from rskd.importance.rows import observe_rows
from rskd.models import weights
from rskd.models.augmented import Augmented
from rskd.models.presets import PRESETS
from rskd.models.segmenter import Segmenter
from rskd.rank import observe_all, prepare
from rskd.scan import Scan
from rskd.survey import attend

DECODERS = ["upsample", "linear", "mlp", "fpn", "unet"]
PLAIN = PRESETS["rskd-nano"]


def other(encoder, decoder="upsample", stride=32, **fields):
    return ModelSpec(
        name="other", encoder=encoder, decoder=decoder, patch_size=stride, image_size=64, in_channels=2, **fields
    )


SPECS = {
    "plain": PLAIN.model_copy(update={"in_channels": 2, "image_size": 64}),
    "convolutional": other("test_resnet"),
    "hierarchical": other("pvt_v2_b0"),
    "windows": other("swin_tiny_patch4_window7_224"),
    "mobile": other("efficientvit_b0"),
}


@pytest.fixture(scope="module")
def networks():
    built = {}

    def get(kind, decoder):
        if (kind, decoder) not in built:
            torch.manual_seed(0)
            built[kind, decoder] = Segmenter(SPECS[kind].model_copy(update={"decoder": decoder})).eval()
        return built[kind, decoder]

    return get


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("kind", ["plain", "convolutional", "hierarchical"])
def test_every_decoder_on_every_kind_of_encoder(networks, kind, decoder):
    model = networks(kind, decoder).train()
    images = torch.randn(2, 2, 64, 96)
    logits = model(images)
    assert logits.shape == (2, 2, 64, 96)
    F.cross_entropy(logits, torch.randint(0, 2, (2, 64, 96))).backward()
    silent = [n for n, p in model.decoder.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not silent
    model.zero_grad()
    model.eval()


@pytest.mark.parametrize("kind", sorted(SPECS))
def test_observing_changes_nothing_and_shows_the_stages(networks, kind):
    model = networks(kind, "upsample")
    images = torch.randn(1, 2, 64, 64)
    plain = model(images)
    every = tuple(range(len(stage_widths(model))))
    seen = observe(model, images, Taps(stages=every, texture=True))
    assert torch.equal(seen.logits, plain)
    maps = model.encoder.forward_intermediates(images, indices=list(every), intermediates_only=True, norm=False)
    for stage, expected, width in zip(seen.stages, maps, stage_widths(model), strict=True):
        assert stage.shape[1] == width
        torch.testing.assert_close(stage, expected)
    assert seen.texture.shape[1] == texture_width(model)
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("decoder", ["upsample", "mlp"])
@pytest.mark.parametrize("kind", sorted(SPECS))
def test_tokens_are_looked_at_without_running_the_decoder(networks, kind, decoder):
    model, scan = networks(kind, decoder), Scan(np.random.default_rng(0).random((2, 70, 90)), "cyx")
    image = prepare(model, scan)
    definitions = ["at"] if kind == "convolutional" else ["at", "received", "received_value"]
    whole, rows = {}, {}
    with torch.no_grad():
        for definition in definitions:
            with observe_attention(model, definition=definition, heads="all") as seen:
                model(image)
            whole[definition] = {block: found.scores.flatten().numpy() for block, found in seen.items()}
        if kind != "convolutional":
            with observe_rows(model, (0.3, 0.7), image=tuple(image.shape[-2:])) as seen:
                model(image)
            rows = {f"student_block{block}": found.scores.flatten() for block, found in seen.items()}
    runs = []
    handle = model.decoder.register_forward_pre_hook(lambda module, args: runs.append(module))
    early = {definition: observe_all(model, scan, definition) for definition in whole}
    at = (0.3 * 70 - 0.5, 0.7 * 90 - 0.5)
    arrays = drain(attend({"student": model}, scan, at)).arrays if rows else {}
    assert not runs
    model(image)
    handle.remove()
    assert len(runs) == 1
    for definition, expected in whole.items():
        assert list(early[definition]) == list(expected)
        for block, scores in expected.items():
            np.testing.assert_array_equal(early[definition][block].scores.flatten(), scores)
    assert arrays.keys() == rows.keys()
    for name, row in rows.items():
        np.testing.assert_array_equal(arrays[name].ravel(), row)


def test_an_augmented_network_is_looked_at_as_it_sees_the_image_upright(networks):
    model, scan = networks("plain", "upsample"), Scan(np.random.default_rng(0).random((2, 64, 96)), "cyx")
    expected = observe_all(model, scan, "received")
    found = observe_all(Augmented(model, rotations=True), scan, "received")
    assert found[3].grid == (4, 6)
    assert torch.equal(found[3].scores, expected[3].scores)


@pytest.mark.parametrize("decoder", DECODERS)
def test_the_answer_moves_with_the_image(networks, decoder):
    """A place in the logits belongs to the same place of the image: what changes there changes here."""
    model = networks("convolutional", decoder)
    images = torch.randn(1, 2, 256, 256)
    changed = images.clone()
    changed[:, :, 200:232, 32:64] += 2
    difference = (model(changed) - model(images)).abs().sum(1)[0]
    row, column = divmod(int(difference.argmax()), 256)
    assert 180 <= row < 252
    assert 12 <= column < 84


def test_a_texture_map_is_found_without_a_stem(networks):
    model = networks("hierarchical", "mlp")
    assert model.stem is None
    seen = observe(model, torch.randn(1, 2, 64, 64), Taps(texture=True))
    assert seen.texture.shape == (1, texture_width(model), 16, 16)


@pytest.mark.parametrize(
    ("student", "teacher", "changes"),
    [
        ("plain", "hierarchical", {}),
        ("hierarchical", "plain", {}),
        ("windows", "plain", {"ranking": {"definition": "feature_norm"}}),
        ("convolutional", "plain", {"ranking": {"definition": "at"}}),
    ],
)
def test_kinds_of_networks_learn_from_one_another(networks, student, teacher, changes):
    torch.manual_seed(0)
    objective = Objective(
        networks(student, "upsample"), networks(teacher, "unet"), DistillOptions.model_validate(changes)
    )
    losses = objective(torch.randn(2, 2, 64, 64), torch.randint(0, 2, (2, 64, 64)))
    assert set(losses) == {"task", "logits", "ranking", "texture", "fusion"}
    objective.total(losses).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert all(p.grad is None for p in networks(teacher, "unet").parameters())
    objective.zero_grad()
    networks(student, "upsample").requires_grad_(True)


def test_a_network_without_attention_says_how_to_rank(networks):
    with pytest.raises(ModelError, match="test_resnet has no attention to rank tokens by: set the definition"):
        Objective(networks("convolutional", "upsample"), networks("plain", "upsample"), DistillOptions())


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (other("pvt_v2_b0", stride=16), "stands for 32 pixels, patch_size is 16: set it to 32"),
        (other("pvt_v2_b0", embed_dim=64), "embed_dim can be chosen for plain Vision Transformers"),
        (SPECS["plain"].model_copy(update={"patch_size": 2, "decoder": "fpn"}), "multiple of 4, it is 2: choose 'mlp'"),
        (other("no_such_network"), "'no_such_network' cannot be built"),
    ],
)
def test_what_cannot_be_built_is_said(spec, message):
    with pytest.raises(ModelError, match=message):
        Segmenter(spec)


def test_a_saved_network_comes_back(networks, tmp_path):
    model = networks("hierarchical", "fpn")
    weights.save(tmp_path / "net.safetensors", model, card={})
    images = torch.randn(1, 2, 64, 64)
    again = weights.load(tmp_path / "net.safetensors")
    assert again.spec == model.spec
    assert torch.equal(again(images), model(images))


def test_files_without_a_decoder_are_as_they_were():
    text = PLAIN.model_dump_json(exclude={"decoder"})
    assert ModelSpec.model_validate_json(text).decoder == "upsample"


def test_pretrained_weights_come_from_a_file(tmp_path):
    torch.manual_seed(0)
    donor = timm.create_model("test_vit", num_classes=10, in_chans=3, img_size=160)
    safetensors.torch.save_file(donor.state_dict(), tmp_path / "donor.safetensors")
    spec = ModelSpec(name="x", encoder="test_vit", patch_size=16, image_size=160, in_channels=3)
    model = Segmenter(spec, pretrained=tmp_path / "donor.safetensors")
    images = torch.randn(1, 3, 160, 160)
    torch.testing.assert_close(model.encoder.eval().forward_features(images), donor.eval().forward_features(images))
    grey = Segmenter(spec.model_copy(update={"in_channels": 1}), pretrained=tmp_path / "donor.safetensors")
    summed = donor.patch_embed.proj.weight.sum(1, keepdim=True)
    torch.testing.assert_close(grey.encoder.patch_embed.proj.weight, summed)


def test_pretrained_weights_that_do_not_exist_or_fit(tmp_path):
    spec = ModelSpec(name="x", encoder="test_vit", patch_size=16, image_size=160, in_channels=3)
    with pytest.raises(FileError, match=r"There is no weight file .*nothing.pth"):
        Segmenter(spec, pretrained=tmp_path / "nothing.pth")
    safetensors.torch.save_file({"a": torch.zeros(1)}, tmp_path / "wrong.safetensors")
    with pytest.raises(ModelError, match=r"wrong.safetensors do not fit the encoder"):
        Segmenter(spec, pretrained=tmp_path / "wrong.safetensors")
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(FileError, match=r"text.pth is no weight file that can be read"):
        Segmenter(spec, pretrained=tmp_path / "text.pth")
    donor = timm.create_model("test_vit", img_size=160).state_dict()
    safetensors.torch.save_file(donor | {"more": torch.zeros(1)}, tmp_path / "more.safetensors")
    with pytest.raises(ModelError, match="Unexpected key"):
        Segmenter(spec, pretrained=tmp_path / "more.safetensors")
    del donor["norm.weight"]
    safetensors.torch.save_file(donor, tmp_path / "less.safetensors")
    with pytest.raises(ModelError, match="Missing key"):
        Segmenter(spec, pretrained=tmp_path / "less.safetensors")
