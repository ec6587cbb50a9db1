"""DICOM segmentations: read as labels, and written beside the images they were made on."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rskd.errors import FileError, ParameterError
from rskd.io import dicom
from rskd.io.dicom_geometry import Plane, from_lps, spacing_of
from rskd.io.libraries import library
from rskd.io.memory import check_size
from rskd.scan import Scan

_SEGMENTS = 255
_TEXTS = ("SQ", "UN", "AE", "AS", "CS", "DA", "DT", "LO", "LT", "PN", "SH", "ST", "TM", "UC", "UR", "UT")
_EMPTY_BUT_THERE = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "AccessionNumber",
    "ReferringPhysicianName", "StudyID", "PositionReferenceIndicator",
)  # fmt: skip
_KEPT = (
    "SpecificCharacterSet", "ImageType", "Modality", "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence", "DimensionOrganizationSequence", "DimensionIndexSequence",
    "PhotometricInterpretation",
)  # fmt: skip


def read(path: Path) -> Scan:
    """Read the segments as labels 1, 2 … on the grid of the file; of segments that overlap, a plane each."""
    highdicom = library("highdicom")
    head = dicom.header(path)
    frames = int(head.get("NumberOfFrames") or 1)
    check_size(path.name, frames * int(head.Rows) * int(head.Columns), held=path.stat().st_size * 8)
    segmentation = highdicom.seg.segread(path)
    _check_overlap(path, segmentation)
    volume, overlapping = _volume(segmentation)
    labels, affine = np.asarray(volume.array), np.asarray(volume.affine, np.float64)
    normal = np.cross(affine[:3, 2], affine[:3, 1])
    if affine[:3, 0] @ normal < 0:  # the order of `dicom_geometry.arrange`
        labels = labels[::-1]
        affine = affine @ np.array([[-1, 0, 0, len(labels) - 1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    world = from_lps(affine)
    return Scan(
        np.ascontiguousarray(np.moveaxis(labels, -1, 0) if overlapping else labels),
        "czyx" if overlapping else "zyx",
        spacing=spacing_of(world),
        units="mm",
        affine=world,
        modality="SEG",
        meaning="labels",
        anatomical=True,
        channels=tuple(str(head.SegmentLabel) for head in segmentation.SegmentSequence) if overlapping else (),
    )


def _volume(segmentation: Any) -> tuple[Any, bool]:
    """Return the segments as one volume of labels, or, where they overlap, with an axis of segments behind."""
    with suppress(RuntimeError):  # they overlap; what it was about has to be given up before the second try
        return segmentation.get_volume(combine_segments=True, rescale_fractional=False), False
    return segmentation.get_volume(combine_segments=False, rescale_fractional=False), True


def write(path: Path, labels: Scan, scan: Scan, *, names: Sequence[str] = (), keep_identifiers: bool = False) -> None:
    """Write labels as a segmentation that refers to the images of `scan`, plane by plane.

    Parameters
    ----------
    path
        New file.
    labels
        Labels over the axes of `scan`; or with c, a plane for each of the labels 1, 2 …
    scan
        Read from DICOM; its files must still be there.
    names
        Of the labels 1, 2 …; empty = "Label 1" …
    keep_identifiers
        Whether what the images say about the patient and the study is copied. The references to the images, without
        which it would be no segmentation of them, are always there.
    """
    _refuse_tilt(path, scan)
    sources, planes = _sources(path, scan)
    values = np.asarray(labels.data)
    if "c" in labels.axes:
        values = np.moveaxis(values, 0, -1)
    at = len(labels.spatial_axes)
    values = values.reshape(-1, *values.shape[at - 2 :])  # frames H W, and the classes if they may overlap
    if len(sources) == 1 and len(planes) > 1:  # the frames of one file, in the order of the file
        inverse = np.argsort([plane.frame for plane in planes])
        values = values[inverse]
    count = values.shape[3] if values.ndim > 3 else max(1, int(values.max(initial=0)))
    if count > _SEGMENTS:
        raise ParameterError(f"{path.name}: a DICOM SEG of {count} labels is unwieldy, at most {_SEGMENTS}: use NIfTI.")
    sources = sources if keep_identifiers else [_stripped(head) for head in sources]
    for head in sources:
        _state_distance(head, planes)
    segmentation = _segmentation(sources, values.astype(np.uint8), [*names[:count], *_numbered(len(names), count)])
    if not keep_identifiers:
        segmentation.PatientIdentityRemoved = "YES"
        segmentation.DeidentificationMethod = "Texts of the source images left out, references to them kept"
    segmentation.save_as(path)


def _refuse_tilt(path: Path, scan: Scan) -> None:
    if scan.affine is None:
        return
    axes = scan.affine[:-1, :-1] / np.linalg.norm(scan.affine[:-1, :-1], axis=0)
    if np.abs(axes.T @ axes - np.eye(len(axes))).max() > 1e-3:
        raise ParameterError(f"{path.name}: a DICOM SEG of tilted planes is not read back as a volume: write .nii.gz.")


def _check_overlap(path: Path, segmentation: Any) -> None:
    if str(segmentation.SegmentationType) == "FRACTIONAL":
        raise FileError(f"{path.name} holds probabilities, not labels: threshold it in the program that made it.")


def _numbered(first: int, last: int) -> list[str]:
    return [f"Label {number}" for number in range(first + 1, last + 1)]


def _sources(path: Path, scan: Scan) -> tuple[list[Any], Sequence[Plane]]:
    """Return the headers of the images in the order of the scan's planes."""
    if scan.source is None or not scan.files or "t" in scan.axes or scan.affine is None:
        raise ParameterError(
            f"{path.name}: a DICOM SEG belongs to one volume read from DICOM images, which this is not: write .nii.gz."
        )
    try:
        files = [(file, dicom.header(file)) for file in scan.files]
    except OSError as error:
        raise FileError(
            f"The DICOM images of this scan are gone, a SEG needs them: put them back. ({path.name})"
        ) from error
    stack = dicom.stack_of(files, scan.source.name)
    if (
        stack.affine is None
        or not np.array_equal(stack.affine, scan.affine)
        or len(stack.planes) != scan.spatial_shape[0]
    ):
        raise ParameterError(f"{path.name}: this scan is not on the grid of its DICOM images: write .nii.gz.")
    heads = dict(files)
    if any("FrameOfReferenceUID" not in head for head in heads.values()):
        raise ParameterError(
            f"{path.name}: the DICOM images state no frame of reference, a SEG needs one: write .nii.gz."
        )
    return [heads[file] for file in dict.fromkeys(plane.path for plane in stack.planes)], stack.planes


def _state_distance(head: Any, planes: Sequence[Plane]) -> None:
    """Write the distance between planes into a header in memory, as positions say it: files often state another."""
    first, second = planes[0], planes[min(1, len(planes) - 1)]
    if first is second or first.position is None or second.position is None or first.directions is None:
        return
    step = abs(float((second.position - first.position) @ np.cross(*first.directions)))
    groups = [*head.get("SharedFunctionalGroupsSequence", []), *head.get("PerFrameFunctionalGroupsSequence", [])]
    for item in (head, *(group.PixelMeasuresSequence[0] for group in groups if "PixelMeasuresSequence" in group)):
        item.SpacingBetweenSlices = f"{step:.10g}"


def _segmentation(sources: list[Any], values: NDArray[np.uint8], names: Sequence[str]) -> Any:
    highdicom, codes = library("highdicom"), library("pydicom.sr.codedict").codes
    algorithm = highdicom.AlgorithmIdentificationSequence(
        name="rskd", version=version("napari-rskd"), family=codes.DCM.ArtificialIntelligence
    )
    segments = [
        highdicom.seg.SegmentDescription(
            segment_number=number,
            segment_label=name[:64],
            segmented_property_category=codes.SCT.AnatomicalStructure,
            segmented_property_type=codes.SCT.AnatomicalStructure,
            algorithm_type="AUTOMATIC",
            algorithm_identification=algorithm,
        )
        for number, name in enumerate(names, 1)
    ]
    return highdicom.seg.Segmentation(
        source_images=sources,
        pixel_array=values,
        segmentation_type="BINARY",
        segment_descriptions=segments,
        series_instance_uid=highdicom.UID(),
        series_number=1,
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        manufacturer="RSKD",
        manufacturer_model_name="rskd",
        software_versions=version("napari-rskd"),
        device_serial_number="0",
        omit_empty_frames=False,
        content_label="LABELS",
        series_description="Labels by rskd",
    )


def _stripped(head: Any) -> Any:
    """Return a header without the texts that may say who the patient is; its geometry and references stay."""
    kept = library("pydicom").Dataset()
    for element in head:
        if element.keyword in _EMPTY_BUT_THERE:
            kept.add_new(element.tag, element.VR, "")
        elif element.keyword in _KEPT or (element.VR not in _TEXTS and not element.tag.is_private):
            kept.add(element)
    for keyword in _EMPTY_BUT_THERE:
        if keyword not in kept:
            setattr(kept, keyword, "")
    return kept
