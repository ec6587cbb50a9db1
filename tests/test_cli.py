"""The command line: jobs from flags, sentences, Ctrl-C."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from pydantic import BaseModel

from rskd import cli, doctor
from rskd.engine import logs
from rskd.events import Epoch, Message, Progress, Step
from rskd.flags import COMMANDS, NOT_ASKED
from rskd.jobs import JOB, ContourletJob, DistillJob, Outcome, RankJob, ResumeJob, SegmentJob
from rskd.models.presets import BUNDLED


@pytest.fixture
def parse(monkeypatch):
    """Parse a command line into the job that would run."""
    jobs = []
    monkeypatch.setattr(cli, "_perform", lambda job, *, debug: jobs.append(job))

    def parse(line):
        assert call(line) == 0
        return jobs.pop()

    return parse


def call(line):
    """Run a command line in this process and return its exit status."""
    try:
        cli.main(line)
    except SystemExit as end:
        return end.code or 0
    return 0


@pytest.fixture(autouse=True)
def own_logs(tmp_path, monkeypatch):
    monkeypatch.setattr(logs, "log_folder", lambda: tmp_path / "logs")


def test_distill_with_every_kind_of_flag(parse):
    job = parse(
        "distill teacher.safetensors rskd-nano runs/1 --images photos --masks vessels --validation a b --epochs 3 "
        "--no-augment --ranking.weight 0.5 --ranking.loss listnet --texture.levels 3 2 --texture.lowpass --task 0 "
        "--device cpu --threads 2"
    )
    assert job == DistillJob(
        teacher="teacher.safetensors",
        student="rskd-nano",
        run="runs/1",
        data={"images": "photos", "masks": "vessels", "validation": ("a", "b")},
        training={"epochs": 3, "augment": False},
        distillation={
            "task": 0,
            "ranking": {"weight": 0.5, "loss": "listnet"},
            "texture": {"levels": (3, 2), "lowpass": True},
        },
        compute={"device": "cpu", "threads": 2},
    )


@pytest.mark.parametrize(
    ("line", "job"),
    [
        ("resume runs/1", ResumeJob(run="runs/1")),
        (
            "segment m.safetensors i.tif --output l.tif --axes zyx --tile 64 --probabilities",
            SegmentJob(
                model="m.safetensors",
                image="i.tif",
                output="l.tif",
                axes="zyx",
                options={"tile": 64, "probabilities": True},
            ),
        ),
        (
            "rank --student s.safetensors --image i.png --definition rollout --block -2",
            RankJob(student="s.safetensors", image="i.png", options={"definition": "rollout", "block": -2}),
        ),
        ("rank t s i.png", RankJob(teacher="t", student="s", image="i.png")),
        (
            "contourlet i.png --channel 1 --levels 3 0 --border periodic",
            ContourletJob(image="i.png", channel=1, options={"levels": (3, 0), "border": "periodic"}),
        ),
    ],
)
def test_commands(parse, line, job):
    assert parse(line) == job


def leaves(model, prefix=""):
    """The flags that a group of fields must give."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from leaves(field.annotation, f"{prefix}{name}.")
        elif name != "kind":
            yield f"--{prefix}{name}".replace("_", "-")


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_parameter_is_a_flag_with_help(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    job_type = COMMANDS[name]
    assert call([name, "--help"]) == 0
    text = capsys.readouterr().out
    for field, info in job_type.model_fields.items():
        if field in NOT_ASKED:
            continue
        group = isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel)
        for flag in leaves(info.annotation) if group else [f"--{field}".replace("_", "-")]:
            assert flag in text
    assert job_type.__doc__.split("\n")[0] in text


def test_there_is_a_command_for_every_job():
    kinds = {choice["properties"]["kind"]["const"] for choice in JOB.json_schema()["$defs"].values()
             if "kind" in choice.get("properties", {})}  # fmt: skip
    in_the_window = {"survey", "attend", "agreement", "reconstruct", "texture"}  # its live parts
    assert kinds - in_the_window == {job_type.model_fields["kind"].default for job_type in COMMANDS.values()}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("segment m i --overlap 2", ["overlap", "0.9"]),
        ("segment m i --ovrlap 0.2", ["--ovrlap", "--overlap"]),
        ("segment m i --device gpu", ["gpu", "cuda"]),
        ("segmnt m i", ["segmnt", "segment"]),
        ("distill t s r", ["--images"]),
        ("distill t s r --images i --fusion.width 20", ["multiple of 8"]),
    ],
)
def test_wrong_flags_are_explained(line, words, capsys):
    assert call(line) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.strip().splitlines()) == 1
    assert captured.err.startswith("Error: ")
    for word in words:
        assert word in captured.err


def test_an_error_is_one_sentence(capsys):
    assert call("segment missing.safetensors missing.tif") == 1
    error = capsys.readouterr().err
    assert error.strip().splitlines()[-1].startswith("Error: ")
    assert "missing.tif" in error
    assert "Traceback" not in error
    assert "Details" not in error


def test_debug_shows_the_traceback(capsys):
    assert call("segment missing.safetensors missing.tif --debug") == 1
    assert "Traceback" in capsys.readouterr().err


def fail(job):
    yield Progress(1, 2)
    raise RuntimeError("shapes do not match\nmore")


def test_an_unexpected_error_is_a_sentence_with_a_log(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("rskd.run.run", fail)
    assert call("contourlet i.png") == 1
    assert (
        "Error: RuntimeError while computing the contourlet sub-bands: shapes do not match." in capsys.readouterr().err
    )
    (log,) = (tmp_path / "logs").iterdir()
    assert "Traceback" in log.read_text()


def test_old_logs_are_removed(tmp_path):
    made = [logs.new_log("engine", folder=tmp_path) for _ in range(logs.KEPT + 3)]
    other = logs.new_log("rskd", folder=tmp_path)
    assert len(list(tmp_path.glob("engine-*"))) == logs.KEPT
    assert made[-1].exists() or len({path.name[:22] for path in made}) == 1
    assert other.exists()


def test_a_log_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    path = logs.new_log("engine", folder=tmp_path / "file" / "logs")
    assert path.exists()
    path.unlink()


def succeed(job):
    yield Message("Loading.")
    yield Message("Careful.", warning=True)
    yield Step(1, 2, 1, {"task": 0.25, "total": 0.5}, 1e-3, 0.1)
    yield Epoch(1, 1, {"task": 0.25}, 0.875, best=True)
    yield Progress(1, 1)
    return Outcome({"dice": 0.875})


def test_what_is_shown(monkeypatch, capsys):
    monkeypatch.setattr("rskd.run.run", succeed)
    assert call("resume runs/1") == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"dice": 0.875}
    for line in ("Loading.", "Warning: Careful.", "Epoch 1 of 1: Dice 0.8750, the best so far; task 0.2500"):
        assert line in captured.err


def test_run_takes_a_saved_job(tmp_path, monkeypatch):
    jobs = []
    monkeypatch.setattr(cli, "_perform", lambda job, *, debug: jobs.append(job))
    job = ContourletJob(image="i.png", channel=1)
    (tmp_path / "job.json").write_text(job.model_dump_json())
    assert call(["run", str(tmp_path / "job.json")]) == 0
    assert jobs == [job]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (None, "cannot be read"),
        ('{"kind": "dance"}', "kind"),
        ('{"kind": "resume", "walk": 1}', "run: field required"),
        ("{", "JSON"),
    ],
)
def test_a_saved_job_that_is_none(tmp_path, capsys, text, sentence):
    if text is not None:
        (tmp_path / "job.json").write_text(text)
    assert call(["run", str(tmp_path / "job.json")]) == 1
    error = capsys.readouterr().err.strip()
    assert sentence in error
    assert len(error.splitlines()) == 1


INTERRUPTIBLE = """
import sys, time
import rskd.run
from rskd import cli
from rskd.events import Command, Progress
from rskd.jobs import Outcome

def run(job):
    try:
        for step in range(3000):
            time.sleep(0.01)
            command = yield Progress(step, 3000)
            if step == 0:
                print("running", flush=True)
            if command is Command.STOP and "deaf" not in sys.argv[0]:
                return Outcome({"stopped": True})
    finally:
        print("closed", flush=True)

rskd.run.run = run
sys.argv = [sys.argv[1], *sys.argv[2].split()]
cli.main()
"""


def interrupt(line, times, name="rskd"):
    """Start a command, press Ctrl-C `times` times, and return exit status and output."""
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTIBLE, name, line], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    first = process.stdout.readline()
    assert first == "running\n"
    for _ in range(times):
        os.kill(process.pid, signal.SIGINT)
        time.sleep(0.3)
    out, err = process.communicate(timeout=20)
    return process.returncode, out, err


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for another process")
class TestInterrupts:
    def test_once_stops_a_training_cleanly(self):
        status, out, err = interrupt("resume runs/1", 1)
        assert status == 0
        assert out.startswith("closed")
        assert '"stopped": true' in out
        assert "keeping the best" in err

    def test_twice_aborts(self):
        status, out, err = interrupt("resume runs/1", 2, name="deaf")
        assert status == cli.INTERRUPTED
        assert out == "closed\n"
        assert err.strip().endswith("Aborted.")
        assert "Traceback" not in err

    def test_once_aborts_what_has_nothing_to_keep(self):
        status, out, err = interrupt("contourlet i.png", 1)
        assert status == cli.INTERRUPTED
        assert out == "closed\n"
        assert "Traceback" not in err


def test_the_doctor_finds_this_installation_sound():
    findings = {finding.name: finding for finding in doctor.examine()}
    wrong = {name: finding.text for name, finding in findings.items() if not finding.good}
    complete = all(path.exists() for path in BUNDLED.values())
    assert set(wrong) == (set() if complete else {"models that came along"}), wrong
    assert "Token ranking" in findings["napari plugin"].text
    assert "stopped" in findings["engine"].text
    assert findings["runtimes"].text.startswith("torch, ONNX Runtime")


def test_the_doctor_sees_what_is_wrong(monkeypatch, capsys):
    def broken():
        raise ImportError("libnothing.so: cannot open shared object file")

    healthy = doctor.Finding("version", True, "1")
    monkeypatch.setattr(doctor, "examine", lambda: iter([healthy, doctor._find("devices", broken)]))
    assert call("doctor") == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("ok    version")
    assert lines[1].startswith("FAIL  devices")
    assert "libnothing.so" in lines[1]
    monkeypatch.setattr(doctor, "examine", lambda: iter([healthy]))
    assert call("doctor") == 0
