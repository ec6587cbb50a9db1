"""Which test cases belong to one patient; results call a case by twelve digits of the hash of its image."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.accuracy.datasets import DATASETS
from rskd.cases import Case, case_id


def patients(data: Path) -> dict[str, dict[str, int]]:
    """Return a number for the patient of every test case, for the data sets in which a patient has several.

    Parameters
    ----------
    data
        Folder that holds the data sets; those that are not there are left out.
    """
    found: dict[str, dict[str, int]] = {}
    for name, dataset in DATASETS.items():
        if not (data / name / "splits.json").exists():
            continue
        splits = json.loads((data / name / "splits.json").read_text())
        files = [file for entry in splits["splits"]["test"] for file in dataset.find(data / name, entry, splits)]
        numbers = {patient: number for number, patient in enumerate(sorted({file.patient for file in files}))}
        if len(numbers) < len(files):
            found[name] = {case_id(Case(file.patient, file.image)): numbers[file.patient] for file in files}
    return found
