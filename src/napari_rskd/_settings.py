"""What the user set on the plugin's page of napari's preferences."""

from __future__ import annotations

from pathlib import Path

from rskd.config import InferenceOptions

PLUGIN = "napari-rskd"


def compute_options() -> InferenceOptions:
    """Return device, threads (0 = automatic) and runtime as set in the preferences."""
    from napari.settings import get_plugin_settings

    compute = get_plugin_settings(PLUGIN).compute
    return InferenceOptions(device=compute.device, threads=compute.threads or None, runtime=compute.runtime)


def runs_folder() -> Path:
    """Return the folder that new runs are put into: the one set in the preferences, else the user's data folder."""
    return _folder("runs")


def models_folder() -> Path:
    """Return the folder of the user's own models: the one set in the preferences, else the user's data folder."""
    return _folder("models")


def _folder(name: str) -> Path:
    from napari.settings import get_plugin_settings
    from platformdirs import user_data_path

    folder = getattr(get_plugin_settings(PLUGIN).folders, name)
    return Path(folder).expanduser() if folder else user_data_path("rskd", appauthor=False) / name
