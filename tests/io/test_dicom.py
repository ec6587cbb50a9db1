"""DICOM images: files of other programs, and files made here from the standard's own definitions."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813 - the name its own documentation uses
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, MultiFrameGrayscaleWordSecondaryCaptureImageStorage

from rskd.errors import FileError, ParameterError
from rskd.io import read_scan, read_scans, write_labels
from rskd.io.dicom_geometry import to_lps

SHAPE = (5, 6, 7)  # z, y, x
SPACING = (2.5, 0.8, 0.6)
SERIES = "1.2.3.4.5"


def turned() -> np.ndarray:
    """Directions of x, y and the stack, as rows: oblique about two axes."""
    a, b = 0.4, -0.3
    about_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    return (about_z @ about_x).T


def voxels(shape: Sequence[int] = SHAPE) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=np.uint16).reshape(shape)


def image(pixels: np.ndarray, *, position: Sequence[float], directions: np.ndarray, number: int) -> Dataset:
    """A CT plane, attribute by attribute."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = UID(f"1.2.3.4.6.{number}")
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "1.2.3.4", SERIES
    dataset.FrameOfReferenceUID = "1.2.3.4.7"
    dataset.PatientName, dataset.PatientID, dataset.PatientBirthDate, dataset.PatientSex = "Doe^Jane", "4711", "", "F"
    dataset.StudyDate = dataset.StudyTime = dataset.AccessionNumber = dataset.StudyID = ""
    dataset.ReferringPhysicianName = dataset.PositionReferenceIndicator = ""
    dataset.Modality, dataset.InstanceNumber, dataset.SeriesNumber = "CT", number, 1
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.Rows, dataset.Columns = pixels.shape[-2:]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 0
    dataset.PixelSpacing, dataset.SliceThickness = [SPACING[1], SPACING[2]], SPACING[0]
    dataset.ImagePositionPatient = [f"{value:.10g}" for value in position]
    dataset.ImageOrientationPatient = [f"{value:.10g}" for value in directions[:2].ravel()]
    dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType = 1, -1024, "HU"
    dataset.PixelData = pixels.astype("<u2").tobytes()
    return dataset


def series(
    folder: Path, *, step: np.ndarray | None = None, change: Callable[[Dataset, int], Any] | None = None
) -> Path:
    """An oblique series whose file names and instance numbers run against its geometry."""
    directions, data = turned(), voxels()
    step = directions[2] * SPACING[0] if step is None else step
    folder.mkdir(exist_ok=True)
    for index, plane in enumerate(data):
        position = np.array([-40.0, 12.5, 100.0]) + index * step
        dataset = image(plane, position=position, directions=directions, number=(index * 3) % len(data) + 1)
        if change:
            change(dataset, index)
        dataset.save_as(folder / f"{(index * 2) % len(data)}.dcm", enforce_file_format=True)
    return folder


def itk_series(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Voxels z y x, and the LPS position of a voxel (z, y, x) as a matrix, as SimpleITK reads the series."""
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    found = reader.Execute()
    matrix = np.eye(4)
    matrix[:3, :3] = (np.reshape(found.GetDirection(), (3, 3)) * found.GetSpacing())[:, ::-1]
    matrix[:3, 3] = found.GetOrigin()
    return sitk.GetArrayFromImage(found), matrix


def test_an_oblique_series_lies_where_itk_says(tmp_path: Path) -> None:
    scan = read_scan(series(tmp_path / "scan"))
    values, lps = itk_series(tmp_path / "scan")
    assert (scan.axes, scan.units, scan.modality, scan.meaning, scan.anatomical) == ("zyx", "mm", "CT", "HU", True)
    assert scan.data.dtype == np.int16
    np.testing.assert_array_equal(scan.data, values)
    np.testing.assert_array_equal(scan.data, voxels().astype(int) - 1024)
    assert scan.affine is not None
    np.testing.assert_allclose(to_lps(scan.affine), lps, atol=1e-5)
    np.testing.assert_allclose(scan.spacing, SPACING, rtol=1e-6)
    # by hand: the last voxel, in the patient's coordinates, then as a scan counts them
    directions = turned()
    corner = [-40, 12.5, 100] + 4 * 2.5 * directions[2] + 5 * 0.8 * directions[1] + 6 * 0.6 * directions[0]
    np.testing.assert_allclose((scan.affine @ [4, 5, 6, 1])[:3], [corner[2], -corner[1], -corner[0]], atol=1e-6)


def test_a_series_is_known_by_the_hash_of_its_files(tmp_path: Path) -> None:
    first, again = (read_scan(series(tmp_path / name)) for name in "ab")
    assert first.digest == again.digest
    assert len(first.digest or "") == 64
    other = read_scan(series(tmp_path / "c", change=lambda dataset, _: setattr(dataset, "KVP", 120)))
    assert other.digest != first.digest


def test_one_file_is_a_volume_of_one_plane(tmp_path: Path) -> None:
    series(tmp_path)
    path = tmp_path / "2.dcm"
    scan = read_scan(path)
    assert scan.data.shape == (1, 6, 7)
    np.testing.assert_allclose(scan.spacing, SPACING)
    np.testing.assert_array_equal(scan.data, pydicom.dcmread(path).pixel_array[None].astype(int) - 1024)


def test_missing_planes_are_noticed(tmp_path: Path) -> None:
    series(tmp_path / "a")
    heads = {pydicom.dcmread(file).SOPInstanceUID: file for file in (tmp_path / "a").iterdir()}
    heads[UID("1.2.3.4.6.2")].unlink()  # index 2 of 5
    with pytest.raises(FileError, match=r"a lacks 1 plane after the 2\. of 4"):
        read_scan(tmp_path / "a")


def test_uneven_planes_are_noticed(tmp_path: Path) -> None:
    def move(dataset: Dataset, index: int) -> None:
        if index == 4:
            dataset.ImagePositionPatient = [*(np.array(dataset.ImagePositionPatient, float) + turned()[2] * 0.9)]

    series(tmp_path / "a", change=move)
    with pytest.raises(FileError, match=r"uneven distances, 2\.5 to 3\.4 mm"):
        read_scan(tmp_path / "a")


def test_a_tilted_gantry_is_noticed_and_its_geometry_exact(tmp_path: Path) -> None:
    directions = turned()
    step = directions[2] * 2.5 + directions[1] * 0.5
    scan = read_scan(series(tmp_path / "a", step=step))
    assert scan.notes == (
        f"The planes are tilted by {np.degrees(np.arctan(0.2)):.1f}° against their stack; "
        "the orientation says so exactly.",
    )
    assert scan.affine is not None
    np.testing.assert_allclose((to_lps(scan.affine) @ [4, 0, 0, 1])[:3], [-40, 12.5, 100] + 4 * step, atol=1e-6)
    with pytest.raises(ParameterError, match=r"tilted planes is not read back as a volume: write \.nii\.gz"):
        write_labels(tmp_path / "seg.dcm", np.zeros(scan.data.shape, np.uint8), scan)


def test_repeated_places_are_times(tmp_path: Path) -> None:
    def beat(shift: int) -> Callable[[Dataset, int], None]:
        def change(dataset: Dataset, index: int) -> None:
            dataset.TriggerTime = 100 - shift
            dataset.PixelData = (voxels()[index] + shift).astype("<u2").tobytes()

        return change

    (tmp_path / "a").mkdir()
    for shift in (0, 50):
        series(tmp_path / "a" / str(shift), change=beat(shift))
    scan = read_scan(tmp_path / "a")
    assert scan.axes == "tzyx"
    np.testing.assert_array_equal(scan.data[0], voxels().astype(int) + 50 - 1024)  # the earlier trigger time
    np.testing.assert_array_equal(scan.data[1], voxels().astype(int) - 1024)


def test_two_series_in_a_folder(tmp_path: Path) -> None:
    series(tmp_path / "a")
    extra = image(voxels()[0], position=[0, 0, 0], directions=np.eye(3), number=99)
    extra.SeriesInstanceUID = "1.2.3.9"
    extra.save_as(tmp_path / "a" / "scout", enforce_file_format=True)
    with pytest.raises(FileError, match=r"a holds 2 image series \(5 files, 1 file\)"):
        read_scan(tmp_path / "a")
    assert [scan.data.shape for scan in read_scans(tmp_path / "a")] == [(5, 6, 7), (1, 6, 7)]


def test_a_folder_without_images(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="cannot be opened"):
        read_scan(tmp_path)


def test_differing_directions_are_refused(tmp_path: Path) -> None:
    def turn(dataset: Dataset, index: int) -> None:
        if index == 0:
            dataset.ImageOrientationPatient = [0, 1, 0, 0, 0, 1]

    with pytest.raises(FileError, match="different directions"):
        read_scan(series(tmp_path / "a", change=turn))


def test_slopes_that_differ_give_real_numbers(tmp_path: Path) -> None:
    def scale(dataset: Dataset, index: int) -> None:
        dataset.Modality, dataset.Units, dataset.RescaleIntercept = "PT", "BQML", 0
        dataset.RescaleSlope = 0.5 + index
        del dataset.RescaleType

    scan = read_scan(series(tmp_path / "a", change=scale))
    assert (scan.data.dtype, scan.modality, scan.meaning) == (np.float32, "PT", "Bq/ml")
    np.testing.assert_array_equal(scan.data, voxels() * (0.5 + np.arange(5))[:, None, None])


def test_without_rescale_the_stored_values_are_given(tmp_path: Path) -> None:
    def plain(dataset: Dataset, _: int) -> None:
        del dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType
        dataset.Modality = "MR"

    scan = read_scan(series(tmp_path / "a", change=plain))
    assert (scan.data.dtype, scan.meaning) == (np.uint16, "stored values")
    np.testing.assert_array_equal(scan.data, voxels())


def test_white_is_lowest(tmp_path: Path) -> None:
    dataset = image(voxels()[0], position=[0, 0, 0], directions=np.eye(3), number=1)
    dataset.PhotometricInterpretation, dataset.BitsStored, dataset.HighBit = "MONOCHROME1", 12, 11
    del dataset.RescaleSlope, dataset.RescaleIntercept, dataset.ImagePositionPatient
    dataset.Modality = "CR"
    dataset.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    scan = read_scan(tmp_path / "a.dcm")
    assert (scan.axes, scan.spacing, scan.affine) == ("yx", (0.8, 0.6), None)
    np.testing.assert_array_equal(scan.data, 4095 - voxels()[0])


def enhanced(path: Path) -> None:
    """An enhanced CT of one file, its frames out of order."""
    directions, data = turned(), voxels()
    order = [3, 0, 4, 1, 2]
    dataset = image(data[order], position=[0, 0, 0], directions=directions, number=1)
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2.1"
    dataset.NumberOfFrames = len(data)
    del dataset.ImagePositionPatient, dataset.ImageOrientationPatient, dataset.PixelSpacing
    del dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType
    shared, measures, direction, values = Dataset(), Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [SPACING[1], SPACING[2]], 9
    direction.ImageOrientationPatient = [f"{value:.10g}" for value in directions[:2].ravel()]
    values.RescaleSlope, values.RescaleIntercept, values.RescaleType = 2, -5, "US"
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [direction]
    shared.PixelValueTransformationSequence = [values]
    dataset.SharedFunctionalGroupsSequence = [shared]
    frames = []
    for index in order:
        frame, place = Dataset(), Dataset()
        place.ImagePositionPatient = [f"{value:.10g}" for value in [-40, 12.5, 100] + index * 2.5 * directions[2]]
        frame.PlanePositionSequence = [place]
        frames.append(frame)
    dataset.PerFrameFunctionalGroupsSequence = frames
    dataset.save_as(path, enforce_file_format=True)


def test_frames_are_sorted_by_their_place(tmp_path: Path) -> None:
    enhanced(tmp_path / "a.dcm")
    scan = read_scan(tmp_path / "a.dcm")
    np.testing.assert_array_equal(scan.data, voxels().astype(int) * 2 - 5)
    np.testing.assert_allclose(scan.spacing, SPACING, rtol=1e-6)
    assert (scan.axes, scan.meaning) == ("zyx", "rescaled values")


def test_frames_without_a_place_are_times(tmp_path: Path) -> None:
    dataset = image(voxels(), position=[0, 0, 0], directions=np.eye(3), number=1)
    dataset.SOPClassUID = MultiFrameGrayscaleWordSecondaryCaptureImageStorage
    dataset.NumberOfFrames = 5
    del dataset.ImagePositionPatient, dataset.ImageOrientationPatient
    dataset.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    scan = read_scan(tmp_path / "a.dcm")
    assert (scan.axes, scan.spacing) == ("tyx", (0.8, 0.6))


@pytest.mark.parametrize("implicit", [False, True])
def test_a_file_without_preamble(tmp_path: Path, implicit: bool) -> None:
    dataset = image(voxels()[0], position=[0, 0, 0], directions=np.eye(3), number=1)
    del dataset.file_meta
    dataset.save_as(tmp_path / "a", implicit_vr=implicit, little_endian=True)
    assert b"DICM" not in (tmp_path / "a").read_bytes()
    np.testing.assert_array_equal(read_scan(tmp_path / "a").data[0], voxels()[0].astype(int) - 1024)


@pytest.mark.parametrize("compressor", ["", "JPEG", "JPEG2000"])
def test_what_simpleitk_wrote(tmp_path: Path, compressor: str) -> None:
    """GDCM writes: plain, JPEG lossless, JPEG 2000 lossless."""
    written = sitk.GetImageFromArray(np.random.default_rng(0).integers(-1000, 3000, (1, 40, 30), dtype=np.int16))
    written.SetSpacing((0.6, 0.8, 2.5))
    writer = sitk.ImageFileWriter()
    writer.SetFileName(str(tmp_path / "a.dcm"))
    if compressor:
        writer.UseCompressionOn()
        writer.SetCompressor(compressor)
    writer.Execute(written)
    syntax = pydicom.dcmread(tmp_path / "a.dcm").file_meta.TransferSyntaxUID.name
    assert {"": "Little", "JPEG": "JPEG Lossless", "JPEG2000": "JPEG 2000"}[compressor] in syntax
    np.testing.assert_array_equal(np.squeeze(read_scan(tmp_path / "a.dcm").data), sitk.GetArrayFromImage(written)[0])


LOSSLESS = {
    "MR_small_RLE.dcm": "MR_small.dcm",
    "MR_small_jp2klossless.dcm": "MR_small.dcm",
    "MR_small_jpeg_ls_lossless.dcm": "MR_small.dcm",
    "MR_small_bigendian.dcm": "MR_small.dcm",
    "MR_small_implicit.dcm": "MR_small.dcm",
    "MR_small_expb.dcm": "MR_small.dcm",
    "SC_rgb_rle.dcm": None,
    "image_dfl.dcm": None,  # deflated
}


@pytest.mark.parametrize("name", LOSSLESS)
def test_transfer_syntaxes(name: str) -> None:
    """pydicom's collection: files of DCMTK, GDCM and of scanners."""
    path = get_testdata_file(name, download=False)
    scan = read_scan(path)
    reference = LOSSLESS[name]
    if reference:
        expected = pydicom.dcmread(get_testdata_file(reference, download=False))
        slope, intercept = expected.get("RescaleSlope", 1), expected.get("RescaleIntercept", 0)
        np.testing.assert_array_equal(np.squeeze(scan.data), expected.pixel_array * slope + intercept)
    assert scan.data.size


def test_a_dose_is_scaled_and_placed() -> None:
    path = get_testdata_file("rtdose.dcm", download=False)
    dataset = pydicom.dcmread(path)
    scan = read_scan(path)
    assert (scan.axes, scan.meaning) == ("zyx", "relative dose")  # DoseUnits says RELATIVE
    np.testing.assert_allclose(scan.data, dataset.pixel_array * float(dataset.DoseGridScaling))
    step = float(dataset.GridFrameOffsetVector[1]) - float(dataset.GridFrameOffsetVector[0])
    assert scan.spacing is not None
    assert scan.spacing[0] == pytest.approx(abs(step))


@pytest.mark.parametrize("name", ["SC_rgb_jpeg_dcmtk.dcm", "SC_ybr_full_422_uncompressed.dcm", "examples_palette.dcm"])
def test_colours(name: str) -> None:
    scan = read_scan(get_testdata_file(name, download=False))
    assert scan.axes.endswith("yxc")
    assert scan.channels == ("red", "green", "blue")
    if name.startswith("SC"):  # the picture has a red band at its top
        np.testing.assert_allclose(scan.data[5, 50], [255, 0, 0], atol=3)


@pytest.mark.parametrize(("name", "words"), [("rtplan.dcm", "RT Plan Storage"), ("test-SR.dcm", "without an image")])
def test_objects_without_an_image_are_refused(name: str, words: str) -> None:
    with pytest.raises(FileError, match=words):
        read_scan(get_testdata_file(name, download=False))


def test_a_packing_without_free_decoder_is_named(tmp_path: Path) -> None:
    dataset = image(voxels()[0], position=[0, 0, 0], directions=np.eye(3), number=1)
    dataset.file_meta.TransferSyntaxUID = UID("1.2.840.10008.1.2.4.100")  # MPEG-2
    dataset.PixelData = pydicom.encaps.encapsulate([b"\0" * 10])
    dataset["PixelData"].VR = "OB"
    dataset.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    with pytest.raises(FileError, match=r"a\.dcm is packed as MPEG2 .*no free decoder here"):
        read_scan(tmp_path / "a.dcm")


def test_a_slide_in_tiles_is_not_taken_for_a_film(tmp_path: Path) -> None:
    dataset = image(voxels(), position=[0, 0, 0], directions=np.eye(3), number=1)
    dataset.NumberOfFrames, dataset.TotalPixelMatrixColumns, dataset.TotalPixelMatrixRows = 5, 14, 18
    dataset.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    with pytest.raises(FileError, match="slide in tiles"):
        read_scan(tmp_path / "a.dcm")


def test_jpeg_of_twelve_bits() -> None:
    path = get_testdata_file("JPGExtended.dcm", download=False)
    scan = read_scan(path)
    dataset = pydicom.dcmread(path)
    assert dataset.file_meta.TransferSyntaxUID.name.startswith("JPEG Extended")
    assert scan.data.shape[-2:] == (dataset.Rows, dataset.Columns)
    assert abs(int(scan.data.max()) - dataset.LargestImagePixelValue) < 20  # the header tells what it was, unpacked
