"""Every job through the one dispatch, with a small untrained network."""

import csv
import hashlib
import json

import numpy as np
import pytest
import torch

from rskd.config import ContourletOptions, RankOptions, SegmentOptions
from rskd.errors import FileError, ModelError, ParameterError
from rskd.events import drain
from rskd.io import read_scan
from rskd.jobs import ContourletJob, InspectJob, RankJob, SegmentJob
from rskd.models import weights
from rskd.models.normalise import normalise
from rskd.models.presets import PRESETS, fresh_spec
from rskd.models.segmenter import Segmenter
from rskd.networks import KEPT
from rskd.run import Session, run

LAST = PRESETS["rskd-nano"].depth - 1


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Weight files of a teacher with small patches and of a student with large ones."""
    folder = tmp_path_factory.mktemp("weights")
    for seed, (role, patch) in enumerate({"teacher": 8, "student": 16}.items()):
        spec = fresh_spec("rskd-nano", in_channels=1, classes=["vessel"])
        spec = spec.model_copy(update={"name": f"small {role}", "patch_size": patch, "image_size": 64})
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = Segmenter(spec).eval()
            with torch.no_grad():  # both classes shall occur
                background, vessel = model(torch.randn(1, 1, 64, 64))[0]
                head = [module for module in model.modules() if isinstance(module, torch.nn.Conv2d)][-1]
                head.bias[1] -= (vessel - background).median()
            weights.save(folder / f"{role}.safetensors", model, card={"data": "none"})
    return {role: folder / f"{role}.safetensors" for role in ("teacher", "student")}


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)


def small(definition="received", block=-1, **options):
    return RankOptions(definition=definition, block=block, **options)


def test_inspect(files):
    value = drain(run(InspectJob(model=files["student"]))).value
    content = files["student"].read_bytes()
    assert value["sha256"] == hashlib.sha256(content).hexdigest()
    assert value["bytes"] == len(content)
    assert value["parameters"] == sum(p.numel() for p in weights.load(files["student"]).parameters())
    assert value["spec"]["name"] == "small student"
    assert value["card"] == {"data": "none"}
    json.dumps(value)


def test_segment_is_the_argmax_of_the_network(files, image, tmp_path):
    options = SegmentOptions(probabilities=True)
    job = SegmentJob(model=files["student"], options=options, output=tmp_path / "new" / "labels.tif")
    outcome = drain(run(job, {"image": image}))
    model = weights.load(files["student"])
    with torch.no_grad():
        logits = model(torch.from_numpy(normalise(image[None], model.spec))[None])[0]
    expected = logits.argmax(0).numpy()
    assert set(np.unique(expected)) == {0, 1}
    np.testing.assert_array_equal(outcome.arrays["labels"], expected)
    np.testing.assert_allclose(outcome.arrays["probabilities"], logits.softmax(0).numpy(), atol=1e-5)
    np.testing.assert_array_equal(read_scan(job.output).data, expected)
    assert outcome.value["classes"][1]["name"] == "vessel"
    assert (outcome.value["axes"], outcome.value["model"]) == ("yx", "small student")
    json.dumps(outcome.value)


def test_a_session_reads_a_network_once_and_again_when_the_file_changed(files, image, tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    path.write_bytes(files["student"].read_bytes())
    loaded, load = [], weights.load
    monkeypatch.setattr(weights, "load", lambda path: loaded.append(path) or load(path))
    session, job = Session(), SegmentJob(model=path)
    first = drain(session.run(job, {"image": image}))
    second = drain(session.run(job, {"image": image}))
    assert len(loaded) == 1
    np.testing.assert_array_equal(first.arrays["labels"], second.arrays["labels"])
    path.write_bytes(files["teacher"].read_bytes())
    assert drain(session.run(job, {"image": image})).value["model"] == "small teacher"
    assert len(loaded) == 2


def test_a_session_keeps_only_a_few_networks(files, image, tmp_path):
    session = Session()
    for index in range(KEPT + 2):
        path = tmp_path / f"{index}.safetensors"
        path.write_bytes(files["student"].read_bytes())
        drain(session.run(SegmentJob(model=path), {"image": image}))
    assert len(session._networks._models) == KEPT


@pytest.mark.parametrize("definition", ["received", "rollout", "feature_norm", "at", "cls", "received_value", "grad"])
def test_rank(files, definition):
    image = np.random.default_rng(1).random((100, 140))
    job = RankJob(**files, options=small(definition))
    outcome = drain(run(job, {"image": image}))
    for role, patch in {"teacher": 8, "student": 16}.items():
        facts = outcome.value[role]
        importance, order = outcome.arrays[f"{role}_importance"], outcome.arrays[f"{role}_order"]
        assert facts["grid"] == [round(100 / patch), round(140 / patch)] == list(importance.shape)
        np.testing.assert_allclose(np.multiply(facts["grid"], facts["token"]), image.shape)
        assert importance.sum() == pytest.approx(1, abs=1e-5)
        np.testing.assert_array_equal(order, np.argsort(-importance.ravel(), kind="stable"))
        assert facts["top"] == round(0.25 * importance.size)
        assert (facts["block"], facts["definition"], facts["name"]) == (LAST, definition, f"small {role}")
    assert set(outcome.value["agreement"]) == {"kendall", "spearman", "weighted_tau", "overlap", "ndcg", "k"}
    json.dumps(outcome.value)


def test_received_attention_by_hand(files):
    """Softmax of q kᵀ written out, averaged over heads and queries: the share that every patch token received."""
    image = np.random.default_rng(2).random((64, 64))
    found = drain(run(RankJob(student=files["student"]), {"image": image})).arrays["student_importance"]
    model = weights.load(files["student"])
    attention, seen = model.encoder.blocks[-1].attn, []
    attention.qkv.register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.no_grad():
        model(torch.from_numpy(normalise(image[None], model.spec))[None])
    (qkv,) = seen
    q, k, _ = qkv.reshape(1, qkv.shape[1], 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4).double()
    received = torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, -1)[0].mean((0, 1))[model.encoder.num_prefix_tokens :]
    np.testing.assert_allclose(found.ravel(), (received / received.sum()).numpy(), rtol=1e-4)


def test_a_network_agrees_with_itself(files, image):
    job = RankJob(teacher=files["student"], student=files["student"])
    agreement = drain(run(job, {"image": image})).value["agreement"]
    assert agreement["kendall"] == pytest.approx(1)
    assert agreement["overlap"] == 1


def test_rank_writes_maps_tables_and_a_figure(files, tmp_path):
    image = np.random.default_rng(3).integers(0, 255, (48, 80), np.uint8)
    outcome = drain(run(RankJob(**files, output=tmp_path / "out"), {"image": image}))
    names = {path.name for path in (tmp_path / "out").iterdir()}
    tables = {f"{role}_{what}" for role in files for what in ("importance.png", "ranking.csv")}
    assert names == tables | {"ranking.png", "ranking.svg", "agreement.json"}
    assert json.loads((tmp_path / "out" / "agreement.json").read_text()) == outcome.value["agreement"]
    with (tmp_path / "out" / "student_ranking.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["token"]) for row in rows] == outcome.arrays["student_order"].tolist()
    first = rows[0]
    assert float(first["importance"]) == pytest.approx(outcome.arrays["student_importance"].max(), rel=1e-5)
    assert float(first["x"]) == int(first["column"]) * 16 + 7.5  # the middle of a token of 16 pixels


def test_rank_of_one_role_has_no_agreement(files, image):
    outcome = drain(run(RankJob(student=files["student"]), {"image": image}))
    assert set(outcome.value) == {"student"}
    assert set(outcome.arrays) == {"student_importance", "student_order"}


@pytest.mark.parametrize("nonsubsampled", [False, True])
@pytest.mark.parametrize("border", ["symmetric", "periodic"])
def test_sub_bands_lie_over_what_they_stand_for(border, nonsubsampled):
    """The energy of a single bright pixel is centred on that pixel, in the place given by scale and translate."""
    image = np.zeros((101, 120))
    image[49, 62] = 100
    options = ContourletOptions(levels=(2, 2), border=border, nonsubsampled=nonsubsampled)
    outcome = drain(run(ContourletJob(options=options), {"image": image}))
    bands = outcome.value["bands"]
    assert [band["level"] for band in bands] == [3, 2, 2, 2, 2, 1, 1, 1, 1]
    for band in bands:
        energy = outcome.arrays[band["array"]].astype(float) ** 2
        scale, translate = np.array(band["scale"]), np.array(band["translate"])
        assert (translate >= 0).all()
        assert (translate < scale).all()
        last = translate + (np.array(energy.shape) - 1) * scale
        assert (last < image.shape).all()
        assert (last + scale >= image.shape).all()
        assert band["energy"] == pytest.approx(energy.sum())
        centre = (np.indices(energy.shape) * energy).sum((1, 2)) / energy.sum() * scale + translate
        assert np.abs(centre - (49, 62)).max() < 0.75 * scale.max()
    assert outcome.value["reconstruction_error"] < 1e-10
    np.testing.assert_allclose(outcome.arrays["reconstruction"], image, atol=1e-4)


@pytest.mark.parametrize("shape", [(2, 2), (3, 17), (5, 8), (16, 9), (33, 64)])
@pytest.mark.parametrize("border", ["symmetric", "periodic"])
def test_sub_bands_of_small_images(shape, border):
    levels = (2, 3, 0)[: min(shape).bit_length() - 1]
    options = ContourletOptions(levels=levels, border=border)
    outcome = drain(run(ContourletJob(options=options), {"image": np.random.default_rng(6).random(shape)}))
    assert outcome.value["reconstruction_error"] < 1e-10
    for band in outcome.value["bands"]:
        samples = np.array(outcome.arrays[band["array"]].shape)
        scale, translate = np.array(band["scale"]), np.array(band["translate"])
        assert (samples <= np.maximum(1, -(-np.array(shape) // scale))).all()
        assert (np.abs(translate) < scale).all()


def test_direction_of_a_sub_band():
    """Horizontal edges lie in a sub-band whose edges run within 45 degrees of the horizontal."""
    image = np.repeat(np.sin(np.arange(64) * 2 * np.pi * 0.3)[:, None], 64, axis=1)
    options = ContourletOptions(levels=(2,), border="periodic")
    outcome = drain(run(ContourletJob(options=options), {"image": image}))
    strongest = max((band for band in outcome.value["bands"] if band["level"] == 1), key=lambda band: band["energy"])
    assert min(strongest["edge_angle"], 180 - strongest["edge_angle"]) < 45


def test_contourlet_of_a_channel_and_of_their_mean():
    image = np.random.default_rng(4).random((32, 40, 3))
    options = ContourletOptions(levels=(2,))
    for channel, plane in {0: image[..., 0], 2: image[..., 2], None: image.mean(-1)}.items():
        outcome = drain(run(ContourletJob(channel=channel, options=options), {"image": image}))
        np.testing.assert_allclose(outcome.arrays["reconstruction"], plane, atol=1e-6)


def test_contourlet_writes_tiffs_with_their_pixel_size(tmp_path):
    from rskd.io import write_image
    from rskd.scan import Scan

    image = np.random.default_rng(5).random((32, 48)).astype(np.float32)
    write_image(tmp_path / "image.tif", Scan(image, "yx", spacing=(0.5, 0.25), units="mm"))
    options = ContourletOptions(levels=(2,))
    job = ContourletJob(image=tmp_path / "image.tif", output=tmp_path / "bands", options=options)
    outcome = drain(run(job))
    assert {path.stem for path in (tmp_path / "bands").iterdir()} == set(outcome.arrays)
    scan = read_scan(tmp_path / "bands" / "lowpass.tif")
    np.testing.assert_array_equal(scan.data, outcome.arrays["lowpass"])
    assert scan.spacing == pytest.approx((1.0, 0.5))


@pytest.mark.parametrize(
    ("job", "shape", "kind", "sentence"),
    [
        (ContourletJob(), None, ParameterError, "There is no image: name a file"),
        (ContourletJob(), (5, 32, 32), ParameterError, "stack of 5 planes"),
        (
            ContourletJob(channel=3),
            (32, 32, 3),
            ParameterError,
            "channel=3 does not exist: the image has channels 0 to 2",
        ),
        (ContourletJob(axes="zy"), (32, 32), ParameterError, "must contain y and x"),
        (RankJob(), (32, 32), ParameterError, "name a teacher, a student, or both"),
        (RankJob(student="student"), (3, 32, 32), ParameterError, "stack of 3 planes"),
        (RankJob(student="student"), (32, 32, 3), ParameterError, "3 channels"),
        (RankJob(student="student"), (4096, 4096), ParameterError, "256 x 256 tokens"),
        (RankJob(student="student", options=small(block=7)), (32, 32), ParameterError, "7"),
        (SegmentJob(model="missing.safetensors"), (32, 32), FileError, "There is no weight file missing.safetensors"),
        (InspectJob(model="missing.safetensors"), None, FileError, "There is no weight file missing.safetensors"),
    ],
)
def test_sentences(files, job, shape, kind, sentence):
    if isinstance(job, RankJob) and job.student is not None:
        job = job.model_copy(update={"student": files["student"]})
    arrays = {} if shape is None else {"image": np.zeros(shape, np.uint8)}
    with pytest.raises(kind, match=sentence):
        drain(run(job, arrays))


def test_values_that_are_not_finite_are_refused():
    with pytest.raises(ParameterError, match="not finite"):
        drain(run(ContourletJob(), {"image": np.full((32, 32), np.nan)}))


def test_a_pickle_is_refused(tmp_path):
    path = tmp_path / "evil.pt"
    torch.save({"spec": print}, path)
    with pytest.raises(ModelError, match="never run"):
        drain(run(InspectJob(model=path)))
