"""What every test gets: napari settings of its own, one thread, and torch before any window."""

import os
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # threads of tests that run side by side would wait for each other
os.environ["NAPARI_CONFIG"] = str(Path(tempfile.mkdtemp(prefix="rskd-tests-")) / "settings.yaml")

import torch._dynamo  # noqa: F401 - imported after a viewer is on screen it ends the process (Mesa's OpenGL)
