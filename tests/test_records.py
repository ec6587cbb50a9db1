"""What a run folder records, and what it must not."""

import getpass
import hashlib
import json
import platform
import subprocess
from pathlib import Path

import numpy as np
import pytest

from rskd.cases import Case, case_id
from rskd.records import (
    METRICS,
    CaseRecord,
    append_lines,
    case_scores,
    changed_cases,
    commit,
    describe_data,
    environment,
    on_both_sides,
    read_json,
    read_lines,
    record_session,
    rewind_scores,
)


@pytest.fixture
def cases(tmp_path: Path) -> list[Case]:
    found = []
    for name in ("Jane Doe", "John Roe"):
        for kind in ("image", "mask"):
            (tmp_path / f"{name} {kind}.png").write_bytes(f"{kind} of {name}".encode())
        found.append(Case(name, tmp_path / f"{name} image.png", tmp_path / f"{name} mask.png"))
    return found


def described(cases: list[Case], sides: tuple[str, str] = ("training", "validation")) -> dict:
    target = np.array([[-1, 0, 0], [1, 1, 1]])
    records = [CaseRecord(case, side, [target, target]) for case, side in zip(cases, sides, strict=True)]
    return describe_data(records, ["background", "organ"], seed=7)


def test_every_case_with_its_hashes_side_planes_and_pixels(cases: list[Case]) -> None:
    data = described(cases)
    first, second = data["cases"]
    assert data["seed"] == 7
    assert first["image sha256"] == hashlib.sha256(b"image of Jane Doe").hexdigest()
    assert first["mask sha256"] == hashlib.sha256(b"mask of Jane Doe").hexdigest()
    assert first["region sha256"] is None
    assert first["case"] == case_id(cases[0])
    assert (first["side"], second["side"], first["planes"]) == ("training", "validation", 2)
    assert first["pixels"] == {"no label": 2, "background": 4, "organ": 6}


def test_no_name_is_recorded(cases: list[Case], tmp_path: Path) -> None:
    text = json.dumps(described(cases))
    assert "Jane" not in text
    assert str(tmp_path) not in text


def test_a_copy_on_the_other_side_is_found(cases: list[Case]) -> None:
    assert on_both_sides(described(cases)) == []
    cases[1].image.write_bytes(cases[0].image.read_bytes())
    assert on_both_sides(described(cases)) == [case_id(cases[0])]
    assert on_both_sides(described(cases, ("training", "training"))) == []


def test_a_mask_that_was_changed_is_found(cases: list[Case]) -> None:
    before = described(cases)
    assert changed_cases(described(cases), before) == []
    assert cases[1].mask is not None
    cases[1].mask.write_bytes(b"redrawn")
    assert changed_cases(described(cases), before) == [case_id(cases[1])]


def test_the_environment_names_neither_user_nor_computer_nor_home() -> None:
    found = environment(device="CPU", threads=2, processes=1)
    assert found["versions"]["numpy"] == np.__version__
    assert found["versions"]["python"] == platform.python_version()
    text = json.dumps(found).lower()
    assert str(Path.home()) == "/" or str(Path.home()).lower() not in text
    words = set(text.replace('"', " ").replace(",", " ").split())
    assert words.isdisjoint({getpass.getuser().lower(), platform.node().lower()})


def test_every_session_is_kept_until_the_run_begins_anew(tmp_path: Path) -> None:
    for step in (0, 40, 80):
        record_session(tmp_path, device="CPU", threads=1, processes=1, step=step)
    sessions = (read_json(tmp_path / "environment.json") or {})["sessions"]
    assert [session["step"] for session in sessions] == [0, 40, 80]
    record_session(tmp_path, device="CPU", threads=1, processes=1, step=0)
    assert len((read_json(tmp_path / "environment.json") or {})["sessions"]) == 1


def test_the_commit_is_that_of_the_program_and_not_of_a_folder_around_it(tmp_path: Path) -> None:
    file = tmp_path / "module.py"
    file.write_text("a = 1\n")
    assert commit(file) is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    assert commit(file) is None  # in a repository that does not know it
    subprocess.run([*git, "add", "module.py"], check=True)
    subprocess.run([*git, "commit", "-qm", "first"], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    assert commit(file) == head
    file.write_text("a = 2\n")
    assert commit(file) == head + "+"


def test_scores_of_an_epoch_by_case_and_class() -> None:
    dice = {"3fa0": np.array([1, 0.5, np.nan]), "77b1": np.array([1, 1.0, 0.0])}
    lines = case_scores(dice, ["background", "organ", "tumour"], epoch=3, step=60)
    assert [(line["epoch"], line["step"], line["case"]) for line in lines] == [(3, 60, "3fa0"), (3, 60, "77b1")]
    assert lines[0]["dice"] == {"organ": 0.5, "tumour": None}
    assert lines[0]["iou"] == {"organ": pytest.approx(1 / 3), "tumour": None}
    assert lines[1]["iou"] == {"organ": 1, "tumour": 0}


def test_scores_are_forgotten_from_where_the_run_goes_on(tmp_path: Path) -> None:
    rewind_scores(tmp_path, 1)  # nothing was written yet
    append_lines(tmp_path / METRICS, [{"epoch": epoch} for epoch in (1, 2, 3)])
    with (tmp_path / METRICS).open("a") as file:
        file.write('{"epoch": 4, "ca')
    rewind_scores(tmp_path, 2)
    assert read_lines(tmp_path / METRICS) == [{"epoch": 1}, {"epoch": 2}]


@pytest.mark.parametrize("content", [None, "", "{", "[1]"])
def test_a_record_that_is_not_there_or_damaged(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "a.json").write_text(content)
    assert read_json(tmp_path / "a.json") is None
