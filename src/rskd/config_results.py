"""The parameters of what is done with a segmentation: clean-up, and maps of its uncertainty."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import field_validator

from rskd.config_base import Config

ALL = "all"
"""Stands for every class but the background, where classes are named."""


class CleanUpOptions(Config):
    """How labels are cleaned up: small components are removed, then all but the largest, then holes are filled.

    Classes are called by their names; "all" stands for every class.
    """

    min_size: tuple[str, ...] = ()
    """Remove connected components below a size, per class: "liver=0.5 vessel=20", or "all=10" for every class."""
    size_unit: Literal["mm", "um", "ml", "voxels"] = "mm"
    """Unit of these sizes: mm = mm³ in a volume and mm² in a picture; um likewise; ml for volumes only. Voxels are
    counted as well where an image does not state the size of its voxels, which is said."""
    keep_largest: tuple[str, ...] = ()
    """Classes of which only the largest connected component is kept."""
    fill_holes: tuple[str, ...] = ()
    """Classes whose holes are filled: background that touches the class and that it encloses."""
    holes_in: Literal["volume", "slices"] = "volume"
    """Whether a hole must be enclosed in the whole volume, or within its own slice (along z) alone."""

    @field_validator("min_size", mode="before")
    @classmethod
    def _as_entries(cls, value: Any) -> Any:
        """Accept a mapping as well."""
        return tuple(f"{name}={size}" for name, size in value.items()) if isinstance(value, Mapping) else value

    @field_validator("min_size")
    @classmethod
    def _sized(cls, entries: tuple[str, ...]) -> tuple[str, ...]:
        for entry in entries:
            name, sign, size = entry.rpartition("=")
            try:
                good = bool(name and sign) and 0 <= float(size) < float("inf")
            except ValueError:
                good = False
            if not good:
                raise ValueError(f"{entry!r} names no class and size: write it as liver=0.5, or all=0.5")
        return entries

    @property
    def sizes(self) -> dict[str, float]:
        """The smallest size that stays, by class; what is said of a class by name comes after what is said of all."""
        entries = [(name, float(size)) for name, _, size in (entry.rpartition("=") for entry in self.min_size)]
        return dict(sorted(entries, key=lambda entry: entry[0] != ALL))

    @property
    def active(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.min_size or self.keep_largest or self.fill_holes)
