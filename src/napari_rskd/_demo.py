"""The scene of the demo: a retina photograph and everything RSKD has to say about it."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from napari.viewer import Viewer
from qtpy.QtCore import QObject, QTimer, Signal

from napari_rskd._job import Work
from napari_rskd._layers import segmentation_layers, subband_layers
from napari_rskd._samples import retina
from napari_rskd._session import session_of
from napari_rskd._settings import compute_options
from napari_rskd._source import Source, add_layer, axes_of, visible_slice
from napari_rskd._survey import Shown, Survey
from napari_rskd.contourlet import contourlet_work
from napari_rskd.segment import segment_work
from rskd.config import ContourletOptions
from rskd.jobs import Outcome, SurveyJob

PLUGIN = "napari-rskd"
GREEN = 1


class Demo(QObject):
    """Builds the scene step by step; each step is a job in the background."""

    finished = Signal(str)
    """Empty, or what went wrong in one sentence."""

    def __init__(self, viewer: Any) -> None:
        super().__init__()
        self.viewer = viewer
        self.session = session_of(viewer)
        self._steps: deque[Callable[[], tuple[Work, Callable[[Outcome], None]]]] = deque(
            [self._segment, self._rank, self._split]
        )

    def start(self) -> None:
        """Open the picture and the Distill panel, and begin."""
        _ALIVE.add(self)
        self.layer = add_layer(self.viewer, retina()[0])
        teacher, student = self.session.teacher, self.session.student
        if teacher is None or student is None:
            self._end("The demo needs the teacher and the student that come with RSKD; they are missing here.")
            return
        self._models = {"teacher": teacher, "student": student}
        self.viewer.window.add_plugin_dock_widget(PLUGIN, "Distill")
        self._next()

    def _next(self) -> None:
        if not self._steps:
            self.viewer.layers.selection.active = self.layer
            self.viewer.reset_view()  # the panel has taken some of the canvas
            self._end("")
            return
        work, show = self._steps.popleft()()
        work.returned.connect(show)
        work.ended.connect(lambda: self._after(work))
        work.start()

    def _after(self, work: Work) -> None:
        if work.outcome is not None:
            self._next()
            return
        self._end(str(work.error) if work.error is not None else "The demo was cancelled.")

    def _end(self, problem: str) -> None:
        _ALIVE.discard(self)
        self.finished.emit(problem)

    def _segment(self) -> tuple[Work, Callable[[Outcome], None]]:
        def show(outcome: Outcome) -> None:
            source, axes = Source.of(self.layer), axes_of(self.layer)
            self._add(segmentation_layers(outcome.arrays, outcome.value["classes"], source, by="student", axes=axes))

        return segment_work(self.layer, self._models["student"]), show

    def _rank(self) -> tuple[Work, Callable[[Outcome], None]]:
        plane, axes, source = visible_slice(self.layer, self.viewer.dims)
        networks = {role: model.path for role, model in self._models.items()}
        job = SurveyJob(axes=axes, compute=compute_options(), **networks)

        def show(outcome: Outcome) -> None:
            survey = Survey(outcome)
            shown = Shown(survey.depth - 1)
            for role in survey.roles:
                layers = survey.layers(role, shown, source)
                self._add([layers["map"], layers["points"]], visible=False)

        return Work(lambda: (job, {"image": plane}), title=f"Ranking the tokens of {self.layer.name}"), show

    def _split(self) -> tuple[Work, Callable[[Outcome], None]]:
        plane, axes, source = visible_slice(self.layer, self.viewer.dims)
        work = contourlet_work(plane, axes, channel=GREEN, options=ContourletOptions(), name=self.layer.name)

        def show(outcome: Outcome) -> None:
            self._add(subband_layers(outcome.value["bands"], outcome.arrays, source), visible=False)

        return work, show

    def _add(self, layers: list[Any], *, visible: bool = True) -> None:
        for data, options, kind in layers:
            add_layer(self.viewer, (data, options if visible else {**options, "visible": False}, kind))


_ALIVE: set[Demo] = set()  # a demo lives until its last job has ended


def show_demo(viewer: Viewer) -> Demo:
    """Show the scene in an open napari; the menu command "RSKD demo"."""
    from napari.utils.notifications import show_error

    demo = Demo(viewer)
    demo.finished.connect(lambda problem: show_error(problem) if problem else None)
    QTimer.singleShot(0, demo.start)
    return demo


def write_scene(viewer: Any, folder: Path) -> list[Path]:
    """Write every layer and a screenshot of the window into `folder`; returns the files.

    Images and labels become TIFF files; points become a CSV table with their place in the world.
    """
    import numpy as np
    import tifffile

    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for layer in viewer.layers:
        stem = re.sub(r"[^A-Za-z0-9]+", "-", layer.name).strip("-").lower()
        if layer.as_layer_data_tuple()[2] == "points":
            path = folder / f"{stem}.csv"
            table = layer.features.copy()
            table["y"], table["x"] = np.array([layer.data_to_world(point) for point in layer.data]).T
            table.to_csv(path, index=False)
        else:
            path = folder / f"{stem}.tif"
            tifffile.imwrite(path, layer.data, compression="zlib")
        files.append(path)
    screenshot = folder / "screenshot.png"
    viewer.screenshot(str(screenshot), canvas_only=False, flash=False)
    return [*files, screenshot]
