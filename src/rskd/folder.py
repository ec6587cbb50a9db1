"""The images in a folder of all kinds of files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path

from rskd.errors import FileError
from rskd.io import SUFFIXES, can_read, dicom
from rskd.io.libraries import quiet
from rskd.io.names import split_name
from rskd.io.ome_zarr import is_ome_zarr


@dataclass(frozen=True)
class Item:
    """One image."""

    name: str
    """Where it lies in its folder: a file, or the folder of a DICOM series or an OME-Zarr."""
    files: tuple[Path, ...]
    """What to read."""
    target: str
    """Where its results go in theirs, without ending."""
    dicom: bool = False


def find_items(folder: Path, *, without: Path | None = None, pattern: str = "*") -> list[Item]:
    """Return the images in a folder and in those inside of it.

    A file counts if its name ends like that of an image, or its content is one; so does an OME-Zarr, and every DICOM
    series in a folder. DICOM SEG and RTSTRUCT, hidden files and links to folders are passed over.

    Parameters
    ----------
    folder
        Where to search.
    without
        Folder to leave out: that of the results, if it lies inside.
    pattern
        Only images whose name matches.

    Returns
    -------
    list of Item
        Sorted by name. A series alone in its folder has the folder's name, any other that of its first file. Where two
        images of a folder would share a name but for its ending, their results keep the ending in their names.

    Raises
    ------
    FileError
        If there is no such folder, it is an image itself, or there is none in it.
    """
    if not folder.is_dir():
        raise FileError(f"There is no folder {folder}: choose a folder of images; a single one is for `rskd segment`.")
    if is_ome_zarr(folder):
        raise FileError(f"{folder} is one OME-Zarr image: use `rskd segment`, or choose the folder it lies in.")
    found = [item for item in _items(folder, folder, without) if fnmatch(Path(item.name).name, pattern)]
    if not found:
        raise FileError(f"The folder {folder} holds no images ({', '.join(SUFFIXES)}) named {pattern}: choose another.")
    counts = Counter(item.target for item in found)
    items = [replace(item, target=item.name) if counts[item.target] > 1 else item for item in found]
    return sorted(items, key=lambda item: item.name)


def holds_images(folder: Path) -> bool:
    """Return whether there is any image in a folder or in those inside of it, or it is one itself."""
    return folder.is_dir() and (is_ome_zarr(folder) or next(_items(folder, folder, None), None) is not None)


def _items(root: Path, folder: Path, without: Path | None) -> Iterator[Item]:
    series: list[Path] = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or (without is not None and path.resolve() == without.resolve()):
            continue
        if path.is_dir():
            if is_ome_zarr(path) or path.suffix.lower() == ".zarr":
                yield _single(root, path)
            elif not path.is_symlink():
                yield from _items(root, path, without)
        elif _is_dicom(path):
            series.append(path)
        elif path.name.lower().endswith(SUFFIXES) or can_read(path):
            yield _single(root, path)
    yield from _series(root, folder, series)


def _single(root: Path, path: Path) -> Item:
    place = path.relative_to(root)
    return Item(place.as_posix(), (path,), place.with_name(split_name(path.name)[0]).as_posix())


def _is_dicom(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            return dicom.is_dicom(file.read(132))
    except OSError:
        return False


def _series(root: Path, folder: Path, paths: Sequence[Path]) -> Iterator[Item]:
    """Put the DICOM files of a folder together to series."""
    groups: dict[object, list[Path]] = {}
    for path in paths:
        try:
            with quiet():
                head = dicom.header(path)
                kind, frames = str(head.get("SOPClassUID")), int(head.get("NumberOfFrames") or 1)
                key: object = path if frames > 1 else str(head.get("SeriesInstanceUID"))
        except Exception:  # whatever a damaged header makes pydicom raise: reading it will say so
            kind, key = "", path
        if kind not in (*dicom.SEGMENTATIONS, dicom.CONTOURS) and path.name.upper() != "DICOMDIR":
            groups.setdefault(key, []).append(path)
    for files in groups.values():
        alone = len(groups) == 1 and len(files) > 1
        single = _single(root, files[0])
        if alone:
            name = folder.relative_to(root).as_posix() if folder != root else root.resolve().name
            yield Item(name, tuple(files), name, dicom=True)
        else:
            yield replace(single, files=tuple(files), dicom=True)
