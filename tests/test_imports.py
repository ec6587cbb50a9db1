"""What may be imported when: torch and timm take seconds, and must never enter napari."""

import json
import subprocess
import sys

import pytest

LIGHT = [
    "rskd",
    "rskd.as_code",
    "rskd.batch",
    "rskd.bench",
    "rskd.cases",
    "rskd.clean_up",
    "rskd.cli",
    "rskd.config",
    "rskd.doctor",
    "rskd.engine.child",
    "rskd.engine.client",
    "rskd.engine.failures",
    "rskd.engine.protocol",
    "rskd.engine.server",
    "rskd.errors",
    "rskd.evaluate",
    "rskd.events",
    "rskd.export",
    "rskd.flags",
    "rskd.folder",
    "rskd.io",
    "rskd.jobs",
    "rskd.measure",
    "rskd.metrics",
    "rskd.models.exported",
    "rskd.models.presets",
    "rskd.networks",
    "rskd.onnx_export",
    "rskd.phantom",
    "rskd.replay",
    "rskd.results",
    "rskd.run",
    "rskd.runs",
    "rskd.scan",
    "rskd.segment",
    "rskd.steps",
    "rskd.uncertainty",
    "rskd.voxels",
    "napari_rskd",
]
HEAVY = {"torch", "timm", "torchvision", "safetensors", "napari", "qtpy", "matplotlib", "triton"}


def fresh(code):
    """Run code in a fresh interpreter and return what it prints as JSON."""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def test_light_modules_stay_light():
    code = f"""
import importlib, json, sys
culprits = {{}}
for name in {LIGHT}:
    importlib.import_module(name)
    culprits |= {{heavy: culprits.get(heavy, name) for heavy in {HEAVY} & set(sys.modules)}}
print(json.dumps(culprits))
"""
    assert fresh(code) == {}


HELP = """
import json, sys
from rskd.cli import main
sys.argv = ["rskd", *{arguments}]
try:
    main()
except SystemExit:
    pass
print(json.dumps(sorted(sys.modules)))
"""


@pytest.mark.parametrize("arguments", [["--help"], ["distill", "--help"], ["--version"]])
def test_help_comes_without_torch(arguments):
    assert HEAVY.isdisjoint(fresh(HELP.format(arguments=arguments)))


def test_the_check_can_fail():
    assert "torch" in fresh("import json, sys, rskd.compute; print(json.dumps(sorted(sys.modules)))")
