"""Write the report of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rskd.config import ComputeOptions
from rskd.errors import RskdError
from rskd.events import Message, Task
from rskd.io.files import write_atomically
from rskd.jobs import Outcome, ReportJob
from rskd.records import write_json
from rskd.report.page import Content, page
from rskd.report.story import VALIDATION, Story
from rskd.report.words import comparison, mean
from rskd.runs import COMPARISON, REPORT, RunFolder


def report(job: ReportJob) -> Task[Outcome]:
    """Write the report of a run, whether it has ended or not.

    Parameters
    ----------
    job
        Run folder, and what to show.

    Yields
    ------
    Event
        `Progress` while images are measured, a `Message` where they cannot be.

    Returns
    -------
    Outcome
        ``{"report": file, "dice": {"teacher": mean, "student": mean}}``, as far as it was measured.

    Raises
    ------
    FileError
        If there is no run, or the report cannot be written.
    """
    folder = RunFolder(job.run)
    return (yield from write_report(folder, job.compute, pictures=job.pictures, output=job.output))


def write_report(
    folder: RunFolder, compute: ComputeOptions, *, pictures: bool = True, output: Path | None = None
) -> Task[Outcome]:
    """Write the report of a run; see `report`.

    Parameters
    ----------
    folder
        The run.
    compute
        Where images are segmented.
    pictures
        Segment and show validation images; otherwise the page holds what the run folder tells.
    output
        The HTML file; `None` = in the run folder.
    """
    story = Story.read(folder)
    measured = (yield from _measured(folder, story, compute)) if pictures else _remembered(story, "")
    path = output or folder.path / REPORT
    write_atomically(path, page(measured).encode())
    write_json(folder.path / COMPARISON, {"paragraphs": comparison(story, measured.tables, measured.speed)})
    dice = {role: mean(table["dice"]) for role, table in measured.tables.items()}
    return Outcome({"report": str(path), "dice": dice})


def _measured(folder: RunFolder, story: Story, compute: ComputeOptions) -> Task[Content]:
    """Segment the validation images, and keep what was measured in the run folder."""
    if not folder.best.exists():
        return _remembered(story, "There is no network to show yet.")
    from rskd.report.measure import measure

    known = [row["case"] for row in story.data["cases"] if row["side"] == "validation"] if story.data else None
    try:
        found = yield from measure(folder, compute, known)
    except RskdError as error:
        yield Message(f"The report is without pictures. {error}", warning=True)
        return _remembered(story, "The images or the networks of this run could not be read, so there are no pictures.")
    if not found.tables:
        return _remembered(story, "No validation image with a mask was found, so there are no pictures.")
    speed: dict[str, Any] = {**found.seconds, "shape": found.shape, **found.computer}
    write_json(folder.path / VALIDATION, {"round": _round(story), "tables": found.tables, "speed": speed})
    return Content(story, found.tables, speed, found.planes, found.colors)


def _remembered(story: Story, missing: str) -> Content:
    """Return what an earlier report has measured."""
    earlier = story.validation
    if earlier is None or earlier["round"] != _round(story):
        return Content(story, missing=missing)
    return Content(story, earlier["tables"], earlier["speed"], missing=missing)


def _round(story: Story) -> int | None:
    return story.best.epoch if story.best else None
