"""The report as one HTML page without scripts and without anything from outside."""

from __future__ import annotations

import math
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from pydantic import BaseModel

from rskd.durations import exactly
from rskd.metrics import VOXEL
from rskd.records import UNLABELLED
from rskd.report import pictures
from rskd.report.curves import dice_curves, loss_curves
from rskd.report.measure import Plane
from rskd.report.story import Story
from rskd.report.style import STYLE
from rskd.report.words import count, mean, state, summary

WARNING = "For research. Not for diagnosis."
_ROLES = {"teacher": "Teacher", "student": "Student"}
_MISTAKE_WORDS = {
    pictures.MISSED: "missed: in the mask alone",
    pictures.EXTRA: "too much: in the segmentation alone",
    pictures.MIXED_UP: "mixed up: another class than in the mask",
}
_MEASURES = {"dice": "Dice", "iou": "IoU", "hd95": "HD95", "surface_dice": "Surface Dice"}


@dataclass(frozen=True)
class Content:
    """Everything that the page shows."""

    story: Story
    tables: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Scores by role, as `rskd.evaluate.table` gives them."""
    speed: Mapping[str, Any] = field(default_factory=dict)
    """As `rskd.report.words.summary` takes it."""
    planes: Sequence[Plane] = ()
    """One of every validation image."""
    colors: Sequence[str] = ()
    """Of the classes, the background first."""
    missing: str = ""
    """Why there are no pictures, in a sentence."""


def page(content: Content) -> str:
    """Return the report as HTML."""
    story = content.story
    title = "Distillation report" if story.distilled else "Training report"
    parts = [
        f"<h1>{title}</h1>",
        f'<p class="state">{WARNING} This run is {state(story)}.</p>',
        *(f"<p>{paragraph}</p>" for paragraph in summary(story, content.tables, content.speed)),
        _caution(story),
        *_gallery(content),
        *_tables(content),
        *_curves(story),
        *_messages(story),
        *_data(story),
        *_recipe(story),
        *_environment(story),
        f"<footer><p>{WARNING} Made by rskd. Images are called by the first twelve digits of the SHA-256 of their "
        "file; job.json in the run folder says where the files lie.</p></footer>",
    ]
    body = "\n".join(part for part in parts if part)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{STYLE}</style></head>\n<body><main>\n{body}\n</main></body></html>\n"
    )


def _caution(story: Story) -> str:
    if not story.epochs:
        return ""
    return (
        '<p class="note">These images chose the best round, so the figures lean to the good side: measure the network '
        "once on images that it has never met, with <code>rskd evaluate</code>, before you rely on it.</p>"
    )


# ------------------------------------------------------------------------------------------------------------ pictures


def _gallery(content: Content) -> Iterator[str]:
    if not content.planes:
        if content.missing:
            yield f'<h2>Pictures</h2><p class="note">{escape(content.missing)}</p>'
        return
    scores = {row["case"]: mean(row["dice"]) for row in content.tables["student"]["cases"]}
    known = sorted(
        (plane for plane in content.planes if not math.isnan(scores[plane.case])), key=lambda p: scores[p.case]
    )
    chosen = _worst_median_best(known)
    if not chosen:  # no image has a score
        return
    yield f"<h2>Pictures: {', '.join(chosen).lower()}</h2>"
    yield _legend(content)
    for word, plane in chosen.items():
        yield _case(content, word, plane, scores[plane.case])


def _worst_median_best(planes: Sequence[Plane]) -> dict[str, Plane]:
    """Return up to three different ones of the sorted planes."""
    chosen: dict[str, Plane] = {}
    for word, place in (("Worst", 0), ("Best", -1), ("Median", (len(planes) - 1) // 2)):
        if planes and all(planes[place] is not other for other in chosen.values()):
            chosen[word] = planes[place]
    return {word: chosen[word] for word in ("Worst", "Median", "Best") if word in chosen}


def _case(content: Content, word: str, plane: Plane, score: float) -> str:
    which = f"plane {plane.number} of {plane.planes}, the one with the most wrong pixels" * (plane.planes > 1)
    heading = f"{word} image: {plane.case}"
    facts = f"Dice of the student {score:.3f}" + (f"; {which}" if which else "")
    student = plane.labels["student"]
    panels = {"Image": (pictures.photograph(plane), "the image alone")}
    for role, labels in plane.labels.items():
        name = _ROLES[role] if content.story.distilled else "Network"
        panels[name] = (pictures.overlay(plane, labels, content.colors), f"segmentation by the {name.lower()}")
    panels["Truth (mask)"] = (pictures.overlay(plane, plane.truth, content.colors), "the mask")
    wrong = float((pictures.mistakes(plane, student) > 0).sum() / max(1, plane.region.sum()))
    panels["Difference"] = (
        pictures.difference(plane, student),
        f"where segmentation and mask differ, {wrong:.1%} of the pixels",
    )
    figures = "".join(
        f"<figure>{_picture(png, 'png', f'{heading}, {alt}')}<figcaption>{name}</figcaption></figure>"
        for name, (png, alt) in panels.items()
    )
    return (
        f'<section class="case"><h3>{escape(heading)}</h3><p>{facts}.</p><div class="panels">{figures}</div></section>'
    )


def _legend(content: Content) -> str:
    names = list(content.tables["student"]["classes"])
    entries = [(pictures.class_swatch(index, content.colors[index]), name) for index, name in enumerate(names, 1)]
    kinds = [kind for kind in _MISTAKE_WORDS if kind != pictures.MIXED_UP or len(names) > 1]
    entries += [(pictures.swatch(kind), _MISTAKE_WORDS[kind]) for kind in kinds]
    return (
        '<p class="legend">'
        + " ".join(f"<span>{_picture(p, 'png', '')} {escape(n)}</span>" for p, n in entries)
        + "</p>"
    )


def _picture(content: bytes, kind: str, alt: str) -> str:
    return f'<img src="data:image/{kind};base64,{b64encode(content).decode()}" alt="{escape(alt)}">'


# -------------------------------------------------------------------------------------------------------------- scores


def _tables(content: Content) -> Iterator[str]:
    if content.tables:
        yield "<h2>Scores</h2>"
        yield _class_table(content)
        yield _case_table(content.tables["student"], content.story)
        yield _measure_note(content.tables["student"])
    elif content.story.scores:
        yield "<h2>Scores</h2>"
        rows = sorted(content.story.scores, key=lambda row: _or_last(mean(row["dice"])))
        names = list(rows[0]["dice"])
        yield _case_rows(rows, names, ("dice", "iou"), f"Best round ({rows[0]['epoch']}), worst image first", "")


def _class_table(content: Content) -> str:
    unit = content.tables["student"]["unit"]
    roles = {role: _ROLES[role] if content.story.distilled else "Network" for role in content.tables}
    head = "".join(f'<th scope="col">{roles[role]}: {_label(m, unit)}</th>' for m in _MEASURES for role in roles)
    body = ""
    for name in content.tables["student"]["classes"]:
        cells = "".join(_cell(content.tables[role][measure][name], measure) for measure in _MEASURES for role in roles)
        body += f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>'
    return _table("Mean over the validation images, per class", f'<th scope="col">Class</th>{head}', body)


def _case_table(table: Mapping[str, Any], story: Story) -> str:
    rows = sorted(table["cases"], key=lambda row: _or_last(mean(row["dice"])))
    unit = table["unit"]
    who = "the student" if story.distilled else "the network"
    return _case_rows(rows, table["classes"], tuple(_MEASURES), f"Every validation image, {who}, worst first", unit)


def _case_rows(
    rows: Sequence[Mapping[str, Any]], names: Sequence[str], measures: Sequence[str], title: str, unit: str
) -> str:
    head = '<th scope="col">Image</th><th scope="col">Class</th>'
    head += "".join(f'<th scope="col">{_label(measure, unit)}</th>' for measure in measures)
    body = ""
    for row in rows:
        for place, name in enumerate(names):
            first = f'<th scope="rowgroup" rowspan="{len(names)}"><code>{row["case"]}</code></th>' if not place else ""
            cells = "".join(_cell(row[measure][name], measure) for measure in measures)
            body += f"<tr>{first}<td>{escape(name)}</td>{cells}</tr>"
    return _table(title, head, body)


def _label(measure: str, unit: str | None) -> str:
    return _MEASURES[measure] + (f" ({escape(unit)})" if measure == "hd95" and unit else "")


def _cell(score: float | None, measure: str) -> str:
    if score is None:
        return '<td class="number">–</td>'
    weak = ' <abbr title="below one half">▼</abbr>' if measure != "hd95" and score < 0.5 else ""
    return f'<td class="number">{score:.1f}</td>' if measure == "hd95" else f'<td class="number">{score:.3f}{weak}</td>'


def _measure_note(table: Mapping[str, Any]) -> str:
    unit = table["unit"] + "s" * (table["unit"] == VOXEL) if table["unit"] else "the unit of each image"
    tolerance = f"{table['tolerance']:g} {VOXEL if table['unit'] == VOXEL and table['tolerance'] == 1 else unit}"
    return (
        '<p class="note">Dice: twice the common pixels by the sum of both. IoU: common pixels by all of both. HD95: '
        f"distance that 95 % of the border keeps, in {escape(unit)}; smaller is better. Surface Dice: share of the "
        f"border that lies within {escape(tolerance)} of the other. ▼ marks scores below one half; "
        "– means that the class is in neither mask nor segmentation (or, for HD95, in one of them alone).</p>"
    )


def _or_last(score: float) -> float:
    return math.inf if math.isnan(score) else score


# ------------------------------------------------------------------------------------------------------------- details


def _curves(story: Story) -> Iterator[str]:
    if story.epochs:
        best = story.best
        alt = f"Validation Dice over {count(len(story.epochs), 'round')}, last {story.epochs[-1].dice:.3f}"
        alt += f", best {best.dice:.3f} in round {best.epoch}" if best else ""
        yield f"<h2>How it learned</h2><figure>{_picture(dice_curves(story.epochs, story.references), 'svg+xml', alt)}"
        yield "<figcaption>Agreement with the masks of the validation images after every round.</figcaption></figure>"
    if story.steps:
        terms = ", ".join(story.steps[-1].losses)
        alt = f"Curves of {terms} and the learning rate over {count(len(story.steps), 'step')}"
        yield f"<figure>{_picture(loss_curves(story.steps), 'svg+xml', alt)}"
        yield (
            "<figcaption>Every term of the loss before weighting, their weighted sum (total), and the learning rate. "
            "Pale: steps; dark: means of neighbouring steps.</figcaption></figure>"
        )


def _messages(story: Story) -> Iterator[str]:
    warnings = [message.text for message in story.messages if message.warning]
    if warnings:
        yield "<h2>Warnings</h2><ul>" + "".join(f"<li>{escape(text)}</li>" for text in warnings) + "</ul>"


def _data(story: Story) -> Iterator[str]:
    if story.data is None:
        return
    cases = story.data["cases"]
    sides = {side: [row for row in cases if row["side"] == side] for side in ("training", "validation")}
    head = '<th scope="col">Side</th><th scope="col">Images</th><th scope="col">Planes</th>'
    names = [UNLABELLED, *story.data["classes"]]
    if not any(row["pixels"].get(UNLABELLED) for row in cases):
        names.remove(UNLABELLED)
    head += "".join(f'<th scope="col">{escape(name)}</th>' for name in names)
    body = ""
    for side, rows in sides.items():
        sums = [sum(row["pixels"].get(name, 0) for row in rows) for name in names]
        whole = max(1, sum(sums))
        cells = "".join(f'<td class="number">{part / whole:.2%}</td>' for part in sums)
        planes = sum(row["planes"] for row in rows)
        numbers = "".join(f'<td class="number">{number}</td>' for number in (len(rows), planes))
        body += f'<tr><th scope="row">{side}</th>{numbers}{cells}</tr>'
    yield "<h2>Data</h2>" + _table("Share of the pixels per class", head, body)
    yield f'<p class="note">Seed {story.data["seed"]}; data.json lists every image by its hash.</p>'


def _recipe(story: Story) -> Iterator[str]:
    groups: dict[str, BaseModel] = {"training": story.job.training, "compute": story.job.compute}
    if story.objective is not None:
        groups["distillation"] = story.objective
    body = ""
    for group, options in groups.items():
        for name, value, default in _flat(options, type(options)()):
            changed = "" if value == default else f" (default: {escape(_plain(default))})"
            shown = escape(_plain(value))
            cell = f"<strong>{shown}</strong>{changed}" if changed else shown
            body += f'<tr><th scope="row">{group}: {name}</th><td>{cell}</td></tr>'
    yield "<h2>Recipe</h2>"
    for role, facts in story.networks.items():
        made = f"; SHA-256 of its file <code>{facts['sha256']}</code>" if "sha256" in facts else ""
        yield f"<p>{role.capitalize()}: {escape(facts['name'])}, encoder {escape(facts['encoder'])}{made}.</p>"
    yield _table(
        "Options; what differs from its default is bold", '<th scope="col">Option</th><th scope="col">Value</th>', body
    )


def _flat(options: BaseModel, defaults: BaseModel, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    for name in type(options).model_fields:
        value, default = getattr(options, name), getattr(defaults, name)
        if isinstance(value, BaseModel) and isinstance(default, BaseModel):
            yield from _flat(value, default, f"{path}{name}.")
        else:
            yield path + name, value, default


def _plain(value: object) -> str:
    return (
        {None: "none", True: "yes", False: "no"}.get(value, str(value))
        if isinstance(value, bool | None)
        else str(value)
    )


def _environment(story: Story) -> Iterator[str]:
    if not story.sessions:
        return
    yield "<h2>Computer</h2>"
    head = "".join(
        f'<th scope="col">{name}</th>' for name in ("Began (UTC)", "After step", "Computer", "Device", "Threads")
    )
    body = ""
    for session in story.sessions:
        machine = f"{session['processor'] or session['machine']}, {session['cores']} cores, {session['system']}"
        cells = (
            session["began"][:19].replace("T", " "),
            session["step"],
            machine,
            session["device"],
            session["threads"],
        )
        body += "<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in cells) + "</tr>"
    yield _table("Sessions", head, body)
    last = story.sessions[-1]
    versions = ", ".join(f"{name} {version}" for name, version in last["versions"].items())
    made = f" Sources at commit <code>{last['commit']}</code>." if last.get("commit") else ""
    yield f"<p>{escape(versions)}.{made} Time in rounds: {exactly(story.seconds)}.</p>"


def _table(title: str, head: str, body: str) -> str:
    return (
        f'<div class="table"><table><caption>{escape(title)}</caption><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )
