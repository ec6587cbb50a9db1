"""DICOM images: one file, several frames in a file, or a series in a folder."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rskd.errors import FileError
from rskd.io import dicom_pixels
from rskd.io.dicom_geometry import Plane, Stack, arrange, number, spacing_of
from rskd.io.libraries import library
from rskd.io.memory import check_size
from rskd.scan import SPATIAL, Scan

SEGMENTATIONS = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
CONTOURS = "1.2.840.10008.5.1.4.1.1.481.3"
_DIRECTORY = "1.2.840.10008.1.3.10"
_MODALITIES = (
    "CR", "CT", "DX", "ES", "GM", "IO", "IVUS", "MG", "MR", "NM", "OCT", "OP", "OPT", "OT", "PT", "PX", "RF", "RG",
    "RTDOSE", "RTIMAGE", "SC", "SM", "US", "XA", "XC",
)  # fmt: skip
"""What a scan may be said to be: another word in a header may be anything."""
_VALUE_TYPES = (b"UI", b"CS", b"UL", b"OB", b"DA", b"TM", b"LO", b"SH", b"ST", b"PN")
"""What the first elements of a header can be."""
_DEPTH = 6
"""How deep folders are searched."""


def is_dicom(head: bytes) -> bool:
    """Tell a DICOM file by its first 132 bytes, also one without a preamble.

    Examples
    --------
    >>> is_dicom(bytes(128) + b"DICM"), is_dicom(b"II*" + bytes(129))
    (True, False)
    """
    if head[128:132] == b"DICM":
        return True
    first_group = head[:2] in (b"\x02\0", b"\x08\0") and head[3:4] == b"\0"
    explicit = head[4:6] in _VALUE_TYPES
    return first_group and (explicit or 0 < int.from_bytes(head[4:8], "little") <= 64)


def header(path: Path) -> Any:
    """Read a file's header, without its pixels."""
    return library("pydicom").dcmread(path, stop_before_pixels=True, force=True)


def read(path: Path) -> Scan:
    """Read the image in one file: a plane, or several frames."""
    head = header(path)
    _check_kind(path, head)
    return _scan([(path, head)], path)


def read_folder(folder: Path) -> list[Scan]:
    """Read every image series in a folder and in those inside of it; other files are passed over."""
    return [scan for _, scan in series_in(folder, files_in(folder))]


def series_in(folder: Path, paths: Iterable[Path]) -> Iterator[tuple[str, Scan]]:
    """Yield the identifier and the scan of every image series among some files, the one with the most planes first."""
    groups: dict[tuple[str, Any], list[tuple[Path, Any]]] = {}
    for path in paths:
        head = header(path)
        if "Rows" in head and str(head.get("SOPClassUID")) not in SEGMENTATIONS:
            alone = path if "NumberOfFrames" in head and int(head.NumberOfFrames or 1) > 1 else None
            groups.setdefault((str(head.get("SeriesInstanceUID")), alone), []).append((path, head))
    for (identifier, alone), members in sorted(groups.items(), key=lambda item: -len(item[1])):
        yield identifier, _scan(members, alone or folder)


def files_in(folder: Path, *, depth: int = _DEPTH) -> list[Path]:
    """Return the DICOM files in a folder, by their content."""
    found = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.is_symlink():
            continue
        if path.is_dir() and depth:
            found += files_in(path, depth=depth - 1)
        elif path.is_file() and path.name.upper() != "DICOMDIR":
            with open(path, "rb") as file:
                if is_dicom(file.read(132)):
                    found.append(path)
    return found


def planes_of(path: Path, head: Any) -> list[Plane]:
    """Return where every frame of a file lies."""
    count = int(head.get("NumberOfFrames") or 1)
    offsets = head.get("GridFrameOffsetVector")
    planes = [_plane(path, head, frame) for frame in range(count)]
    if offsets is None or planes[0].position is None or planes[0].directions is None or len(offsets) != count:
        return planes
    normal, position = np.cross(*planes[0].directions), planes[0].position
    shifts = [float(offset) - float(offsets[0]) for offset in offsets]
    return [replace(plane, position=position + by * normal) for plane, by in zip(planes, shifts, strict=True)]


def stack_of(files: Sequence[tuple[Path, Any]], name: str) -> Stack:
    """Return the planes of files with their headers, in order."""
    return arrange([plane for path, head in files for plane in planes_of(path, head)], name)


def _check_kind(path: Path, head: Any) -> None:
    kind = str(head.get("SOPClassUID", head.file_meta.get("MediaStorageSOPClassUID", "")))
    if kind == _DIRECTORY:
        raise FileError(f"{path.name} is a DICOM directory, without images: open the folder it lies in.")
    if "Rows" not in head:
        known = library("pydicom.uid").UID_dictionary.get(kind)
        what = f"a {known[0]} object" if known else "an object"
        raise FileError(f"{path.name} is {what} of DICOM without an image: open the images it belongs to.")


def _scan(files: list[tuple[Path, Any]], source: Path) -> Scan:
    heads = dict(files)
    first = files[0][1]
    if "TotalPixelMatrixColumns" in first:
        raise FileError(f"{source.name} is a slide in tiles, which DICOM keeps as frames: convert it to OME-TIFF.")
    stack = stack_of(files, source.name)
    if len({(head.Rows, head.Columns, head.get("SamplesPerPixel", 1)) for head in heads.values()}) > 1:
        raise FileError(f"{source.name} has planes of different sizes: keep those of one size.")
    _check_memory(source, stack, heads)
    data, maps = _values(stack, heads)
    group = _group_of(first, 0)
    modality = str(first.get("Modality", "")).strip().upper()
    modality = modality if modality in _MODALITIES else ""
    data, axes = _name_axes(data, stack)
    spacing = _spacing(stack, axes, first)
    return Scan(
        data,
        axes,
        spacing=spacing,
        units="mm" if spacing else None,
        affine=stack.affine,
        channels=("red", "green", "blue") if "c" in axes else (),
        source=source,
        files=tuple(dict.fromkeys(plane.path for plane in stack.planes)),
        modality=modality or None,
        meaning=dicom_pixels.meaning_of(
            first, group("PixelValueTransformationSequence"), modality, rescaled=any(m != (1, 0) for m in maps)
        ),
        anatomical=stack.affine is not None,
        window=_window(first, group("FrameVOILUTSequence")),
        notes=stack.notes,
    )


def _window(head: Any, group: Any) -> tuple[float, float] | None:
    """Return the range of values that the scanner suggests to show."""
    source = group or head
    centre, width = (source.get(name) for name in ("WindowCenter", "WindowWidth"))
    if centre is None or width is None:
        return None
    middle, size = (
        number(value[0] if hasattr(value, "__len__") and len(value) else value) for value in (centre, width)
    )
    return (middle - size / 2, middle + size / 2) if 0 < size < np.inf else None


def _check_memory(source: Path, stack: Stack, heads: dict[Path, Any]) -> None:
    first = next(iter(heads.values()))
    voxel = max(1, int(first.get("BitsAllocated", 16)) // 8) * int(first.get("SamplesPerPixel", 1))
    promised = len(stack.planes) * int(first.Rows) * int(first.Columns) * voxel
    check_size(source.name, promised, held=sum(path.stat().st_size for path in heads))


def _values(stack: Stack, heads: dict[Path, Any]) -> tuple[NDArray[Any], list[dicom_pixels.Rescale]]:
    """Return the values of all planes in their order, and how they came from the stored ones."""
    maps = [dicom_pixels.rescale_of(heads[p.path], _group_of(heads[p.path], p.frame)) for p in stack.planes]
    places: dict[Path, list[tuple[int, int]]] = {}
    for place, plane in enumerate(stack.planes):
        places.setdefault(plane.path, []).append((place, plane.frame))
    stored = np.empty(0)
    for path, wanted in places.items():
        dataset = library("pydicom").dcmread(path, force=True)
        frames = dicom_pixels.lookup_table(_decode(path, dataset), dataset)
        if not len(stored):
            stored = np.empty((len(stack.planes), *frames.shape[1:]), frames.dtype)
        stored = stored.astype(np.promote_types(stored.dtype, frames.dtype), copy=False)
        for place, frame in wanted:
            stored[place] = frames[frame]
    return dicom_pixels.apply(stored, maps), maps


def _decode(path: Path, dataset: Any) -> NDArray[Any]:
    syntax = dataset.file_meta.get("TransferSyntaxUID")
    if syntax is None:
        dataset.file_meta.TransferSyntaxUID = _plain_syntax(dataset)
    elif not _can_decode(syntax):
        raise FileError(
            f"{path.name} is packed as {syntax.name}, for which there is no free decoder here: "
            "export it uncompressed or as JPEG 2000."
        )
    return dicom_pixels.decode(dataset)


def _plain_syntax(dataset: Any) -> Any:
    """Return how a file without a preamble is encoded."""
    uid = library("pydicom.uid")
    implicit, little = dataset.original_encoding
    if implicit:
        return uid.ImplicitVRLittleEndian
    return uid.ExplicitVRLittleEndian if little else uid.ExplicitVRBigEndian


def _can_decode(syntax: Any) -> bool:
    if not syntax.is_transfer_syntax or syntax.is_private or not syntax.is_compressed or syntax.is_deflated:
        return True  # or pydicom will say what is wrong
    dicom_pixels.use_imagecodecs()
    try:
        return bool(library("pydicom.pixels").get_decoder(syntax).is_available)
    except NotImplementedError:
        return False


def _name_axes(data: NDArray[Any], stack: Stack) -> tuple[NDArray[Any], str]:
    colour = "c" if data.ndim == 4 else ""
    if stack.affine is not None:
        places = len(stack.planes) // stack.times
        if stack.times > 1:
            return data.reshape(stack.times, places, *data.shape[1:]), "tzyx" + colour
        return data, "zyx" + colour
    return (data[0], "yx" + colour) if len(data) == 1 else (data, "tyx" + colour)


def _spacing(stack: Stack, axes: str, head: Any) -> tuple[float, ...] | None:
    if stack.affine is not None:
        return spacing_of(stack.affine)
    sizes = stack.planes[0].spacing or _ultrasound_spacing(head)
    spatial = [axis for axis in axes if axis in SPATIAL]
    if sizes is None or len(spatial) != 2 or not all(0 < size < np.inf for size in sizes):
        return None
    return sizes


def _ultrasound_spacing(head: Any) -> tuple[float, float] | None:
    """Return millimetres per pixel of an ultrasound image with a single calibrated region."""
    regions = head.get("SequenceOfUltrasoundRegions") or []
    centimetres = 3
    if len(regions) != 1 or {regions[0].PhysicalUnitsXDirection, regions[0].PhysicalUnitsYDirection} != {centimetres}:
        return None
    return abs(float(regions[0].PhysicalDeltaY)) * 10, abs(float(regions[0].PhysicalDeltaX)) * 10


def _group_of(head: Any, frame: int) -> Callable[[str], Any]:
    """Return a function that finds what a frame, or all frames together, say about a functional group."""
    own = head.get("PerFrameFunctionalGroupsSequence")
    groups = [*([own[frame]] if own and frame < len(own) else []), *(head.get("SharedFunctionalGroupsSequence") or [])]

    def find(name: str) -> Any:
        return next((group[name][0] for group in groups if name in group and len(group[name].value)), None)

    return find


def _plane(path: Path, head: Any, frame: int) -> Plane:
    group = _group_of(head, frame)
    place = group("PlanePositionSequence") or head
    direction = group("PlaneOrientationSequence") or head
    measures = group("PixelMeasuresSequence") or head
    content = group("FrameContentSequence") or head
    position, orientation = place.get("ImagePositionPatient"), direction.get("ImageOrientationPatient")
    sizes = measures.get("PixelSpacing") or head.get("ImagerPixelSpacing")
    single = int(head.get("NumberOfFrames") or 1) == 1
    stated = place is not head or single or "GridFrameOffsetVector" in head
    return Plane(
        path,
        frame,
        position=np.array(position, np.float64) if position and stated else None,
        directions=np.array(orientation, np.float64).reshape(2, 3) if orientation else None,
        spacing=(float(sizes[0]), float(sizes[1])) if sizes else None,
        thickness=number(measures.get("SpacingBetweenSlices")) or number(measures.get("SliceThickness")) or None,
        time=tuple(number(value) for value in _times(head, content)),
    )


def _times(head: Any, content: Any) -> tuple[Any, ...]:
    return (
        content.get("TemporalPositionIndex", head.get("TemporalPositionIdentifier")),
        head.get("AcquisitionNumber"),
        head.get("TriggerTime"),
        head.get("EchoTime"),
        head.get("InstanceNumber"),
    )
