"""What the user set on the plugin's page of napari's preferences."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from npe2 import PluginManager

from rskd.config import InferenceOptions

PLUGIN = "napari-rskd"


def _settings() -> Any:
    from napari.settings import get_plugin_settings

    with _known_plugins():
        return get_plugin_settings(PLUGIN)


@contextmanager
def _known_plugins() -> Iterator[None]:
    """Keep napari from looking for plugins: it has known them since its start.

    For the first settings that are asked for, napari (0.9.2) reads the manifests of all plugins again, which stalls the
    window for as long as a panel takes to open, and longer the more plugins there are. When it finds another plugin
    later, it makes the settings anew by itself.
    """
    manager: Any = PluginManager.instance()
    if PLUGIN not in manager:
        yield
        return
    manager.discover = lambda *_, **__: 0
    try:
        yield
    finally:
        del manager.discover


def compute_options() -> InferenceOptions:
    """Return device, threads (0 = automatic), runtime and whether to stay offline, as set in the preferences."""
    compute = _settings().compute
    return InferenceOptions(
        device=compute.device, threads=compute.threads or None, runtime=compute.runtime, offline=compute.offline
    )


def runs_folder() -> Path:
    """Return the folder that new runs are put into: the one set in the preferences, else the user's data folder."""
    return _folder("runs")


def models_folder() -> Path:
    """Return the folder of the user's own models: the one set in the preferences, else the user's data folder."""
    return _folder("models")


def _folder(name: str) -> Path:
    from platformdirs import user_data_path

    folder = getattr(_settings().folders, name)
    return Path(folder).expanduser() if folder else user_data_path("rskd", appauthor=False) / name


def as_set() -> dict[str, object]:
    """Return what is set, for people who help: of folders only whether there is one."""
    settings = _settings()
    folders = {f"{name} folder": bool(folder) for name, folder in settings.folders.model_dump().items()}
    return {**settings.compute.model_dump(), **folders}
