"""Explore tokens, textures and sub-bands through the dispatch, with small untrained networks."""

import json
import os

import numpy as np
import psutil
import pytest
import torch

from rskd.config import ComputeOptions, ContourletOptions, DenoiseOptions, FeatureMapOptions, RankOptions
from rskd.contourlet import contourlet, icontourlet
from rskd.depth import matching_block
from rskd.errors import ParameterError
from rskd.events import drain
from rskd.importance.ranking import agreement
from rskd.importance.rows import observe_rows
from rskd.jobs import (
    AgreementJob,
    AttendJob,
    DeletionJob,
    DenoiseJob,
    RankJob,
    ReconstructJob,
    SurveyJob,
    TextureJob,
)
from rskd.models import weights
from rskd.models.normalise import normalise
from rskd.models.presets import fresh_spec
from rskd.models.segmenter import Segmenter
from rskd.run import Session, run

OPTIONS = ContourletOptions(levels=(2, 2))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Weight files of a teacher of four blocks and a student of two."""
    folder = tmp_path_factory.mktemp("weights")
    for seed, (role, depth) in enumerate({"teacher": 4, "student": 2}.items()):
        spec = fresh_spec("rskd-nano", in_channels=1, classes=["vessel"])
        spec = spec.model_copy(update={"name": role, "depth": depth, "image_size": 64})
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            weights.save(folder / f"{role}.safetensors", Segmenter(spec).eval(), card={})
    return {role: folder / f"{role}.safetensors" for role in ("teacher", "student")}


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 255, (64, 96), np.uint8)


@pytest.mark.parametrize("definition", ["received", "received_value", "rollout", "feature_norm", "grad"])
def test_a_survey_holds_what_rank_finds_at_every_block_and_head(files, image, definition):
    found = drain(run(SurveyJob(**files, options=RankOptions(definition=definition)), {"image": image}))
    heads = found.value["student"]["blocks"][0]["heads"]
    assert (heads > 1) == definition.startswith("received")
    assert [len(found.value[role]["blocks"]) for role in ("teacher", "student")] == [4, 2]
    for block, head in [(0, None), (1, None), *([(1, heads - 1)] if heads else [])]:
        options = RankOptions(definition=definition, block=block, head=head)
        one = drain(run(RankJob(**files, options=options), {"image": image}))
        place = 0 if head is None else 1 + head
        for role in ("teacher", "student"):
            maps = found.arrays[f"{role}_block{one.value[role]['block']}"]
            np.testing.assert_allclose(maps[place], one.arrays[f"{role}_importance"], rtol=1e-5)
    json.dumps(found.value)


def test_a_brief_look_has_all_idle_cores_unless_it_is_told_how_many(files, image, monkeypatch):
    before = torch.get_num_threads()
    busy = [0.0, 0.0, 0.0, 90.0]
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    monkeypatch.setattr(psutil, "cpu_percent", lambda _: busy.pop(0))
    two = ComputeOptions(threads=2)
    try:
        for job, threads in (
            (SurveyJob(**files), 3),
            (SurveyJob(**files, compute=two), 2),
            (AttendJob(**files, at=(0, 0)), 3),
            (AttendJob(**files, at=(0, 9)), 3),
            (AttendJob(**files, at=(0, 0)), 2),
            (DeletionJob(**files, random_orders=1), 2),
        ):
            drain(run(job, {"image": image}))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_the_teacher_is_looked_at_as_deep_as_the_student(files, image):
    found = drain(run(RankJob(**files, options=RankOptions(block=0)), {"image": image})).value
    assert (found["student"]["block"], found["teacher"]["block"]) == (0, 1)
    assert [matching_block(block, 12, 3) for block in (0, 3, 11)] == [0, 0, 2]


def test_a_head_that_does_not_exist_is_refused(files, image):
    for definition, words in {"received": "heads 0 to", "feature_norm": "has no heads"}.items():
        options = RankOptions(definition=definition, head=99)
        with pytest.raises(ParameterError, match=words):
            drain(run(RankJob(student=files["student"], options=options), {"image": image}))


def written_out(model, images, block):
    """Return the attention matrix (h, N, N) with the softmax written out."""
    attention, seen = model.encoder.blocks[block].attn, []
    handle = attention.qkv.register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.no_grad():
        model(images)
    handle.remove()
    qkv = seen[0].reshape(seen[0].shape[1], 3, attention.num_heads, -1).permute(1, 2, 0, 3).double()
    return torch.softmax(qkv[0] @ qkv[1].mT / qkv.shape[-1] ** 0.5, -1)


def test_attention_of_one_token_is_its_row(files, image):
    found = drain(run(AttendJob(student=files["student"], at=(40, 70)), {"image": image}))
    model = weights.load(files["student"])
    images = torch.from_numpy(normalise(image[None], model.spec))[None]
    prefix = model.encoder.num_prefix_tokens
    token = (40 // 16) * 6 + 70 // 16
    for block in (0, 1):
        row = written_out(model, images, block)[:, prefix + token, prefix:]
        expected = torch.cat([row.mean(0, keepdim=True), row])
        expected = (expected / expected.sum(-1, keepdim=True)).reshape(-1, 4, 6)
        np.testing.assert_allclose(found.arrays[f"student_block{block}"], expected.numpy(), rtol=1e-4)
    with pytest.raises(ParameterError, match="outside of the image"):
        drain(run(AttendJob(student=files["student"], at=(64, 0)), {"image": image}))


def test_attention_in_windows_stays_in_the_window():
    import timm

    swin = timm.create_model("swin_tiny_patch4_window7_224", img_size=112, window_size=7, embed_dim=24).eval()
    with torch.no_grad(), observe_rows(swin, (0.99, 0.01), image=(112, 112)) as seen:
        swin(torch.linspace(0, 1, 3 * 112 * 112).view(1, 3, 112, 112))
    scores = seen[0].scores[0, 0].reshape(seen[0].grid)
    assert seen[0].grid == (28, 28)
    assert scores[21:, :7].min() > 0
    assert scores[21:, :7].sum() == pytest.approx(1, abs=1e-5)


def test_agreement_at_every_k_is_the_agreement():
    rng = np.random.default_rng(4)
    teacher, student = rng.random((3, 5)), rng.random((3, 5))
    found = drain(run(AgreementJob(), {"teacher": teacher, "student": student}))
    for k in range(1, 16):
        expected = agreement(torch.from_numpy(teacher.ravel()), torch.from_numpy(student.ravel()), top=k / 15)
        assert expected.k == k
        assert found.arrays["overlap"][k - 1] == pytest.approx(expected.overlap)
        assert found.arrays["ndcg"][k - 1] == pytest.approx(expected.ndcg)
        assert found.value["kendall"] == pytest.approx(expected.kendall)
    with pytest.raises(ParameterError, match="Two maps"):
        drain(run(AgreementJob(), {}))


def test_deletion_returns_the_curves_of_both_networks(files, image):
    found = drain(run(DeletionJob(**files, random_orders=2), {"image": image}))
    for role in ("teacher", "student"):
        deletion, insertion = found.arrays[f"{role}_deletion"], found.arrays[f"{role}_insertion"]
        assert deletion.shape == insertion.shape == found.arrays["shares"].shape
        assert deletion[0] == pytest.approx(insertion[-1])
        area = np.trapezoid(found.arrays[f"{role}_random_deletion"] - deletion, found.arrays["shares"])
        assert found.value[role]["deletion_gain"] == pytest.approx(area)


# -------------------------------------------------------------------------------------------------------- sub-bands


def test_reconstruction_with_gains_is_that_of_scaled_sub_bands(image):
    session = Session()
    job = ReconstructJob(options=OPTIONS, gains={"level1_band2": 0.0, "lowpass": 2.0})
    found = drain(session.run(job, {"image": image})).arrays["reconstruction"]
    subbands = contourlet(image.astype(float), (2, 2), border="symmetric")
    arrays = list(subbands.arrays())
    arrays[2], arrays[-1] = arrays[2] * 0, arrays[-1] * 2
    np.testing.assert_allclose(found, icontourlet(subbands.with_arrays(arrays)), atol=1e-3)
    other = drain(session.run(ReconstructJob(options=OPTIONS), {"image": image + 1})).arrays["reconstruction"]
    np.testing.assert_allclose(other, image + 1, atol=1e-3)
    with pytest.raises(ParameterError, match="no sub-band 'level9_band0'"):
        drain(session.run(ReconstructJob(options=OPTIONS, gains={"level9_band0": 1}), {"image": image}))


@pytest.mark.parametrize("part", ["stem", "encoder"])
def test_sub_bands_of_feature_maps_cover_the_image(files, part):
    image = np.random.default_rng(1).random((128, 192))
    options = ContourletOptions(levels=(2,))
    job = TextureJob(**files, feature_map=FeatureMapOptions(part=part, level=0), options=options)
    found = drain(run(job, {"image": image}))
    for role in ("teacher", "student"):
        plane, facts = found.arrays[f"{role}_map"], found.value[role]
        factor = np.array(image.shape) / plane.shape
        assert factor.tolist() == ([1, 1] if part == "stem" else [16, 16])
        assert facts["map"]["scale"] == factor.tolist()
        assert facts["map"]["translate"] == ((factor - 1) / 2).tolist()
        assert len(facts["bands"]) == 5
        lowpass = found.arrays[f"{role}_lowpass"]
        assert np.multiply(facts["bands"][0]["scale"], lowpass.shape).tolist() == list(image.shape)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (FeatureMapOptions(level=7), "level=7 does not exist"),
        (FeatureMapOptions(feature=400), "feature=400 does not exist"),
        (FeatureMapOptions(part="encoder", level=9), "block 9 does not exist"),
    ],
)
def test_a_map_that_does_not_exist_is_refused(files, image, options, words):
    with pytest.raises(ParameterError, match=words):
        drain(run(TextureJob(student=files["student"], feature_map=options, options=OPTIONS), {"image": image}))


def test_denoise_keeps_axes_and_type_and_takes_noise_away():
    rows, columns = np.mgrid[:64, :64]
    clean = np.stack([128 + 100 * np.sin(rows / 9), 128 + 100 * np.cos(columns / 7), 0 * rows + 40.0], -1)
    noisy = np.clip(clean + np.random.default_rng(2).normal(0, 15, clean.shape), 0, 255).astype(np.uint8)
    found = drain(run(DenoiseJob(options=DenoiseOptions(noise=15)), {"image": noisy})).arrays["denoised"]
    assert (found.shape, found.dtype) == (noisy.shape, noisy.dtype)
    assert np.std(found - clean) < 0.6 * np.std(noisy - clean)
    grey = drain(run(DenoiseJob(), {"image": noisy[..., 0]})).arrays["denoised"]
    assert (grey.shape, grey.dtype) == ((64, 64), noisy.dtype)
