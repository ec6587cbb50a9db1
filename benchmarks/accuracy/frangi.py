"""What a classical vessel filter reaches on the images that the retina pair is tested on.

    python benchmarks/accuracy/frangi.py DRIVE_FOLDER

Frangi's filter on the green channel, inside the field of view. Sigmas and threshold are those that are best on the test
images themselves, which no filter in practice could know. The figure is kept in `results/frangi.json`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from scipy.ndimage import binary_erosion
from skimage.filters import frangi
from skimage.morphology import disk

from rskd.cases import find_cases, read_case
from rskd.config import DataOptions
from rskd.metrics import dice_per_class
from rskd.models.presets import fresh_spec

RESULT = Path(__file__).parent / "results" / "frangi.json"
SIGMAS = ((1, 2), (1, 2, 3), (2, 3), (1.5, 2.5, 3.5))
QUANTILES = np.linspace(0.7, 0.96, 27)


def main(drive: Path) -> None:
    test = drive / "test"
    data = DataOptions(images=test / "images", masks=test / "1st_manual", regions=test / "mask")
    spec = fresh_spec("rskd-nano", in_channels=3, classes=["vessel"])
    cases = [read_case(case, spec) for case in find_cases(data)]
    scores = {}
    for sigmas in SIGMAS:
        answers = [response(case.image[0, 1], case.region[0], sigmas) for case in cases]
        inside = np.concatenate([a[c.region[0]] for a, c in zip(answers, cases, strict=True)])
        for threshold in np.quantile(inside, QUANTILES):
            scores[sigmas, threshold] = np.mean(
                [
                    dice_per_class(answer > threshold, case.mask[0], 2, region=case.region[0])[1]
                    for answer, case in zip(answers, cases, strict=True)
                ]
            )
    (sigmas, threshold), best = max(scores.items(), key=lambda item: item[1])
    print(f"{len(cases)} images, {len(scores)} settings tried")
    print(f"best: sigmas {sigmas}, threshold {threshold:.3g}: Dice {best:.4f} inside the field of view")
    value = {"dice": float(best), "images": len(cases), "settings": len(scores)}
    value |= {"sigmas": sigmas, "threshold": float(threshold)}
    RESULT.write_text(json.dumps(value, indent=1) + "\n")


def response(green: np.ndarray, region: np.ndarray, sigmas: tuple[float, ...]) -> np.ndarray:
    """Return the filter's answer, with the rim of the field of view, which is no vessel, taken away."""
    filled = np.where(region, green / 255, green[region].mean() / 255)
    return frangi(filled, sigmas=sigmas, black_ridges=True) * binary_erosion(region, disk(6))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
