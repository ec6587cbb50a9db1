"""Recipes: jobs in order that give the same arrays again, from their file, as a command and as Python."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rskd.as_code import as_command, as_python
from rskd.cli import main
from rskd.config import ContourletOptions, RankOptions, SegmentOptions
from rskd.errors import FileError, ParameterError
from rskd.events import drain
from rskd.io import write_image
from rskd.jobs import AgreementJob, ContourletJob, DenoiseJob, InspectJob, Outcome, RankJob, ReconstructJob, SegmentJob
from rskd.replay import replay
from rskd.run import run
from rskd.scan import Scan
from rskd.steps import FromFile, FromStep, Recipe, Step, find_in_files, find_in_outcome, index_of, read_recipe

STUDENT = Path("retina-student")
LEVELS = ContourletOptions(levels=(2,))


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "it's a picture.png"
    write_image(path, Scan(np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8), "yxc"))
    return path


@pytest.fixture
def recipe(picture):
    image = {"image": FromFile(file=picture)}
    split = {"channel": 1, "options": LEVELS, "axes": "yxc"}
    return Recipe(
        steps=(
            Step(job=SegmentJob(model=STUDENT, axes="yxc", options=SegmentOptions(tile=64)), arrays=image),
            Step(job=ContourletJob(**split), arrays=image),
            Step(job=ReconstructJob(**split, gains={"lowpass": 0.5}), arrays=image),
            Step(
                job=DenoiseJob(axes="yx"), arrays={"image": FromStep(step=2, array="lowpass")}
            ),
        )
    )  # fmt: skip


def call(*words):
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert not ended.value.code


def same(arrays, folder):
    assert sorted(path.stem for path in folder.glob("*.npy")) == sorted(arrays)
    for name, array in arrays.items():
        read = np.load(folder / f"{name}.npy")
        assert read.dtype == array.dtype
        np.testing.assert_array_equal(read, array)


def test_replayed_from_its_file_it_gives_the_arrays_that_the_jobs_give(recipe, tmp_path, capsys):
    (tmp_path / "recipe.json").write_text(recipe.model_dump_json())
    call("run", str(tmp_path / "recipe.json"), "--output", str(tmp_path / "out"))
    read = {"image": recipe.steps[0].arrays["image"].read()}
    low = None
    for number, step in enumerate(recipe.steps, 1):
        outcome = drain(run(step.job, read if number < 4 else {"image": low}))
        low = outcome.arrays.get("lowpass", low)
        same(outcome.arrays, tmp_path / "out" / f"{number:02d}_{step.job.kind}")
    told = json.loads(capsys.readouterr().out)
    assert [*told[0]["classes"][1]] == ["name", "color"]
    assert len(told) == 4


def test_pasted_as_a_command_or_as_python_it_gives_the_same(recipe, tmp_path):
    outcomes = drain(replay(recipe))
    done = subprocess.run(
        [sys.executable, "-m", *shlex.split(as_command(recipe))],
        cwd=tmp_path,
        capture_output=True,
        check=True,
        text=True,
    )
    assert "Step 2 of 4: contourlet" in done.stderr
    for number, (step, outcome) in enumerate(zip(recipe.steps, outcomes, strict=True), 1):
        same(outcome.arrays, tmp_path / "results" / f"{number:02d}_{step.job.kind}")
    pasted = {}
    exec(as_python(recipe), pasted)  # noqa: S102 - that it runs is what is to be shown
    for number, outcome in enumerate(outcomes, 1):
        for name, array in outcome.arrays.items():
            np.testing.assert_array_equal(pasted[f"step{number}"].arrays[name], array)


def test_a_single_job_on_a_plain_picture_has_its_own_command(recipe, picture, tmp_path, monkeypatch, capsys):
    import tifffile

    command = as_command(Recipe(steps=recipe.steps[:1]))
    assert command.startswith("rskd segment --model retina-student")
    assert f"--image {shlex.quote(str(picture))}" in command
    monkeypatch.chdir(tmp_path)
    call(*shlex.split(command)[1:])
    (outcome,) = drain(replay(Recipe(steps=recipe.steps[:1])))
    np.testing.assert_array_equal(tifffile.imread("labels.tif"), outcome.arrays["labels"])


def test_a_file_that_says_more_than_its_pixels_is_not_read_by_the_job_itself(tmp_path):
    """Its spacing would make the network see another size."""
    path = tmp_path / "scan.nii.gz"
    write_image(path, Scan(np.zeros((64, 64), np.float32), "yx", spacing=(3.0, 3.0), units="mm"))
    step = Step(job=SegmentJob(model=STUDENT, axes="yx"), arrays={"image": FromFile(file=path)})
    assert as_command(Recipe(steps=(step,))).startswith("rskd run ")


@pytest.mark.parametrize(
    "job",
    [
        InspectJob(model=STUDENT),
        SegmentJob(model=STUDENT, image=Path("a b.png"), uncertainty=("entropy", "margin"), output=Path("l.tif")),
        SegmentJob(model=STUDENT, options=SegmentOptions(probabilities=True, tile=32, overlap=0.25)),
        RankJob(teacher=STUDENT, output=Path("out"), options=RankOptions(keep_ratio=0.5, block=-1)),
    ],
)
def test_a_command_is_understood_as_the_job_it_tells(job, monkeypatch):
    understood = []
    monkeypatch.setattr("rskd.cli._perform", lambda job, *, debug: understood.append(job))
    call(*shlex.split(as_command(Recipe(steps=(Step(job=job),))))[1:])
    fields = understood[0].model_dump(exclude={"output"})
    assert fields == job.model_dump(exclude={"output"})


def test_a_single_job_is_a_recipe_of_one_step(tmp_path):
    job = InspectJob(model=STUDENT)
    assert read_recipe(job.model_dump_json(), name="it", folder=tmp_path) == Recipe(steps=(Step(job=job),))


def test_a_recipe_moves_with_the_pictures_beside_it(tmp_path, picture):
    image = FromFile(file=Path(picture.name))
    text = Recipe(steps=(Step(job=DenoiseJob(), arrays={"image": image}),)).model_dump_json()
    (step,) = read_recipe(text, name="it", folder=tmp_path).steps
    assert step.arrays["image"].file == picture


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "it is not JSON"),
        ("[]", "is no job"),
        ('{"kind": "dance"}', "is no job"),
        ('{"kind": "recipe", "steps": [{"job": {"kind": "segment"}}]}', "is no job"),
        (
            '{"kind": "recipe", "steps": [{"job": {"kind": "agreement"}, "arrays": {"a": {"step": 1, "array": "b"}}}]}',
            "step 1 needs what step 1 returns, which comes later",
        ),
    ],
)
def test_what_is_no_recipe_is_refused_in_a_sentence(text, said, tmp_path):
    with pytest.raises(FileError, match=r"r\.json is no job") as caught:
        read_recipe(text, name="r.json", folder=tmp_path)
    assert said in str(caught.value)


def test_arrays_that_are_not_there_are_named(picture):
    with pytest.raises(FileError, match="holds no image number 1"):
        FromFile(file=picture, scan=1).read()
    with pytest.raises(FileError, match=r"an index \[64\]"):
        FromFile(file=picture, at=(64,)).read()
    first = Step(job=InspectJob(model=STUDENT))
    second = Step(job=AgreementJob(), arrays={"teacher": FromStep(step=1, array="map")})
    with pytest.raises(ParameterError, match="Step 1 returned no array 'map'"):
        drain(replay(Recipe(steps=(first, second))))


def test_a_job_that_writes_does_not_write_over_what_it_wrote(picture, tmp_path):
    job = ContourletJob(axes="yxc", output=tmp_path / "mine", options=LEVELS)
    recipe = Recipe(steps=(Step(job=job, arrays={"image": FromFile(file=picture)}),))
    drain(replay(recipe, output=tmp_path / "again"))
    assert not (tmp_path / "mine").exists()
    assert (tmp_path / "again" / "01_contourlet" / "mine" / "lowpass.tif").exists()


def test_a_step_uses_the_student_of_the_run_before_it_and_not_the_one_of_long_ago(tmp_path, monkeypatch):
    old, seen = tmp_path / "first time", []

    def run(self, job, arrays):
        seen.append(job)
        yield from ()
        return Outcome({})

    monkeypatch.setattr("rskd.replay.Session.run", run)
    data = {"images": str(tmp_path)}
    jobs = [
        {"kind": "distill", "teacher": "retina-teacher", "student": "rskd-nano", "data": data, "run": str(old)},
        {"kind": "inspect", "model": str(old / "best.safetensors")},
        {"kind": "train", "model": str(old / "best.safetensors"), "data": data, "run": str(tmp_path / "second")},
        {"kind": "inspect", "model": str(tmp_path / "second" / "best.safetensors")},
        {"kind": "inspect", "model": "retina-student"},
    ]
    output = tmp_path / "again"
    drain(replay(Recipe.model_validate({"steps": [{"job": job} for job in jobs]}), output=output))
    first, second = output / "01_distill" / "run", output / "03_train" / "run"
    assert [job.run for job in (seen[0], seen[2])] == [first, second]
    assert seen[1].model == first / "best.safetensors"
    assert seen[2].model == str(first / "best.safetensors")
    assert [job.model for job in seen[3:]] == [second / "best.safetensors", Path("retina-student")]


def test_where_an_array_was_taken_from_is_found(picture, tmp_path):
    pixels = FromFile(file=picture).read()
    other = tmp_path / "other.npy"
    np.save(other, np.random.default_rng(1).random((3, 5, 7)))
    stack = np.load(other)
    files = [tmp_path / "gone.png", other, picture]
    assert find_in_files(pixels, files) == FromFile(file=picture)
    assert find_in_files(stack[2], files) == FromFile(file=other, at=(2,))
    assert find_in_files(pixels + 1, files) is None
    assert find_in_outcome(stack[1, 4], 3, {"a": pixels, "b": stack}) == FromStep(step=3, array="b", at=(1, 4))
    assert find_in_outcome(stack + 1, 3, {"b": stack}) is None


def test_index_of_knows_nan_and_types():
    whole = np.full((2, 3), np.nan, np.float32)
    assert index_of(whole[0], whole) == (0,)
    assert index_of(whole.astype(np.float64), whole) is None
    assert index_of(np.zeros((2, 3, 4)), np.zeros((3, 4))) is None
