"""What may be imported when: torch and timm take seconds, and must never enter napari."""

import json
import subprocess
import sys

import pytest

LIGHT = [
    "rskd",
    "rskd.cases",
    "rskd.cli",
    "rskd.config",
    "rskd.doctor",
    "rskd.engine.child",
    "rskd.engine.client",
    "rskd.engine.failures",
    "rskd.engine.protocol",
    "rskd.engine.server",
    "rskd.errors",
    "rskd.events",
    "rskd.io",
    "rskd.jobs",
    "rskd.metrics",
    "rskd.models.presets",
    "rskd.phantom",
    "rskd.run",
    "rskd.runs",
    "rskd.scan",
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
import json, sys, time
from rskd.cli import main
sys.argv = ["rskd", *{arguments}]
try:
    main()
except SystemExit:
    pass
print(json.dumps([time.process_time(), sorted(sys.modules)]))
"""


@pytest.mark.parametrize("arguments", [["--help"], ["distill", "--help"], ["--version"]])
def test_help_comes_within_a_second_without_torch(arguments):
    runs = [fresh(HELP.format(arguments=arguments)) for _ in range(2)]
    assert HEAVY.isdisjoint(runs[0][1])
    # Time of this process alone: the wall clock of a busy machine says nothing.
    assert min(seconds for seconds, _ in runs) < 1.0


def test_the_package_itself_takes_no_time():
    code = "import json, time; t = time.process_time(); import rskd; print(json.dumps(time.process_time() - t))"
    assert min(fresh(code) for _ in range(3)) < 0.2


def test_the_check_can_fail():
    assert "torch" in fresh("import json, sys, rskd.compute; print(json.dumps(sorted(sys.modules)))")
