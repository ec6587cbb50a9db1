"""Batch norm in evaluation is what it was in training, whatever the learning rate."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

from rskd.data import PatchSampler
from rskd.events import Epoch
from rskd.jobs import DistillJob
from rskd.models import weights
from rskd.runs import RunFolder
from rskd.train import distill
from rskd.training.statistics import settle
from tests.running import collect


@pytest.fixture
def with_batch_norm() -> Callable[[DistillJob], DistillJob]:
    """Return what gives a job a student that keeps running means."""

    def change(job: DistillJob) -> DistillJob:
        spec = weights.inspect(job.teacher).spec.model_copy(update={"norm": "batch"})
        (job.run.parent / "student.json").write_text(spec.model_dump_json())
        return job.model_copy(update={"student": str(job.run.parent / "student.json")})

    return change


def batches(count: int = 5) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(6, 4, 8, 8, generator=generator) * (1 + i) + i for i in range(count)]


def test_the_statistics_are_the_means_over_the_batches() -> None:
    norm, seen = nn.BatchNorm2d(4), batches()
    norm.running_mean.fill_(100)
    settle(norm, seen)
    means = torch.stack([batch.mean((0, 2, 3)) for batch in seen]).mean(0)
    variances = torch.stack([batch.var((0, 2, 3)) for batch in seen]).mean(0)
    torch.testing.assert_close(norm.running_mean, means)
    torch.testing.assert_close(norm.running_var, variances)


def test_nothing_but_the_statistics_changes() -> None:
    network = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4, momentum=0.3)).eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    settle(network, batches())
    changed = {name for name, tensor in network.state_dict().items() if not tensor.equal(before[name])}
    assert changed == {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
    assert not network.training
    assert network[1].momentum == 0.3


def test_without_batches_or_batch_norm_nothing_happens() -> None:
    norm = nn.BatchNorm2d(4)
    settle(norm, [])
    assert norm.running_mean.eq(0).all()
    settle(nn.GroupNorm(1, 4), batches())


def test_late_running_means_lose_what_settled_ones_keep() -> None:
    """The weights move faster than the running means: in evaluation the network is another one than in training."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)).train()
    seen = batches(1)
    for _ in range(3):
        network(seen[0])
    with torch.no_grad():
        network[0].bias += 10  # what a large step does
        trained = network(seen[0])
        late = (network.eval()(seen[0]) - trained).abs().mean()
        settle(network, seen)
        settled = (network.eval()(seen[0]) - trained).abs().mean()
    assert late > 1
    assert settled < 0.01


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_the_network_that_is_kept_has_the_statistics_of_its_weights(job, with_batch_norm, ema) -> None:
    options = job.training.model_copy(update={"ema": ema, "learning_rate": 1e-2})
    job = with_batch_norm(job).model_copy(update={"training": options})
    events, _ = collect(distill(job))
    kept = weights.load(RunFolder(job.run).best)
    means = {name: tensor for name, tensor in kept.state_dict().items() if name.endswith("num_batches_tracked")}
    assert means
    best = max(event.epoch for event in events if isinstance(event, Epoch) and event.best)
    assert all(tensor == min(16, best * options.steps_per_epoch) for tensor in means.values())


def test_the_statistics_do_not_change_what_is_learned(job, with_batch_norm, monkeypatch) -> None:
    first = with_batch_norm(job)
    second = first.model_copy(update={"run": job.run.parent / "second"})
    losses = []
    for one in (first, second):
        collect(distill(one))
        losses.append([event.losses for event in RunFolder(one.run).events() if isinstance(event, Epoch)])
        monkeypatch.setattr("rskd.training.trainer.Trainer._settle", lambda self: None)
    assert losses[0] == losses[1]


def test_a_batch_that_is_no_number_leaves_no_trace_in_the_statistics(job, with_batch_norm, monkeypatch) -> None:
    sound = PatchSampler.batch

    def batch(self, step):
        found = sound(self, step)
        if step == 2:
            found.images[0] = math.nan
        return found

    monkeypatch.setattr(PatchSampler, "batch", batch)
    job = with_batch_norm(job)
    collect(distill(job))
    assert all(tensor.isfinite().all() for tensor in weights.load(RunFolder(job.run).best).state_dict().values())
