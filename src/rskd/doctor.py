"""Does everything work here? Versions, devices, networks, folders, and a small trial of each part."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata

import numpy as np

from rskd.engine.failures import explain
from rskd.engine.logs import log_folder, settings_folder

PACKAGE = "napari-rskd"
LIBRARIES = ("numpy", "torch", "timm", "napari", "npe2")
OPTIONAL = frozenset({"napari", "npe2"})


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    name: str
    good: bool
    text: str


def examine() -> Iterator[Finding]:
    """Yield findings one after the other, from quick ones to a trial of the engine.

    Examples
    --------
    >>> next(examine()).name
    'version'
    """
    checks: tuple[tuple[str, Callable[[], str]], ...] = (
        ("version", _version),
        ("Python", _python),
        ("libraries", _libraries),
        ("computer", _computer),
        ("devices", _devices),
        ("runtimes", _runtimes),
        ("networks", _networks),
        ("models that came along", _bundled),
        ("napari plugin", _plugin),
        ("log folder", lambda: str(log_folder())),
        ("settings folder", lambda: str(settings_folder())),
        ("a network runs", _forward),
        ("contourlet", _contourlet),
        ("engine", _engine),
    )
    for name, check in checks:
        yield _find(name, check)


class _WrongError(Exception):
    """A check has found something wrong."""


def _find(name: str, check: Callable[[], str]) -> Finding:
    try:
        return Finding(name, True, check())
    except _WrongError as wrong:
        return Finding(name, False, str(wrong))
    except Exception as error:
        return Finding(name, False, str(explain(error)))


def _version() -> str:
    return f"{PACKAGE} {metadata.version(PACKAGE)}"


def _python() -> str:
    return f"{platform.python_version()} ({sys.executable}) on {platform.platform()}"


def _libraries() -> str:
    found, missing = [], []
    for name in LIBRARIES:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            missing.append(name)
    needed = [name for name in missing if name not in OPTIONAL]
    if needed:
        raise _WrongError(f"{', '.join(needed)} missing: reinstall {PACKAGE}.")
    return ", ".join(found) + (f"; not installed: {', '.join(missing)}" if missing else "")


def _computer() -> str:
    import psutil

    memory = psutil.virtual_memory()
    return f"{os.cpu_count()} CPU cores, {memory.total / 2**30:.1f} GiB memory ({memory.available / 2**30:.1f} free)"


def _devices() -> str:
    import torch

    names = [f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())]
    names += ["mps"] if torch.backends.mps.is_available() else []
    return ", ".join([*names, "cpu"])


def _runtimes() -> str:
    from rskd.bench_words import NAMES
    from rskd.models.exported import RUNTIMES, available_runtimes

    found = available_runtimes()
    missing = [f"{NAMES[name]} (pip install '{PACKAGE}[{name}]')" for name in RUNTIMES if name not in found]
    names = ", ".join(NAMES[name] for name in ("torch", *found))
    return names + (f"; not installed: {', '.join(missing)}" if missing else "")


def _networks() -> str:
    from rskd.models.presets import PRESETS

    return ", ".join(PRESETS)


def _bundled() -> str:
    from rskd.models.presets import BUNDLED
    from rskd.models.weights import inspect

    passports = {name: inspect(path) for name, path in BUNDLED.items()}
    return ", ".join(
        f"{name} ({passport.parameters:,} parameters, {passport.bytes / 1e6:.1f} MB)"
        for name, passport in passports.items()
    )


def _plugin() -> str:
    try:
        metadata.version("napari")
        from npe2 import PluginManifest
    except (metadata.PackageNotFoundError, ImportError):
        return f"napari is not installed, so there is no window: pip install '{PACKAGE}[all]'"
    manifest = PluginManifest.from_distribution(PACKAGE)
    widgets = [widget.display_name for widget in manifest.contributions.widgets or ()]
    if not widgets:
        raise _WrongError(f"napari finds no panels in {PACKAGE}: reinstall it.")
    return f"napari finds {manifest.display_name} with the panels {', '.join(widgets)}"


def _forward() -> str:
    import torch

    from rskd.models.presets import PRESETS
    from rskd.models.segmenter import Segmenter

    name, spec = next(iter(PRESETS.items()))
    model = Segmenter(spec).eval()
    began = time.perf_counter()
    with torch.inference_mode():
        logits = model(torch.zeros(1, spec.in_channels, spec.image_size, spec.image_size))
    seconds = time.perf_counter() - began
    if not torch.isfinite(logits).all():
        raise _WrongError(f"{name} answers with values that are not finite.")
    return f"{name}, one tile of {spec.image_size} pixels in {1000 * seconds:.0f} ms on the CPU"


def _contourlet() -> str:
    from rskd.contourlet import contourlet, icontourlet

    image = np.random.default_rng(0).random((96, 80))
    error = float(np.abs(icontourlet(contourlet(image, (3, 2))) - image).max())
    if not error < 1e-9:
        raise _WrongError(f"sub-bands put together again differ from the image by {error:.1g}.")
    return f"sub-bands put together again differ from the image by {error:.1g}"


def _engine() -> str:
    from rskd.config import ContourletOptions
    from rskd.engine.client import Engine
    from rskd.jobs import ContourletJob

    job = ContourletJob(options=ContourletOptions(levels=(2,)))
    began = time.perf_counter()
    with Engine() as engine:
        for _ in engine.run(job, {"image": np.eye(64)}):
            pass
        ready = time.perf_counter() - began
    if engine.alive:
        raise _WrongError("the engine does not stop.")
    stopped = time.perf_counter() - began - ready
    return f"first answer after {ready:.1f} s, stopped in {stopped:.1f} s"
