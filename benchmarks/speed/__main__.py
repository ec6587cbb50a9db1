"""Print the speed tables: ``python -m benchmarks.speed`` for all, or with the names of some."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

HERE = Path(__file__).parent

if __name__ == "__main__":
    names = sys.argv[1:] or sorted(path.stem for path in HERE.glob("[a-z]*.py"))
    sys.argv = sys.argv[:1]
    sys.path.insert(0, str(HERE))
    for name in names:
        print(f"\n== {name}", flush=True)
        runpy.run_path(str(HERE / f"{name}.py"), run_name="__main__")
