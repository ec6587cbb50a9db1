"""Write a scan, or the labels found in it, with the geometry it came with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rskd.errors import DataError, FileError, ParameterError, RskdError
from rskd.io import dicom_seg, itk, nifti, numpy_file, ome_zarr, raster, tiff
from rskd.io.files import replacing
from rskd.io.libraries import quiet
from rskd.scan import Scan

_Writer = Callable[[Path, Scan], None]
_OWN_LABELS = "rskd"
_WRITERS: tuple[tuple[str, _Writer], ...] = (
    (".tif", tiff.write),
    (".tiff", tiff.write),
    (".png", raster.write),
    (".nii", nifti.write),
    (".nii.gz", nifti.write),
    (".npy", numpy_file.write),
    (".nrrd", itk.write),
    (".mha", itk.write),
    (".zarr", ome_zarr.write),
)
_SEG = ".dcm"


def write_image(path: str | Path, scan: Scan) -> None:
    """Write a scan; the ending of the name decides on the format. The file appears whole or not at all.

    Parameters
    ----------
    path
        New name ending in .tif (an OME-TIFF), .png (one picture of 8 or 16 bits), .nii, .nii.gz, .npy, .nrrd, .mha or
        .zarr (an OME-Zarr folder); an existing file is replaced.
    scan
        What to write.

    Raises
    ------
    ParameterError
        If the format cannot hold this scan, or the ending is none of these.
    FileError
        If the system does not let it be written.
    """
    path = Path(path)
    _write(path, _writer_for(path, _WRITERS), scan)


def write_labels(
    path: str | Path, labels: NDArray[Any], scan: Scan, *, names: Sequence[str] = (), keep_identifiers: bool = False
) -> None:
    """Write labels with the geometry of the scan they belong to, as the smallest unsigned integers that hold them.

    Parameters
    ----------
    path
        As for `write_image`; also .dcm, a DICOM SEG for a scan read from DICOM, and the name of labels inside of an
        OME-Zarr image: ``"image.zarr/labels/vessels"``. The image's own name adds them to it as ``labels/rskd``.
        For a scan read from NIfTI, a .nii or .nii.gz has the order of the axes and the geometry fields of that file,
        bit for bit.
    labels
        Integers ≥ 0 over the axes of `scan` without c. Of classes that may overlap, a plane of 0 and 1 for each, the
        classes first: they become the channels of the file, the fourth dimension of NIfTI, the segments of DICOM SEG.
    scan
        What was segmented.
    names
        Names of the labels 1, 2 …, for DICOM SEG and for channels.
    keep_identifiers
        Whether a DICOM SEG repeats what its images say about patient and study.

    Raises
    ------
    DataError
        If the labels have another shape than the scan, or are not integers ≥ 0.
    ParameterError
        If they would replace the image.
    ParameterError, FileError
        As `write_image`.

    Examples
    --------
    >>> import tempfile
    >>> from rskd.io import read_scan
    >>> scan = Scan(np.zeros((4, 6, 3), np.uint8), "yxc", spacing=(0.5, 0.5), units="um")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_labels(Path(folder) / "labels.tif", np.ones((4, 6), int), scan)
    ...     read = read_scan(Path(folder) / "labels.tif")
    >>> read.axes, str(read.data.dtype), read.spacing, read.units
    ('yx', 'uint8', (0.5, 0.5), 'um')
    """
    axes = scan.axes.replace("c", "")
    shape = tuple(n for n, axis in zip(scan.data.shape, scan.axes, strict=True) if axis != "c")
    labels = np.asarray(labels)
    overlapping = labels.ndim > len(shape) and labels.shape[1:] == shape
    if labels.shape != shape and not overlapping:
        raise DataError(f"The labels have the shape {labels.shape}, the image has {shape} over {axes!r}: use its own.")
    if labels.dtype.kind not in "biu" or (labels.size and labels.min() < 0):
        raise DataError(f"Labels of type {labels.dtype} from {labels.min()} on: only integers ≥ 0 can be written.")
    path = Path(path)
    smallest = np.min_scalar_type(int(labels.max(initial=0)))
    result = scan.like(labels.astype(smallest), axes if not overlapping else "c" + axes)
    if overlapping:
        _check_planes(path, result)
        result = replace(result, channels=tuple(names))
    image = _zarr_image(path, scan)
    if image is not None:
        with quiet():
            ome_zarr.add_labels(image, path.name if path.parent.name == ome_zarr.LABELS else _OWN_LABELS, result)
        return
    keep_image(path, scan)

    def write_seg(file: Path, labels: Scan) -> None:
        dicom_seg.write(file, labels, scan, names=names, keep_identifiers=keep_identifiers)

    of_labels = ((_SEG, write_seg), (".zarr", ome_zarr.write_labels), *_NIFTI)
    _write(path, _writer_for(path, (*of_labels, *_WRITERS)), result)


def _check_planes(path: Path, labels: Scan) -> None:
    """Refuse planes of classes that are no yes and no, and a picture, whose channels are colours."""
    _refuse_picture(path, labels.axes)
    if labels.data.max(initial=0) > 1:
        raise DataError(f"Planes of classes go up to {labels.data.max()}: write 1 where a class is, and 0 elsewhere.")


def _refuse_picture(path: Path, axes: str) -> None:
    if path.name.lower().endswith(".png") and axes != "yx":
        raise ParameterError(f"{path.name} holds one picture, the labels have the axes {axes!r}: use .tif.")


def _write_nifti(path: Path, labels: Scan) -> None:
    """Write planes of classes as the fourth dimension, where other programs look for them, unless that is time."""
    if "c" in labels.axes and "t" not in labels.axes:
        labels = replace(labels, axes=labels.axes.replace("c", "t"))
    nifti.write(path, labels)


_NIFTI = ((".nii", _write_nifti), (".nii.gz", _write_nifti))


def check_place(path: str | Path, scan: Scan, *, overlapping: bool = False) -> None:
    """Say before the work what would keep its labels from being written.

    Parameters
    ----------
    path
        As for `write_labels`.
    scan
        What will be segmented.
    overlapping
        Whether there will be a plane for every class.

    Raises
    ------
    ParameterError
        If the ending names no format, or one that cannot hold labels of this scan, or it is the image itself.
    FileError
        If the system does not let a file be made there.
    """
    path = Path(path)
    if _zarr_image(path, scan) is not None:
        return
    keep_image(path, scan)
    _writer_for(path, ((_SEG, ome_zarr.write_labels), *_WRITERS))
    _refuse_picture(path, "c" * overlapping + scan.axes.replace("c", ""))
    if path.name.lower().endswith(_SEG) and not scan.files and scan.modality is None:
        raise ParameterError(f"{path.name}: a DICOM SEG needs an image that was read from DICOM: use .nii.gz or .tif.")
    if path.is_dir() and not ome_zarr.is_ome_zarr(path):
        raise FileError(f"{path.name} cannot be written: it is a folder of something else, choose another name.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise FileError(f"{path.name} cannot be written into {path.parent}: {error.strerror}.") from error


def keep_image(path: Path, scan: Scan) -> None:
    """Refuse a name under which a result would replace the image that it was made from.

    Raises
    ------
    ParameterError
        If the file or folder is the image, or holds it.
    """
    for original in (scan.source, *scan.files):
        if original is None or not (path.exists() and original.exists()):
            continue
        if path.samefile(original):
            raise ParameterError(f"{path.name} is the image itself: choose another name for what is made from it.")
        if original.resolve().is_relative_to(path.resolve()):
            raise ParameterError(f"{path.name} holds the image: choose another name for what is made from it.")


def _writer_for(path: Path, writers: Sequence[tuple[str, _Writer]]) -> _Writer:
    for suffix, write in writers:
        if path.name.lower().endswith(suffix):
            return write
    endings = ", ".join(dict.fromkeys(suffix for suffix, _ in (*_WRITERS, *writers)))
    raise ParameterError(f"{path.name} does not say which format to write: end the name in one of {endings}.")


def _write(path: Path, write: _Writer, scan: Scan) -> None:
    if path.is_dir() and not ome_zarr.is_ome_zarr(path):
        raise FileError(f"{path.name} cannot be written: it is a folder of something else, choose another name.")
    with replacing(path) as partial, quiet():
        try:
            write(partial, scan)
        except RskdError as error:  # in words that a user knows
            raise type(error)(str(error).replace(partial.name, path.name)) from error
        except OSError:
            raise
        except Exception as error:  # its words may quote a header that names a patient
            raise FileError(
                f"{path.name} cannot be written ({type(error).__name__}): what the scan says about itself does not fit "
                "this format, choose another one."
            ) from None


def _zarr_image(path: Path, scan: Scan) -> Path | None:
    """Return the OME-Zarr image that `path` asks labels to be added to."""
    image = ome_zarr.image_of(path)
    if image is not None:
        return image
    own = scan.source is not None and path.resolve() == scan.source.resolve() and ome_zarr.is_ome_zarr(path)
    return path if own else None
