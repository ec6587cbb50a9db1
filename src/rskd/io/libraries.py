"""The libraries of the formats: imported late, and kept silent."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

_TALKATIVE = ("highdicom", "nibabel", "nibabel.global", "PIL", "pydicom", "tifffile", "zarr", "ome_zarr")


def library(name: str) -> Any:
    """Import a library when its format is met, as `Any`: few of them carry usable types."""
    return import_module(name)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep libraries from logging and warning: they quote headers, which may name a patient.

    What matters is raised anyway.

    Examples
    --------
    >>> with quiet():
    ...     warnings.warn("PatientName is Doe^Jane")
    """
    loggers = [logging.getLogger(name) for name in _TALKATIVE]
    previous = [(logger.handlers, logger.propagate) for logger in loggers]
    for logger in loggers:  # what is logged below these ends here as well
        logger.handlers, logger.propagate = [logging.NullHandler()], False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, (handlers, propagate) in zip(loggers, previous, strict=True):
            logger.handlers, logger.propagate = handlers, propagate
