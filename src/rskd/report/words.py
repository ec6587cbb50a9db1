"""The run in plain words, for a reader who has not trained a network."""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape
from typing import Any

from rskd.durations import exactly
from rskd.report.story import Story

Tables = Mapping[str, Mapping[str, Any]]


def summary(story: Story, tables: Tables, speed: Mapping[str, Any]) -> list[str]:
    """Return what came out, one paragraph of HTML each.

    Parameters
    ----------
    story
        The run.
    tables
        Scores on the validation images by role, as `rskd.evaluate.table` gives them; empty = not measured.
    speed
        "seconds" per plane by role, "shape" of a plane, "device" and "threads"; empty = not measured.
    """
    paragraphs = [*comparison(story, tables, speed), _weak_points(tables), _course(story)]
    return [paragraph for paragraph in paragraphs if paragraph]


def comparison(story: Story, tables: Tables, speed: Mapping[str, Any]) -> list[str]:
    """Return how student and teacher compare in accuracy, size and speed; arguments and result as of `summary`."""
    paragraphs = [_accuracy(story, tables), _size(story), _speed(story, speed)]
    return [paragraph for paragraph in paragraphs if paragraph]


def state(story: Story) -> str:
    """Return where the run stands, in a few words."""
    if story.finished:
        return "finished"
    return f"not finished: {len(story.epochs)} of {story.job.training.epochs} rounds"


def mean(scores: Mapping[str, float | None]) -> float:
    """Return the mean over the classes that have a score; NaN where none has.

    Examples
    --------
    >>> mean({"a": 0.5, "b": None, "c": 1.0})
    0.75
    """
    known = [score for score in scores.values() if score is not None and not math.isnan(score)]
    return math.fsum(known) / len(known) if known else math.nan


def count(number: int, thing: str) -> str:
    """Return a number of things.

    Examples
    --------
    >>> count(1, "image"), count(3, "image")
    ('1 image', '3 images')
    """
    return f"{number:,} {thing}{'s' * (number != 1)}"


def _network(story: Story) -> str:
    if not story.distilled:
        return "network"
    return "small network (the student)" if _smaller(story) else "student"


def _teacher(story: Story) -> str:
    return "large network it learned from (the teacher)" if _smaller(story) else "network it learned from (the teacher)"


def _smaller(story: Story) -> bool:
    """Return whether the student is the smaller network, as it should be, as far as that is known."""
    student, teacher = ((story.networks.get(role) or {}).get("parameters") for role in ("student", "teacher"))
    return student is None or teacher is None or bool(student < teacher)


def _accuracy(story: Story, tables: Tables) -> str:
    if "student" in tables:
        student, cases = mean(tables["student"]["dice"]), len(tables["student"]["cases"])
    elif story.best is not None:
        student = story.best.dice
        cases = len(story.scores)
    else:
        return "There has been no validation yet, so nothing can be said about accuracy."
    if math.isnan(student):
        return "No validation image has a mask, so accuracy could not be measured."
    where = f"{count(cases, 'image')} kept aside for validation" if cases else "the images kept aside for validation"
    text = (
        f"On {where}, the {_network(story)} reaches a Dice of <strong>{student:.3f}</strong> "
        "(1 = the same pixels as in the masks, 0 = none in common)."
    )
    teacher = mean(tables["teacher"]["dice"]) if "teacher" in tables else math.nan
    if math.isnan(teacher) and "teacher" in story.references:
        teacher = story.references["teacher"].dice
    if math.isnan(teacher):
        return text
    gap = _gap(student - teacher)
    return f"{text} The {_teacher(story)} reaches <strong>{teacher:.3f}</strong>{gap}."


def _gap(difference: float) -> str:
    if abs(difference) < 0.005:
        return ", practically the same"
    return f": the student is {abs(difference):.3f} {'better' if difference > 0 else 'below it'}"


def _size(story: Story) -> str:
    found = {role: facts for role, facts in story.networks.items() if facts}
    if "student" not in found:
        return ""
    student = found["student"]
    text = f"The {_network(story)} has {_parameters(student['parameters'])}"
    if student.get("bytes"):
        text += f"; its file takes {_megabytes(student['bytes'])}"
    if "teacher" not in found:
        return text + "."
    teacher = found["teacher"]
    times = teacher["parameters"] / student["parameters"]
    return f"{text}. The teacher has {_parameters(teacher['parameters'])}, {_as_many(times)}."


def _speed(story: Story, speed: Mapping[str, Any]) -> str:
    if "student" not in speed:
        return ""
    shape = speed.get("shape")
    plane = f"a picture of {shape[1]} × {shape[0]} pixels" if shape else "a picture"
    threads = f", {count(speed['threads'], 'thread')}" if speed.get("threads") else ""
    text = (
        f"On this computer ({escape(speed['device'])}{threads}) it segments {plane} in <strong>"
        f"{_milliseconds(speed['student'])}</strong>"
    )
    if "teacher" not in speed:
        return text + "."
    ratio = speed["teacher"] / speed["student"]
    verdict = f"the student is {_times(ratio)} as fast" if ratio >= 1 else "the student is not faster"
    return f"{text}; the teacher takes {_milliseconds(speed['teacher'])}: {verdict}."


def _weak_points(tables: Tables) -> str:
    if "student" not in tables:
        return ""
    table = tables["student"]
    scores = {name: score for name, score in table["dice"].items() if score is not None}
    texts = []
    if len(scores) > 1:
        weakest = min(scores, key=scores.__getitem__)
        texts.append(f"The weakest class is {escape(weakest)} (Dice {scores[weakest]:.3f}).")
    cases = {row["case"]: mean(row["dice"]) for row in table["cases"]}
    known = {case: score for case, score in cases.items() if not math.isnan(score)}
    if len(known) > 1:
        worst = min(known, key=known.__getitem__)
        texts.append(f"The worst image, {worst}, has a Dice of {known[worst]:.3f}; it is shown first below.")
    for name, number in table.get("missed", {}).items():
        if number:
            where = "is in the mask or in the segmentation, but not in both"
            texts.append(f"In {count(number, 'image')} {escape(name)} {where}.")
    return " ".join(texts)


def _course(story: Story) -> str:
    if not story.epochs:
        return ""
    text = f"The training took {exactly(story.seconds)} for {count(len(story.epochs), 'round')}"
    if story.best is not None:
        text += f"; the best network is that of round {story.best.epoch}"
    if len(story.sessions) > 1:
        text += f". It was taken up again {count(len(story.sessions) - 1, 'time')} after an interruption"
    warnings = sum(message.warning for message in story.messages)
    if warnings:
        text += f". {count(warnings, 'warning')} came up; they are listed at the end"
    return text + "."


def _parameters(number: int) -> str:
    return f"{number / 1e6:.2f} million parameters" if number >= 1e5 else f"{number:,} parameters"


def _megabytes(number: int) -> str:
    return f"{number / 1e6:.1f} MB" if number >= 1e5 else f"{number / 1e3:.0f} kB"


def _milliseconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{1000 * seconds:.0f} ms"


def _as_many(ratio: float) -> str:
    return "just as many" if f"{ratio:.1f}" == "1.0" else f"{_times(ratio)} as many"


def _times(ratio: float) -> str:
    return f"{ratio:.0f} times" if ratio >= 10 else f"{ratio:.1f} times"
