"""The network: shapes, sizes, what it is made of, and the features that are observed from outside."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from rskd.config import ModelSpec
from rskd.distillation.features import Taps, match_blocks, observe
from rskd.errors import ModelError, ParameterError
from rskd.models.normalise import normalise
from rskd.models.presets import PRESETS, fresh_spec
from rskd.models.segmenter import Segmenter, tokens_to_map


@pytest.fixture(scope="module")
def nano():
    torch.manual_seed(0)
    return Segmenter(fresh_spec("rskd-nano", in_channels=1, classes=["a", "b"])).eval()


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_named_network_segments(name):
    model = Segmenter(fresh_spec(name, in_channels=2, classes=["a"]))
    assert model(torch.zeros(1, 2, 32, 48)).shape == (1, 2, 32, 48)


def test_a_size_that_does_not_fit_the_patches_is_refused(nano):
    with pytest.raises(ParameterError, match="30 x 32 pixels: pad it to multiples of 16"):
        nano(torch.zeros(1, 1, 30, 32))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder": "resnet18"}, "resnet18"),
        ({"encoder": "swin_tiny_patch4_window7_224"}, "plain Vision Transformer|cannot be built"),
        ({"encoder": "no_such_network"}, "no_such_network"),
        ({"embed_dim": 50, "num_heads": 3}, "cannot be built"),
        ({"patch_size": 4}, "at most one stem level"),
    ],
)
def test_what_cannot_be_built_is_said(changes, message):
    spec = PRESETS["rskd-nano"].model_copy(update=changes)
    with pytest.raises(ModelError, match=message):
        Segmenter(spec.model_copy(update={"stem_widths": (8, 8, 8)}))


def test_tokens_keep_their_place():
    tokens = torch.arange(6.0).view(1, 6, 1)
    assert tokens_to_map(tokens, (2, 3))[0, 0].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_observing_changes_nothing_and_shows_what_the_network_computes(nano):
    images = torch.randn(2, 1, 64, 32)
    plain = nano(images)
    seen = observe(nano, images, Taps(stages=(0, 2), importance=(2,), texture=True))
    assert torch.equal(seen.logits, plain)
    assert torch.equal(observe(nano, images, Taps()).logits, plain)
    tokens = nano.encoder.forward_intermediates(images, indices=[0, 2], intermediates_only=True, norm=False)
    for stage, expected in zip(seen.stages, tokens, strict=True):
        assert torch.equal(stage, expected)
    assert torch.equal(seen.texture, nano.stem(images)[1])
    torch.testing.assert_close(seen.importance[0].sum(1), torch.ones(2))
    assert not any(module._forward_hooks for module in nano.modules())


def test_importance_is_that_of_the_attention_written_out(nano):
    images = torch.randn(1, 1, 64, 32)
    seen = observe(nano, images, Taps(importance=(1,)))
    encoder = nano.encoder
    tokens = encoder._pos_embed(encoder.patch_embed(images))
    tokens = encoder.blocks[0](encoder.norm_pre(tokens))
    attention = encoder.blocks[1].attn
    q, k, _ = attention.qkv(encoder.blocks[1].norm1(tokens)).view(1, 9, 3, 2, 32).permute(2, 0, 3, 1, 4)
    rows = (q @ k.mT / 32**0.5).softmax(-1)
    received = rows.mean((1, 2))[:, 1:]
    torch.testing.assert_close(seen.importance[0], received / received.sum(), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("depths", "count", "expected"),
    [((4, 8), 2, ((1, 3), (3, 7))), ((3, 12), 3, ((0, 1, 2), (3, 7, 11))), ((2, 12), 4, ((0, 1), (5, 11)))],
)
def test_blocks_are_matched_by_depth(depths, count, expected):
    assert match_blocks(*depths, count) == expected


@pytest.mark.parametrize("kind", ["zscore", "percentile"])
def test_normalised_images_do_not_depend_on_gain_and_offset(kind):
    spec = ModelSpec(name="a", normalisation=kind)
    image = np.random.default_rng(0).normal(100, 20, (2, 50, 60))
    np.testing.assert_allclose(normalise(image, spec), normalise(3 * image + 7, spec), atol=1e-4)


SPUN = """
import time
import numpy as np
from rskd.config import ModelSpec
from rskd.models.normalise import normalise
normalise(np.arange(1 << 20).reshape(1, 1024, 1024).astype("{}"), ModelSpec(name="any"))
began = time.process_time()
time.sleep(0.1)
print(time.process_time() - began)
"""


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_normalising_wakes_no_thread_that_spins_on(dtype):
    free = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    done = subprocess.run([sys.executable, "-c", SPUN.format(dtype)], env=free, capture_output=True, check=True)
    assert float(done.stdout) < 0.03, "seconds of CPU time in 0.1 s of sleep"


def test_zscore_by_hand():
    spec = ModelSpec(name="a")
    np.testing.assert_allclose(normalise(np.array([[[1, 3], [1, 3]]]), spec), [[[-1, 1], [-1, 1]]])


def test_percentiles_land_on_minus_one_and_one():
    image = np.arange(101.0).reshape(1, 1, 101)
    scaled = normalise(image, ModelSpec(name="a", normalisation="percentile"))
    assert scaled[0, 0, 1] == pytest.approx(-1)
    assert scaled[0, 0, 99] == pytest.approx(1)


def test_constant_and_broken_pixels_become_zero():
    spec = ModelSpec(name="a")
    assert not normalise(np.full((1, 4, 4), 7), spec).any()
    assert np.isfinite(normalise(np.array([[[np.nan, 1, np.inf]]]), spec)).all()
