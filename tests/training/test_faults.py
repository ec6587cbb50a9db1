"""What goes wrong at night: each fault is made on purpose, and nothing may be lost that a checkpoint holds."""

import errno
import json
import math
import os
import shutil
import time
from pathlib import Path

import pytest
import torch
from lightning_fabric import Fabric

from rskd.data import Batch, PatchSampler
from rskd.distillation import calibration
from rskd.distillation.objective import Objective
from rskd.errors import FileError, ParameterError, ResourceError, RskdError
from rskd.events import Epoch, Message, Progress, Step
from rskd.io import files
from rskd.jobs import ResumeJob
from rskd.models import weights
from rskd.models.segmenter import Segmenter
from rskd.runs import RunFolder
from rskd.train import distill, resume
from rskd.training import guards
from tests.running import collect


def steps_of(events):
    return [event.step for event in events if isinstance(event, Step)]


def warnings_of(events):
    """Return the warnings; that the teacher is untrained goes without saying here."""
    texts = [event.text for event in events if isinstance(event, Message) and event.warning]
    return [text for text in texts if "The teacher is worse" not in text]


def losses_of(run):
    return [dict(event.losses) for event in RunFolder(run).events() if isinstance(event, Step)]


def assert_close(first, second, tolerance=1e-5):
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert a == pytest.approx(b, rel=tolerance, abs=tolerance)


def same_student(first, second):
    return RunFolder(first).best.read_bytes() == RunFolder(second).best.read_bytes()


def poison(monkeypatch, is_bad):
    """Put values that are no numbers into the first patch of some batches."""
    sound = PatchSampler.batch

    def batch(self, step):
        found = sound(self, step)
        if is_bad(step):
            found.images[0] = math.nan
        return found

    monkeypatch.setattr(PatchSampler, "batch", batch)


# ------------------------------------------------------------------------------------------------------- not a number


def test_a_batch_that_is_not_a_number_is_left_out_and_named(job, monkeypatch):
    poison(monkeypatch, lambda step: step == 2)
    events, outcome = collect(distill(job))
    assert steps_of(events) == [1, 2, 4, 5, 6, 7, 8]
    (warning,) = warnings_of(events)
    assert "'task' is not a number at step 3: the step is left out. Its images: phantom_" in warning
    assert not outcome.value["stopped"]
    assert all(tensor.isfinite().all() for tensor in weights.load(RunFolder(job.run).best).state_dict().values())


def test_the_log_names_no_image(job, monkeypatch):
    poison(monkeypatch, lambda step: step == 2)
    collect(distill(job))
    log = RunFolder(job.run).log.read_text()
    assert "is left out" in log
    assert "phantom" not in log


def test_a_mean_over_the_epoch_counts_the_steps_that_were_taken(job, monkeypatch):
    poison(monkeypatch, lambda step: step == 2)
    events, _ = collect(distill(job))
    first = next(event for event in events if isinstance(event, Epoch))
    taken = [event.losses["total"] for event in events if isinstance(event, Step) and event.epoch == 1]
    assert first.losses["total"] == pytest.approx(sum(taken) / 3)


def test_after_several_bad_steps_the_run_goes_back_with_half_the_rate(job, monkeypatch):
    passes = []
    poison(monkeypatch, lambda step: step in (5, 6, 7) and len(passes) < 3 and not passes.append(step))
    events, outcome = collect(distill(job))
    assert steps_of(events) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert "going back to step 5, with half the learning rate" in warnings_of(events)[-1]
    rates = [event.learning_rate for event in events if isinstance(event, Step)]
    usual = [1e-4 * (1 + math.cos(math.pi * step / 8)) / 2 for step in range(8)]
    assert rates == pytest.approx([*usual[:5], *(rate / 2 for rate in usual[5:])])
    assert not outcome.value["stopped"]
    assert [e.step for e in RunFolder(job.run).events() if isinstance(e, Step)] == list(range(1, 9))


def test_a_run_that_stays_bad_ends_with_a_sentence_and_keeps_its_best(job, monkeypatch):
    poison(monkeypatch, lambda step: step >= 4)
    with pytest.raises(RskdError, match="not a number again and again, though the run went back 3 times"):
        collect(distill(job))
    assert weights.load(RunFolder(job.run).best)
    assert torch.load(RunFolder(job.run).checkpoint, weights_only=True)["step"] == 4


# ------------------------------------------------------------------------------------------------------------- memory


def hungry(monkeypatch, at_most):
    forward = Objective.forward

    def limited(self, images, *others):
        if len(images) > at_most:
            raise torch.OutOfMemoryError("out of memory: tried to allocate 3 GiB")
        return forward(self, images, *others)

    monkeypatch.setattr(Objective, "forward", limited)


def hungry_at_call(monkeypatch, number):
    """Let one pass through the networks run out of memory at its end, when batch norm has seen the images."""
    forward, calls = Objective.forward, iter(range(1, 10**6))

    def failing(self, *arguments):
        losses = forward(self, *arguments)
        if next(calls) == number:
            raise torch.OutOfMemoryError("out of memory: tried to allocate 3 GiB")
        return losses

    monkeypatch.setattr(Objective, "forward", failing)


def test_out_of_memory_halves_what_is_worked_through_together(job, tmp_path, monkeypatch):
    whole = job.model_copy(update={"run": tmp_path / "whole"})
    collect(distill(whole))
    hungry(monkeypatch, 1)
    events, _ = collect(distill(job))
    assert [warning.partition(",")[0] for warning in warnings_of(events)] == [
        "The memory ran out: every batch of 4 patches is worked through in parts of 2 from now on",
        "The memory ran out: every batch of 4 patches is worked through in parts of 1 from now on",
    ]
    assert_close(losses_of(job.run), losses_of(whole.run))


def test_out_of_memory_in_the_middle_of_a_run(job, tmp_path, monkeypatch):
    whole = job.model_copy(update={"run": tmp_path / "whole"})
    collect(distill(whole))
    task = distill(job)
    while not (isinstance(event := next(task), Step) and event.step == 3):
        pass
    hungry(monkeypatch, 2)
    events, _ = collect(task)
    assert len(warnings_of(events)) == 1
    assert_close(losses_of(job.run), losses_of(whole.run))


def test_a_resumed_run_remembers_what_fits(job, monkeypatch):
    with monkeypatch.context() as patch:
        hungry(patch, 2)
        collect(distill(job), kill_at=3)
    sizes = []
    forward = Objective.forward
    monkeypatch.setattr(Objective, "forward", lambda self, x, *rest: sizes.append(len(x)) or forward(self, x, *rest))
    collect(resume(ResumeJob(run=job.run)))
    assert set(sizes[1:]) == {2}  # after the rehearsal


def test_a_process_of_several_that_ran_out_of_memory_leaves_word(job, monkeypatch):
    """It cannot go on alone; resumed, all of them work in smaller parts, whatever the rehearsal finds."""
    sizes, forward = [], Objective.forward
    with monkeypatch.context() as patch:
        patch.setattr(Fabric, "world_size", 2)  # of which this is the first one, with half of the batch
        hungry_at_call(patch, 4)
        with pytest.raises(ResourceError, match=r"ran out at step 3: resume the run, which then .* smaller parts"):
            collect(distill(job))
    kept = torch.load(RunFolder(job.run).checkpoint, weights_only=True)
    assert (kept["step"], kept["fits"]) == (2, 1)
    monkeypatch.setattr(Objective, "forward", lambda self, x, *rest: sizes.append(len(x)) or forward(self, x, *rest))
    collect(resume(ResumeJob(run=job.run)))
    assert set(sizes[1:]) == {1}


def with_batch_norm(job, run, **distillation):
    """Return a run of a student with the default norm, which is given as a file."""
    spec = weights.read_spec(Path(job.student)).model_copy(update={"norm": "batch"})
    torch.manual_seed(3)
    student = job.run.parent / "student.safetensors"
    weights.save(student, Segmenter(spec), card={})
    terms = job.distillation.model_copy(update=distillation)
    return job.model_copy(update={"run": run, "student": str(student), "distillation": terms})


def objective_at(job, step):
    """Run until a step is taken, close it there, and return what the checkpoint holds of student and terms."""
    collect(distill(job), kill_at=step)
    return torch.load(RunFolder(job.run).checkpoint, weights_only=True)["objective"]


def assert_same_state(first, second):
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def test_the_rehearsal_leaves_no_trace(job, tmp_path):
    """What is measured and kept before the first step is the student as it was given, statistics included."""
    batch = with_batch_norm(job, tmp_path / "batch", calibrate=0.5)
    task = distill(batch)
    while not isinstance(next(task), Step):
        pass
    kept = torch.load(RunFolder(batch.run).checkpoint, weights_only=True)["objective"]
    given = {f"student.{name}": value for name, value in weights.load(Path(batch.student)).state_dict().items()}
    assert_same_state({name: kept[name] for name in given}, given)
    assert kept["calibration.steps"] == 0


def test_the_run_says_when_the_weights_are_set(job, monkeypatch):
    monkeypatch.setattr(calibration, "AFTER", 1)
    training = job.training.model_copy(update={"epochs": 1, "steps_per_epoch": 3})
    terms = job.distillation.model_copy(update={"calibrate": 0.5})
    collect(distill(job.model_copy(update={"training": training, "distillation": terms})))
    told = [event.text for event in RunFolder(job.run).events() if isinstance(event, Message)]
    (sentence,) = (text for text in told if "weights" in text)
    assert sentence.startswith("The weights are set by the gradients of step 2: task 1, logits ")


def test_an_attempt_that_ran_out_of_memory_leaves_no_trace(job, tmp_path, monkeypatch):
    """Two patches at once from the start, or since a failed attempt with its second part: the same, bit for bit."""
    parts = with_batch_norm(job, tmp_path / "parts", calibrate=0.5)
    parts = parts.model_copy(update={"training": parts.training.model_copy(update={"batch_size": 8, "accumulate": 4})})
    failing = parts.model_copy(update={"run": tmp_path / "failing"})
    failing = failing.model_copy(update={"training": failing.training.model_copy(update={"accumulate": 2})})
    expected = objective_at(parts, 2)
    hungry_at_call(monkeypatch, 3)  # rehearsal, first part, second part
    assert_same_state(objective_at(failing, 2), expected)


def test_a_run_that_is_paused_when_memory_ran_out_keeps_the_step_before(job, tmp_path, monkeypatch):
    whole, paused = (with_batch_norm(job, tmp_path / name, calibrate=0.5) for name in ("whole", "paused"))
    expected = objective_at(whole, 2)
    hungry_at_call(monkeypatch, 4)  # rehearsal, two steps, the third one
    task = distill(paused)
    while "The memory ran out" not in getattr(next(task), "text", ""):
        pass
    task.close()
    kept = torch.load(RunFolder(paused.run).checkpoint, weights_only=True)
    assert (kept["step"], kept["fits"]) == (2, 2)
    assert_same_state(kept["objective"], expected)


def test_a_single_patch_that_does_not_fit_ends_the_run(job, monkeypatch):
    hungry(monkeypatch, 0)
    with pytest.raises(ResourceError, match="Not even a single patch fits into the memory"):
        collect(distill(job))


# --------------------------------------------------------------------------------------------------------------- disk


def full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_in_the_middle_leaves_the_checkpoint_whole(job, tmp_path, monkeypatch):
    whole = job.model_copy(update={"run": tmp_path / "whole"})
    collect(distill(whole))
    task = distill(job)
    while not (isinstance(event := next(task), Step) and event.step == 3):
        pass
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", full)
        with pytest.raises(FileError, match=r"No space left on device: the checkpoint before is whole; make room"):
            collect(task)
    assert torch.load(RunFolder(job.run).checkpoint, weights_only=True)["step"] == 2
    assert not list(job.run.glob(files.PARTIAL))
    collect(resume(ResumeJob(run=job.run)))
    assert same_student(job.run, whole.run)


def test_a_log_that_cannot_be_written_ends_the_run_with_a_sentence(job, monkeypatch):
    task = distill(job)
    while not (isinstance(event := next(task), Step) and event.step == 3):
        pass
    with monkeypatch.context() as patch:
        patch.setattr(json, "dumps", full)
        with pytest.raises(FileError, match=r"events.jsonl cannot be written: No space left on device"):
            collect(task)
    _, outcome = collect(resume(ResumeJob(run=job.run)))
    assert outcome.value["epochs"] == 2


def test_what_a_kill_left_half_written_is_removed(job):
    collect(distill(job), kill_at=3)
    with RunFolder(job.run).log.open("a") as log:
        log.write('{"kind": "step", "st')
    leftover = job.run / ".0123456789ab.partial.last.ckpt"
    leftover.write_bytes(b"half")
    collect(resume(ResumeJob(run=job.run)))
    assert not leftover.exists()
    told = [event.text for event in RunFolder(job.run).events() if isinstance(event, Message) and not event.warning]
    assert told == ["3 images to train on, 1 for validation; " + told[0].partition("; ")[2]] * 2 + [
        "Going on after step 3 of 8."
    ]


# -------------------------------------------------------------------------------------------------------------- files


def broken_copy(job, tmp_path, which):
    own = tmp_path / "own"
    shutil.copytree(job.data.images.parent, own)
    sorted((own / "images").iterdir())[which].write_bytes(b"no picture")
    return job.data.model_copy(update={"images": own / "images", "masks": own / "masks"})


def test_an_unreadable_file_is_named_before_the_first_step(job, tmp_path):
    data = broken_copy(job, tmp_path, 0)
    with pytest.raises(FileError, match=min(data.images.iterdir()).name):
        collect(distill(job.model_copy(update={"data": data})))


def test_an_unreadable_file_may_be_left_out(job, tmp_path):
    data = broken_copy(job, tmp_path, 0).model_copy(update={"skip_unreadable": True})
    events, outcome = collect(distill(job.model_copy(update={"data": data})))
    (warning,) = warnings_of(events)
    assert min(data.images.iterdir()).name in warning
    assert warning.endswith("It is left out.")
    assert "Image 1 of 3 cannot be used: it is left out." in warnings_of(RunFolder(job.run).events())
    assert "phantom" not in RunFolder(job.run).log.read_text()
    assert outcome.value["epochs"] == 2


def test_a_file_that_becomes_unreadable_during_the_run_does_no_harm(job, tmp_path):
    own = tmp_path / "own"
    shutil.copytree(job.data.images.parent, own)
    data = job.data.model_copy(update={"images": own / "images", "masks": own / "masks"})
    task = distill(job.model_copy(update={"data": data}))
    while not isinstance(next(task), Step):
        pass
    for path in (own / "images").iterdir():
        path.write_bytes(b"no picture")
    _, outcome = collect(task)
    assert outcome.value["epochs"] == 2


# ------------------------------------------------------------------------------------------------ clock, place, others


def test_a_clock_that_is_put_back_changes_nothing(job, tmp_path, monkeypatch):
    whole = job.model_copy(update={"run": tmp_path / "whole"})
    collect(distill(whole))
    now = time.time()
    clock = iter(range(10**9))
    monkeypatch.setattr(time, "time", lambda: now - 3600 * next(clock))
    events, _ = collect(distill(job))
    assert same_student(job.run, whole.run)
    assert all(0 <= event.seconds < 60 for event in events if isinstance(event, Step | Epoch))


def test_a_moved_run_goes_on_with_the_images_inside_of_it(job, tmp_path):
    """The window keeps the images of open layers in the run folder."""
    job.run.mkdir()
    shutil.copytree(job.data.images.parent, job.run / "data")
    data = job.data.model_copy(update={"images": job.run / "data" / "images", "masks": job.run / "data" / "masks"})
    whole = job.model_copy(update={"run": tmp_path / "whole"})
    collect(distill(whole))
    collect(distill(job.model_copy(update={"data": data})), kill_at=3)
    os.rename(job.run, tmp_path / "moved")
    _, outcome = collect(resume(ResumeJob(run=tmp_path / "moved")))
    assert outcome.value["student"] == str(tmp_path / "moved" / "best.safetensors")
    assert same_student(tmp_path / "moved", whole.run)


def test_a_second_process_is_refused_even_before_the_first_checkpoint(job):
    task = distill(job)
    next(task)
    before = (job.run / "job.json").read_bytes()
    other = job.model_copy(update={"student": "rskd-micro"})
    with pytest.raises(ParameterError, match="worked on by another process"):
        collect(distill(other))
    assert (job.run / "job.json").read_bytes() == before
    task.close()


def test_a_run_that_is_begun_anew_forgets_its_first_events(job):
    task = distill(job)
    while not isinstance(next(task), Progress):
        pass
    task.close()
    collect(distill(job))
    starts = [e for e in RunFolder(job.run).events() if isinstance(e, Message) and "images to train on" in e.text]
    assert len(starts) == 1


# ------------------------------------------------------------------------------------------------------ the first step


def batch_of(count, labelled=True):
    return Batch(
        torch.zeros(count, 1, 4, 4),
        torch.full((count, 4, 4), 0 if labelled else -1),
        ("a",) * count,
        tuple(range(count)),
    )


def test_a_term_that_is_zero_at_the_first_step_is_refused():
    with pytest.raises(ParameterError, match="'logits' is zero at the first step"):
        guards.check_first_losses({"task": 1.0, "logits": 0.0}, batch_of(1))


def test_a_flat_teacher_is_reported_and_not_refused():
    (warning,) = guards.check_first_losses({"task": 1.0, "ranking": 0.0}, batch_of(1))
    assert "the teacher's importance is flat there" in warning


def test_a_batch_without_masks_has_no_task_loss_and_that_is_right():
    assert guards.check_first_losses({"task": 0.0, "logits": 1.0}, batch_of(1, labelled=False)) == []
    with pytest.raises(ParameterError, match="'task' is zero"):
        guards.check_first_losses({"task": 0.0, "logits": 1.0}, batch_of(1))


def test_a_student_that_is_the_teacher_is_refused(job):
    with pytest.raises(ParameterError, match="choose a student that is no copy of the teacher"):
        collect(distill(job.model_copy(update={"student": str(job.teacher)})))
