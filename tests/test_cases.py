from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from rskd.cases import Case, find_cases, read_case, split_cases
from rskd.config import BACKGROUND, ClassInfo, DataOptions, ModelSpec
from rskd.errors import DataError

GREY = np.arange(24, dtype=np.uint8).reshape(4, 6)


def spec(channels: int = 1, classes: int = 2) -> ModelSpec:
    names = (BACKGROUND, *(ClassInfo(name=f"class {k}") for k in range(1, classes)))
    return ModelSpec(name="net", in_channels=channels, classes=names)


def folders(root: Path, **names: list[str]) -> DataOptions:
    """Make a folder per keyword with empty files: pairing looks at names alone."""
    for folder, files in names.items():
        (root / folder).mkdir()
        for name in files:
            (root / folder / name).touch()
    return DataOptions(images=root / "images", **{name: root / name for name in names if name != "images"})


def partners(options: DataOptions) -> dict[str, str | None]:
    return {case.image.name: case.mask and case.mask.name for case in find_cases(options)}


@pytest.mark.parametrize(
    ("images", "masks", "expected"),
    [
        (["a.tif", "b.png"], ["b.gif", "a.nii.gz", "c.png"], {"a.tif": "a.nii.gz", "b.png": "b.gif"}),
        (
            ["21_training.tif", "22_training.tif"],
            ["21_manual1.gif", "22_manual1.gif"],
            {"21_training.tif": "21_manual1.gif", "22_training.tif": "22_manual1.gif"},
        ),
        (
            ["p01_f12.nii.gz", "p01_f01.nii.gz", "p02_f12.nii.gz"],
            ["seg1_1.nii", "seg1_12.nii", "seg2_12.nii"],
            {"p01_f01.nii.gz": "seg1_1.nii", "p01_f12.nii.gz": "seg1_12.nii", "p02_f12.nii.gz": "seg2_12.nii"},
        ),
        (["img_007.png"], ["mask 7.png"], {"img_007.png": "mask 7.png"}),
        (["9.png", "10.png"], ["9.png", "10.png"], {"9.png": "9.png", "10.png": "10.png"}),
    ],
)
def test_pairs(tmp_path: Path, images: list[str], masks: list[str], expected: dict[str, str]) -> None:
    assert partners(folders(tmp_path, images=[*images, "README.md", ".hidden.png"], masks=masks)) == expected


def test_regions_are_paired_like_masks(tmp_path: Path) -> None:
    options = folders(
        tmp_path, images=["1_a.tif", "2_a.tif"], masks=["1_m.gif", "2_m.gif"], regions=["1_r.gif", "2_r.gif"]
    )
    assert [case.region and case.region.name for case in find_cases(options)] == ["1_r.gif", "2_r.gif"]


def test_without_masks_there_are_images(tmp_path: Path) -> None:
    assert partners(folders(tmp_path, images=["b.tif", "a.tif"])) == {"a.tif": None, "b.tif": None}


def test_one_image_out_of_a_folder_keeps_its_number(tmp_path: Path) -> None:
    options = folders(tmp_path, images=["v2_21.tif", "v2_22.tif"], masks=["m1_21.gif", "m1_22.gif"])
    options = options.model_copy(update={"images": tmp_path / "images" / "v2_22.tif"})
    assert partners(options) == {"v2_22.tif": "m1_22.gif"}
    options = options.model_copy(update={"masks": tmp_path / "masks" / "m1_21.gif"})
    assert partners(options) == {"v2_22.tif": "m1_21.gif"}  # both were named: nothing to guess


@pytest.mark.parametrize(
    ("images", "masks", "words"),
    [
        (["1.png", "2.png"], ["1.png"], r"2\.png needs exactly one mask .* found none"),
        (["1.png"], ["a1.png", "b1.png"], r"1\.png needs exactly one mask .* found a1\.png, b1\.png"),
        (["a.png", "b.png"], ["c.png", "d.png"], r"a\.png needs exactly one mask"),
        (["a.png", "a.tif"], ["a.png"], r"1 images share a name but for its ending, the first is a"),
        (["a.png"], [], "holds no masks"),
        ([], ["a.png"], "holds no images"),
    ],
)
def test_what_cannot_be_paired_is_said(tmp_path: Path, images: list[str], masks: list[str], words: str) -> None:
    with pytest.raises(DataError, match=words):
        find_cases(folders(tmp_path, images=images, masks=masks))


def test_a_missing_folder_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"There are no images at .*nowhere: choose"):
        find_cases(DataOptions(images=tmp_path / "nowhere"))


@given(st.integers(2, 40), st.floats(0.01, 0.99), st.integers(0, 1000))
def test_a_split_is_a_partition_of_the_wanted_size(count: int, share: float, seed: int) -> None:
    cases = [Case(f"{k}", Path(f"{k}.png")) for k in range(count)]
    options = DataOptions(images=Path(), validation_share=share)
    wanted = max(1, round(share * count))
    if wanted == count:
        with pytest.raises(DataError, match="at least one is needed on both sides"):
            split_cases(cases, options, seed)
        return
    train, validation = split_cases(cases, options, seed)
    assert len(validation) == wanted
    assert sorted([*train, *validation], key=cases.index) == cases
    assert (train, validation) == split_cases(cases, options, seed)


@given(st.integers(2, 20), st.integers(1, 4), st.floats(0.1, 0.5), st.integers(0, 1000))
def test_a_patient_is_on_one_side(patients: int, frames: int, share: float, seed: int) -> None:
    names = [f"patient{p:03d}_frame{12 * f:02d}" for p in range(patients) for f in range(frames)]
    cases = [Case(name, Path(f"{name}.nii.gz")) for name in names]
    train, validation = split_cases(cases, DataOptions(images=Path(), validation_share=share), seed)
    assert not {case.name[:10] for case in train} & {case.name[:10] for case in validation}
    assert abs(len(validation) - max(1, round(share * len(cases)))) < frames


def test_named_cases_are_kept_for_validation() -> None:
    cases = [Case(name, Path(f"{name}.nii.gz")) for name in "abc"]
    train, validation = split_cases(cases, DataOptions(images=Path(), validation=("c", "a.nii.gz")), seed=0)
    assert ([c.name for c in train], [c.name for c in validation]) == (["b"], ["a", "c"])
    with pytest.raises(DataError, match="The validation image d is not among the 3 images"):
        split_cases(cases, DataOptions(images=Path(), validation=("d",)), seed=0)
    with pytest.raises(DataError, match="Of 3 images 3 would be kept"):
        split_cases(cases, DataOptions(images=Path(), validation=("a", "b", "c")), seed=0)


def picture_case(folder: Path, image: np.ndarray, mask: np.ndarray, *, name: str = "mask.png") -> Case:
    Image.fromarray(image).save(folder / "image.png")
    Image.fromarray(mask).save(folder / name)
    return Case("image", folder / "image.png", folder / name, folder / name)


@pytest.mark.parametrize(
    ("mask", "classes"),
    [
        (GREY % 2, 2),
        (GREY % 2 * 255, 2),
        (GREY % 2 * np.uint16(65535), 2),
        (GREY % 2 > 0, 2),
        (np.repeat(GREY[..., None] % 2 * 255, 3, 2), 2),
        (np.dstack([GREY % 2 * 255] * 3 + [GREY * 0 + 255]), 2),
        (GREY % 4, 4),
    ],
)
def test_masks_become_class_indices(tmp_path: Path, mask: np.ndarray, classes: int) -> None:
    arrays = read_case(picture_case(tmp_path, GREY, mask), spec(classes=classes))
    assert arrays.image.shape == (1, 1, 4, 6)
    np.testing.assert_array_equal(arrays.image[0, 0], GREY)
    assert arrays.mask is not None
    assert arrays.mask.dtype == np.int64
    np.testing.assert_array_equal(arrays.mask, [GREY % classes])
    assert arrays.region is not None
    assert arrays.region.dtype == bool
    np.testing.assert_array_equal(arrays.region, [GREY % classes > 0])


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (GREY, r"mask\.png has the values 0, 1, 2, 3, 4, 5 …: 2 classes need 0 … 1 or 0 and 255"),
        (GREY % 2 * 2, "has the values 0, 2: 2 classes"),
        (np.where(GREY % 3 == 2, 255, GREY % 3).astype(np.uint8), "has the values 0, 1, 255"),
        (GREY[:, :5], r"has the shape \(4, 5\), its image \(4, 6\)"),
        (GREY.T.copy(), r"has the shape \(6, 4\), its image \(4, 6\)"),
        (np.dstack([GREY % 2, GREY % 3, GREY]), "is a colour picture"),
    ],
)
def test_masks_that_do_not_fit_are_refused(tmp_path: Path, mask: np.ndarray, words: str) -> None:
    with pytest.raises(DataError, match=words):
        read_case(picture_case(tmp_path, GREY, mask), spec())


def test_an_image_that_does_not_suit_the_network_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^image\.png: The image has 1 channel"):
        read_case(picture_case(tmp_path, GREY, GREY % 2), spec(channels=3))


def volume_case(folder: Path, mask_affine: np.ndarray) -> tuple[Case, np.ndarray]:
    voxels = np.arange(60, dtype=np.int16).reshape(3, 4, 5)  # x y z
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([2, 2, 4, 1])), folder / "image.nii")
    nibabel.save(nibabel.Nifti1Image((voxels % 3).astype(np.uint8), mask_affine), folder / "mask.nii.gz")
    return Case("image", folder / "image.nii", folder / "mask.nii.gz"), voxels


def test_volumes_are_many_planes(tmp_path: Path) -> None:
    case, voxels = volume_case(tmp_path, np.diag([2, 2, 4, 1]))
    arrays = read_case(case, spec(classes=3))
    assert arrays.image.shape == (5, 1, 4, 3)
    np.testing.assert_array_equal(arrays.image[:, 0], voxels.transpose())
    np.testing.assert_array_equal(arrays.mask, voxels.transpose() % 3)
    assert arrays.region is None


def test_a_mask_that_lies_elsewhere_is_refused(tmp_path: Path) -> None:
    nearly = np.diag([2, 2, 4, 1.0])
    nearly[0, 3] = 0.1  # a twentieth of a voxel: the rounding of some program
    read_case(volume_case(tmp_path, nearly)[0], spec(classes=3))
    with pytest.raises(DataError, match=r"mask\.nii\.gz lies up to 4\.0 voxels off"):
        read_case(volume_case(tmp_path, np.diag([-2, 2, 4, 1]))[0], spec(classes=3))


def named(*names):
    return [Case(name, Path(f"{name}.png")) for name in names]


@pytest.mark.parametrize("seed", range(8))
def test_one_oddly_named_file_does_not_part_a_patient_from_himself(seed: int) -> None:
    names = [f"patient{p:03d}_frame{f:02d}" for p in range(1, 6) for f in (1, 12)]
    options = DataOptions(images=Path(), validation_share=0.3)
    train, validation = split_cases(named(*names, "patient006_frame01_v2"), options, seed)
    assert {case.name[:10] for case in train}.isdisjoint(case.name[:10] for case in validation)


@pytest.mark.parametrize("seed", range(8))
def test_a_large_group_is_not_taken_for_a_small_share(seed: int) -> None:
    names = [f"site1_{i:03d}" for i in range(95)] + [f"site2_{i:03d}" for i in range(95, 100)]
    _, validation = split_cases(named(*names), DataOptions(images=Path(), validation_share=0.2), seed)
    assert len(validation) == 5
