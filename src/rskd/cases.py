"""Training cases: which mask and region belong to which image, and their arrays."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rskd.config import CaseOptions, DataOptions, ModelSpec
from rskd.errors import DataError, ParameterError
from rskd.io import SUFFIXES, read_labels, read_scan
from rskd.io.slices import Slices
from rskd.scan import SPATIAL, Scan, move_axes

_WHITE = (255, 65535)
_COLOURS = ("red", "green", "blue")
_MISALIGNED = 0.1
"""Largest distance, in voxels, by which a mask may lie off its image."""


@dataclass(frozen=True)
class Case:
    """One image and what belongs to it."""

    name: str
    """File name of the image without its ending."""
    image: Path
    mask: Path | None = None
    region: Path | None = None


def case_id(case: Case) -> str:
    """Return twelve digits of the SHA-256 of a case's image: what a report may call it, since a name may be a person's.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "Jane Doe.png"
    ...     _ = path.write_bytes(b"pixels")
    ...     case_id(Case("Jane Doe", path)).isalnum()
    True
    """
    return content_hash(case.image)[:12]


def content_hash(path: Path) -> str:
    """Return the SHA-256 of a file, or of the files in a folder, in hexadecimal."""
    digest = Scan(np.empty((1, 1)), "yx", source=path).digest
    assert digest is not None  # noqa: S101 - it has a source
    return digest


class CaseArrays(NamedTuple):
    """A case in memory: S planes of H × W pixels."""

    image: NDArray[np.generic]
    """S C H W, as stored."""
    mask: NDArray[np.int64] | None
    """S H W, class index; where classes may overlap S K H W, whether each of them is there (0 or 1), no background."""
    region: NDArray[np.bool_] | None
    """S H W, true where pixels count."""


def shows(mask: NDArray[np.integer], label: int) -> NDArray[np.bool_]:
    """Return where a class is, S H W, by its number from 1, in the mask of a case of either kind.

    Examples
    --------
    >>> shows(np.array([[[0, 2]]]), 2), shows(np.array([[[[0, 1]], [[1, 1]]]]), 2)
    (array([[[False,  True]]]), array([[[ True,  True]]]))
    """
    found: NDArray[np.bool_] = mask == label if mask.ndim == 3 else mask[:, label - 1] == 1
    return found


def find_cases(options: CaseOptions) -> list[Case]:
    """Pair images with masks and regions: by the same name, else by the same number.

    The number of a file is what differs between the numbers in its folder's names: 21 in ``21_manual1.gif`` where
    the others are ``22_manual1.gif`` …, or (1, 12) in ``patient001_frame12.nii.gz``.

    Parameters
    ----------
    options
        Folders of images, masks and regions.

    Returns
    -------
    list of Case
        Sorted by name; masks without an image are left out.

    Raises
    ------
    DataError
        If a folder is missing or empty, or an image has no partner or more than one.
    """
    images = siblings = _files(options.images, "images")
    if options.images.is_file():
        siblings = sorted({*images, *_images_in(options.images.parent)})
    twins = [name for name, count in Counter(map(_stem, images)).items() if count > 1]
    if twins:
        raise DataError(f"{len(twins)} images share a name but for its ending, the first is {twins[0]}: rename one.")
    optional = isinstance(options, DataOptions) and options.unlabelled
    masks = _partners(images, siblings, options.masks, "mask", optional=optional)
    regions = _partners(images, siblings, options.regions, "region")
    return [Case(_stem(path), path, masks.get(path), regions.get(path)) for path in images]


def split_cases(cases: Sequence[Case], options: DataOptions, seed: int) -> tuple[list[Case], list[Case]]:
    """Return the cases to train on and those kept for validation.

    Where files differ by several numbers, those that share the first (patient001_frame01, patient001_frame12) stay
    on one side: planes of one patient on both sides would make the validation look better than it is.

    Parameters
    ----------
    cases
        All of them.
    options
        Names the validation cases, or says how large a share is drawn.
    seed
        Seed of the drawing.

    Raises
    ------
    DataError
        If a named case does not exist, or nothing would be left to train on or to validate with.

    Examples
    --------
    >>> cases = [Case(name, Path(name + ".png")) for name in "abcde"]
    >>> train, validation = split_cases(cases, DataOptions(images=Path("."), validation=("d",)), seed=0)
    >>> [case.name for case in train], [case.name for case in validation]
    (['a', 'b', 'c', 'e'], ['d'])
    """
    if options.validation:
        kept = set(options.validation)
        unknown = sorted(kept - {case.name for case in cases} - {case.image.name for case in cases})
        if unknown:
            raise DataError(f"The validation image {unknown[0]} is not among the {len(cases)} images: check its name.")
        chosen = {case.name for case in cases if {case.name, case.image.name} & kept}
    else:
        chosen = _draw(cases, max(1, round(options.validation_share * len(cases))), seed)
    if not 0 < len(chosen) < len(cases):
        raise DataError(
            f"Of {len(cases)} images {len(chosen)} would be kept for validation: at least one is needed on both sides, "
            "add images."
        )
    return [c for c in cases if c.name not in chosen], [c for c in cases if c.name in chosen]


def read_case(case: Case, spec: ModelSpec) -> CaseArrays:
    """Read the planes of a case as the network `spec` takes them, not yet normalised.

    Parameters
    ----------
    case
        From `find_cases`.
    spec
        The network: number of channels and of classes.

    Raises
    ------
    DataError
        If the mask or region has another size, lies elsewhere, or has values that are no classes; if the image does
        not suit the network.
    FileError
        If a file cannot be read.
    """
    return read_partners(case, read_scan(case.image), spec)


def read_partners(case: Case, scan: Scan, spec: ModelSpec) -> CaseArrays:
    """Return the planes of a case whose image was already read as `scan`; see `read_case`."""
    try:
        image = np.stack(list(Slices(scan, spec)))  # S C H W
    except ParameterError as error:
        raise DataError(f"{case.image.name}: {error}") from error
    mask = region = None
    if case.mask is not None:
        read_mask = _class_planes if spec.overlapping else _class_indices
        mask = read_mask(case.mask, scan, len(spec.classes))
    if case.region is not None:
        region = _as_planes(case.region, _without_channels(case.region, read_labels(case.region)), scan) != 0
    return CaseArrays(image, mask, region)


def _draw(cases: Sequence[Case], count: int, seed: int) -> set[str]:
    """Draw about `count` cases, and with each all those that belong together with it (one patient, several images)."""
    members = patients(cases)
    chosen: set[str] = set()
    for index in np.random.default_rng(seed).permutation(len(members)):
        missing = count - len(chosen)
        if missing > 0 and len(members[index]) <= 2 * missing:  # one site of a hundred images is no fifth of them
            chosen.update(members[index])
    return chosen or set(sorted(members, key=len)[0])


def patients(cases: Sequence[Case]) -> list[list[str]]:
    """Return the names of the cases, those of one patient together.

    One patient is what shares the first number by which names differ, if they differ by several; else every case.

    Examples
    --------
    >>> names = ["p01_frame1", "p01_frame9", "p02_frame1"]
    >>> patients([Case(name, Path(name + ".nii")) for name in names])
    [['p01_frame1', 'p01_frame9'], ['p02_frame1']]
    """
    numbers = {case.name: re.findall(r"\d+", case.name) for case in cases}
    deepest = max(map(len, numbers.values()))
    places = [i for i in range(deepest) if len({found[i] for found in numbers.values() if i < len(found)}) > 1]
    groups: dict[str, list[str]] = {}
    for name, found in numbers.items():
        telling = places[0] if len(places) > 1 and places[0] < len(found) else None
        groups.setdefault(name if telling is None else found[telling], []).append(name)
    return list(groups.values())


def _stem(path: Path) -> str:
    return re.sub(r"(\.nii\.gz|\.ome\.tiff?|\.[^.]+)$", "", path.name, flags=re.IGNORECASE)


def _files(place: Path, what: str) -> list[Path]:
    if place.is_file():
        return [place]
    if not place.is_dir():
        raise DataError(f"There are no {what} at {place}: choose a folder or a file that exists.")
    found = _images_in(place)
    if not found:
        raise DataError(f"The folder {place} holds no {what} ({', '.join(SUFFIXES)}): choose another one.")
    return found


def _images_in(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.name.lower().endswith(SUFFIXES) and not p.name.startswith("."))


def _partners(
    images: list[Path], siblings: list[Path], place: Path | None, what: str, *, optional: bool = False
) -> dict[Path, Path]:
    if place is None:
        return {}
    candidates = _files(place, f"{what}s")
    if len(images) == 1 and place.is_file():
        return {images[0]: place}
    numbers, their_numbers = _numbers(siblings), _numbers(candidates)
    found = {}
    for image in images:
        matches = [c for c in candidates if _stem(c) == _stem(image)]
        if not matches and numbers[image]:
            matches = [c for c in candidates if their_numbers[c] == numbers[image]]
        if not matches and optional:
            continue
        if len(matches) != 1:
            names = ", ".join(match.name for match in matches[:3]) or "none"
            raise DataError(
                f"{image.name} needs exactly one {what} of the same name or number in {place}, found {names}: "
                "rename the files or remove what does not belong."
            )
        found[image] = matches[0]
    return found


def _numbers(paths: Sequence[Path]) -> dict[Path, tuple[int, ...]]:
    """Return the numbers by which each file differs from its neighbours; of a single file, its first number."""
    found = {path: tuple(map(int, re.findall(r"\d+", _stem(path)))) for path in paths}
    if len({len(numbers) for numbers in found.values()}) > 1:
        return {path: numbers[:1] for path, numbers in found.items()}
    columns = list(zip(*found.values(), strict=True))
    varying = [place for place, column in enumerate(columns) if len(set(column)) > 1] or [0]
    return {path: tuple(numbers[i] for i in varying) if numbers else () for path, numbers in found.items()}


def _class_indices(path: Path, image: Scan, classes: int) -> NDArray[np.int64]:
    """Read a mask of one class per pixel, S H W."""
    return _numbered(path, _as_planes(path, _without_channels(path, read_labels(path)), image), classes)


def _class_planes(path: Path, image: Scan, classes: int) -> NDArray[np.int64]:
    """Read a mask of classes that may overlap, S K H W: a plane for each, or class numbers where none overlap."""
    scan = read_labels(path)
    axis = _class_axis(scan, image)
    if axis is None:
        indices = _numbered(path, _as_planes(path, _without_channels(path, scan), image), classes)
        return np.stack([indices == label for label in range(1, classes)], axis=1).astype(np.int64)
    parts = np.moveaxis(np.asarray(scan.data), scan.axes.index(axis), 0)
    if len(parts) != classes - 1:
        raise DataError(f"{path.name} has {len(parts)} planes for every pixel: {classes - 1} classes need one each.")
    axes = scan.axes.replace(axis, "")
    geometry = Scan(parts[0], axes) if axis in SPATIAL else scan.like(parts[0], axes)
    planes = [_numbered(path, _as_planes(path, replace(geometry, data=part), image), 2) for part in parts]
    return np.stack(planes, axis=1)


def _class_axis(mask: Scan, image: Scan) -> str | None:
    """Return the axis of a mask along which the classes lie: c, or the one that its image has not."""
    own, others = (
        [axis for axis, size in zip(scan.axes, scan.data.shape, strict=True) if size > 1] for scan in (mask, image)
    )
    others = [axis for axis in others if axis != "c"]
    if len(own) <= len(others) or (mask.channels[:3] == _COLOURS and _is_grey(mask)):
        return None
    more = [axis for axis in own if axis not in others]
    return "c" if "c" in more else next(iter(more), None)


def _as_planes(path: Path, scan: Scan, image: Scan) -> NDArray[Any]:
    """Return a mask or region as S H W, in the order of the image's planes."""
    axes = image.axes.replace("c", "")
    shape = tuple(n for n, axis in zip(image.data.shape, image.axes, strict=True) if axis != "c")
    if np.squeeze(scan.data).shape != tuple(n for n in shape if n > 1):
        raise DataError(
            f"{path.name} has the shape {scan.data.shape}, its image {shape}: a mask needs one value per pixel."
        )
    _check_place(path, scan, image)
    stack = "".join(axis for axis in axes if axis not in "yx")
    planes = move_axes(np.reshape(scan.data, shape), axes, stack + "yx")
    return planes.reshape(-1, *planes.shape[-2:])


def _without_channels(path: Path, scan: Scan) -> Scan:
    """Accept a mask that was saved as a colour picture of greys."""
    if "c" not in scan.axes:
        return scan
    if not _is_grey(scan):
        raise DataError(f"{path.name} is a colour picture: save the mask with one class number per pixel.")
    return scan.like(_colours(scan)[0], scan.axes.replace("c", ""))


def _is_grey(scan: Scan) -> bool:
    colours = _colours(scan)
    return not (colours != colours[0]).any()


def _colours(scan: Scan) -> NDArray[Any]:
    """Return the channels of a picture, c first, without transparency."""
    channels = np.moveaxis(np.asarray(scan.data), scan.axes.index("c"), 0)
    return channels[:-1] if scan.channels[-1:] == ("alpha",) else channels


def _check_place(path: Path, mask: Scan, image: Scan) -> None:
    """Refuse a mask whose header puts it elsewhere than its image."""
    if mask.affine is None or image.affine is None or mask.affine.shape != image.affine.shape:
        return
    lengths = [n - 1 for n in image.spatial_shape]
    corners = np.array([*np.ndindex((2,) * len(lengths))]) * lengths
    homogeneous = np.c_[corners, np.ones(len(corners))].T
    in_image = np.linalg.solve(image.affine, mask.affine @ homogeneous)
    distance = np.abs(in_image - homogeneous).max()
    if distance > _MISALIGNED:
        raise DataError(
            f"{path.name} lies up to {distance:.1f} voxels off its image by what their headers say: "
            "resample it onto the image's grid."
        )


def _numbered(path: Path, values: NDArray[Any], classes: int) -> NDArray[np.int64]:
    """Return the classes that mask values stand for; with two classes, black and white are background and class 1."""
    found = np.unique(values)
    if classes == 2 and any(set(found.tolist()) <= {0, white} for white in _WHITE):
        values = values != 0
    elif not np.isin(found, np.arange(classes)).all():
        listed = ", ".join(f"{value:g}" for value in found[:6]) + (" …" if len(found) > 6 else "")
        pair = " or 0 and 255" if classes == 2 else ""
        raise DataError(
            f"{path.name} has the values {listed}: {classes} classes need 0 … {classes - 1}{pair}, saved without loss."
        )
    indices: NDArray[np.int64] = values.astype(np.int64)
    return indices
