"""Runs that keep the teacher's answers: the same student, a teacher asked once, and no trouble without room for it."""

import os
import shutil

import pytest
import torch
from pydantic import ValidationError

from rskd.config import CacheOptions, DataOptions, DistillOptions, TrainOptions
from rskd.distillation import cache as cache_module
from rskd.distillation.objective import Objective
from rskd.errors import FileError, ResourceError
from rskd.events import Epoch, Message, Step
from rskd.jobs import DistillJob, ResumeJob
from rskd.models import weights
from rskd.models.presets import fresh_spec
from rskd.models.segmenter import Segmenter
from rskd.phantom import write_phantoms
from rskd.runs import RunFolder
from rskd.train import distill, resume

TRAINING = TrainOptions(epochs=2, steps_per_epoch=4, batch_size=2, patch=64, views=6, checkpoint_minutes=0)


@pytest.fixture
def data(tmp_path):
    write_phantoms(tmp_path, count=4, size=96, seed=1)
    return DataOptions(images=tmp_path / "images", masks=tmp_path / "masks", validation_share=0.25)


@pytest.fixture
def job(data, tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        teacher = Segmenter(fresh_spec("rskd-micro", in_channels=3, classes=["vessel"]))
    weights.save(tmp_path / "t.safetensors", teacher, card={})
    return DistillJob(
        teacher=tmp_path / "t.safetensors", student="rskd-nano", data=data, run=tmp_path / "run", training=TRAINING
    )


@pytest.fixture
def asked(monkeypatch):
    """How many images the teacher is asked about in each call."""
    calls, ask = [], Objective.ask

    def counted(self, images):
        calls.append(len(images))
        return ask(self, images)

    monkeypatch.setattr(Objective, "ask", counted)
    return calls


def with_cache(job, **changes):
    cache = CacheOptions(**{name: changes.pop(name) for name in ("use", "gigabytes") if name in changes})
    return job.model_copy(update={"distillation": DistillOptions(cache=cache), **changes})


def collect(task, kill_at=None):
    events = []
    for event in task:
        events.append(event)
        if isinstance(event, Step) and event.step == kill_at:
            return events
    return events


def sentences(events):
    return [event.text for event in events if isinstance(event, Message)]


def losses(events):
    return [event.losses for event in events if isinstance(event, Step)]


def student(run):
    return torch.load(RunFolder(run).checkpoint, weights_only=True)["objective"]


def test_a_run_with_kept_answers_agrees_with_one_without(job, asked, tmp_path):
    plain = collect(distill(with_cache(job, use="off", run=tmp_path / "plain")))
    without = len(asked)
    asked.clear()
    kept = collect(distill(with_cache(job, use="auto")))
    assert without == 1 + 8  # the rehearsal, and every step
    assert len(asked) == 1 + 1 + 3  # the rehearsal, the example, and three steps for six views
    for ours, expected in zip(losses(kept), losses(plain), strict=True):
        assert ours == pytest.approx(expected, rel=2e-3)
    assert any("6 views are kept on disk" in text for text in sentences(kept))
    assert not RunFolder(job.run).cache.exists()  # the run is finished


@pytest.mark.parametrize("killed_at", [1, 4, 5, 7])
def test_a_killed_run_with_kept_answers_ends_as_if_nothing_had_happened(job, asked, tmp_path, killed_at):
    collect(distill(with_cache(job, run=tmp_path / "whole")))
    collect(distill(job), kill_at=killed_at)
    assert RunFolder(job.run).cache.exists()
    asked.clear()
    resumed = collect(resume(ResumeJob(run=job.run)))
    assert len(asked) == 1 + 1 + max(0, 3 - killed_at)
    assert not any("asked again" in text for text in sentences(resumed))
    ours, expected = student(job.run), student(tmp_path / "whole")
    assert all(torch.equal(ours[name], expected[name]) for name in expected)


def test_answers_to_images_that_have_changed_are_not_used(job):
    collect(distill(job), kill_at=5)
    images = sorted(job.data.images.iterdir())
    shutil.copyfile(images[0], images[1])
    shutil.copyfile(images[0], images[2])
    resumed = collect(resume(ResumeJob(run=job.run)))
    assert any("belong to another teacher, data or augmentation" in text for text in sentences(resumed))


@pytest.mark.parametrize("changes", [{"views": None}, {"views": 16}])
def test_nothing_is_kept_where_no_view_is_met_twice(job, asked, changes):
    training = TRAINING.model_copy(update=changes)
    collect(distill(with_cache(job, training=training)), kill_at=5)
    assert len(asked) == 1 + 5
    assert not RunFolder(job.run).cache.exists()


def test_without_room_the_teacher_is_asked_in_every_step(job, asked):
    events = collect(distill(with_cache(job, gigabytes=1e-6)))
    (said,) = (event.text for event in events if isinstance(event, Message) and event.warning)
    assert "answers on 6 views need 0.00 GB on disk, 1e-06 GB are allowed" in said
    assert "asked in every step instead" in said
    assert len(asked) == 1 + 1 + 8


def test_a_run_that_insists_on_room_does_not_start_without(job):
    with pytest.raises(ResourceError, match=r"need .* GB on disk, 1e-06 GB are allowed"):
        collect(distill(with_cache(job, use="on", gigabytes=1e-6)))


def test_a_disk_that_refuses_is_told_from_one_that_must_not(job, monkeypatch, tmp_path):
    def refuse(folder, **_):
        raise FileError(f"{folder} is refused.")

    monkeypatch.setattr(cache_module, "_allocate", refuse)
    with pytest.raises(FileError, match="refused"):
        collect(distill(with_cache(job, use="on", run=tmp_path / "insists")))
    events = collect(distill(job))
    assert any("refused. The teacher is asked" in text for text in sentences(events))
    assert len(losses(events)) == 8


def test_a_cache_that_fails_in_mid_run_is_given_up_with_a_sentence(job, monkeypatch):
    def refuse(cache, said, numbers):
        cache.trouble = "The teacher's answers can no longer be kept on disk: gone."
        return False

    monkeypatch.setattr(cache_module.TeacherCache, "_keep", refuse)
    events = collect(distill(job))
    assert sum("can no longer be kept on disk: gone. The teacher is asked" in text for text in sentences(events)) == 1
    assert len(losses(events)) == 8
    assert not RunFolder(job.run).cache.exists()


def test_a_cache_that_failed_is_deleted_when_it_is_given_up(job, monkeypatch):
    def refuse(cache, said, numbers):
        cache.trouble = "The teacher's answers can no longer be kept on disk: gone."
        return False

    monkeypatch.setattr(cache_module.TeacherCache, "_keep", refuse)
    collect(distill(job), kill_at=5)  # it was given up after the validation behind step 4
    assert not RunFolder(job.run).cache.exists()


def test_a_run_that_was_killed_when_all_but_finished_leaves_no_answers(job):
    """Between its last checkpoint and the deletion: resumed, nothing is left to do but that."""
    task = distill(job)
    while not (isinstance(event := next(task), Epoch) and event.epoch == 2):
        pass
    task.close()
    assert RunFolder(job.run).cache.exists()
    assert losses(collect(resume(ResumeJob(run=job.run)))) == []
    assert not RunFolder(job.run).cache.exists()


def test_endless_views_cannot_be_kept(job):
    endless = job.model_dump() | {"training": {"views": None}, "distillation": {"cache": {"use": "on"}}}
    with pytest.raises(ValidationError, match="only for a fixed pool of views: set views"):
        DistillJob.model_validate(endless)


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="the system cannot reserve space")
def test_the_room_is_reserved_before_the_first_step(job):
    for event in distill(job):
        if isinstance(event, Step):
            break
    answers = RunFolder(job.run).cache / "answers.bin"
    assert answers.stat().st_blocks * 512 >= answers.stat().st_size > 0
