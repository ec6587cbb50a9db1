"""The user's folder of models, and what a file or folder that was chosen or dropped means."""

from __future__ import annotations

import filecmp
import shutil
from collections.abc import Iterator
from pathlib import Path

from napari_rskd._session import Model
from rskd.errors import FileError
from rskd.io.files import replacing
from rskd.models.description import description_file
from rskd.runs import RunFolder

WEIGHT_SUFFIXES = (".safetensors", ".onnx", ".pt", ".pth", ".pt2")
_KINDS = ", ".join(WEIGHT_SUFFIXES)


def library_models(folder: Path) -> tuple[Model, ...]:
    """Return the models in the user's folder, by name; none where there is no such folder."""
    try:
        files = [path for path in folder.iterdir() if path.suffix.lower() in WEIGHT_SUFFIXES]
    except OSError:
        return ()
    return tuple(
        Model(name=path.stem, source=str(path))
        for path in sorted(files, key=lambda path: path.stem)
        if path.name[0] != "."
    )


def model_at(path: Path) -> Model:
    """Return the model that a file or a run folder holds.

    Raises
    ------
    FileError
        If it is neither, in one sentence.
    """
    if path.is_dir():
        best = RunFolder(path).best
        if best.is_file():
            return Model(name=f"{path.name} (run)", source=str(best))
        state = "has no finished round yet" if (path / "job.json").is_file() else "is no run folder"
        raise FileError(f"The folder {path.name} {state}: choose a folder that a distillation has written a model to.")
    if path.suffix.lower() not in WEIGHT_SUFFIXES:
        raise FileError(f"{path.name} is no weight file: choose one that ends in {_KINDS}, or the folder of a run.")
    return Model(name=path.name, source=str(path))


def keep(source: Path, folder: Path) -> Path:
    """Copy a weight file, and the description beside it, into a folder; another file of that name stays.

    Returns
    -------
    Path
        The copy, or the file that was there already with the same content.

    Raises
    ------
    FileError
        If it cannot be read or written.
    """
    name = f"{source.parent.name}{source.suffix}" if source.stem == "best" else source.name
    for target in _names(folder / name):
        if target.exists() and not _alike(source, target):
            continue
        return target if target.exists() else save_copy(source, target)
    raise AssertionError("names do not end")


def save_copy(source: Path, target: Path) -> Path:
    """Copy a weight file, and the description beside it, to a place of the user's choice; returns the place.

    Raises
    ------
    FileError
        If it cannot be read or written.
    """
    for file, copy in ((source, target), (description_file(source), description_file(target))):
        if file is source or file.is_file():
            with replacing(copy) as partial:
                shutil.copyfile(file, partial)
    return target


def _names(path: Path) -> Iterator[Path]:
    yield path
    for number in range(2, 1000):
        yield path.with_stem(f"{path.stem}-{number}")


def _alike(source: Path, target: Path) -> bool:
    try:
        return filecmp.cmp(source, target, shallow=False)
    except OSError as error:
        raise FileError(f"{source.name} cannot be read: {error.strerror}.") from error
