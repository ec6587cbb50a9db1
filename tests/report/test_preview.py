"""Pictures during a training: as many as wanted, changing with the student, which does not change with them."""

import pytest
from PIL import Image

from rskd.config import DataOptions, DistillOptions, TrainOptions
from rskd.errors import FileError
from rskd.events import Epoch
from rskd.jobs import DistillJob, ResumeJob
from rskd.models import weights
from rskd.models.presets import fresh_spec
from rskd.models.segmenter import Segmenter
from rskd.phantom import write_phantoms
from rskd.report import preview
from rskd.runs import RunFolder
from rskd.train import distill, resume
from tests.running import collect

QUICK = TrainOptions(epochs=2, steps_per_epoch=2, batch_size=2, patch=32, preview=2, report=False)
BARE = DistillOptions.model_validate({name: {"weight": 0} for name in ("ranking", "texture", "fusion")})


@pytest.fixture
def job(tmp_path):
    write_phantoms(tmp_path, count=6, size=64, seed=1)
    spec = fresh_spec("rskd-nano", in_channels=3, classes=["vessel"]).model_copy(update={"image_size": 64})
    (tmp_path / "student.json").write_text(spec.model_dump_json())
    weights.save(tmp_path / "teacher.safetensors", Segmenter(spec), card={})
    return DistillJob(
        teacher=tmp_path / "teacher.safetensors",
        student=str(tmp_path / "student.json"),
        data=DataOptions(images=tmp_path / "images", masks=tmp_path / "masks", validation_share=0.5),
        run=tmp_path / "run",
        training=QUICK,
        distillation=BARE,
    )


def pictures(run):
    return {file.name: file.read_bytes() for file in sorted(RunFolder(run).previews.iterdir())}


def test_the_pictures_follow_the_student_round_by_round(job):
    seen = []
    for event in distill(job):
        if isinstance(event, Epoch):
            seen.append(pictures(job.run))
    assert [list(drawn) for drawn in seen] == [["01.png", "02.png"]] * 2
    assert seen[0]["01.png"] != seen[0]["02.png"]
    with Image.open(RunFolder(job.run).previews / "01.png") as image:
        assert image.size == (2 * (6 * 64 + 4),) * 2


def test_the_student_is_the_same_with_and_without_pictures(job, tmp_path):
    collect(distill(job))
    plain = job.model_copy(
        update={"run": tmp_path / "plain", "training": job.training.model_copy(update={"preview": 0})}
    )
    collect(distill(plain))
    first, second = (weights.load(RunFolder(run).best).state_dict() for run in (job.run, plain.run))
    assert all(first[name].equal(second[name]) for name in first)
    assert not RunFolder(plain.run).previews.exists()


def test_a_disk_that_refuses_costs_only_the_pictures(job, monkeypatch):
    def refuse(path, content):
        raise FileError("No space left on device.")

    monkeypatch.setattr(preview, "write_atomically", refuse)
    _, outcome = collect(distill(job))
    assert outcome.value["epochs"] == 2


def test_a_run_that_goes_on_draws_again(job):
    task = distill(job)
    for event in task:
        if isinstance(event, Epoch):
            break
    task.close()
    before = pictures(job.run)
    (RunFolder(job.run).previews / "01.png").unlink()
    collect(resume(ResumeJob(run=job.run)))
    assert pictures(job.run).keys() == before.keys()
