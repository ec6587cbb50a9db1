"""Every published method through the whole loop: it runs, it is logged by its name, and a resumed run ends the same."""

import math

import pytest
import torch

from rskd.config import DataOptions, DistillOptions, TrainOptions
from rskd.distillation.baselines.table import METHODS, method
from rskd.events import Step
from rskd.jobs import DistillJob, ResumeJob
from rskd.models import weights
from rskd.models.presets import fresh_spec
from rskd.models.segmenter import Segmenter
from rskd.phantom import write_phantoms
from rskd.runs import RunFolder
from rskd.train import distill, resume

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    folder = tmp_path_factory.mktemp("methods")
    write_phantoms(folder, count=3, size=64, seed=1)
    torch.manual_seed(0)
    teacher = Segmenter(fresh_spec("rskd-micro", in_channels=3, classes=["vessel"]))
    weights.save(folder / "teacher.safetensors", teacher, card={})
    data = DataOptions(images=folder / "images", masks=folder / "masks")
    training = TrainOptions(epochs=1, steps_per_epoch=3, batch_size=2, patch=64, checkpoint_minutes=0)
    return DistillJob(
        teacher=folder / "teacher.safetensors", student="rskd-nano", data=data, run=folder / "run", training=training
    )


def run(task, *, stop_after=None):
    steps = []
    for event in task:
        if isinstance(event, Step):
            steps.append(event)
            if len(steps) == stop_after:
                task.close()
    return steps


@pytest.mark.parametrize("name", sorted(METHODS))
def test_method_through_the_loop(name, job, tmp_path):
    options: DistillOptions = method(name)
    whole, broken = (
        job.model_copy(update={"run": tmp_path / which, "distillation": options}) for which in ("whole", "broken")
    )
    steps = run(distill(whole))
    assert len(steps) == 3
    for step in steps:
        assert all(math.isfinite(value) for value in step.losses.values())
        assert step.losses["total"] >= step.losses["task"]
        assert name in step.losses or name in ("alone", "rskd", "kd", "kl_importance")
    run(distill(broken), stop_after=2)
    run(resume(ResumeJob(run=broken.run)))
    a, b = (torch.load(RunFolder(j.run).checkpoint, weights_only=True)["objective"] for j in (whole, broken))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)
