"""Kill −9 of a distillation on the command line at a random step: resumed, the student is the same, bit for bit."""

import json
import random
import signal
import subprocess
import sys
import time

import pytest

from rskd.phantom import write_phantoms

RSKD = [sys.executable, "-c", "from rskd.cli import main; main()"]
STEPS = ["--epochs", "3", "--steps-per-epoch", "8", "--batch-size", "2", "--patch", "64", "--checkpoint-minutes", "0"]


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


def kill_after(run, step, *arguments):
    """Start a command and kill it, without a warning, once its run has logged `step` steps."""
    process = subprocess.Popen([*RSKD, *map(str, arguments)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while steps_in(run) < step and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it ended before it could be killed"


def distillation(teacher, run):
    return ["distill", "--teacher", teacher, "--student", "rskd-nano", *data(teacher.parents[1]), "--run", run, *STEPS]


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


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_killed_again_and_again(teacher, tmp_path):
    assert_equal_to_uninterrupted(teacher, tmp_path, [1, 7, 8, 9, 15, 16, 20, 22])
