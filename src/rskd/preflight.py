"""Look before a distillation starts: what the data are, what is wrong with them, and what the run will cost."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from rskd.cases import Case, content_hash, find_cases, patients, read_partners, shows, split_cases
from rskd.compute import use_threads
from rskd.config import ModelSpec
from rskd.data import Slice, load_slices
from rskd.distillation.feasible import feasible
from rskd.durations import about, span
from rskd.errors import DataError, FileError
from rskd.events import Progress, Task
from rskd.io import read_scan
from rskd.jobs import Outcome, PreflightJob
from rskd.pair import check_patch, networks_for
from rskd.scan import Scan
from rskd.training.probe import Cost, probe

FEW_PLANES = 10
"""A class in fewer planes than this is hardly learnt."""
_AXES = {"t": "time points", "c": "channels", "z": "slices", "y": "rows", "x": "columns"}


@dataclass(frozen=True)
class Finding:
    """One sentence about the data or the run."""

    kind: Literal["fact", "warning", "problem"]
    """A problem is something that the run would fail at, or learn nothing from."""
    text: str


@dataclass
class Side:
    """What lies on one side of the split."""

    cases: list[Case]
    patients: int
    planes: int = 0
    labelled: int = 0
    """Cases with a mask."""
    empty: int = 0
    """Cases whose mask shows the background alone."""
    per_class: dict[str, int] | None = None
    """Planes that show each class but the background."""


def preflight(job: PreflightJob) -> Task[Outcome]:
    """Read all data of a distillation, judge them, and time a few steps; nothing is written.

    Parameters
    ----------
    job
        Networks, data and options, as for a distillation.

    Yields
    ------
    Progress
        How many images are read.

    Returns
    -------
    Outcome
        `value` is ``{"findings": [{"kind", "text"} …], "training": {…}, "validation": {…}, "seconds": [low, median,
        high] of the whole run, "memory": bytes}``; a side has ``"images"``, ``"patients"``, ``"labelled"``,
        ``"empty"``, ``"planes"`` and ``"per_class"``. Without a readable image on both sides the last two are None.

    Raises
    ------
    RskdError
        Where there is nothing to look at: no images, or networks that do not suit each other.
    """
    use_threads(job.compute)
    training, validation = split_cases(find_cases(job.data), job.data, job.training.seed)
    student, teacher = networks_for(job, training[0])
    check_patch(job.training, student, teacher)
    missing: list[str] = []
    if teacher is not None:
        terms, missing = feasible(job.distillation, teacher)
        job = job.model_copy(update={"distillation": terms})
    look = _Look(student.spec, patients([*training, *validation]))
    sides = []
    for cases in (training, validation):
        sides.append((yield from look.over(cases)))
    findings = [*look.findings(skip=job.data.skip_unreadable), *_on_sides(sides[0], sides[1], student.spec)]
    findings += _on_leaks(sides[0], sides[1], look.groups)
    if job.distillation.task and not sides[0].labelled:
        text = "No image to learn from has a mask: choose a folder of masks, or set the weight of the task to 0"
        findings.append(Finding("problem", f"{text} to learn from the teacher alone."))
    findings += [Finding("warning", sentence) for sentence in missing]
    cost = None
    if look.kept and not any(finding.kind == "problem" for finding in findings):
        cost = probe(job, student, teacher, look.kept, planes_to_check=sides[1].planes)
        findings.append(Finding("fact", _cost_words(cost, images=look.bytes)))
    value = {
        "findings": [asdict(finding) for finding in findings],
        **{name: _side_facts(side) for name, side in zip(("training", "validation"), sides, strict=True)},
        "seconds": list(cost.seconds) if cost else None,
        "memory": cost.memory + look.bytes if cost else None,
    }
    return Outcome(value)


class _Look:
    """What is seen while all images are read, one after the other."""

    def __init__(self, spec: ModelSpec, groups: list[list[str]]) -> None:
        self.groups = groups
        """Names of the cases, those of one patient together."""
        self.bytes = 0
        """What all planes take in memory, as the training holds them."""
        self.kept: list[Slice] = []
        """Planes of the first image that has a mask, or of the first one, for the probe."""
        self._spec, self._total, self._done = spec, sum(map(len, groups)), 0
        self._shapes: dict[str, list[tuple[int, ...]]] = defaultdict(list)
        self._spacings: list[tuple[float, ...] | None] = []
        self._units: set[str] = set()
        self._broken: list[str] = []

    def over(self, cases: Sequence[Case]) -> Task[Side]:
        """Read the cases of one side."""
        names = [info.name for info in self._spec.classes[1:]]
        own = {case.name for case in cases}
        count = sum(not own.isdisjoint(group) for group in self.groups)
        side = Side(list(cases), count, per_class=dict.fromkeys(names, 0))
        for case in cases:
            try:
                self._see(case, side)
            except (FileError, DataError) as error:
                self._broken.append(str(error))
            self._done += 1
            yield Progress(self._done, self._total, "images read")
        return side

    def _see(self, case: Case, side: Side) -> None:
        scan = read_scan(case.image)
        arrays = read_partners(case, scan, self._spec)
        planes = load_slices(case, self._spec)
        self.bytes += sum(plane.image.nbytes + plane.target.nbytes for plane in planes)
        if not self.kept or (arrays.mask is not None and (self.kept[0].target < 0).all()):
            self.kept = planes
        self._see_geometry(scan)
        side.planes += len(arrays.image)
        if arrays.mask is None:
            return
        side.labelled += 1
        side.empty += not arrays.mask.any()
        assert side.per_class is not None  # noqa: S101 - `over` made it
        for index, name in enumerate(side.per_class, 1):
            side.per_class[name] += int(shows(arrays.mask, index).any(axis=(1, 2)).sum())

    def _see_geometry(self, scan: Scan) -> None:
        self._shapes[scan.axes].append(tuple(scan.data.shape))
        self._spacings.append(scan.spacing)
        self._units |= {scan.units} if scan.units else set()

    def findings(self, *, skip: bool) -> list[Finding]:
        """Return what the images have in common, and which could not be read; with `skip` the run goes on without."""
        found = [Finding("fact", _axes_words(axes, shapes)) for axes, shapes in self._shapes.items()]
        if len(self._shapes) > 1:
            found.append(Finding("warning", f"The images have different axes ({', '.join(self._shapes)})."))
        found += self._on_spacing() if self._shapes else []
        kind: Literal["warning", "problem"] = "warning" if skip else "problem"
        found += [Finding(kind, f"{text} It is left out." if skip else text) for text in self._broken[:3]]
        if len(self._broken) > 3:
            found.append(Finding(kind, f"{len(self._broken) - 3} more images or masks cannot be used either."))
        return found

    def _on_spacing(self) -> list[Finding]:
        known = [spacing for spacing in self._spacings if spacing is not None]
        if not known:
            return [Finding("fact", "The size of a pixel is not known: sizes are counted in pixels.")]
        unit = " or ".join(sorted(self._units)) or "units"
        text = f"A pixel measures {_range_words(known)} {unit}."
        warnings = []
        if len(known) < len(self._spacings):
            warnings.append(f"{len(self._spacings) - len(known)} images do not say how large their pixels are.")
        finest, coarsest = (edge(max(spacing[-2:]) for spacing in known) for edge in (min, max))
        if coarsest > 1.5 * finest:
            warnings.append(
                f"The pixels of some images are {coarsest / finest:.1f} times as large as those of others: what the "
                "network sees differs in size as much."
            )
        return [Finding("fact", text), *(Finding("warning", warning) for warning in warnings)]


def _axes_words(axes: str, shapes: Sequence[tuple[int, ...]]) -> str:
    """Return the axes of some images in words.

    Examples
    --------
    >>> _axes_words("zyx", [(10, 256, 216), (8, 256, 256)])
    '2 images of 8 to 10 slices, 256 rows, 216 to 256 columns.'
    """
    parts = [
        f"{min(sizes)}{'' if min(sizes) == max(sizes) else f' to {max(sizes)}'} {_AXES[axis]}"
        for axis, sizes in zip(axes, zip(*shapes, strict=True), strict=True)
    ]
    return f"{len(shapes)} image{'s' * (len(shapes) != 1)} of {', '.join(parts)}."


def _range_words(spacings: Sequence[tuple[float, ...]]) -> str:
    """Return lengths per axis, with their range where they differ; axes that only some images have are left out.

    Examples
    --------
    >>> _range_words([(5.0, 1.5, 1.5), (8.0, 1.5, 1.25)])
    '5 to 8 × 1.5 × 1.25 to 1.5'
    """
    common = min(map(len, spacings))
    columns = list(zip(*(spacing[-common:] for spacing in spacings), strict=True))
    lows_highs = [(f"{min(column):.3g}", f"{max(column):.3g}") for column in columns]
    return " × ".join(low if low == high else f"{low} to {high}" for low, high in lows_highs)


def _on_sides(training: Side, validation: Side, spec: ModelSpec) -> list[Finding]:
    """Return how many patients and masks there are, and which classes are missing or rare."""
    found = []
    for side, verb in ((training, "learn from"), (validation, "check with")):
        people = f"{side.patients} patient{'s' * (side.patients != 1)}"
        found.append(
            Finding(
                "fact",
                f"To {verb}: {len(side.cases)} images of {people} ({side.planes} planes), "
                f"{side.labelled} with a mask{_class_words(side)}.",
            )
        )
        if side.empty:
            found.append(Finding("warning", f"{side.empty} masks of these show nothing but background."))
    return found + _on_classes(training, validation, spec)


def _class_words(side: Side) -> str:
    if not side.labelled or not side.per_class:
        return ""
    return "; planes that show " + ", ".join(f"{name}: {count}" for name, count in side.per_class.items())


def _on_classes(training: Side, validation: Side, spec: ModelSpec) -> list[Finding]:
    found = []
    for info in spec.classes[1:]:
        learnt, checked = ((side.per_class or {}).get(info.name, 0) for side in (training, validation))
        if training.labelled and not learnt:
            found.append(Finding("warning", f"No mask to learn from shows {info.name}: only the teacher knows it."))
        elif training.labelled and learnt < FEW_PLANES:
            planes = f"{learnt} plane{'s' * (learnt != 1)}"
            found.append(Finding("warning", f"{info.name} is in only {planes} to learn from: add images of it."))
        if validation.labelled and not checked:
            text = f"No mask to check with shows {info.name}: its Dice cannot be watched; keep other images for that."
            found.append(Finding("warning", text))
    if not validation.labelled:
        text = "No image to check with has a mask: the latest network is kept, whether it is the best or not."
        found.append(Finding("warning", text))
    return found


def _on_leaks(training: Side, validation: Side, groups: list[list[str]]) -> list[Finding]:
    """Return where the same image, or the same patient, lies on both sides of the split."""
    found = []
    seen = {content_hash(case.image): case.name for case in training.cases}
    found_again = [(case.name, seen.get(content_hash(case.image))) for case in validation.cases]
    twins = [pair for pair in found_again if pair[1] is not None]
    if twins:
        mine, theirs = twins[0]
        text = f"{len(twins)} images to check with are also learnt from, under another name ({mine} is {theirs})"
        found.append(Finding("warning", f"{text}: the check looks better than it is; remove them."))
    names = {case.name for case in validation.cases}
    shared = [group for group in groups if names & set(group) and set(group) - names]
    if shared:
        text = f"Images of {len(shared)} patient{'s' * (len(shared) != 1)} ({', '.join(sorted(shared[0])[:2])} …)"
        found.append(Finding("warning", f"{text} lie on both sides: the check looks better than it is."))
    return found


def _cost_words(cost: Cost, *, images: int) -> str:
    """Return the cost of a run in words.

    Examples
    --------
    >>> _cost_words(Cost((3500, 3600, 4000), 2 * 2**30), images=2**29)
    'It will take about 60 min (58 to 67 min), and about 2.5 GiB of memory, 0.5 of them for the images.'
    >>> _cost_words(Cost((235, 240, 245), 2 * 2**30), images=2**29).partition(",")[0]
    'It will take about 4 min'
    """
    low, median, high = cost.seconds
    own, total = (size / 2**30 for size in (images, images + cost.memory))
    time, spread = about(median), span(low, high)
    if spread not in time:
        time = f"{time} ({spread})"
    return f"It will take {time}, and about {total:.1f} GiB of memory, {own:.1f} of them for the images."


def _side_facts(side: Side) -> dict[str, object]:
    return {
        "images": len(side.cases),
        "patients": side.patients,
        "labelled": side.labelled,
        "empty": side.empty,
        "planes": side.planes,
        "per_class": side.per_class,
    }
