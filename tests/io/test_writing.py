import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rskd.errors import DataError, FileError, ParameterError
from rskd.io import check_place, files, read_scan, write_image, write_labels
from rskd.io.files import replacing
from rskd.scan import Scan

SCAN = Scan(np.zeros((4, 6, 3), np.uint8), "yxc")
SUFFIXES = [".tif", ".png", ".nii", ".nii.gz", ".npy"]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(("highest", "dtype"), [(1, "u1"), (255, "u1"), (256, "u2"), (65535, "u2")])
def test_labels_are_as_small_as_they_can_be(tmp_path: Path, suffix: str, highest: int, dtype: str) -> None:
    labels = np.arange(24).reshape(4, 6) % 2 * highest
    write_labels(tmp_path / f"a{suffix}", labels, SCAN)
    again = read_scan(tmp_path / f"a{suffix}")
    assert again.data.dtype == dtype
    np.testing.assert_array_equal(np.squeeze(again.data), labels)


@pytest.mark.parametrize("suffix", SUFFIXES[1:])  # an OME-TIFF carries a fresh identifier
def test_the_same_labels_make_the_same_file(tmp_path: Path, suffix: str) -> None:
    labels = np.arange(24).reshape(4, 6)
    for name in "ab":
        write_labels(tmp_path / f"{name}{suffix}", labels, SCAN)
    assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (np.zeros((6, 4), int), r"shape \(6, 4\), the image has \(4, 6\) over 'yx'"),
        (np.full((4, 6), -1), "from -1 on"),
        (np.full((4, 6), 0.5), "float64"),
    ],
)
def test_what_are_no_labels_of_this_scan_is_refused(tmp_path: Path, labels: np.ndarray, words: str) -> None:
    with pytest.raises(DataError, match=words):
        write_labels(tmp_path / "a.tif", labels, SCAN)
    assert not list(tmp_path.iterdir())


def test_an_unknown_ending_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match=r"end the name in one of \.tif"):
        write_image(tmp_path / "a.xyz", SCAN)


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail() -> None:
        with replacing(path) as partial:
            partial.write_text("half")
            assert path.read_text() == "old"
            raise OSError(28, "No space left on device")

    with pytest.raises(FileError, match=r"a\.txt cannot be written into .*: No space left on device"):
        fail()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_folder_that_cannot_be_put_in_place_leaves_the_old_one(tmp_path: Path, monkeypatch: Any) -> None:
    path = tmp_path / "a.zarr"
    path.mkdir()
    (path / "old").touch()
    move = files._replace

    def guarded(source: Path, target: Path) -> None:
        if target == path and (source / "new").exists():
            raise PermissionError(13, "Permission denied")
        move(source, target)

    monkeypatch.setattr(files, "_replace", guarded)

    def fail() -> None:
        with replacing(path) as partial:
            partial.mkdir()
            (partial / "new").touch()

    with pytest.raises(FileError, match="Permission denied"):
        fail()
    assert [file.relative_to(tmp_path).as_posix() for file in tmp_path.rglob("*")] == ["a.zarr", "a.zarr/old"]


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FileError, match="cannot be written"):
        write_image(tmp_path / "file" / "a.tif", SCAN)


def test_folders_are_made(tmp_path: Path) -> None:
    write_image(tmp_path / "new" / "folder" / "a.npy", SCAN)
    assert read_scan(tmp_path / "new" / "folder" / "a.npy").axes == "yxc"


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.nii.gz", "a.nrrd", "a.mha", "a.npy", "link.tif"])
def test_labels_never_replace_their_image(tmp_path: Path, name: str) -> None:
    image = tmp_path / name.replace("link", "a")
    write_image(image, Scan(np.arange(24, dtype=np.uint8).reshape(4, 6), "yx"))
    (tmp_path / "link.tif").symlink_to(tmp_path / "a.tif")
    before, scan = image.read_bytes(), read_scan(image)
    for refuse in (check_place, lambda path, scan: write_labels(path, np.zeros(scan.data.shape, int), scan)):
        with pytest.raises(ParameterError, match=r"is the image itself: choose another name"):
            refuse(tmp_path / "." / name, scan)
    assert image.read_bytes() == before
    check_place(tmp_path / "b.tif", scan)


def test_labels_replace_no_folder_that_their_image_lies_in(tmp_path: Path) -> None:
    image = tmp_path / "plate.zarr" / "0.zarr"
    write_image(image, Scan(np.ones((4, 6), np.uint8), "yx"))
    (tmp_path / "plate.zarr" / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group"}')
    scan = read_scan(image)
    for refuse in (check_place, lambda path, scan: write_labels(path, np.zeros((4, 6), int), scan)):
        with pytest.raises(ParameterError, match=r"plate\.zarr holds the image: choose another name"):
            refuse(tmp_path / "plate.zarr", scan)
