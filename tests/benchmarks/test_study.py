"""The study runner, on drawn vessels laid out like the data set it was made for."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from benchmarks.accuracy import units
from benchmarks.accuracy.datasets import lay_out
from benchmarks.accuracy.study import Study, Unit, read_study
from benchmarks.accuracy.table import table
from benchmarks.accuracy.units import Workplace, run_study
from rskd.config import ComputeOptions
from rskd.phantom import vessel_phantom
from rskd.runs import RunFolder

STUDIES = Path(units.__file__).parent / "studies"
NETWORK = {"embed_dim": 8, "depth": 2, "num_heads": 1, "patch_size": 8, "image_size": 32, "stem_widths": [4, 4]}
STUDY = {
    "name": "tiny",
    "dataset": "drive",
    "teacher": {"name": "teacher", **NETWORK, "decoder_width": 8},
    "student": {"name": "student", **NETWORK, "decoder_width": 4},
    "training": {"epochs": 1, "steps_per_epoch": 2, "batch_size": 2},
    "arms": {"alone": {"base": "alone"}, "kd": {"base": "kd", "changes": {"logits": {"temperature": 2}}}},
    "seeds": [0, 1],
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five drawn pictures for development and two for the test, named like those of DRIVE."""
    drive = tmp_path_factory.mktemp("data") / "drive"
    rng = np.random.default_rng(0)
    sides = {"training": range(21, 26), "test": range(1, 3)}
    for side, numbers in sides.items():
        for folder in ("images", "1st_manual", "mask"):
            (drive / side / folder).mkdir(parents=True)
        for number in numbers:
            image, mask = vessel_phantom(rng, 48)
            Image.fromarray(image).save(drive / side / "images" / f"{number:02}_{side}.tif")
            Image.fromarray(mask.astype(np.uint8) * 255).save(drive / side / "1st_manual" / f"{number:02}_manual1.gif")
            whole = np.full(mask.shape, 255, np.uint8)
            Image.fromarray(whole).save(drive / side / "mask" / f"{number:02}_{side}_mask.gif")
    names = {side: [f"{number:02}_{side}.tif" for number in numbers] for side, numbers in sides.items()}
    splits = {"train": names["training"][:-1], "val": names["training"][-1:], "test": names["test"]}
    (drive / "splits.json").write_text(json.dumps({"splits": splits}))
    return drive.parent


@pytest.fixture
def workplace(data: Path, tmp_path: Path) -> Workplace:
    return Workplace(data, tmp_path / "runs", tmp_path / "results", ComputeOptions(device="cpu", threads=1))


@pytest.mark.parametrize("path", sorted(STUDIES.glob("*.toml")), ids=lambda path: path.stem)
def test_every_study_of_the_project_can_be_read(path: Path) -> None:
    study = read_study(path)
    assert study.name == path.stem
    trials = sum(len(arm.trials) for arm in study.arms.values())
    trainings = len(study.seeds) * len(study.arms) + (0 if study.after else len(study.seeds) + trials)
    assert len({unit.name for unit in study.units()}) == len(list(study.units())) == trainings


def test_a_study_is_done_unit_by_unit_and_never_twice(workplace: Workplace) -> None:
    study = Study.model_validate(STUDY)
    said = list(run_study(study, workplace, minutes=10))
    assert [line.partition(":")[0] for line in said] == ["teacher-0", "teacher-1", "alone-0", "kd-0", "alone-1", "kd-1"]
    assert list(run_study(study, workplace, minutes=10)) == []
    result = json.loads(workplace.result(study, Unit("kd", 1)).read_text())
    assert result["recipe"]["distillation"]["logits"]["temperature"] == 2
    assert result["recipe"]["training"]["seed"] == 1
    assert len(result["cases"]) == 2
    text = workplace.result(study, Unit("kd", 1)).read_text()
    assert str(workplace.runs) not in text
    assert "_test" not in text


def weighted(weight: float) -> dict[str, Any]:
    return {"logits": {"weight": weight}}


TUNED = STUDY | {
    "seeds": [0, 1],
    "arms": {
        "kd": {"base": "kd", "trials": [weighted(1), weighted(3)]},
        "kd_hot": {"base": "kd", "changes": {"logits": {"temperature": 7}}, "follows": "kd"},
    },
}


def test_the_trial_with_the_best_validation_is_used_for_every_seed_and_by_the_ablations(workplace: Workplace) -> None:
    study = Study.model_validate(TUNED)
    list(run_study(study, workplace, minutes=10))
    scores = []
    for number in (0, 1):
        trial = json.loads(workplace.result(study, Unit("kd", 0, number)).read_text())
        assert not trial.keys() & {"dice", "cases", "surface"}  # nobody looks at the test images to choose
        scores.append(max(trial["validation"]))
    best = scores.index(max(scores))
    for arm, seed, temperature in (("kd", 0, 4), ("kd", 1, 4), ("kd_hot", 0, 7), ("kd_hot", 1, 7)):
        result = json.loads(workplace.result(study, Unit(arm, seed)).read_text())
        logits = result["recipe"]["distillation"]["logits"]
        assert (result["trial"], logits["weight"], logits["temperature"]) == (best, [1, 3][best], temperature)
    assert {path.name for path in (workplace.runs / "tiny").iterdir() if path.is_dir()} == {
        *("teacher-0", "teacher-1", "kd.0-0", "kd.1-0", "kd-1", "kd_hot-0", "kd_hot-1")
    }  # the chosen trial is not trained again


def test_a_study_after_another_uses_its_teachers_and_its_choice(workplace: Workplace, tmp_path: Path) -> None:
    first = Study.model_validate(TUNED | {"seeds": [0]})
    later = Study.model_validate(TUNED | {"seeds": [0], "name": "later", "after": "tiny", "masks": 0.5})
    assert [unit.name for unit in later.units()] == ["kd-0", "kd_hot-0"]
    assert "needs teacher-0 first" in next(run_study(later, workplace, minutes=10))
    list(run_study(first, workplace, minutes=10))
    list(run_study(later, workplace, minutes=10))
    found, chosen = (json.loads(workplace.result(study, Unit("kd", 0)).read_text()) for study in (later, first))
    assert found["recipe"]["distillation"] == chosen["recipe"]["distillation"]
    assert found["validation"] != chosen["validation"]


def test_without_masks_the_teacher_alone_is_learned_from(workplace: Workplace) -> None:
    list(run_study(Study.model_validate(TUNED | {"seeds": [0]}), workplace, minutes=10))
    later = Study.model_validate(TUNED | {"seeds": [0], "name": "none", "after": "tiny", "masks": 0.0})
    assert all("test Dice" in said for said in run_study(later, workplace, minutes=10))
    result = json.loads(workplace.result(later, Unit("kd", 0)).read_text())
    assert result["recipe"]["distillation"]["task"] == 0


def test_the_teacher_has_a_budget_of_its_own_if_one_is_given(workplace: Workplace) -> None:
    training = {"epochs": 2, "steps_per_epoch": 1, "batch_size": 2}
    study = Study.model_validate(STUDY | {"seeds": [0], "arms": {}, "teaching": training})
    list(run_study(study, workplace, minutes=10))
    assert len(json.loads(workplace.result(study, Unit("teacher", 0)).read_text())["validation"]) == 2


def test_borders_are_measured_beside_dice(workplace: Workplace) -> None:
    list(run_study(Study.model_validate(STUDY | {"seeds": [0], "arms": {}}), workplace, minutes=10))
    result = json.loads((workplace.results / "tiny" / "teacher-0.json").read_text())
    assert result["surface"].keys() == result["cases"].keys()
    assert all(found.keys() == {"hd95", "surface_dice", "unit"} for found in result["surface"].values())


def test_an_arm_follows_only_one_with_trials() -> None:
    with pytest.raises(ValidationError, match="no arm with trials"):
        Study.model_validate(STUDY | {"arms": {"kd": {"base": "kd", "follows": "rskd"}}})


def test_the_table_holds_the_mean_and_deviation_of_what_is_stored(workplace: Workplace) -> None:
    study = Study.model_validate(STUDY)
    for arm, seed, dice in (("teacher", 0, 0.5), ("teacher", 1, 0.7), ("alone", 0, 0.25)):
        path = workplace.result(study, Unit(arm, seed))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"dice": {"vessel": dice}, "parameters": 2_000_000}))
    lines = table(study, workplace.results).splitlines()
    assert lines[2:4] == ["| teacher | 2.00 | 2 | 0.600 ± 0.141 |", "| student alone | 2.00 | 1 | 0.250 |"]
    assert lines[5:] == ["**Not complete:** of 2 seeds there are so far: student alone 1, KD none."]


def test_a_unit_out_of_time_goes_on_with_the_next_call(workplace: Workplace) -> None:
    long = Study.model_validate(STUDY | {"seeds": [0], "arms": {}})
    assert "interrupted" in next(run_study(long, workplace, minutes=0))
    assert not workplace.result(long, Unit("teacher", 0)).exists()
    (said,) = run_study(long, workplace, minutes=10)
    assert "test Dice" in said


def test_processes_leave_each_other_their_units(workplace: Workplace) -> None:
    study = Study.model_validate(STUDY | {"seeds": [0]})
    list(run_study(study, workplace, minutes=10))
    for arm in ("teacher", "kd"):
        workplace.result(study, Unit(arm, 0)).unlink()
    with RunFolder(workplace.runs / "tiny" / "teacher-0").locked():  # as another process would
        said = list(run_study(study, workplace, minutes=10))
    assert [("left out" in line, line.partition(":")[0]) for line in said] == [(True, "teacher-0"), (True, "kd-0")]
    assert "another process" in said[0]
    assert "needs teacher-0 first" in said[1]


def test_only_a_share_of_the_patients_keeps_its_masks(data: Path, tmp_path: Path) -> None:
    folders = lay_out("drive", data / "drive", tmp_path, masks=0.5)
    masks = {path.stem for path in (tmp_path / "drive-0.5" / "masks").iterdir()}
    assert folders.development.unlabelled
    assert len(masks - {"25_training"}) == 2
    assert "25_training" in masks
    assert folders.development.validation == ("25_training",)


def test_an_unknown_method_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValidationError, match="fitnets"):
        Study.model_validate(STUDY | {"arms": {"new": {"base": "unheard of"}}})
