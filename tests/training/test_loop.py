"""What the loop offers beside plain steps: accumulation, precision, a running mean, patience, references, threads."""

import math
import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from rskd import compute
from rskd.config import ComputeOptions, DistillOptions, TrainOptions
from rskd.distillation.objective import Objective
from rskd.errors import ParameterError
from rskd.events import Command, Epoch, Message, Reference, Step, drain, from_json, to_json
from rskd.jobs import ResumeJob
from rskd.models import weights
from rskd.models.presets import fresh_spec
from rskd.models.segmenter import Segmenter
from rskd.runs import RunFolder
from rskd.train import distill, resume
from rskd.training import launch, trainer
from rskd.training.average import RunningMean
from rskd.training.learner import Learner
from rskd.training.schedule import learning_rate
from tests.running import collect


def with_options(job, run, **changes):
    return job.model_copy(update={"run": run, "training": job.training.model_copy(update=changes)})


def losses(events):
    return [dict(event.losses) for event in events if isinstance(event, Step)]


@pytest.mark.parametrize("parts", [2, 3])
def test_a_batch_in_parts_is_the_batch(job, tmp_path, parts):
    """Four patches in parts of 2 and 2, or 2, 2 (three parts are wanted, two suffice): the same losses."""
    whole, _ = collect(distill(with_options(job, tmp_path / "whole")))
    divided, _ = collect(distill(with_options(job, tmp_path / "divided", accumulate=parts)))
    for a, b in zip(losses(whole), losses(divided), strict=True):
        assert a == pytest.approx(b, rel=1e-5, abs=1e-5)


def test_bfloat16_gives_about_the_same_losses(job, tmp_path):
    single, _ = collect(distill(with_options(job, tmp_path / "single")))
    mixed, _ = collect(distill(with_options(job, tmp_path / "mixed", precision="bf16-mixed")))
    for name in ("task", "texture", "fusion"):
        assert losses(mixed)[0][name] == pytest.approx(losses(single)[0][name], rel=0.05)
    assert losses(mixed) != losses(single)


@pytest.mark.parametrize(("precision", "fused"), [("32", True), ("bf16-mixed", True), ("16-mixed", False)])
def test_gradients_are_clipped_whatever_scales_them(precision, fused):
    """A fused optimiser undoes the scaling of 16-mixed by itself, too late for the clipping, which Fabric refuses."""
    fabric = SimpleNamespace(device=torch.device("cpu"), global_rank=0, world_size=1)
    learner = Learner(Objective(network(), None, DistillOptions()), TrainOptions(precision=precision), fabric)
    assert learner.optimizer.defaults["fused"] is fused


# ------------------------------------------------------------------------------------------------------- running mean


def network():
    return Segmenter(fresh_spec("rskd-nano", in_channels=1, classes=["organ"]))


def test_the_running_mean_by_hand():
    """Decays 2/11, 3/12 and then the limit 0.25 weigh the values 1, 2, 3, 4 of a weight."""
    student = network()
    value = student.decoder.head.bias
    with torch.no_grad():
        value.fill_(1.0)
        mean = RunningMean(student, 0.25)
        expected = 1.0
        for step, (new, decay) in enumerate(((2.0, 2 / 11), (3.0, 3 / 12), (4.0, 0.25)), 1):
            value.fill_(new)
            mean.update(student, step)
            expected = decay * expected + (1 - decay) * new
    assert mean.network.decoder.head.bias.tolist() == pytest.approx([expected] * 2)
    assert mean.network.state_dict().keys() == student.state_dict().keys()


def test_the_running_mean_is_what_is_kept_and_resumed(job, tmp_path):
    options = {"ema": 0.9}
    whole, killed = (with_options(job, tmp_path / name, **options) for name in ("whole", "killed"))
    collect(distill(whole))
    collect(distill(killed), kill_at=6)
    collect(resume(ResumeJob(run=killed.run)))
    assert RunFolder(killed.run).best.read_bytes() == RunFolder(whole.run).best.read_bytes()
    state = torch.load(RunFolder(whole.run).checkpoint, weights_only=True)
    kept = weights.load(RunFolder(whole.run).best).state_dict()
    name = "encoder.patch_embed.proj.weight"
    if state["stale"] == 0:
        assert torch.equal(kept[name], state["mean"][name])
    assert not torch.equal(kept[name], state["objective"]["student." + name])


# ----------------------------------------------------------------------------------------------------------- patience


def scored(monkeypatch, scores):
    """Let the validations find these values, after those of teacher and student at the start."""
    found = iter([0.9, 0.0, *scores])

    def validate(network, planes, fabric):
        yield from ()
        return {planes[0].case: np.array([1.0, next(found)])}

    monkeypatch.setattr(trainer, "validate", validate)


def test_patience_ends_a_run_that_gets_no_better(job, tmp_path, monkeypatch):
    patient = with_options(job, job.run, epochs=8, steps_per_epoch=1, patience=2)
    scored(monkeypatch, [0.1, 0.3, 0.2, 0.3, 0.9, 0.9, 0.9, 0.9])
    events, outcome = collect(distill(patient))
    assert [event.best for event in events if isinstance(event, Epoch)] == [True, True, False, False]
    assert outcome.value["dice"] == 0.3
    assert outcome.value["epochs"] == 4
    assert not outcome.value["stopped"]
    assert any(isinstance(e, Message) and e.text == "Ended: no better validation for 2 rounds." for e in events)
    events, _ = collect(resume(ResumeJob(run=job.run)))
    assert not losses(events)


# ---------------------------------------------------------------------------------------------------- where it starts


def test_where_teacher_and_student_stand_is_measured_once(job):
    events, _ = collect(distill(job), kill_at=3)
    references = {event.name: event for event in events if isinstance(event, Reference)}
    assert references.keys() == {"teacher", "student"}
    assert all(0 <= event.dice <= 1 and event.dice_per_class.keys() == {"vessel"} for event in references.values())
    events, _ = collect(resume(ResumeJob(run=job.run)))
    assert not [event for event in events if isinstance(event, Reference)]
    logged = [event for event in RunFolder(job.run).events() if isinstance(event, Reference)]
    assert {event.name: event for event in logged} == references


@pytest.mark.parametrize(("teacher", "warned"), [(0.4, True), (0.6, False), (math.nan, False)])
def test_a_teacher_that_is_worse_than_the_student_is_said(job, monkeypatch, teacher, warned):
    found = iter([teacher, 0.5, *[0.5] * 10])

    def validate(network, planes, fabric):
        yield from ()
        return {planes[0].case: np.array([1.0, next(found)])}

    monkeypatch.setattr(trainer, "validate", validate)
    events, _ = collect(distill(job), kill_at=1)
    texts = [event.text for event in events if isinstance(event, Message) and event.warning]
    assert any("Dice 0.400 and 0.500" in text for text in texts) is warned


def test_a_reference_can_be_written_and_read():
    event = Reference("teacher", 0.75, {"organ": 0.75})
    assert from_json(to_json(event)) == event


# ------------------------------------------------------------------------------------------------------------- settings


def test_threads_leave_a_core_and_are_shared_by_processes(monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    try:
        assert [compute.use_threads(ComputeOptions(), processes=n) for n in (1, 2, 16)] == [7, 3, 1]
        assert compute.use_threads(ComputeOptions(threads=2), processes=4) == 2 == torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


def test_the_first_message_names_device_and_threads_and_is_logged(job):
    one = job.model_copy(update={"compute": ComputeOptions(device="cpu", threads=1)})
    events, _ = collect(distill(one), kill_at=1)
    assert events[0].text == "3 images to train on, 1 for validation; on cpu with 1 threads."
    assert next(iter(RunFolder(job.run).events())) == events[0]


def test_more_processes_than_patches_are_refused(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_torchelastic_launched", lambda: True)
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    with pytest.raises(ParameterError, match=r"batch_size=2 does not suffice for 4 processes: use 4 or more"):
        launch.launch(ComputeOptions(device="cpu"), TrainOptions(batch_size=2))


def test_the_rate_never_leaves_its_range():
    for warmup in (0.0, 0.3, 1.0):
        rates = [learning_rate(step, 50, highest=1.0, warmup=warmup) for step in range(50)]
        assert all(0 < rate <= 1 for rate in rates)
        assert max(rates) > 0.9


def test_the_rate_beyond_the_last_step_is_zero():
    """A probe takes five steps, however short the run."""
    assert [learning_rate(step, 2, highest=1.0, warmup=1.0) for step in range(5)] == [0.5, 1, 0, 0, 0]
    assert [learning_rate(step, 2, highest=1.0, warmup=0.0) for step in range(5)] == pytest.approx([1, 0.5, 0, 0, 0])


def test_a_stop_during_a_validation_is_heard(job):
    task, command, epochs, stopped = distill(job), None, 0, None
    while stopped is None:
        try:
            event = task.send(command)
            epochs += isinstance(event, Epoch)
            command = Command.STOP if getattr(event, "what", "") == "validation images" else None
        except StopIteration as end:
            stopped = end.value.value["stopped"]
    assert stopped
    assert epochs == 0  # it was heard in the validation before the first step


def test_random_numbers_of_the_caller_are_left_alone(job):
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    drain(distill(job))
    assert torch.equal(torch.rand(1), expected)
