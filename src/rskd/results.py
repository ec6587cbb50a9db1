"""What comes out of an image: labels, cleaned up and measured, and maps of how sure they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from rskd.clean_up import check_names, clean_up, counts_voxels
from rskd.errors import ModelError
from rskd.events import Message, Task
from rskd.io import keep_image, write_image, write_labels
from rskd.io.names import companion
from rskd.jobs import Segmenting
from rskd.measure import Measurement, columns, measure, write_table
from rskd.models.exported import OnnxSegmenter
from rskd.recipe import fingerprint
from rskd.scan import Scan
from rskd.uncertainty import Measure, divergence, entropy, margin, of_every_class

if TYPE_CHECKING:
    from rskd.models.segmenter import Segmenter

MAPS: Mapping[str, Measure] = {"entropy": entropy, "margin": margin}
"""Maps of uncertainty by name."""


@dataclass(frozen=True)
class Results:
    """Everything that was found in an image, in its world."""

    labels: Scan
    maps: Mapping[str, Scan] = field(default_factory=dict)
    """On request: `probabilities`, `entropy`, `margin`, `disagreement`, `divergence`."""
    measurements: tuple[Measurement, ...] = ()
    made_with: Mapping[str, Any] = field(default_factory=dict)
    """All that the labels depend on besides the image, ready for JSON."""


def segment_scan(job: Segmenting, scan: Scan, model: Segmenter, other: Segmenter | None = None) -> Task[Results]:
    """Segment a scan and do everything that a job asks for besides.

    Parameters
    ----------
    job
        What to do.
    scan
        The image.
    model
        The network.
    other
        The network to compare it with, where the job names one.

    Raises
    ------
    ModelError
        If the two networks do not know the same classes.
    ParameterError, ResourceError
        As `rskd.segment.segment`, and if there is no such class to clean up.
    """
    from rskd.segment import segment

    names = [info.name for info in model.spec.classes]
    check_names(job.clean_up, names[1:])
    if other is not None:
        _check_classes(model, other)
    wanted = job.options
    if job.uncertainty or other is not None:
        wanted = wanted.model_copy(update={"probabilities": True})
    found = yield from segment(_seen_from_sides(model, job.tta), scan, wanted)
    maps: dict[str, Scan] = {}
    if found.probabilities is not None:
        probabilities = np.asarray(found.probabilities.data)
        measures: dict[str, Measure] = {**MAPS, "divergence": divergence}
        if model.spec.overlapping:
            measures = {name: of_every_class(measure) for name, measure in measures.items()}
        maps = {"probabilities": found.probabilities} if job.options.probabilities else {}
        maps |= {name: replace(found.labels, data=measures[name](probabilities)) for name in job.uncertainty}
        if other is not None:
            second = yield from segment(_seen_from_sides(other, job.tta), scan, wanted)
            assert second.probabilities is not None  # noqa: S101 - they were asked for
            differing = np.asarray(found.labels.data) != np.asarray(second.labels.data)
            maps["disagreement"] = replace(found.labels, data=differing.view(np.uint8))
            apart = measures["divergence"](probabilities, second.probabilities.data)
            maps["divergence"] = replace(found.labels, data=apart)
    labels = found.labels
    if job.clean_up.active:
        if counts_voxels(labels, job.clean_up):
            yield Message("The image does not state the size of its voxels: min_size counts voxels.", warning=True)
        labels = clean_up(labels, job.clean_up, names[1:])
    rows: tuple[Measurement, ...] = ()
    if job.measure != "none":
        rows = measure(labels, scan.at_level(wanted.level), names=names[1:], slices=job.measure == "slices")
    recipe = found.recipe.model_copy(update={"weights": fingerprint(model)})  # not those of a stand-in
    made_with = {**recipe.model_dump(mode="json"), **job.model_dump(mode="json", include={"tta", "clean_up"})}
    return Results(labels, maps, rows, made_with)


def write_results(output: Path, results: Results, names: Sequence[str]) -> list[Path]:
    """Write labels, and beside them the maps and the table of measurements; returns the files, the labels first.

    Parameters
    ----------
    output
        File for the labels, as for `rskd.io.write_labels`; the others get its name with ``_entropy`` … added.
    results
        What was found.
    names
        Names of the labels 1, 2 …

    Raises
    ------
    ParameterError, FileError
        As `rskd.io.write_labels`; nothing is written if a file would replace the image.
    """
    maps = {companion(output, name): values for name, values in results.maps.items()}
    for path in maps:
        keep_image(path, results.labels)
    write_labels(output, results.labels.data, results.labels, names=names)
    for path, values in maps.items():
        write_image(path, values)
    if not results.measurements:
        return [output, *maps]
    table = companion(output, "measurements", ".csv")
    write_table(table, columns(results.measurements))
    return [output, *maps, table]


def _seen_from_sides(model: Segmenter, tta: str) -> Segmenter:
    """Return the network, or one that answers with its mean over flipped tiles, which can stand in its place."""
    if tta == "none":
        return model
    if isinstance(model, OnnxSegmenter):
        raise ModelError(
            "An exported network cannot look at tiles from several sides: use the file it was made from, with torch."
        )
    from rskd.models.augmented import Augmented

    return cast("Segmenter", Augmented(model, rotations=tta == "rotations"))


def _check_classes(model: Segmenter, other: Segmenter) -> None:
    ours, theirs = ([info.name for info in network.spec.classes] for network in (model, other))
    if ours != theirs:
        raise ModelError(
            f"{model.spec.name} knows {', '.join(ours[1:])}, {other.spec.name} {', '.join(theirs[1:])}: "
            "networks of the same classes can be compared."
        )
    if model.spec.overlapping != other.spec.overlapping:
        pair = (model, other) if model.spec.overlapping else (other, model)
        overlapping, exclusive = (network.spec.name for network in pair)
        raise ModelError(
            f"The classes of {overlapping} may overlap, those of {exclusive} may not: networks of one kind can be "
            "compared."
        )
