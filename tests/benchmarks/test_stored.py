"""Scores, tables and figures of a study with made-up results that can be reckoned by hand."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from benchmarks.accuracy.comparison import Ranking
from benchmarks.accuracy.figures import DARK, Point, cost_diagram, rank_diagram
from benchmarks.accuracy.stored import HD95, SURFACE_DICE, read_stored, read_trials
from benchmarks.accuracy.study import Study
from benchmarks.accuracy.table import failures, gap, gap_closed, overview, section

NETWORK = {"embed_dim": 8, "depth": 2, "num_heads": 1, "patch_size": 8, "image_size": 32, "stem_widths": [4, 4]}
ARMS = ("alone", "kd", "rskd", "no_ranking")
STUDY = Study.model_validate(
    {
        "name": "made",
        "dataset": "acdc",
        "teacher": {"name": "teacher", **NETWORK, "decoder_width": 8},
        "student": {"name": "student", **NETWORK, "decoder_width": 4},
        "training": {"epochs": 1},
        "arms": {arm: {"base": arm if arm != "no_ranking" else "rskd"} for arm in ARMS},
        "seeds": [0, 1],
    }
)
CASES = "abcdef"
SHIFTS = {"teacher": 0.2, "alone": 0.0, "kd": 0.05, "rskd": 0.1, "no_ranking": 0.08}


def result(shift: float, seed: int, **more: Any) -> dict[str, Any]:
    cases = {
        case: {"left": 0.5 + shift + 0.01 * number, "right": 0.4 + shift + 0.01 * seed}
        for number, case in enumerate(CASES)
    }
    dice = {name: float(np.mean([row[name] for row in cases.values()])) for name in ("left", "right")}
    return {"dice": dice, "cases": cases, "parameters": 1_000_000 if shift < 0.2 else 4_000_000} | more


def surface(distance: float | None) -> dict[str, Any]:
    row = {HD95: {"left": distance, "right": 2.0}, SURFACE_DICE: {"left": 0.5, "right": 0.7}, "unit": "mm"}
    return {"surface": dict.fromkeys(CASES, row)}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    for arm, shift in SHIFTS.items():
        for seed in STUDY.seeds:
            store(tmp_path, f"{arm}-{seed}", result(shift, seed))
    return tmp_path


def store(results: Path, name: str, value: dict[str, Any]) -> None:
    path = results / STUDY.name / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value))


def test_a_case_has_the_mean_of_its_classes_and_seeds(results: Path) -> None:
    stored = read_stored(STUDY, results)
    assert stored.scores("alone", [0, 1]) == pytest.approx([0.4525 + 0.005 * number for number in range(6)])
    assert stored.scores("alone", [1]) == pytest.approx([0.455 + 0.005 * number for number in range(6)])


def test_nothing_stored_is_nothing(tmp_path: Path) -> None:
    assert read_stored(STUDY, tmp_path) is None


def test_a_missing_seed_is_left_out_of_both_sides_of_a_comparison(results: Path) -> None:
    (results / "made" / "kd-1.json").unlink()
    store(results, "rskd-1", result(0.3, 1))  # another training that was much better
    stored = read_stored(STUDY, results)
    assert stored.seeds("kd", "rskd") == [0]
    text = section(stored, {}, [])
    assert "of 2 seeds there are so far: KD 1." in text
    assert "| KD | 1 | +0.050 | +0.050 to +0.050 |" in text


def test_the_share_of_the_gap_by_hand(results: Path) -> None:
    stored = read_stored(STUDY, results)
    assert gap(stored) == pytest.approx(0.2)
    assert gap_closed(stored, "rskd") == pytest.approx(0.5)
    assert gap_closed(stored, "teacher") is None


def test_no_share_of_a_gap_within_the_spread_of_the_seeds(results: Path) -> None:
    store(results, "teacher-1", result(0.06, 1))  # means 0.2 and 0.065, deviation 0.095: the gap is 0.13
    stored = read_stored(STUDY, results)
    assert gap(stored) is None
    assert gap_closed(stored, "rskd") is None
    assert "gap closed" not in section(stored, {}, [])


def test_the_overview_says_what_each_part_adds(results: Path) -> None:
    line = overview([read_stored(STUDY, results)]).splitlines()[2]
    assert line == (
        "| `made` | 2 | 0.665 ± 0.004 | 0.465 ± 0.004 | KD 0.515 ± 0.004 | 0.565 ± 0.004 | yes | 50% | +0.020 | – | – |"
    )


def test_the_mean_of_the_overview_leaves_out_first_trials(results: Path) -> None:
    made = read_stored(STUDY, results)
    other = replace(made, results={**made.results, "no_ranking": made.results["alone"]})
    small = replace(other, study=STUDY.model_copy(update={"name": "made-small"}))
    lines = overview([made, other, small]).splitlines()
    assert lines[5].endswith("| 50% | +0.060 | – | – |")  # (0.02 + 0.1) / 2
    assert "| mean |" not in overview([made, small])


def test_a_study_after_another_has_its_teachers_and_counts_in_no_mean(results: Path) -> None:
    later = STUDY.model_copy(update={"name": "later", "after": STUDY.name, "masks": 0.2})
    assert read_stored(later, results) is None  # the teachers alone are nothing of its own
    for arm in ("alone", "kd", "rskd"):
        for path in (results / STUDY.name).glob(f"{arm}-*.json"):
            (results / "later").mkdir(exist_ok=True)
            (results / "later" / path.name).write_text(path.read_text())
    found, first = read_stored(later, results), read_stored(STUDY, results)
    assert found
    assert first
    assert found.results["teacher"] == first.results["teacher"]
    assert "| mean |" not in overview([first, found])
    assert "| mean |" in overview([first, replace(first, study=STUDY.model_copy(update={"name": "other"}))])


def test_a_study_without_masks_has_no_student_alone(results: Path) -> None:
    made = read_stored(STUDY, results)
    less = replace(made, results={arm: found for arm, found in made.results.items() if arm != "alone"})
    assert "| – | KD 0.515 ± 0.004 | 0.565 ± 0.004 | yes | – |" in overview([less])
    assert "Every method less" not in section(less, {}, [])


def test_rskd_below_the_student_alone_is_not_above_all(results: Path) -> None:
    for seed in STUDY.seeds:
        store(results, f"rskd-{seed}", result(-0.01, seed))
    line = overview([read_stored(STUDY, results)]).splitlines()[2]
    assert "| no | −5% |" in line


def test_a_lost_class_is_named_with_its_seed(results: Path) -> None:
    lost = result(0.05, 1)
    for row in lost["cases"].values():
        row["right"] = 0
    store(results, "kd-1", lost)
    words = failures(read_stored(STUDY, results))
    assert "KD loses the right in every case (seed 1)" in words
    assert "KD: 6 of 24 scores are 0" in words
    assert "RSKD" not in words


def test_a_missed_class_is_the_worst_distance_and_is_counted(results: Path) -> None:
    for arm, shift in SHIFTS.items():
        for seed in STUDY.seeds:
            missed = arm == "kd" and seed == 1
            store(results, f"{arm}-{seed}", result(shift, seed) | surface(None if missed else 8.0 + shift))
    stored = read_stored(STUDY, results)
    assert stored.missed("kd") == 6
    assert stored.by_seed("kd", HD95) == pytest.approx([(8.05 + 2) / 2, 2.0])
    assert stored.scores("kd", [1], HD95) == pytest.approx(np.full(6, (8.2 + 2) / 2))
    assert stored.scores("alone", [1], HD95) == pytest.approx(np.full(6, 5.0))
    line = next(line for line in section(stored, {}, []).splitlines() if line.startswith("| KD | ") and "| 6 |" in line)
    assert "0.600 ± 0.000" in line


def test_a_class_that_is_in_neither_picture_is_no_failure(results: Path) -> None:
    value = result(0.0, 0) | surface(3.0)
    value["cases"]["a"]["left"] = None
    value["surface"]["a"] = {
        HD95: {"left": None, "right": 2.0},
        SURFACE_DICE: {"left": None, "right": 0.7},
        "unit": "mm",
    }
    store(results, "alone-0", value)
    stored = read_stored(STUDY.model_copy(update={"arms": {"alone": STUDY.arms["alone"]}, "seeds": (0,)}), results)
    assert stored.missed("alone") == 0
    assert stored.scores("alone", [0])[0] == pytest.approx(0.4)
    assert not list(stored.lost())


def test_results_of_other_cases_are_refused(results: Path) -> None:
    other = result(0.0, 0)
    other["cases"]["z"] = other["cases"].pop("a")
    store(results, "kd-0", other)
    with pytest.raises(ValueError, match=r"made/kd-0\.json is of other cases"):
        read_stored(STUDY, results)


def test_two_volumes_of_a_patient_are_one_patient(results: Path) -> None:
    listed = {"acdc": {case: number // 2 for number, case in enumerate(CASES)}}
    (results / "patients.json").write_text(json.dumps(listed))
    text = section(read_stored(STUDY, results), {}, [])
    assert "6 test images of 3 patients" in text
    assert "p over patients (Holm)" in text
    (results / "patients.json").write_text(json.dumps({"acdc": {"a": 0}}))
    with pytest.raises(ValueError, match=r"lacks b, c, d, e, f of acdc"):
        read_stored(STUDY, results)


def test_trials_are_listed_with_the_one_that_was_chosen(results: Path) -> None:
    for number, best in enumerate((0.61, 0.64)):
        changes = {"logits": {"weight": float(number)}}
        store(results, f"kd.{number}-0", {"trial_changes": changes, "validation": [0.5, best, None]})
    for seed in STUDY.seeds:
        store(results, f"kd-{seed}", result(0.05, seed, trial=1))
    lines = section(read_stored(STUDY, results), read_trials(STUDY, results), []).splitlines()
    assert "| KD | 0 | logits.weight = 0.0 | 0.6100 |" in lines
    assert "| KD | 1 ← chosen | logits.weight = 1.0 | 0.6400 |" in lines


def texts(svg: str) -> list[str]:
    return [element.text for element in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]  # noqa: S314


def test_the_diagrams_name_every_method_with_its_figure() -> None:
    ranking = Ranking({"rskd": 1.25, "kd": 2.0, "alone": 2.75}, 8, 0.01, 1.0)
    names = {"rskd": "R", "kd": "<K>", "alone": "A"}
    drawn = texts(rank_diagram(ranking, names, highlight="rskd"))
    assert {"R  1.25", "<K>  2.00", "2.75  A", "critical difference 1.00"} <= set(drawn)
    points = [Point("teacher", 40, [0.8, 0.9]), Point("R", 4, [0.75]), Point("A", 4, [0.7, 0.6])]
    drawn = texts(cost_diagram(points, "ms", highlight="R"))
    assert {"teacher", "R  0.750", "A  0.650", "ms", "40", "4"} <= set(drawn)


def test_the_diagrams_can_be_read_in_light_and_dark() -> None:
    def luminance(color: str) -> float:
        parts = [int(color[start : start + 2], 16) / 255 for start in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))

    def contrast(one: str, other: str) -> float:
        low, high = sorted((luminance(one), luminance(other)))
        return (high + 0.05) / (low + 0.05)

    ink, faint, paper, mark, best = DARK
    for chosen in (lambda color: color, DARK.__getitem__):
        assert all(contrast(chosen(color), chosen(paper)) >= 4.5 for color in (ink, best))
        assert all(contrast(chosen(color), chosen(paper)) >= 3 for color in (faint, mark))
    assert math.isclose(contrast("#000000", "#ffffff"), 21)
