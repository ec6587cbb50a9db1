"""A result that is written box by box into OME-Zarr; a ledger of what is finished lets any process go on with it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rskd.errors import FileError
from rskd.io import keep_image, ome_zarr
from rskd.io.files import locked, write_atomically
from rskd.io.names import companion
from rskd.plan import Box, Known, Plan
from rskd.recipe import Setting
from rskd.scan import Scan

_CHUNK = 512
"""Side of the blocks that results are stored in, plane by plane."""
_CUBE = 64
"""Side where they were cut along another axis than z."""
_MEMORY = 1 << 29
"""Bytes in which a region is worked on, at most; the same on every computer, so that any can go on with it."""


@dataclass(frozen=True)
class Place:
    """Where a result goes, and where it grows until it is whole.

    Parameters
    ----------
    output
        Name ending in .zarr, or that of labels inside of an image: ``"image.zarr/labels/vessels"``.
    """

    output: Path

    @classmethod
    def of(cls, output: Path, image: Path | None) -> Place:
        """Return the place that a name means; the name of the image itself means its labels ``rskd``."""
        if image is not None and output.resolve() == image.resolve():
            return cls(output / ome_zarr.LABELS / "rskd")
        return cls(output)

    @property
    def image(self) -> Path | None:
        """The OME-Zarr image that the labels belong to."""
        return ome_zarr.image_of(self.output)

    @property
    def growing(self) -> Path:
        """Folder for what is not whole yet."""
        return self.output.with_name(f".{self.output.name}.growing")

    @property
    def probabilities(self) -> Path:
        """Folder of the probabilities."""
        return companion(self.output, "probabilities", ".zarr")


@dataclass(frozen=True)
class Store:
    """The arrays of a growing result; small, so that it can be sent to whoever writes into them.

    Its folder is called by all that the values depend on: who is late with values of another result finds it gone.
    """

    folder: Path
    axes: str
    """Of the labels, without the classes."""
    classes: tuple[str, ...]
    """Names of the network's outputs."""
    overlapping: bool
    """Whether the labels have a plane for each of them."""
    probable: bool
    """Whether there are probabilities as well."""

    @property
    def folders(self) -> dict[str, Path]:
        """Folder of each array."""
        names = ("labels", "probabilities") if self.probable else ("labels",)
        return {name: self.folder / f"{name}.zarr" for name in names}

    @property
    def class_axis(self) -> int:
        """Where the classes come in an array that has them."""
        return 1 if self.axes[:1] == "t" else 0

    def _has_classes(self, name: str) -> bool:
        return self.overlapping or name == "probabilities"

    def begin(self, shape: tuple[int, ...], chunks: tuple[int, ...], *, beside: Path | None) -> None:
        """Make the arrays, empty."""
        at = self.class_axis
        labels = np.min_scalar_type(1 if self.overlapping else len(self.classes) - 1)
        kinds = {"labels": labels, "probabilities": np.dtype(np.float32)}
        for name, folder in self.folders.items():
            own, blocks = shape, chunks
            if self._has_classes(name):
                own, blocks = (*shape[:at], len(self.classes), *shape[at:]), (*chunks[:at], 1, *chunks[at:])
            ome_zarr.begin(folder, own, kinds[name], chunks=blocks, beside=beside if name == "labels" else None)

    def write(self, box: Box, labels: NDArray[Any], probabilities: NDArray[Any] | None) -> None:
        """Write the values of a box.

        Raises
        ------
        FileError
            If the arrays are gone.
        """
        at = self.class_axis
        of_all = (*box[:at], slice(None), *box[at:])
        for name, values in (("labels", labels), ("probabilities", probabilities)):
            if values is not None and self._has_classes(name):
                self._array(name)[of_all] = np.moveaxis(values, 0, at)
            elif values is not None:
                self._array(name)[box] = values

    def complete(self, scan: Scan, own: Mapping[str, Any], *, beside: bool) -> None:
        """Make images of the arrays, in the world of a scan."""
        with_classes = f"{self.axes[: self.class_axis]}c{self.axes[self.class_axis :]}"
        labels = scan.like(self._array("labels"), with_classes if self.overlapping else self.axes)
        labels = replace(labels, channels=self.classes if self.overlapping else ())
        ome_zarr.complete(self.folders["labels"], labels, labels=True, beside=beside, own=own)
        if self.probable:
            values = scan.like(self._array("probabilities"), with_classes)
            ome_zarr.complete(self.folders["probabilities"], values, labels=False, own=own)

    def _array(self, name: str) -> Any:
        folder = self.folders[name]
        if not ome_zarr.is_ome_zarr(folder):
            raise FileError(f"{folder.parent} is gone: the work was begun anew or ended elsewhere, repeat the command.")
        return ome_zarr.full_resolution(folder)


class Ledger:
    """The growing result of a plan.

    ``ledger.jsonl`` has one line per fact: first what is computed and how, then the range of a plane, or the number of
    a box whose values are written. A line comes after what it says, so a kill at any time loses no more than the boxes
    in work.

    Parameters
    ----------
    place
        Where it goes.
    plan
        What is computed.
    """

    def __init__(self, place: Place, plan: Plan) -> None:
        self.place, self.plan = place, plan
        self.setting = Setting(0, 0, "")
        """How the network is run."""
        self.identity: Mapping[str, Any] = {}
        """All that the result depends on."""
        self.known: Known = {}
        """Ranges that were measured."""
        self.boxes: list[Box] = []
        """All boxes, in order."""
        self.done: set[int] = set()
        """Numbers of those that are written."""
        self._whole = False  # everything is written and described, and may be on its way to its place

    @property
    def store(self) -> Store:
        """The arrays."""
        made = json.dumps([self.identity, self.setting.tile], sort_keys=True)
        folder = self.place.growing / hashlib.sha256(made.encode()).hexdigest()[:16]
        spec = self.plan.spec
        names = tuple(info.name for info in spec.outputs)
        return Store(folder, self.plan.axes, names, spec.overlapping, self.plan.options.probabilities)

    @property
    def _file(self) -> Path:
        return self.place.growing / "ledger.jsonl"

    @property
    def left(self) -> list[int]:
        """Numbers of the boxes that are not written yet."""
        return [number for number in range(len(self.boxes)) if number not in self.done]

    @property
    def begun(self) -> bool:
        """Whether there is anything."""
        return self._file.exists()

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Make the folder, and keep other processes out of it; it goes again if nothing is begun, or all is finished.

        Raises
        ------
        FileError
            If the place cannot be written to, or what lies there is no result of this program.
        ParameterError
            If another process is at work there, or the result would replace the image.
        """
        ome_zarr.stored_axes(self.plan.scan)
        self._check_places()
        name, lock = self.place.output.name, self.place.growing / "lock"
        try:
            self.place.growing.mkdir(parents=True, exist_ok=True)
            lock.touch()
        except OSError as error:
            raise FileError(f"{name} cannot be written into {self.place.output.parent}: {error.strerror}.") from error
        with locked(lock, f"{name} is being written by another process: wait for it."):
            try:
                yield
            finally:
                if not self.begun:
                    shutil.rmtree(self.place.growing, ignore_errors=True)

    def _check_places(self) -> None:
        output, probabilities = self.place.output, self.place.probabilities
        if self.place.image is None:
            keep_image(output, self.plan.scan)
        if output.exists() and not ome_zarr.is_ome_zarr(output):
            raise FileError(f"{output.name} cannot be written: there is something else of that name, choose another.")
        if not self.plan.options.probabilities:
            return
        keep_image(probabilities, self.plan.scan)
        if probabilities.exists() and ome_zarr.recipe_in(probabilities) is None:
            raise FileError(
                f"{probabilities.name}, where the probabilities would go, is no result of this program: rename it, or "
                "choose another output."
            )

    def resume(self, identity: Mapping[str, Any], *, device: str) -> bool:
        """Take up what is there if it is the same result; returns whether it is.

        Parameters
        ----------
        identity
            All that the result depends on.
        device
            Where the network runs from now on.
        """
        try:
            text = self._file.read_text("utf-8", errors="replace")
            head, *lines = text.splitlines()
            facts = json.loads(head)
            setting = Setting.from_json(facts["setting"])
            if facts["identity"] != _as_json(identity) or facts["steps"] != self._steps(setting):
                return False
            self._prepare(identity, setting)
        except (OSError, ValueError, KeyError, TypeError):
            return False
        for line in lines:
            with suppress(ValueError):  # the last one may have been cut off
                self._take(json.loads(line))
        if not text.endswith("\n"):
            self._add("\n")
        self.setting = replace(self.setting, device=device or self.setting.device)
        return all(found for found in self._found())

    def _found(self) -> Iterator[bool]:
        """Yield whether each array is there; where everything is whole it may be in its place already."""
        for name, folder in self.store.folders.items():
            yield folder.exists() or (self._whole and self._targets[name].exists())

    def _take(self, fact: Mapping[str, Any]) -> None:
        if "box" in fact:
            self.done.add(int(fact["box"]))
        elif "whole" in fact:
            self._whole = True
        elif "setting" in fact:
            self.setting = Setting.from_json(fact["setting"])
        else:
            self.known[fact["axis"], fact["plane"]] = tuple((low, high) for low, high in fact["range"])

    def start(self, identity: Mapping[str, Any], setting: Setting) -> None:
        """Begin anew."""
        self._file.unlink(missing_ok=True)
        self._prepare(identity, setting)
        self.done, self._whole = set(), False
        for folder in self.place.growing.iterdir():
            if folder.is_dir():
                shutil.rmtree(folder, ignore_errors=True)
        shape = self.plan.shape
        chunks = tuple(min(self._multiple[axis], n) for axis, n in zip(self.plan.axes, shape, strict=True))
        self.store.begin(shape, chunks, beside=self.place.image)
        head = {"identity": _as_json(identity), "setting": asdict(setting), "steps": self._steps(setting)}
        write_atomically(self._file, (json.dumps(head) + "\n").encode())
        for (axis, plane), ranges in self.known.items():
            self._append({"axis": axis, "plane": plane, "range": ranges})

    def change(self, setting: Setting) -> None:
        """Record another setting; with another tile, begin anew."""
        if setting.tile != self.setting.tile:
            self.start(self.identity, setting)
            return
        self.setting = setting
        self._append({"setting": asdict(setting)})

    def know(self, known: Known) -> None:
        """Record ranges that were measured."""
        for (axis, plane), ranges in known.items():
            if (axis, plane) not in self.known:
                self.known[axis, plane] = ranges
                self._append({"axis": axis, "plane": plane, "range": ranges})

    def check_off(self, number: int) -> None:
        """Record that a box is written."""
        self.done.add(number)
        self._append({"box": number})

    def finish(self, own: Mapping[str, Any]) -> None:
        """Make the result whole and move it to its place; whatever ends this, it can be called again."""
        image = self.place.image
        if not self._whole:
            self.store.complete(self.plan.scan, own, beside=image is not None)
            self._append({"whole": True})
            self._whole = True
        for name, target in self._targets.items():
            _move(self.store.folders[name], target)
        if image is not None:
            ome_zarr.enlist_labels(image, self.place.output.name)
        self._file.unlink()

    @property
    def _targets(self) -> dict[str, Path]:
        """Where each array goes, the labels last: with them everything is there."""
        places = {"probabilities": self.place.probabilities, "labels": self.place.output}
        return {name: place for name, place in places.items() if name in self.store.folders}

    def _prepare(self, identity: Mapping[str, Any], setting: Setting) -> None:
        self.identity, self.setting = identity, setting
        self.boxes = list(self.plan.boxes(self._steps(setting)))

    def _steps(self, setting: Setting) -> dict[str, int]:
        return self.plan.steps(memory=_MEMORY, tile=setting.tile, multiple=self._multiple)

    @property
    def _multiple(self) -> dict[str, int]:
        """Length, along each axis, of the blocks that the result is stored in: no two boxes share one."""
        flat = self.plan.axis == "z"
        side = min(_CHUNK if flat else _CUBE, self.plan.options.region)
        return {axis: 1 if axis == "t" or (flat and axis == "z") else side for axis in self.plan.axes}

    def _append(self, fact: Mapping[str, Any]) -> None:
        self._add(json.dumps(fact) + "\n")

    def _add(self, text: str) -> None:
        try:
            with self._file.open("a", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise FileError(f"{self._file} cannot be written: {error.strerror}.") from error


def _as_json(identity: Mapping[str, Any]) -> Any:
    return json.loads(json.dumps(identity))


def _move(source: Path, target: Path) -> None:
    """Put a folder in its place, unless it is there already; one that was there before goes."""
    aside = target.with_name(f".{target.name}.old")
    try:
        if source.exists():
            shutil.rmtree(aside, ignore_errors=True)
            if target.exists():
                os.replace(target, aside)
            os.replace(source, target)
    except OSError as error:
        raise FileError(f"{target.name} cannot be written into {target.parent}: {error.strerror}.") from error
    shutil.rmtree(aside, ignore_errors=True)
