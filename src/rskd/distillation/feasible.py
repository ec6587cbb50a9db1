"""Which terms a teacher can be asked for: one from elsewhere shows less than a network of this program."""

from __future__ import annotations

from typing import Literal

from rskd.config import DistillOptions
from rskd.distillation.baselines.table import BASELINES, chosen
from rskd.errors import ModelError
from rskd.importance.features import FEATURE_DEFINITIONS
from rskd.models.foreign import SHOWS, ForeignNetwork
from rskd.models.segmenter import Segmenter


def feasible(options: DistillOptions, teacher: Segmenter | ForeignNetwork) -> tuple[DistillOptions, list[str]]:
    """Return the objective without what the teacher cannot show, and a sentence for every term that was switched off.

    A term is switched off where its weight is the default; one that was asked for by another weight is refused.

    Parameters
    ----------
    options
        The objective that is wanted.
    teacher
        Only one from elsewhere (`rskd.models.foreign`) limits it.

    Raises
    ------
    ModelError
        If a term with a weight of its own needs what the teacher cannot show, or one class per pixel.

    Examples
    --------
    >>> from rskd.models.presets import fresh_spec
    >>> feasible(DistillOptions(), Segmenter(fresh_spec("rskd-nano", in_channels=1, classes=["organ"])))[1]
    []
    """
    exclusive = [name for name in chosen(options.baselines) if BASELINES[name].exclusive]
    if teacher.spec.overlapping and exclusive:
        raise ModelError(
            f"The term {exclusive[0]!r} needs one class per pixel, the classes of {teacher.spec.name} may overlap: set "
            "its weight to 0."
        )
    if not isinstance(teacher, ForeignNetwork):
        return options, []
    because = f"{teacher.spec.name} ({teacher.spec.encoder}) shows {SHOWS[teacher.is_open]}"
    missing = [name for name, need in _needs(options).items() if need == "attention" or not teacher.is_open]
    for name in missing:
        if name in BASELINES or not _by_default(options, name):
            raise ModelError(f"The term {name!r} cannot be used, since {because}: set its weight to 0.")
    off = {name: getattr(options, name).model_copy(update={"weight": 0.0}) for name in missing}
    return options.model_copy(update=off), [f"The term {name!r} is switched off, since {because}." for name in missing]


def _needs(options: DistillOptions) -> dict[str, Literal["attention", "stages"]]:
    """Return what every term with a weight needs beside the logits."""
    needs: dict[str, Literal["attention", "stages"]] = {}
    if options.ranking.weight:
        needs["ranking"] = "stages" if options.ranking.definition in FEATURE_DEFINITIONS else "attention"
    needs |= {name: "stages" for name in ("texture", "fusion") if getattr(options, name).weight}
    return needs | {name: "stages" for name in chosen(options.baselines) if BASELINES[name].sees != "logits"}


def _by_default(options: DistillOptions, name: str) -> bool:
    return bool(getattr(options, name).weight == getattr(DistillOptions(), name).weight)
