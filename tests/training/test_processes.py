"""Two processes of torchrun share every batch and come to what one process comes to, and go on where it stopped."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from rskd.config import ModelSpec
from rskd.events import Epoch, Reference, Step
from rskd.jobs import ResumeJob
from rskd.models import weights
from rskd.models.segmenter import Segmenter
from rskd.runs import RunFolder

TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "rskd"]
ONE = [sys.executable, "-m", "rskd"]
TOLERANCE = 1e-5


def run(program, job, folder):
    file = folder / f"{job.kind}.json"
    file.write_text(job.model_dump_json())
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([*program, "run", file], capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    return done


def losses(folder):
    return [dict(event.losses) for event in RunFolder(folder).events() if isinstance(event, Step)]


def assert_alike(first, second):
    assert len(first) == len(second) > 0
    for a, b in zip(first, second, strict=True):
        assert a == pytest.approx(b, rel=TOLERANCE, abs=TOLERANCE)


def stop_in_the_middle(program, job, folder):
    """Run a job until it has taken some steps, and end it as a scheduler would."""
    file = folder / "stopped.json"
    file.write_text(job.model_dump_json())
    process = subprocess.Popen([*program, "run", file], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 200
    while not (job.run / "events.jsonl").exists() or len(losses(job.run)) < 3:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    process.wait(60)


@pytest.fixture
def student(job, tmp_path):
    """A student that attends to something: a newborn one ranks its tokens by rounding errors."""
    spec = ModelSpec.model_validate_json(Path(job.student).read_text())
    with torch.random.fork_rng():
        torch.manual_seed(3)
        network = Segmenter(spec)
    for block in network.encoder.blocks:
        block.attn.qkv.weight.data *= 8
    weights.save(tmp_path / "student.safetensors", network, card={})
    return str(tmp_path / "student.safetensors")


@pytest.fixture
def jobs(job, student, tmp_path):
    compute = job.compute.model_copy(update={"device": "cpu", "threads": 1})
    training = job.training.model_copy(update={"epochs": 3, "checkpoint_minutes": 10})
    cpu = job.model_copy(update={"student": student, "compute": compute, "training": training})
    return {name: cpu.model_copy(update={"run": tmp_path / name}) for name in ("one", "two")}


@pytest.mark.slow
def test_two_processes_do_what_one_does_with_the_whole_batch(jobs, tmp_path):
    run(ONE, jobs["one"], tmp_path)
    done = run(TWO, jobs["two"], tmp_path)
    assert json.loads(done.stdout)["student"] == str(tmp_path / "two" / "best.safetensors")  # said once
    assert "in each of 2 processes" in done.stderr
    assert_alike(losses(tmp_path / "two"), losses(tmp_path / "one"))
    for kind in (Epoch, Reference):
        one, two = (
            [event.dice for event in RunFolder(jobs[name].run).events() if isinstance(event, kind)] for name in jobs
        )
        assert one == pytest.approx(two, abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(("first", "then"), [(ONE, TWO), (TWO, ONE)])
def test_one_goes_on_where_the_other_stopped(jobs, tmp_path, first, then):
    run(ONE, jobs["one"], tmp_path)
    stopped = jobs["two"]
    stop_in_the_middle(first, stopped, tmp_path)
    assert 0 < len(losses(stopped.run)) < len(losses(jobs["one"].run))
    run(then, ResumeJob(run=stopped.run), tmp_path)
    assert_alike(losses(stopped.run), losses(jobs["one"].run))
