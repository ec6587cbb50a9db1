"""Observed importance equals explicit attention for every family, and observing changes nothing."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rskd.errors import ModelError, ParameterError
from rskd.importance import attention_sites, columns, observe_attention, observe_features, watch
from rskd.importance.attention import observed_modules
from rskd.importance.until import run_until

SMALL_VIT = {"img_size": 64, "depth": 3, "embed_dim": 48, "num_heads": 3}
SMALL_SWIN = {"depths": (2, 2), "embed_dim": 24, "num_heads": (1, 2)}
FAMILIES = {
    "class token": ("vit_tiny_patch16_224", SMALL_VIT),
    "no class token": ("vit_tiny_patch16_224", SMALL_VIT | {"class_token": False, "global_pool": "avg"}),
    "registers": ("vit_tiny_patch16_224", SMALL_VIT | {"reg_tokens": 4}),
    "q and k normalised": ("vit_tiny_patch16_224", SMALL_VIT | {"qk_norm": True}),
    "distillation token": ("deit_tiny_distilled_patch16_224", SMALL_VIT),
    "DeiT-3": ("deit3_small_patch16_224", SMALL_VIT),
    "DINOv2": ("vit_small_patch14_reg4_dinov2", SMALL_VIT | {"img_size": 56}),
    "BEiT": ("beit_base_patch16_224", SMALL_VIT),
    "relative position": ("vit_srelpos_small_patch16_224", SMALL_VIT),
    "EVA, rotary": ("eva02_tiny_patch14_224", SMALL_VIT | {"img_size": 56}),
    "DINOv3, rotary and registers": ("vit_small_patch16_dinov3", SMALL_VIT),
    "parallel blocks": ("vit_small_patch16_18x2_224", SMALL_VIT | {"depth": 1}),
    "SAM, windows and global": ("samvit_base_patch16_224", SMALL_VIT | {"img_size": 80, "window_size": 2}),
    "Swin": ("swin_tiny_patch4_window7_224", SMALL_SWIN | {"img_size": 56}),
    "Swin, padded": ("swin_tiny_patch4_window7_224", SMALL_SWIN | {"img_size": 40, "always_partition": True}),
    "Swin-V2": ("swinv2_tiny_window8_256", SMALL_SWIN | {"img_size": 64, "window_size": 4}),
    "Swin-V2-CR": ("swinv2_cr_tiny_224", SMALL_SWIN | {"img_size": 64, "window_size": 4}),
    "PVT-v2": ("pvt_v2_b0", {"depths": (1, 1, 1, 1), "side": 64}),
    "PVT-v2, pooled": ("pvt_v2_b2_li", {"depths": (1, 1, 1, 1), "embed_dims": (16, 32, 40, 64), "side": 96}),
    "Twins": ("twins_svt_small", {"depths": (2, 2, 2, 2), "side": 64}),
    "MaxViT": ("maxvit_pico_rw_256", {"img_size": 64}),
    "TinyViT": ("tiny_vit_5m_224", {}),
    "EfficientViT, linear": ("efficientvit_b0", {"side": 128}),
    "EfficientViT, cascaded": ("efficientvit_m0", {}),
    "LeViT": ("levit_128s", {}),
    "MobileNet-V4, multi-query": ("mobilenetv4_hybrid_medium", {"side": 128}),
}


def _oracle() -> ModuleType:
    """Load the dense attention that the table of architectures is checked with; it uses nothing of what is tested."""
    path = Path(__file__).parents[2] / "benchmarks" / "architectures.py"
    spec = importlib.util.spec_from_file_location("architectures", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["architectures"] = module
    spec.loader.exec_module(module)
    return module


oracle = _oracle()


def small_vit(**options) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", **SMALL_VIT | {"num_classes": 4} | options)


def images(batch: int = 2, side: int = 64) -> Tensor:
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("family", FAMILIES)
def test_received_equals_explicit_attention(family):
    name, options = FAMILIES[family]
    model, pictures = oracle.build(name, **options)
    # relative to the mean importance 1 / N, so that 1e-5 is stricter than 1e-6 absolute for more than ten tokens
    assert oracle.worst_error(model, pictures) <= 1e-5
    linear = 1e-6 if "linear" in family else 1e-12  # timm computes linear attention in float32
    assert oracle.worst_error(model.double(), pictures.double()) <= linear


@pytest.mark.parametrize("family", ["class token", "BEiT", "EVA, rotary", "SAM, windows and global"])
def test_computed_together_with_the_attention_it_is_the_same(family, monkeypatch):
    together: list[Tensor] = []

    def attend(*args: Tensor, **options: object) -> tuple[Tensor, Tensor]:
        out, mean = columns.attend(*args, **options)
        together.append(mean)
        return out, mean

    name, options = FAMILIES[family]
    model, pictures = oracle.build(name, **options)
    with torch.no_grad(), observe_attention(model) as apart:
        plain = model(pictures)
    monkeypatch.setattr(watch, "MERGED_FROM", 1)
    monkeypatch.setattr(watch, "attend", attend)
    with torch.no_grad(), observe_attention(model) as seen:
        merged = model(pictures)
    assert len(together) == len(seen) == len(apart)
    assert torch.allclose(merged, plain, rtol=0, atol=1e-5)
    for block, importance in apart.items():
        assert torch.allclose(seen[block].scores, importance.scores, rtol=1e-5, atol=0)
    assert oracle.worst_error(model, pictures) <= 1e-5


@pytest.mark.parametrize("definition", ["received", "at"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_pass_that_ends_early_has_seen_the_same(family, definition):
    name, options = FAMILIES[family]
    model, pictures = oracle.build(name, **options)
    ends: list[nn.Module] = []
    model.register_forward_hook(lambda module, args, out: ends.append(module))
    every = [site.index for site in attention_sites(model)] if definition == "received" else None
    for blocks in (every, [0]):
        with torch.no_grad(), observe_attention(model, blocks, definition=definition, heads="all") as whole:
            model(pictures)
        expected = dict(whole.items())
        assert ends.pop() is model
        with torch.no_grad(), observe_attention(model, blocks, definition=definition, heads="all") as early:
            run_until(model, pictures, observed_modules(model, blocks, definition))
        assert not ends
        assert list(early) == list(expected)
        for block, importance in early.items():
            assert torch.equal(importance.scores, expected[block].scores)


@pytest.mark.parametrize("definition", ["rollout", "cls", "cls_value", "received_value", "feature_norm"])
def test_every_definition_is_known_when_what_is_observed_has_run(definition):
    model = small_vit().eval()
    for blocks in ([0, 1], [-1]):
        with torch.no_grad(), observe_attention(model, blocks, definition=definition) as whole:
            model(images())
        with torch.no_grad(), observe_attention(model, blocks, definition=definition) as early:
            run_until(model, images(), observed_modules(model, blocks, definition))
        for block, importance in whole.items():
            assert torch.equal(early[block].scores, importance.scores)
        assert len(early) == len(whole) == len(blocks)


def test_a_pass_that_ends_early_leaves_nothing_behind():
    model = small_vit().eval()
    expected = model(images())
    with torch.no_grad(), observe_attention(model, [0]):
        run_until(model, images(), observed_modules(model, [0], "received"))
    assert not any(module._forward_hooks for module in model.modules())
    assert torch.equal(model(images()), expected)
    with pytest.raises(AssertionError, match="Input height"):
        run_until(model, images(side=40), [model.blocks[0]])
    assert not any(module._forward_hooks for module in model.modules())


def test_what_never_runs_is_not_waited_for():
    model, ends = small_vit().eval(), []
    model.register_forward_hook(lambda module, args, out: ends.append(module))
    run_until(model, images(), [model.blocks[0], nn.Identity()])
    assert ends == [model]


@pytest.mark.parametrize("family", ["class token", "EVA, rotary", "BEiT"])
def test_class_attention_equals_the_first_row(family):
    name, options = FAMILIES[family]
    model, pictures = oracle.build(name, **options)
    assert oracle.worst_error(model.double(), pictures.double(), "cls") <= 1e-12


def test_value_weighted_definitions_and_heads_against_dense():
    model, pictures = small_vit().double().eval(), images().double()
    site = attention_sites(model)[1]
    with torch.no_grad(), oracle.explicit_attention([site]) as dense:
        model(pictures)
    (a,), (v,) = dense.weights[site.name], dense.values[site.name]
    per_head = {
        "received": a.mean(2),
        "received_value": a.mean(2) * v.norm(dim=-1),
        "cls": a[:, :, 0],
        "cls_value": a[:, :, 0] * v.norm(dim=-1),
    }
    reductions = {"mean": lambda h: h.mean(1), "max": lambda h: h.amax(1), "each": lambda h: h}
    for definition, scores in per_head.items():
        for heads, reduce in reductions.items():
            with torch.no_grad(), observe_attention(model, [1], definition=definition, heads=heads) as seen:
                model(pictures)
            expected = reduce(scores[..., 1:])
            expected = expected / expected.sum(-1, keepdim=True)
            assert torch.allclose(seen[1].scores, expected, rtol=0, atol=1e-12), (definition, heads)


@pytest.mark.parametrize("class_token", [True, False])
def test_rollout_is_the_product_of_all_attentions(class_token):
    model = small_vit(class_token=class_token, global_pool="avg").double().eval()
    sites = attention_sites(model)
    with torch.no_grad(), oracle.explicit_attention(sites) as dense:
        model(images().double())
    product = torch.eye(16 + class_token, dtype=torch.float64)
    for site in sites:
        mean = dense.weights[site.name][0].mean(1)
        product = (0.5 * mean + 0.5 * torch.eye(mean.shape[-1], dtype=torch.float64)) @ product
    expected = product[:, 0, 1:] if class_token else product.mean(1)
    with torch.no_grad(), observe_attention(model, definition="rollout") as seen:
        model(images().double())
    assert list(seen) == [2]
    assert torch.allclose(seen[2].scores, expected / expected.sum(1, keepdim=True), rtol=0, atol=1e-12)


def test_observing_changes_nothing_and_leaves_nothing_behind():
    model = small_vit().eval()
    fused = [module.fused_attn for module in model.modules() if hasattr(module, "fused_attn")]
    plain = model(images())
    with observe_attention(model) as seen:
        observed = model(images())
    assert torch.equal(plain, observed)
    assert [module.fused_attn for module in model.modules() if hasattr(module, "fused_attn")] == fused
    assert all(fused)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert len(seen) == 3
    model(images())
    assert len(seen) == 3


def test_hooks_are_removed_when_the_model_fails():
    model = small_vit().eval()
    with pytest.raises(AssertionError), observe_attention(model):
        model(images(side=48))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_only_the_last_forward_pass_counts():
    model = small_vit().eval()
    with torch.no_grad(), observe_attention(model, [1]) as seen:
        model(images(3))
        first = seen[1].scores
        model(images(2))
    assert first.shape == (3, 16)
    assert seen[1].scores.shape == (2, 16)


def test_a_student_learns_and_a_teacher_does_not():
    student, teacher = small_vit(), small_vit(depth=2).eval().requires_grad_(False)
    with torch.no_grad(), observe_attention(teacher, [-1]) as right:
        teacher(images())
    with observe_attention(student, [-1]) as left:
        student(images())
    (left[2].scores * right[1].scores.log()).sum().backward()
    assert not right[1].scores.requires_grad
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert student.blocks[2].attn.qkv.weight.grad.abs().max() > 0


def test_gradient_equals_that_of_dense_attention():
    model = small_vit().double()
    weight = model.blocks[2].attn.qkv.weight
    target = torch.rand(2, 16, dtype=torch.float64)
    with observe_attention(model, [2]) as seen:
        model(images().double())
    (streamed,) = torch.autograd.grad((seen[2].scores * target).sum(), weight)
    inputs: list[Tensor] = []
    handle = model.blocks[2].attn.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    model(images().double())
    handle.remove()
    attn = model.blocks[2].attn
    q, k, _ = attn.qkv(inputs[0]).reshape(2, 17, 3, 3, 16).permute(2, 0, 3, 1, 4)
    received = (q @ k.mT * attn.scale).softmax(-1).mean((1, 2))[:, 1:]
    (dense,) = torch.autograd.grad((received / received.sum(1, keepdim=True) * target).sum(), weight)
    assert torch.allclose(streamed, dense, rtol=1e-9, atol=1e-14)


def test_two_models_and_two_definitions_at_once():
    one, two = small_vit().eval(), small_vit(depth=2).eval()
    with torch.no_grad(), observe_attention(one, [0]) as alone:
        one(images())
    received, other = observe_attention(one, [0]), observe_attention(two, [1])
    with torch.no_grad(), received as a, other as b, observe_attention(one, [0], definition="cls") as c:
        one(images())
        two(images(1))
    assert torch.equal(a[0].scores, alone[0].scores)
    assert b[1].scores.shape == (1, 16)
    assert not torch.equal(a[0].scores, c[0].scores)


def test_unfused_models_are_read_from_their_softmax():
    model = small_vit().double().eval()
    with torch.no_grad(), observe_attention(model) as fused:
        model(images().double())
    for block in model.blocks:
        block.attn.fused_attn = False
    with torch.no_grad(), observe_attention(model) as unfused:
        model(images().double())
    for block in fused:
        assert torch.allclose(fused[block].scores, unfused[block].scores, rtol=0, atol=1e-12)


def test_attention_dropout_does_not_change_the_importance():
    model = small_vit(attn_drop_rate=0.5)
    for fused in (True, False):
        for block in model.blocks:
            block.attn.fused_attn = fused
        with torch.no_grad(), observe_attention(model, [0]) as training:
            model.train()(images())
        with torch.no_grad(), observe_attention(model, [0]) as evaluating:
            model.eval()(images())
        assert torch.allclose(training[0].scores, evaluating[0].scores, rtol=0, atol=1e-7)


def test_importance_is_float32_under_autocast():
    model = small_vit().eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), observe_attention(model, [2]) as seen:
        model(images())
    assert seen[2].scores.dtype == torch.float32
    assert torch.allclose(seen[2].scores.sum(1), torch.ones(2))


def test_oblong_images_keep_their_grid():
    model = small_vit(dynamic_img_size=True).eval()
    with torch.no_grad(), observe_attention(model, [0]) as seen:
        model(torch.randn(1, 3, 48, 96))
    assert seen[0].grid == (3, 6)


def test_the_encoder_inside_another_network_is_found():
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.encoder = nn.Conv2d(3, 3, 1), small_vit()

        def forward(self, x: Tensor) -> Tensor:
            return self.encoder.forward_features(F.relu(self.stem(x)))

    with torch.no_grad(), observe_attention(Wrapped().eval(), [-1, 0]) as seen:
        pass
    assert len(seen) == 0
    model = Wrapped().eval()
    with torch.no_grad(), observe_attention(model, [-1, 0]) as seen:
        model(images())
    assert list(seen) == [0, 2]


def test_windows_share_the_importance_equally():
    name, options = FAMILIES["Swin"]
    model, pictures = oracle.build(name, **options)
    with torch.no_grad(), observe_attention(model, [1]) as seen:
        model(pictures)
    importance = seen[1]
    totals = torch.zeros(2, 4).index_add(1, importance.windows, importance.scores)
    assert importance.windows.bincount().tolist() == [49] * 4
    assert torch.allclose(totals, torch.full((2, 4), 0.25))


@pytest.mark.parametrize(
    ("name", "blocks", "definition", "words"),
    [
        ("resnet18", None, "received", "no attention to observe: use definition='feature_norm'"),
        ("xcit_nano_12_p16_224", [0], "received", "between channels"),
        ("cait_xxs24_224", [0], "received", "mixes its heads"),
        ("edgenext_xx_small", None, "received", "between channels"),
        ("pvt_v2_b0", None, "cls", "no class token"),
        ("pvt_v2_b0", None, "rollout", "as rollout needs: use definition='feature_norm'"),
        ("nest_tiny", None, "received", "whose order is not known"),
        ("mobilevit_xxs", None, "received", "whose order is not known"),
    ],
)
def test_what_has_no_meaning_names_the_alternative(name, blocks, definition, words):
    def observed() -> dict:
        model = timm.create_model(name).eval()
        with torch.no_grad(), observe_attention(model, blocks, definition=definition) as seen:
            model(torch.randn(2, 3, 224, 224))
        return dict(seen)

    with pytest.raises(ModelError) as error:
        observed()
    assert words in str(error.value)
    assert "use definition='" in str(error.value) or "use 'received'" in str(error.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"blocks": [3]}, "block 3 does not exist, the model has 3: use 0 … 2"),
        ({"definition": "importance"}, "use received, received_value, cls, cls_value, rollout, feature_norm, at"),
        ({"definition": "grad"}, "gradient_importance"),
        ({"heads": "median"}, "use 'mean', 'max', 'each' or 'all'"),
    ],
)
def test_impossible_parameters(options, words):
    with pytest.raises(ParameterError) as error, observe_attention(small_vit(), **options):
        pass
    assert words in str(error.value)


def test_checkpointing_is_refused_where_it_would_lose_the_gradient():
    model = small_vit()
    model.set_grad_checkpointing()
    with pytest.raises(ParameterError, match="checkpointing"), observe_attention(model):
        pass
    with torch.no_grad(), observe_attention(model, [0]) as seen:
        model(images())
    assert len(seen) == 1


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "pvt_v2_b0", "resnet18"])
def test_features_are_those_of_timm(name):
    model, pictures = oracle.build(name)
    assert oracle.feature_error(model, pictures) <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", oracle.MODELS)
def test_table_of_architectures(name):
    row = oracle.examine(name)
    assert row["feature_norm"] == row["at"] == row["grad"] == "yes"
    if row["received"].startswith("yes"):
        assert float(row["error float32"]) <= 1e-5
        assert float(row["error float64"]) <= (1e-6 if name == "efficientvit_b0" else 1e-12)


def test_features_and_importance_of_a_convolutional_student():
    model = timm.create_model("resnet18").eval()
    with (
        torch.no_grad(),
        observe_attention(model, [-1], definition="at") as at,
        observe_features(model, [-1]) as features,
    ):
        model(images())
    (importance,), (seen,) = at.values(), features.values()
    expected = (seen.output**2).mean(1).flatten(1)
    assert importance.grid == (2, 2)
    assert torch.allclose(importance.scores, expected / expected.sum(1, keepdim=True))
