"""Kill −9 of a distillation on the command line at a random step: resumed, the student is the same, bit for bit."""

import json
import random
import re
import signal
import subprocess
import sys
import time

import pytest
import torch

from rskd.phantom import write_phantoms

RSKD = [sys.executable, "-c", "from rskd.cli import main; main()"]
STEPS = ["--steps-per-epoch", "8", "--batch-size", "2", "--patch", "64"]

DIES_AT_A_CHECKPOINT = """
import os, signal, sys
from rskd.cli import main
from rskd.io import files

replace, left = os.replace, int(sys.argv[1])

def killing(source, target):
    global left
    left -= os.path.basename(target) == "last.ckpt"
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)

files.os.replace = killing
main(sys.argv[2:])
"""
"""A command line that is killed just before the n-th checkpoint takes its place."""


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    write_phantoms(folder, count=4, size=96, seed=1)
    small = ["--epochs", "1", "--steps-per-epoch", "4", "--batch-size", "2", "--patch", "64"]
    rskd("train", "--model", "rskd-nano", *data(folder), "--run", folder / "run", *small)
    return folder / "run" / "best.safetensors"


def data(folder):
    return ["--images", folder / "images", "--masks", folder / "masks", "--validation-share", "0.25"]


def rskd(*arguments):
    subprocess.run([*RSKD, *map(str, arguments)], check=True, capture_output=True, timeout=300)


def steps_in(run):
    log = run / "events.jsonl"
    lines = log.read_text().splitlines() if log.exists() else []
    return sum(json.loads(line)["kind"] == "step" for line in lines[:-1])


def start(*arguments):
    return subprocess.Popen([*RSKD, *map(str, arguments)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def wait_for_step(run, step, process):
    deadline = time.monotonic() + 300
    while steps_in(run) < step and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)


def kill_after(run, step, *arguments):
    """Start a command and kill it, without a warning, once its run has logged `step` steps."""
    process = start(*arguments)
    wait_for_step(run, step, process)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it ended before it could be killed"


def distillation(teacher, run, *, epochs=3, minutes=0):
    networks = ["distill", "--teacher", teacher, "--student", "rskd-nano", *data(teacher.parents[1]), "--run", run]
    return [*networks, *STEPS, "--epochs", epochs, "--checkpoint-minutes", minutes]


def assert_equal_to_uninterrupted(teacher, tmp_path, kills):
    rskd(*distillation(teacher, tmp_path / "whole"))
    command = distillation(teacher, tmp_path / "killed")
    for step in kills:
        kill_after(tmp_path / "killed", step, *command)
        command = ["resume", tmp_path / "killed"]
    rskd(*command)
    whole, killed = (tmp_path / name / "best.safetensors" for name in ("whole", "killed"))
    assert killed.read_bytes() == whole.read_bytes(), f"killed after the steps {kills}"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_killed_at_a_random_step_and_resumed(teacher, tmp_path):
    assert_equal_to_uninterrupted(teacher, tmp_path, [random.SystemRandom().randint(1, 20)])


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
@pytest.mark.parametrize(
    "write", [3, pytest.param(10, marks=pytest.mark.slow), pytest.param(19, marks=pytest.mark.slow)]
)
def test_killed_while_a_checkpoint_is_written(teacher, tmp_path, write):
    """All of the file is written and nothing of it has taken the old one's place: the worst moment."""
    command = distillation(teacher, tmp_path / "killed")
    program = [sys.executable, "-c", DIES_AT_A_CHECKPOINT, str(write), *map(str, command)]
    assert subprocess.run(program, capture_output=True, timeout=300).returncode == -signal.SIGKILL
    assert list((tmp_path / "killed").glob(".*.partial.last.ckpt"))
    rskd("resume", tmp_path / "killed")
    rskd(*distillation(teacher, tmp_path / "whole"))
    whole, killed = (tmp_path / name / "best.safetensors" for name in ("whole", "killed"))
    assert killed.read_bytes() == whole.read_bytes()
    assert not list((tmp_path / "killed").glob(".*"))


@pytest.mark.skipif(sys.platform == "win32", reason="Windows ends a process at once")
def test_the_system_may_end_a_run_and_nothing_is_lost(teacher, tmp_path):
    """SIGTERM: the step is finished, the checkpoint written, and the run says so."""
    run = tmp_path / "ended"
    command = [*RSKD, *map(str, distillation(teacher, run, minutes=10))]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for_step(run, 2, process)
    process.send_signal(signal.SIGTERM)
    said, told = process.communicate(timeout=300)
    assert process.returncode == 0, told
    assert json.loads(said)["stopped"]
    assert "Stopping after this step and keeping the best, because the system asks for it." in told
    steps = int(re.search(r"Stopped after step (\d+) of 24: resume the run to go on.", told)[1])
    assert torch.load(run / "last.ckpt", weights_only=True)["step"] == steps
    assert (run / "best.safetensors").exists()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_killed_at_twenty_random_moments(teacher, tmp_path):
    """Not only at a step, but at any time: while it starts, reads, validates, or writes a checkpoint."""
    run, whole = tmp_path / "killed", tmp_path / "whole"
    command = distillation(teacher, run, epochs=12)
    for number in range(20):
        process = start(*command)
        if number % 5 == 4:
            time.sleep(random.SystemRandom().uniform(0, 5))
        else:
            wait_for_step(run, steps_in(run) + 1, process)
            time.sleep(random.SystemRandom().uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "it ended before it could be killed"
        if (run / "last.ckpt").exists():
            command = ["resume", run]
    rskd(*command)
    rskd(*distillation(teacher, whole, epochs=12))
    assert (run / "best.safetensors").read_bytes() == (whole / "best.safetensors").read_bytes()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_killed_again_and_again(teacher, tmp_path):
    assert_equal_to_uninterrupted(teacher, tmp_path, [1, 7, 8, 9, 15, 16, 20, 22])
