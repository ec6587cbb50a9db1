"""``python -m napari_rskd.demo [--output DIR]``: the demo in a window of its own, or written to files."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

SETTLE = 500  # milliseconds for the window to draw what was added last


def main(arguments: list[str] | None = None) -> int:
    """Show the demo; with ``--output`` write a screenshot and the layers there, and close."""
    parser = argparse.ArgumentParser(prog="python -m napari_rskd.demo", description=__doc__)
    parser.add_argument("--output", type=Path, help="write a screenshot and the layers into this folder, and close")
    output: Path | None = parser.parse_args(arguments).output
    began = time.perf_counter()

    import napari
    from qtpy.QtCore import QTimer

    from napari_rskd._demo import show_demo, write_scene

    viewer = napari.Viewer(title="RSKD demo")
    viewer.window.resize(1400, 900)
    problems: list[str] = []
    print(f"Window open after {time.perf_counter() - began:.1f} s; the layers follow.", flush=True)

    def finish(problem: str) -> None:
        problems.append(problem)
        if output is not None:
            QTimer.singleShot(SETTLE, write_and_close)

    def write_and_close() -> None:
        if not problems[0]:
            for path in write_scene(viewer, output) if output is not None else []:
                print(f"wrote {path}")
        viewer.close()

    demo = show_demo(viewer)
    demo.finished.connect(finish)
    napari.run()
    if problems and problems[0]:
        print(f"The demo failed: {problems[0]}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
