"""DICOM SEG and RTSTRUCT, and what of a patient's header may come out of the program: nothing."""

import importlib.util
import logging
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset

from rskd.errors import DataError, FileError, ParameterError
from rskd.io import read_labels, read_scan, write_image, write_labels
from rskd.scan import Scan

_spec = importlib.util.spec_from_file_location("_dicom_files", Path(__file__).with_name("test_dicom.py"))
assert _spec
assert _spec.loader
files: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(files)

LABELS = (files.voxels() % 4).astype(np.uint8)
NAME = "Zyxwerth"
"""A name that is no part of any word."""


@pytest.mark.parametrize("several", [False, True], ids=["series", "frames of one file"])
def test_a_segmentation_lies_on_its_images(tmp_path: Path, several: bool) -> None:
    if several:
        files.enhanced(tmp_path / "scan")
    else:  # with a distance between planes that is wrong, as some programs write it
        files.series(tmp_path / "scan", change=lambda dataset, _: setattr(dataset, "SpacingBetweenSlices", 1))
    scan = read_scan(tmp_path / "scan")
    write_labels(tmp_path / "labels.dcm", LABELS, scan, names=("liver", "spleen"))

    written = highdicom.seg.segread(tmp_path / "labels.dcm")
    assert [written.get_segment_description(n).SegmentLabel for n in (1, 2, 3)] == ["liver", "spleen", "Label 3"]
    volume = written.get_volume(combine_segments=True)
    # every voxel of every label at its place in the patient, whatever the order of the planes
    found = np.argwhere(volume.array)
    lps = (np.c_[found, np.ones(len(found))] @ np.asarray(volume.affine).T)[:, :3]
    directions = files.turned()
    steps = np.stack([directions[2] * 2.5, directions[1] * 0.8, directions[0] * 0.6])
    index = np.rint((lps - [-40, 12.5, 100]) @ np.linalg.inv(steps)).astype(int)
    again = np.zeros_like(LABELS)
    again[tuple(index.T)] = volume.array[tuple(found.T)]
    np.testing.assert_array_equal(again, LABELS)

    ours = read_scan(tmp_path / "labels.dcm")
    np.testing.assert_array_equal(ours.data, LABELS)
    np.testing.assert_allclose(ours.affine, scan.affine, atol=1e-6)
    assert (ours.meaning, ours.modality) == ("labels", "SEG")


@pytest.mark.parametrize("several", [False, True], ids=["series", "frames of one file"])
def test_classes_that_overlap_are_segments(tmp_path: Path, several: bool) -> None:
    (files.enhanced if several else files.series)(tmp_path / "scan")
    scan = read_scan(tmp_path / "scan")
    planes = np.stack([LABELS > 0, LABELS > 1, LABELS > 9]).astype(np.uint8)
    write_labels(tmp_path / "labels.dcm", planes, scan, names=("liver", "vessel", "tumour"))
    written = highdicom.seg.segread(tmp_path / "labels.dcm")
    assert [written.get_segment_description(n).SegmentLabel for n in (1, 2, 3)] == ["liver", "vessel", "tumour"]
    ours = read_scan(tmp_path / "labels.dcm")
    assert (ours.axes, ours.channels, ours.meaning) == ("czyx", ("liver", "vessel", "tumour"), "labels")
    np.testing.assert_array_equal(ours.data, planes)
    np.testing.assert_allclose(ours.affine, scan.affine, atol=1e-6)


def test_every_frame_refers_to_its_own_image(tmp_path: Path) -> None:
    scan = read_scan(files.series(tmp_path / "scan"))
    write_labels(tmp_path / "labels.dcm", LABELS, scan)
    written = pydicom.dcmread(tmp_path / "labels.dcm")
    frames = written.pixel_array
    images = {pydicom.dcmread(path).SOPInstanceUID: index for index, path in enumerate(scan.files)}
    for frame, group in zip(frames, written.PerFrameFunctionalGroupsSequence, strict=True):
        number = group.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        source = group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        np.testing.assert_array_equal(frame, LABELS[images[source]] == number)


def test_a_segmentation_of_another_program() -> None:
    path = get_testdata_file("liver_1frame.dcm", download=False)
    dataset = pydicom.dcmread(path)
    scan = read_scan(path)
    np.testing.assert_array_equal(scan.data[0] == 1, dataset.pixel_array > 0)
    assert scan.affine is not None
    place = dataset.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence[0].ImagePositionPatient
    np.testing.assert_allclose((scan.affine @ [0, 0, 0, 1])[:3], [place[2], -place[1], -place[0]], atol=1e-4)


def test_labels_of_nothing(tmp_path: Path) -> None:
    scan = read_scan(files.series(tmp_path / "scan"))
    write_labels(tmp_path / "labels.dcm", np.zeros(files.SHAPE, int), scan)
    assert read_scan(tmp_path / "labels.dcm").data.shape == files.SHAPE
    assert not read_scan(tmp_path / "labels.dcm").data.any()


def test_what_was_not_read_from_dicom_gets_no_segmentation(tmp_path: Path) -> None:
    scan = Scan(np.zeros((2, 3, 4)), "zyx")
    with pytest.raises(ParameterError, match=r"belongs to one volume read from DICOM images"):
        write_labels(tmp_path / "a.dcm", np.zeros((2, 3, 4), int), scan)
    with pytest.raises(ParameterError, match=r"end the name in one of"):
        write_image(tmp_path / "a.dcm", scan)
    assert not list(tmp_path.iterdir())


def test_a_segmentation_needs_its_images_and_their_grid(tmp_path: Path) -> None:
    scan = read_scan(files.series(tmp_path / "scan"))
    with pytest.raises(DataError, match="shape"):
        write_labels(tmp_path / "a.dcm", LABELS[1:], scan)
    for path in (tmp_path / "scan").iterdir():
        path.unlink()
    with pytest.raises(FileError, match="are gone"):
        write_labels(tmp_path / "a.dcm", LABELS, scan)


def contours(path: Path, *, z: float = 2.0) -> None:
    """A box with a hole in plane `z`, drawn in the coordinates of the oblique series."""
    directions = files.turned()
    to_lps = np.stack([directions[2] * 2.5, directions[1] * 0.8, directions[0] * 0.6])

    def ring(number: int, corners: list[tuple[float, float]]) -> Dataset:
        contour = Dataset()
        points = np.array([[z, y, x] for y, x in corners]) @ to_lps + [-40, 12.5, 100]
        contour.ContourGeometricType = "CLOSED_PLANAR"
        contour.NumberOfContourPoints = len(points)
        contour.ContourData = [f"{value:.8g}" for value in points.ravel()]
        contour.ContourNumber = number
        return contour

    dataset = files.image(files.voxels()[0], position=[0, 0, 0], directions=directions, number=77)
    for name in ("PixelData", "Rows", "Columns", "ImagePositionPatient", "ImageOrientationPatient"):
        delattr(dataset, name)
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.481.3"
    dataset.Modality = "RTSTRUCT"
    frame, study, series = Dataset(), Dataset(), Dataset()
    series.SeriesInstanceUID = files.SERIES
    study.RTReferencedSeriesSequence, frame.RTReferencedStudySequence = [series], [study]
    dataset.ReferencedFrameOfReferenceSequence = [frame]
    first, second = Dataset(), Dataset()
    first.ROINumber, second.ROINumber = 8, 3
    dataset.StructureSetROISequence = [first, second]
    roi, other = Dataset(), Dataset()
    roi.ReferencedROINumber, other.ReferencedROINumber = 8, 3
    box = [(0.5, 0.5), (0.5, 5.5), (4.5, 5.5), (4.5, 0.5)]
    hole = [(1.5, 1.5), (1.5, 3.5), (3.5, 3.5), (3.5, 1.5)]
    roi.ContourSequence = [ring(1, box), ring(2, hole)]
    other.ContourSequence = [ring(1, [(4.6, 0.0 - 0.2), (4.6, 3.2), (5.4, 3.2), (5.4, -0.2)])]
    dataset.ROIContourSequence = [roi, other]
    dataset.save_as(path, enforce_file_format=True)


EXPECTED = np.zeros(files.SHAPE, int)
EXPECTED[2, 1:5, 1:6] = 1
EXPECTED[2, 2:4, 2:4] = 0
EXPECTED[2, 5, 0:4] = 2


@pytest.mark.parametrize("place", ["scan/contours.dcm", "other/contours.dcm"])
def test_contours_are_drawn_onto_their_images(tmp_path: Path, place: str) -> None:
    scan = read_scan(files.series(tmp_path / "scan"))
    (tmp_path / place).parent.mkdir(exist_ok=True)
    contours(tmp_path / place)
    for labels in (read_scan(tmp_path / place), read_labels(tmp_path / place, grid=scan)):
        np.testing.assert_array_equal(labels.data, EXPECTED)
        np.testing.assert_array_equal(labels.affine, scan.affine)


def test_contours_without_their_images_are_refused(tmp_path: Path) -> None:
    (tmp_path / "alone").mkdir()
    contours(tmp_path / "alone" / "contours.dcm")
    with pytest.raises(FileError, match="put the images they were drawn on into the same folder"):
        read_scan(tmp_path / "alone" / "contours.dcm")


def test_contours_between_the_planes_are_refused(tmp_path: Path) -> None:
    files.series(tmp_path / "scan")
    contours(tmp_path / "scan" / "contours.dcm", z=2.4)
    with pytest.raises(FileError, match="lies on no plane"):
        read_scan(tmp_path / "scan" / "contours.dcm")


# ---------------------------------------------------------------------------------------------------------- identifiers


TEXTS = ("LO", "LT", "PN", "SH", "ST", "UT", "UC", "CS", "AE")
KEPT = ("SpecificCharacterSet", "PhotometricInterpretation", "ImageType", "PatientSex")  # without these it is no image


def put_name_everywhere(dataset: Dataset, _: int = 0) -> None:
    """Write the name into every element that can hold a text, those of the standard's patient and study modules too."""
    for keyword in pydicom.datadict.keyword_dict:
        tag = pydicom.datadict.tag_for_keyword(keyword)
        if tag is None or tag >> 16 not in (0x0008, 0x0010, 0x0018, 0x0020, 0x0032, 0x0038, 0x0040):
            continue
        if pydicom.datadict.dictionary_VR(tag) in TEXTS and keyword not in KEPT:
            setattr(dataset, keyword, NAME.upper() if pydicom.datadict.dictionary_VR(tag) == "CS" else NAME)
    dataset.RescaleType = NAME
    dataset.PatientID = dataset.AccessionNumber = NAME
    dataset.private_block(0x0009, NAME, create=True).add_new(1, "LO", NAME)
    dataset.StudyDate, dataset.PatientAge = "19991231", "042Y"


def leaks(folder: Path) -> list[str]:
    """Files in a folder that have the name in them, packed or not, or in their own names."""
    import gzip

    found = []
    for path in folder.rglob("*"):
        content = b"" if path.is_dir() else path.read_bytes()
        if content.startswith(b"\x1f\x8b"):
            content = gzip.decompress(content)
        if NAME.lower().encode() in (path.name.encode() + content).lower():
            found.append(path.name)
    return found


@pytest.fixture
def named(tmp_path: Path) -> Scan:
    """The scan of a series that has the patient's name in every tag."""
    series = files.series(tmp_path / "scan", change=put_name_everywhere)
    assert len(leaks(series)) == 5
    assert sum(NAME.lower() in str(element.value).lower() for element in pydicom.dcmread(series / "0.dcm")) > 300
    return read_scan(series)


ENDINGS = ("tif", "nii", "nii.gz", "npy", "nrrd", "mha", "zarr", "dcm")


def test_nothing_that_is_written_contains_the_name(
    tmp_path: Path, named: Scan, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    for ending in ENDINGS:
        write_labels(tmp_path / "out" / f"labels.{ending}", LABELS, named)
        if ending != "dcm":
            write_image(tmp_path / "out" / f"image.{ending}", named)
    assert len(list((tmp_path / "out").iterdir())) == 2 * len(ENDINGS) - 1
    assert leaks(tmp_path / "out") == []
    assert NAME.lower() not in repr([getattr(named, f) for f in named.__dataclass_fields__ if f != "data"]).lower()
    assert NAME.lower() not in (caplog.text + "".join(capfd.readouterr())).lower()
    stripped = pydicom.dcmread(tmp_path / "out" / "labels.dcm")
    assert (stripped.PatientName, stripped.StudyDate, stripped.PatientIdentityRemoved) == ("", "", "YES")
    assert stripped.StudyInstanceUID == "1.2.3.4"  # what it refers to


def test_identifiers_are_kept_on_demand(tmp_path: Path, named: Scan) -> None:
    write_labels(tmp_path / "out" / "labels.dcm", LABELS, named, keep_identifiers=True)
    assert leaks(tmp_path / "out") == ["labels.dcm"]
    assert pydicom.dcmread(tmp_path / "out" / "labels.dcm").PatientName == NAME


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("PixelSpacing", NAME),
        ("ImagePositionPatient", [NAME] * 3),
        ("Rows", None),
        ("RescaleSlope", NAME),
        ("BitsAllocated", 13),
        ("NumberOfFrames", NAME),
    ],
)
def test_complaints_do_not_quote_the_header(
    tmp_path: Path, keyword: str, value: Any, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    """A damaged header must not get into a message, its traceback or a warning."""
    import traceback

    dataset = files.image(files.voxels()[0], position=[0, 0, 0], directions=np.eye(3), number=1)
    dataset.PatientName = NAME
    if value is None:
        delattr(dataset, keyword)
    else:
        with pydicom.config.disable_value_validation():
            vr = pydicom.datadict.dictionary_VR(keyword)
            raw = (
                np.uint16(value).tobytes()
                if vr == "US"
                else "\\".join([value] * 1 if isinstance(value, str) else value).encode()
            )
            tag = pydicom.tag.Tag(keyword)
            dataset[tag] = pydicom.dataelem.RawDataElement(tag, vr, len(raw), raw, 0, False, True)
    dataset.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    caplog.clear()
    recwarn.clear()
    with pytest.raises(FileError) as caught:
        read_scan(tmp_path / "a.dcm")
    told = "".join(traceback.format_exception(caught.value)) + caplog.text + str([str(w.message) for w in recwarn.list])
    assert NAME not in told
    assert "\n" not in str(caught.value)
