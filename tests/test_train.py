"""The loop: it learns, it can be stopped, killed and resumed, and the run folder tells everything."""

import json
import math
import os

import pytest
import torch

from rskd.config import DataOptions, DistillOptions, TrainOptions
from rskd.errors import DataError, FileError, ModelError, ParameterError, RskdError
from rskd.events import Command, Epoch, Message, Step, drain
from rskd.io import files
from rskd.jobs import DistillJob, ResumeJob, TrainJob
from rskd.models import weights
from rskd.phantom import write_phantoms
from rskd.runs import RunFolder
from rskd.train import distill, resume, train

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


def collect(task, stop_at=None, kill_at=None):
    """Run a task; send STOP at an optimiser step, or abandon it there as a crash would."""
    events, command = [], None
    while True:
        try:
            event = task.send(command)
        except StopIteration as end:
            return events, end.value
        events.append(event)
        step = event.step if isinstance(event, Step) else None
        if step is not None and step == kill_at:
            return events, None
        command = Command.STOP if step is not None and step == stop_at else None


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


@pytest.mark.parametrize("killed_at", [1, 3, 4, 5, 7])
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


def test_the_teacher_does_not_move(job, teacher):
    before = teacher.read_bytes()
    collect(distill(job))
    assert teacher.read_bytes() == before


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

    monkeypatch.setattr(objective, "logits_loss", lambda student, teacher, temperature: student.sum() * math.nan)
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
    from rskd.models.segmenter import Segmenter

    weights.save(tmp_path / "three.safetensors", Segmenter(spec), card={})
    with pytest.raises(ModelError, match="has 3 classes, its teacher rskd-micro has 2"):
        collect(distill(job.model_copy(update={"student": str(tmp_path / "three.safetensors")})))


def test_messages_name_the_split(job):
    events, _ = collect(distill(job))
    assert any(isinstance(e, Message) and "3 images to train on, 1 for validation" in e.text for e in events)
