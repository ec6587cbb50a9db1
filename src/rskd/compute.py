"""Where the work runs."""

from __future__ import annotations

import os

import psutil
import torch

from rskd.config import ComputeOptions
from rskd.errors import ResourceError

_LOOK = 0.02  # seconds for which the cores are watched


def choose_device(options: ComputeOptions) -> torch.device:
    """Return the device that `options` asks for.

    Raises
    ------
    ResourceError
        If this computer has no such device.
    """
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if options.device == "auto":
        return torch.device(next(name for name in ("cuda", "mps", "cpu") if available[name]))
    if not available[options.device]:
        raise ResourceError(f"This computer has no {options.device} device that torch can use: choose device 'auto'.")
    return torch.device(options.device)


def device_name(device: torch.device) -> str:
    """Return what a device is, in words.

    Examples
    --------
    >>> device_name(torch.device("cpu"))
    'CPU'
    """
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()


def at_full_speed(options: ComputeOptions) -> ComputeOptions:
    """Return `options` with a thread on every core, for what is over in a moment, if nothing else runs on them.

    Beside a training, threads that wait for each other many times would take seconds. Where `options` say how many
    threads there are, they have their way.

    Examples
    --------
    >>> at_full_speed(ComputeOptions(threads=3)).threads
    3
    """
    cores = os.cpu_count() or 1
    if options.threads is not None or psutil.cpu_percent(_LOOK) * cores > 50:  # half of one core
        return options
    return options.model_copy(update={"threads": cores})


def use_threads(options: ComputeOptions, *, processes: int = 1) -> int:
    """Set the number of CPU threads for torch, and return it.

    By default one core is left to the window, and `processes` on this computer share the others.
    """
    threads = options.threads or max(1, ((os.cpu_count() or 1) - 1) // processes)
    torch.set_num_threads(threads)
    return threads
