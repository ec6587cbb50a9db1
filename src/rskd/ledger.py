"""A result that is written box by box into OME-Zarr; a ledger of what is finished lets any process go on with it."""

from __future__ import annotations

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
from rskd.io import ome_zarr
from rskd.io.files import locked, write_atomically
from rskd.plan import Box, Known, Plan
from rskd.recipe import Setting

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
        inside = self.output.parent.name == ome_zarr.LABELS and ome_zarr.is_ome_zarr(self.output.parent.parent)
        return self.output.parent.parent if inside else None

    @property
    def growing(self) -> Path:
        """Folder for what is not whole yet."""
        return self.output.with_name(f".{self.output.name}.growing")

    @property
    def probabilities(self) -> Path:
        """Folder of the probabilities."""
        if self.image is None:
            return self.output.with_name(f"{self.output.name.partition('.')[0]}_probabilities.zarr")
        stem = self.image.name.partition(".")[0]
        return self.image.with_name(f"{stem}_{self.output.name}_probabilities.zarr")


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
        """All that the result depends on, as far as it can be told without reading the image."""
        self.known: Known = {}
        """Ranges that were measured."""
        self.boxes: list[Box] = []
        """All boxes, in order."""
        self.done: set[int] = set()
        """Numbers of those that are written."""

    @property
    def _file(self) -> Path:
        return self.place.growing / "ledger.jsonl"

    @property
    def _folders(self) -> dict[str, Path]:
        folders = {"labels": self.place.growing / "labels.zarr"}
        return folders | ({"probabilities": self.place.growing / "probabilities.zarr"} if self._probable else {})

    @property
    def _probable(self) -> bool:
        return self.plan.options.probabilities

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
        """Make the folder, and keep other processes out of it.

        Raises
        ------
        FileError
            If the place cannot be written to.
        ParameterError
            If another process is at work there.
        """
        ome_zarr.stored_axes(self.plan.scan)
        name = self.place.output.name
        try:
            self.place.growing.mkdir(parents=True, exist_ok=True)
            (self.place.growing / "lock").touch()
        except OSError as error:
            raise FileError(f"{name} cannot be written into {self.place.output.parent}: {error.strerror}.") from error
        if self.place.output.exists() and not ome_zarr.is_ome_zarr(self.place.output):
            raise FileError(f"{name} cannot be written: there is something else of that name, choose another.")
        with locked(self.place.growing / "lock", f"{name} is being written by another process: wait for it."):
            yield

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
            head, *lines = self._file.read_text("utf-8").splitlines()
            facts = json.loads(head)
            if facts["identity"] != json.loads(json.dumps(identity)):
                return False
            self._prepare(Setting.from_json(facts["setting"]))
            self.identity = identity
        except (OSError, ValueError, KeyError, TypeError):
            return False
        for line in lines:
            with suppress(ValueError):  # the last one may have been cut off
                self._take(json.loads(line))
        self.setting = replace(self.setting, device=device)
        return True

    def _take(self, fact: Mapping[str, Any]) -> None:
        if "box" in fact:
            self.done.add(int(fact["box"]))
        elif "setting" in fact:
            self.setting = Setting.from_json(fact["setting"])
        else:
            self.known[fact["axis"], fact["plane"]] = tuple((low, high) for low, high in fact["range"])

    def start(self, identity: Mapping[str, Any], setting: Setting) -> None:
        """Begin anew."""
        self._file.unlink(missing_ok=True)
        self._prepare(setting)
        self.identity = identity
        self.done = set()
        shape, dtype = self.plan.shape, np.min_scalar_type(len(self.plan.spec.classes) - 1)
        chunks = tuple(min(self._multiple[axis], n) for axis, n in zip(self.plan.axes, shape, strict=True))
        ome_zarr.begin(self._folders["labels"], shape, dtype, chunks=chunks, beside=self.place.image)
        if self._probable:
            at = self._class_axis
            shape = (*shape[:at], len(self.plan.spec.classes), *shape[at:])
            chunks = (*chunks[:at], 1, *chunks[at:])
            real = np.dtype(np.float32)
            ome_zarr.begin(self._folders["probabilities"], shape, real, chunks=chunks, beside=None)
        head = {"identity": identity, "setting": asdict(setting)}
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

    def write(self, box: Box, labels: NDArray[Any], probabilities: NDArray[Any] | None) -> None:
        """Write the values of a box; `check_off` records it."""
        ome_zarr.full_resolution(self._folders["labels"])[box] = labels
        if probabilities is not None:
            at = self._class_axis
            place = (*box[:at], slice(None), *box[at:])
            ome_zarr.full_resolution(self._folders["probabilities"])[place] = np.moveaxis(probabilities, 0, at)

    def check_off(self, number: int) -> None:
        """Record that a box is written."""
        self.done.add(number)
        self._append({"box": number})

    def finish(self, own: Mapping[str, Any]) -> None:
        """Make the result whole and move it to its place."""
        axes = self.plan.axes
        image = self.place.image
        labels = self.plan.scan.like(ome_zarr.full_resolution(self._folders["labels"]), axes)
        ome_zarr.complete(self._folders["labels"], labels, labels=True, beside=image is not None, own=own)
        if self._probable:
            values = ome_zarr.full_resolution(self._folders["probabilities"])
            scan = self.plan.scan.like(values, f"{axes[: self._class_axis]}c{axes[self._class_axis :]}")
            ome_zarr.complete(self._folders["probabilities"], scan, labels=False, own=own)
            _move(self._folders["probabilities"], self.place.probabilities)
        _move(self._folders["labels"], self.place.output)
        if image is not None:
            ome_zarr.enlist_labels(image, self.place.output.name)
        shutil.rmtree(self.place.growing, ignore_errors=True)

    def _prepare(self, setting: Setting) -> None:
        steps = self.plan.steps(memory=_MEMORY, tile=setting.tile, multiple=self._multiple)
        self.setting, self.boxes = setting, list(self.plan.boxes(steps))

    @property
    def _class_axis(self) -> int:
        return 1 if self.plan.axes[:1] == "t" else 0

    @property
    def _multiple(self) -> dict[str, int]:
        """Length, along each axis, of the blocks that the result is stored in: no two boxes share one."""
        flat = self.plan.axis == "z"
        side = min(_CHUNK if flat else _CUBE, self.plan.options.region)
        return {axis: 1 if axis == "t" or (flat and axis == "z") else side for axis in self.plan.axes}

    def _append(self, fact: Mapping[str, Any]) -> None:
        try:
            with self._file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(fact) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise FileError(f"{self._file} cannot be written: {error.strerror}.") from error


def _move(source: Path, target: Path) -> None:
    """Put a folder in its place; one that is there goes."""
    aside = target.with_name(f".{target.name}.old")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        if target.exists():
            os.replace(target, aside)
        os.replace(source, target)
    except OSError as error:
        raise FileError(f"{target.name} cannot be written into {target.parent}: {error.strerror}.") from error
    shutil.rmtree(aside, ignore_errors=True)
