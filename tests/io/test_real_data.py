"""Every file of the project's development data, beside the library of its format. Skipped where there is none."""

import os
from collections import Counter
from pathlib import Path

import nibabel
import numpy as np
import pytest
import tifffile
from PIL import Image

from rskd.io import read_labels, read_scan

_PLACES = [os.environ.get("RSKD_DATA", ""), *(str(parent / "shared" / "data") for parent in Path(__file__).parents)]
DATA = next((Path(place) for place in _PLACES if place and Path(place).is_dir()), None)
FLIP = np.eye(4)[[2, 1, 0, 3]]

pytestmark = pytest.mark.skipif(DATA is None, reason="no folder RSKD_DATA, and no shared/data beside the project")


def check_nifti(path: Path) -> None:
    scan, expected = read_scan(path), nibabel.load(path)
    voxels = np.asarray(expected.dataobj)
    np.testing.assert_array_equal(np.asarray(scan.data).reshape(voxels.shape[::-1]), voxels.transpose())
    stated = expected.header["sform_code"] > 0 or expected.header["qform_code"] > 0
    assert (scan.affine is not None) == stated == scan.anatomical
    if scan.affine is not None:
        np.testing.assert_array_equal(FLIP @ scan.affine @ FLIP, expected.affine)
        np.testing.assert_allclose(scan.spacing[::-1], np.linalg.norm(expected.affine[:3, :3], axis=0))


def check_picture(path: Path) -> None:
    with Image.open(path) as image:
        indices = np.asarray(image)
        colours = np.asarray(image.convert("RGB"))
    grey = bool((colours == colours[..., :1]).all())
    seen, labels = read_scan(path), read_labels(path)
    np.testing.assert_array_equal(seen.data, colours[..., 0] if grey and indices.ndim == 2 else colours)
    np.testing.assert_array_equal(labels.data, seen.data if grey or indices.ndim == 3 else indices)
    assert (seen.spacing, seen.affine, labels.spacing) == (None, None, None)


def check_tiff(path: Path) -> None:
    scan = read_scan(path)
    np.testing.assert_array_equal(scan.data, tifffile.imread(path))
    assert (scan.axes, scan.spacing, scan.affine) == ("yxc", None, None)


CHECKS = {".gz": check_nifti, ".png": check_picture, ".gif": check_picture, ".tif": check_tiff}
TEXTS = {".md", ".json", ".WSL4MIS", ".zhixuhao-unet"}


def test_every_file_is_read_as_its_own_library_reads_it() -> None:
    assert DATA is not None
    seen: Counter[str] = Counter()
    for path in sorted(path for path in DATA.rglob("*") if path.is_file() and path.suffix not in TEXTS):
        CHECKS[path.suffix](path)
        seen[path.suffix] += 1
    print(dict(seen))
    assert sum(seen.values()) > 0
