"""The diagnostic file helps, and says nothing about anybody."""

import subprocess
import sys

import pytest

from rskd.diagnosis import trace, without_names, write_diagnosis
from rskd.doctor import Finding, examine
from rskd.engine.client import Engine
from rskd.errors import RskdError
from rskd.events import drain
from rskd.jobs import DenoiseJob, InspectJob

NAMES = ("Jane", "Doe", "4711", "clinic")


@pytest.fixture
def logs(tmp_path):
    """Logs of an engine that met a broken file in a folder called like a person."""
    folder = tmp_path / "clinic" / "Jane Doe 4711"
    folder.mkdir(parents=True)
    broken = folder / "Jane Doe.safetensors"
    broken.write_bytes(b"broken")
    logs = tmp_path / "logs"
    with Engine(logs=logs) as engine:
        for job in (InspectJob(model=broken), DenoiseJob(image=folder / "Doe.nii.gz")):
            with pytest.raises(RskdError):
                drain(engine.run(job, {}))
    assert any("Doe" in path.read_text() for path in logs.iterdir())  # or there would be nothing to leave out
    return logs


def test_no_part_of_the_path_of_an_image_is_in_it(logs, tmp_path):
    out = tmp_path / "diagnosis.txt"
    write_diagnosis(out, [Finding("version", True, "napari-rskd 1")], ["device=auto"], logs=logs)
    text = out.read_text()
    assert not [name for name in (*NAMES, str(tmp_path)) if name in text]
    assert "ok    version: napari-rskd 1" in text
    assert "setting  device=auto" in text
    assert "rskd/engine/server.py, line" in text  # where it went wrong is there
    assert "FileError" in text


def test_a_crash_leaves_its_trace():
    code = "import faulthandler, os, signal; faulthandler.enable(); os.kill(os.getpid(), signal.SIGSEGV)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert next(iter(trace(done.stderr))) == "Fatal Python error: Segmentation fault"


@pytest.mark.parametrize(
    "line",
    [
        "Jane Doe: FileError",
        "Reading /clinic/Jane Doe/4711.nii",
        '  File "/clinic/Jane Doe/script.py", line 3, in f',
        '  File "/home/Jane/src/Doe/script.py", line 3, in f',
        "    raise FileError('/clinic/Doe')",
        "ValueError: /clinic/Jane Doe/4711.nii is no image",
        "UserWarning: Doe",
    ],
)
def test_what_is_said_in_words_is_left_out(line):
    assert not [name for name in NAMES for told in trace(line) if name in told]


def test_the_user_is_not_named(monkeypatch):
    monkeypatch.setattr("getpass.getuser", lambda: "jdoe")
    assert without_names("jdoes, jdoe, /data/jdoe/x") == "jdoes, <user>, <a path>"


@pytest.mark.parametrize(
    "text",
    [
        "/data/Jane Doe 4711/scan.nii is damaged.",
        "Details are in (/clinic/Jane.log).",
        r"It is C:\clinic\Jane Doe\scan.nii, which is damaged.",
        r"It is \\clinic\Jane Doe.",
        "~/Jane Doe/logs",
        "'/clinic/Jane'",
    ],
)
def test_no_folder_is_named(text):
    told = without_names(text)
    assert "<a path>" in told
    assert not [name for name in NAMES if name in told]


@pytest.mark.parametrize("text", ["Linux-6.1-x86_64", "torch 2.1+cpu, 7.5/23.5 GiB", "see https://napari.org/stable"])
def test_what_is_no_folder_stays(text):
    assert without_names(text) == text


def test_what_the_doctor_really_finds_names_no_folder(tmp_path, monkeypatch):
    own = tmp_path / "Jane Doe" / "bin" / "python"
    monkeypatch.setattr(sys, "executable", str(own))
    findings = [found for _, found in zip(range(4), examine(), strict=False)]
    findings += [Finding("log folder", True, str(tmp_path / "Jane Doe"))]
    write_diagnosis(tmp_path / "d.txt", findings, logs=tmp_path / "none")
    text = (tmp_path / "d.txt").read_text()
    assert not [name for name in (*NAMES, str(tmp_path)) if name in text]
    assert "(<Python>) on " in text


def test_the_doctor_writes_it(tmp_path, monkeypatch):
    from rskd.cli import main

    monkeypatch.setattr("rskd.doctor.examine", lambda: iter([Finding("engine", False, "does not start")]))
    monkeypatch.setattr("rskd.diagnosis.log_folder", lambda: tmp_path / "none")
    with pytest.raises(SystemExit) as ended:
        main(["doctor", "--output", str(tmp_path / "d.txt")])
    assert ended.value.code == 1
    assert "FAIL  engine: does not start" in (tmp_path / "d.txt").read_text()
