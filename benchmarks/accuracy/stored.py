"""The stored results of a study, as scores per case."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.accuracy.comparison import Scores
from benchmarks.accuracy.study import TEACHER, Study

Result = Mapping[str, Any]
HERE = Path(__file__).parent
PATIENTS = HERE / "results" / "patients.json"
DICE, HD95, SURFACE_DICE = "dice", "hd95", "surface_dice"


@dataclass(frozen=True)
class Stored:
    """What is stored of a study so far."""

    study: Study
    results: Mapping[str, Mapping[int, Result]]
    """By arm, the teacher first, then by seed; an arm without any result is left out."""
    patients: Mapping[str, object]
    """To whom a case belongs, where that is not a patient of its own."""

    @property
    def students(self) -> list[str]:
        """Arms but the teacher."""
        return [arm for arm in self.results if arm != TEACHER]

    @property
    def classes(self) -> list[str]:
        return list(self._any["dice"])

    @property
    def cases(self) -> list[str]:
        """Cases of the test, by the name that a report may call them."""
        return list(self._any.get("cases", ()))

    @property
    def owners(self) -> list[object]:
        """Patient of every case."""
        return [self.patients.get(case, case) for case in self.cases]

    @property
    def _any(self) -> Result:
        return next(iter(next(iter(self.results.values())).values()))

    def seeds(self, *arms: str) -> list[int]:
        """Return the seeds that all of these arms have."""
        return [seed for seed in self.study.seeds if all(seed in self.results.get(arm, ()) for arm in arms)]

    def has(self, measure: str) -> bool:
        """Return whether every result has a measure; those of borders are missing in old ones."""
        found = [result for by_seed in self.results.values() for result in by_seed.values()]
        if measure == DICE:
            return all(result.get("cases") for result in found)
        return all(result.get("surface") for result in found)

    @property
    def unit(self) -> str:
        """Unit of the distances."""
        return next(iter(self._any["surface"].values()))["unit"]

    def scores(self, arm: str, seeds: Sequence[int], measure: str = DICE) -> Scores:
        """Return the score of every case, the mean over classes and then over seeds; nan without any.

        A class that is missed counts as the largest distance that any network of the study has.
        """
        worst = self.worst() if measure == HD95 else np.nan
        rows = [[self._score(self.results[arm][seed], case, measure, worst) for case in self.cases] for seed in seeds]
        return np.array(rows, float).mean(0)

    def by_seed(self, arm: str, measure: str = DICE, only: str | None = None) -> list[float]:
        """Return the test score of every seed, of one class or the mean of all; a missed distance does not count."""
        return [_mean(self._of_classes(result, measure, only)) for result in self.results[arm].values()]

    def missed(self, arm: str) -> int:
        """Return how often a class has no distance, because it is in the mask or in the segmentation alone."""
        return sum(
            distance is None and result["cases"][case][name] is not None
            for result in self.results[arm].values()
            for case in self.cases
            for name, distance in result["surface"][case][HD95].items()
        )

    def lost(self) -> Iterator[tuple[str, int, str]]:
        """Yield arm, seed and class wherever a network has a Dice of 0 in all cases."""
        for arm, by_seed in self.results.items():
            for seed, result in by_seed.items():
                for name in self.classes:
                    known = [s for row in result.get("cases", {}).values() if (s := row[name]) is not None]
                    if known and max(known) == 0:
                        yield arm, seed, name

    def without_overlap(self, arm: str) -> tuple[int, int]:
        """Return how many scores of a class in a case are 0, of how many."""
        found = [s for r in self.results[arm].values() for row in r["cases"].values() for s in row.values()]
        known = [score for score in found if score is not None]
        return known.count(0), len(known)

    def worst(self) -> float:
        """Return the largest distance in the study."""
        found = [
            distance
            for by_seed in self.results.values()
            for result in by_seed.values()
            for row in result["surface"].values()
            for distance in row[HD95].values()
            if distance is not None
        ]
        return max(found, default=np.nan)

    def _score(self, result: Result, case: str, measure: str, worst: float) -> float:
        dice = result["cases"][case]
        row = dice if measure == DICE else result["surface"][case][measure]
        there = [worst if score is None else score for name, score in row.items() if dice[name] is not None]
        return _mean(there)

    def _of_classes(self, result: Result, measure: str, only: str | None) -> list[float | None]:
        names = self.classes if only is None else [only]
        if measure == DICE:
            return [result["dice"][name] for name in names]
        return [_mean([row[measure][name] for row in result["surface"].values()]) for name in names]


def read_stored(study: Study, results: Path) -> Stored | None:
    """Return what is stored of a study, and of the teachers that it uses; None if nothing of its own is.

    Raises
    ------
    ValueError
        If the results are of different cases, or of a data set whose patients are listed but without one of its cases.
    """
    found: dict[str, dict[int, Result]] = {}
    for arm in (TEACHER, *study.arms):
        place = results / (study.origin if arm == TEACHER else study.name)
        paths = {seed: place / f"{arm}-{seed}.json" for seed in study.seeds}
        by_seed = {seed: json.loads(path.read_text()) for seed, path in paths.items() if path.exists()}
        if by_seed:
            found[arm] = by_seed
    if not found or (study.after and found.keys() == {TEACHER}):
        return None
    listed = results / PATIENTS.name
    patients = json.loads(listed.read_text()).get(study.dataset, {}) if listed.exists() else {}
    stored = Stored(study, found, patients)
    _check(stored)
    return stored


def read_trials(study: Study, results: Path) -> dict[str, list[tuple[int, Result]]]:
    """Return the trials of each arm that was tuned, with their number, in order."""
    trials: dict[str, list[tuple[int, Result]]] = {}
    for arm in study.arms:
        paths = (results / study.name).glob(f"{arm}.*-*.json")
        found = [(int(path.name.removeprefix(f"{arm}.").partition("-")[0]), path) for path in paths]
        if found:
            trials[arm] = [(number, json.loads(path.read_text())) for number, path in sorted(found)]
    return trials


def _check(stored: Stored) -> None:
    for arm, by_seed in stored.results.items():
        for seed, result in by_seed.items():
            if set(result.get("cases", ())) != set(stored.cases):
                raise ValueError(f"{stored.study.name}/{arm}-{seed}.json is of other cases than the first result.")
    unknown = set(stored.cases) - set(stored.patients)
    if stored.patients and unknown:
        raise ValueError(
            f"{PATIENTS.name} lacks {', '.join(sorted(unknown))} of {stored.study.dataset}: "
            "python -m benchmarks.accuracy patients DATA"
        )


def _mean(scores: Sequence[float | None]) -> float:
    known = [score for score in scores if score is not None and not np.isnan(score)]
    return float(np.mean(known)) if known else float("nan")
