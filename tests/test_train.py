"""The loop: it learns, it can be stopped, killed and resumed, and the run folder tells everything."""

import json
import math
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rskd.cases import find_cases, split_cases
from rskd.config import DataOptions, DistillOptions, TrainOptions
from rskd.distillation.objective import Objective
from rskd.errors import DataError, FileError, ModelError, ParameterError, RskdError
from rskd.events import Epoch, Message, Step, drain
from rskd.io import files, read_scan
from rskd.jobs import DistillJob, ResumeJob, TrainJob
from rskd.metrics import dice_per_class
from rskd.models import weights
from rskd.models.presets import fresh_spec, student_spec
from rskd.models.segmenter import Segmenter
from rskd.phantom import write_phantoms
from rskd.runs import RunFolder
from rskd.segment import segment
from rskd.train import distill, resume, train
from tests.running import collect

TINY = TrainOptions(epochs=2, steps_per_epoch=4, batch_size=2, patch=64, checkpoint_minutes=0)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantoms")
    write_phantoms(folder, count=4, size=96, seed=1)
    return DataOptions(images=folder / "images", masks=folder / "masks", validation_share=0.25)


@pytest.fixture(scope="module")
def teacher(data, tmp_path_factory):
    run = tmp_path_factory.mktemp("teacher") / "run"
    drain(train(TrainJob(model="rskd-micro", data=data, run=run, classes=("vessel",), training=TINY)))
    return RunFolder(run).best


@pytest.fixture
def job(data, teacher, tmp_path):
    return DistillJob(teacher=teacher, student="rskd-nano", data=data, run=tmp_path / "run", training=TINY)


def same_weights(first, second):
    a, b = (weights.load(path).state_dict() for path in (first, second))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_distillation_tells_what_it_does_and_leaves_a_student(job):
    events, outcome = collect(distill(job))
    steps = [e for e in events if isinstance(e, Step)]
    epochs = [e for e in events if isinstance(e, Epoch)]
    assert [s.step for s in steps] == list(range(1, 9))
    assert [s.epoch for s in steps] == [1] * 4 + [2] * 4
    for step in steps:
        assert step.losses.keys() == {"task", "logits", "ranking", "texture", "fusion", "total"}
        assert all(math.isfinite(value) and value > 0 for value in step.losses.values())
    for epoch, part in zip(epochs, (steps[:4], steps[4:]), strict=True):
        for name, value in epoch.losses.items():
            assert value == pytest.approx(sum(s.losses[name] for s in part) / 4)
    assert outcome.value["dice"] == max(e.dice for e in epochs)
    assert not outcome.value["stopped"]
    assert weights.load(RunFolder(job.run).best).spec.classes[1].name == "vessel"


def test_the_total_is_the_weighted_sum_with_its_ramp(job):
    options = DistillOptions.model_validate(
        {"ramp": 0.5, "task": 2, "logits": {"weight": 3}, "ranking": {"weight": 0.25}, "texture": {"weight": 0}}
    )
    events, _ = collect(distill(job.model_copy(update={"distillation": options})))
    for step in (e for e in events if isinstance(e, Step)):
        ramp = min(1, step.step / 4)
        losses = step.losses
        assert "texture" not in losses
        expected = 2 * losses["task"] + 3 * losses["logits"] + ramp * (0.25 * losses["ranking"] + losses["fusion"])
        assert losses["total"] == pytest.approx(expected, rel=1e-5)


def test_learning_rate_rises_then_falls_to_nothing(job):
    options = TINY.model_copy(update={"warmup": 0.5, "learning_rate": 1e-3})
    events, _ = collect(distill(job.model_copy(update={"training": options})))
    rates = [e.learning_rate for e in events if isinstance(e, Step)]
    assert rates[:4] == pytest.approx([0.25e-3, 0.5e-3, 0.75e-3, 1e-3])
    assert rates[4:] == pytest.approx([1e-3 * (1 + math.cos(math.pi * i / 4)) / 2 for i in range(4)])


def test_training_learns(data, tmp_path):
    options = TrainOptions(epochs=2, steps_per_epoch=25, batch_size=4, patch=64, learning_rate=3e-3)
    job = TrainJob(model="rskd-nano", data=data, run=tmp_path / "run", training=options)
    events, outcome = collect(train(job))
    first, second = (e.losses["task"] for e in events if isinstance(e, Epoch))
    assert second < 0.8 * first
    assert outcome.value["dice"] > 0.4


@pytest.mark.parametrize("killed_at", [1, 4, 7, *(pytest.param(n, marks=pytest.mark.slow) for n in (3, 5))])
def test_a_killed_run_ends_as_if_nothing_had_happened(job, tmp_path, killed_at):
    whole = job.model_copy(update={"run": tmp_path / "whole"})
    collect(distill(whole))
    collect(distill(job), kill_at=killed_at)
    collect(resume(ResumeJob(run=job.run)))
    assert same_weights(RunFolder(job.run).best, RunFolder(whole.run).best)
    a, b = (torch.load(RunFolder(run).checkpoint, weights_only=True)["objective"] for run in (job.run, whole.run))
    assert all(torch.equal(a[name], b[name]) for name in b)
    logs = [[e for e in RunFolder(r).events() if isinstance(e, Step | Epoch)] for r in (job.run, whole.run)]
    assert [_timeless(e) for e in logs[0]] == [_timeless(e) for e in logs[1]]


def _timeless(event):
    return {name: getattr(event, name) for name in event.__slots__ if name != "seconds"}


def test_a_finished_run_is_not_run_again(job):
    collect(distill(job))
    events, outcome = collect(resume(ResumeJob(run=job.run)))
    assert not [e for e in events if isinstance(e, Step)]
    assert outcome.value["epochs"] == 2


@pytest.mark.parametrize("stop_at", [2, 6])
def test_stopping_keeps_the_best_and_can_be_taken_back(job, stop_at):
    events, outcome = collect(distill(job), stop_at=stop_at)
    assert [e.step for e in events if isinstance(e, Step)][-1] == stop_at
    assert outcome.value["stopped"]
    assert RunFolder(job.run).best.exists()
    _, outcome = collect(resume(ResumeJob(run=job.run)))
    assert not outcome.value["stopped"]


def test_a_moved_run_goes_on(job, tmp_path):
    collect(distill(job), kill_at=3)
    os.rename(job.run, tmp_path / "moved")
    _, outcome = collect(resume(ResumeJob(run=tmp_path / "moved")))
    assert outcome.value["student"] == str(tmp_path / "moved" / "best.safetensors")


def test_without_any_mask_the_student_learns_from_the_teacher_alone(job, data):
    bare = DataOptions(images=data.images, validation_share=0.25)
    quiet = DistillOptions(task=0)
    events, outcome = collect(distill(job.model_copy(update={"data": bare, "distillation": quiet})))
    assert "task" not in next(e for e in events if isinstance(e, Step)).losses
    assert math.isnan(outcome.value["dice"])
    assert RunFolder(job.run).best.exists()


def test_without_any_mask_the_task_cannot_be_learnt(job, data):
    with pytest.raises(DataError, match="No training image has a mask"):
        collect(distill(job.model_copy(update={"data": DataOptions(images=data.images)})))


def test_the_teacher_does_not_move(teacher):
    """Not its weights, not the running statistics of its norms, also while the objective is in training mode."""
    network = weights.load(teacher)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    student = Segmenter(student_spec("rskd-nano", network.spec))
    objective = Objective(student, network, DistillOptions()).train()
    optimizer = torch.optim.SGD(objective.parameters(), lr=0.1)
    objective.total(objective(torch.randn(2, 3, 64, 64), torch.zeros(2, 64, 64, dtype=torch.long))).backward()
    optimizer.step()
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_validation_sees_what_segment_would_show(data, tmp_path):
    """The Dice of an epoch is the Dice of `evaluate` on the same images, also where pictures are resized and noisy."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "noisy"
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    for path in sorted(data.images.iterdir()):
        picture = np.asarray(Image.open(path).resize((192, 192)), np.float64)
        Image.fromarray(np.clip(picture + rng.normal(0, 60, picture.shape), 0, 255).astype(np.uint8)).save(
            folder / "images" / path.name
        )
        Image.open(data.masks / path.name).resize((192, 192), Image.Resampling.NEAREST).save(
            folder / "masks" / path.name
        )
    spec = fresh_spec("rskd-nano", in_channels=3, classes=["vessel"]).model_copy(update={"frame": 64})
    (tmp_path / "spec.json").write_text(spec.model_dump_json())
    options = DataOptions(images=folder / "images", masks=folder / "masks", validation_share=0.25)
    training = TrainOptions(epochs=1, steps_per_epoch=12, batch_size=4, patch=64, learning_rate=5e-3)
    job = TrainJob(model=str(tmp_path / "spec.json"), data=options, run=tmp_path / "run", training=training)
    _, outcome = collect(train(job))
    _, held_out = split_cases(find_cases(options), options, 0)
    (case,) = held_out
    model = weights.load(RunFolder(job.run).best)
    found = drain(segment(model, read_scan(case.image))).labels.data
    small = np.asarray(Image.fromarray(found).resize((64, 64), Image.Resampling.NEAREST))
    truth = np.asarray(Image.open(case.mask).resize((64, 64), Image.Resampling.NEAREST)) > 0
    assert outcome.value["dice"] == pytest.approx(dice_per_class(small, truth, 2)[1], abs=0.05)


def test_a_used_folder_is_not_written_over(job):
    collect(distill(job))
    with pytest.raises(ParameterError, match="is not empty: choose a new folder, or go on with `rskd resume"):
        collect(distill(job))


@pytest.mark.parametrize(
    ("student", "error", "message"),
    [("rskd-huge", FileError, "neither a file nor one of the named networks"), ("x.json", FileError, "cannot be read")],
)
def test_a_student_that_does_not_exist(job, student, error, message):
    with pytest.raises(error, match=message):
        collect(distill(job.model_copy(update={"student": student})))


def test_a_loss_that_is_not_a_number_is_named(job, monkeypatch):
    from rskd.distillation import objective

    monkeypatch.setattr(objective, "logits_loss", lambda student, *_, **__: student.sum() * math.nan)
    with pytest.raises(RskdError, match="'logits' is not a number at step 1"):
        collect(distill(job))


def test_a_full_disk_leaves_the_last_checkpoint_whole(job, monkeypatch):
    collect(distill(job), kill_at=3)
    before = RunFolder(job.run).checkpoint.read_bytes()

    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "replace", full)
    with pytest.raises(FileError, match="No space left on device"):
        collect(resume(ResumeJob(run=job.run)))
    assert RunFolder(job.run).checkpoint.read_bytes() == before


def test_a_log_line_that_was_cut_off_is_left_out(job):
    collect(distill(job), kill_at=3)
    log = RunFolder(job.run).log
    log.write_text(log.read_text() + '{"kind": "step", "st')
    assert [e.step for e in RunFolder(job.run).events() if isinstance(e, Step)] == [1, 2, 3]


def test_the_card_carries_no_path(job, data):
    collect(distill(job))
    card = json.dumps(weights.inspect(RunFolder(job.run).best).card)
    assert str(data.images) not in card
    assert "not for diagnosis" in card


def test_what_is_no_run_folder_is_refused(tmp_path):
    with pytest.raises(FileError, match="is no run folder"):
        collect(resume(ResumeJob(run=tmp_path)))


def test_student_and_teacher_speak_of_the_same_classes(job, tmp_path, data):
    run = tmp_path / "other"
    collect(train(TrainJob(model="rskd-nano", data=data, run=run, classes=("a",), training=TINY)))
    path = RunFolder(run).best
    network = weights.load(path)
    spec = network.spec.model_copy(update={"classes": (*network.spec.classes, network.spec.classes[1])})
    weights.save(tmp_path / "three.safetensors", Segmenter(spec), card={})
    with pytest.raises(ModelError, match="differ in their classes"):
        collect(distill(job.model_copy(update={"student": str(tmp_path / "three.safetensors")})))


def test_messages_name_the_split(job):
    events, _ = collect(distill(job))
    assert any(isinstance(e, Message) and "3 images to train on, 1 for validation" in e.text for e in events)


def test_a_run_folder_has_one_master(job):
    task = distill(job)
    next(task)
    with pytest.raises(ParameterError, match="worked on by another process"):
        collect(resume(ResumeJob(run=job.run)))
    task.close()
    _, outcome = collect(resume(ResumeJob(run=job.run)))
    assert outcome.value["epochs"] == 2


def test_closing_a_task_keeps_the_last_whole_step(job):
    slow = TINY.model_copy(update={"checkpoint_minutes": 10})
    task = distill(job.model_copy(update={"training": slow}))
    while not (isinstance(event := next(task), Step) and event.step == 3):
        pass
    task.close()
    assert torch.load(RunFolder(job.run).checkpoint, weights_only=True)["step"] == 3


def test_what_failed_before_its_first_checkpoint_can_be_tried_again(job, data):
    with pytest.raises(DataError):
        collect(distill(job.model_copy(update={"data": DataOptions(images=data.images)})))
    _, outcome = collect(distill(job))
    assert outcome.value["epochs"] == 2


def test_relative_paths_are_resumed_from_anywhere(job, data, tmp_path, monkeypatch):
    monkeypatch.chdir(data.images.parent)
    relative = DataOptions(images=Path("images"), masks=Path("masks"), validation_share=0.25)
    collect(distill(job.model_copy(update={"data": relative})), kill_at=3)
    monkeypatch.chdir(tmp_path)
    _, outcome = collect(resume(ResumeJob(run=job.run)))
    assert outcome.value["epochs"] == 2


def test_a_run_whose_images_or_teacher_have_changed_does_not_go_on(job, data, teacher, tmp_path):
    own = tmp_path / "own"
    shutil.copytree(data.images.parent, own)
    shutil.copy(teacher, own / "teacher.safetensors")
    options = DataOptions(images=own / "images", masks=own / "masks", validation_share=0.25)
    collect(distill(job.model_copy(update={"data": options, "teacher": own / "teacher.safetensors"})), kill_at=3)
    network = weights.load(teacher)
    weights.save(own / "teacher.safetensors", network, card={"another": "file"})
    with pytest.raises(DataError, match="the teacher's file has changed"):
        collect(resume(ResumeJob(run=job.run)))
    shutil.copy(teacher, own / "teacher.safetensors")
    for kind in ("images", "masks"):
        first = min((own / kind).iterdir())
        shutil.copy(first, first.with_name("phantom_900.png"))
    with pytest.raises(DataError, match=r"images .* have changed"):
        collect(resume(ResumeJob(run=job.run)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"normalisation": "percentile"}, "intensities"), ({"frame": 300}, "size of the whole picture")],
)
def test_a_pair_that_sees_different_images_is_refused(job, teacher, tmp_path, changes, message):
    spec = student_spec("rskd-nano", weights.load(teacher).spec).model_copy(update=changes)
    (tmp_path / "student.json").write_text(spec.model_dump_json())
    with pytest.raises(ModelError, match=message):
        collect(distill(job.model_copy(update={"student": str(tmp_path / "student.json")})))


def test_a_patch_that_does_not_fit_the_tokens_is_refused(job):
    with pytest.raises(ParameterError, match=r"patch=100 does not suit .*: use 96"):
        collect(distill(job.model_copy(update={"training": TINY.model_copy(update={"patch": 100})})))


def test_nothing_to_learn_is_said(job):
    off = DistillOptions.model_validate({n: {"weight": 0} for n in ("logits", "ranking", "texture", "fusion")})
    with pytest.raises(ParameterError, match="nothing to learn"):
        collect(distill(job.model_copy(update={"distillation": off.model_copy(update={"task": 0})})))


def test_unlabelled_images_may_be_mixed_in(job, data, tmp_path):
    masks = tmp_path / "masks"
    shutil.copytree(data.masks, masks)
    _, held_out = split_cases(find_cases(data), data, 0)
    next(path for path in sorted(masks.iterdir()) if path.stem != held_out[0].name).unlink()
    options = DataOptions(images=data.images, masks=masks, validation_share=0.25)
    with pytest.raises(DataError, match="needs exactly one mask"):
        collect(distill(job.model_copy(update={"data": options})))
    mixed = options.model_copy(update={"unlabelled": True})
    _, outcome = collect(distill(job.model_copy(update={"data": mixed})))
    assert outcome.value["dice"] >= 0
