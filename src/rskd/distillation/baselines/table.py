"""The table of the published methods and controls: what each one sees, what it is made of, and its published weight."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from torch import nn

from rskd.config import BaselineOptions, DistillOptions
from rskd.config_losses import TermOptions
from rskd.distillation.baselines.attention_transfer import AttentionTransfer, DoubleSimilarity
from rskd.distillation.baselines.channels import ChannelWiseLogits
from rskd.distillation.baselines.generation import MaskedGeneration, ShallowDeep
from rskd.distillation.baselines.hints import TextureControl, hint_loss
from rskd.distillation.baselines.regions import intra_class_loss, region_affinity_loss
from rskd.distillation.baselines.relations import Relation
from rskd.distillation.baselines.review import Review
from rskd.distillation.baselines.similarity import cross_image_loss, pairwise_loss
from rskd.distillation.baselines.stages import DeepestStage, Widths
from rskd.distillation.baselines.wavelet import WaveletControl
from rskd.distillation.features import match_blocks
from rskd.distillation.fusion import channel_wise_loss
from rskd.errors import ParameterError

Sees = Literal["logits", "deepest", "stages", "shallow_deep", "texture"]
STAGES = 4
"""Stages that the methods on several stages see, where both networks have as many."""


@dataclass(frozen=True)
class Baseline:
    """One published method."""

    paper: str
    weight: float
    """As published, for the means that are taken here: sums over positions or channels are converted at the map sizes
    of their papers (512 channels on 64 × 64 for MGD, 384 on 196 tokens for ViTKD, 64 × 64 positions for DSD)."""
    sees: Sees
    build: Callable[[Widths, Widths, Any], nn.Module]
    """From the channels of what is seen of student and teacher, and the method's options."""
    masked: bool = False
    """Whether it hides places at random, so that equal networks do not give zero."""
    exclusive: bool = False
    """Whether it takes for granted that every pixel belongs to one class."""


def _projected(compare: Callable[..., Any], student: Widths, teacher: Widths) -> DeepestStage:
    return DeepestStage(compare, channels=(student.stages[-1], teacher.stages[-1]))


BASELINES: dict[str, Baseline] = {
    "fitnets": Baseline("arXiv:1412.6550", 10, "deepest", lambda s, t, o: _projected(hint_loss, s, t)),
    "at": Baseline("arXiv:1612.03928", 0.9, "stages", lambda s, t, o: AttentionTransfer(power=o.power)),
    "skd": Baseline(
        "arXiv:1903.04197",
        10,
        "deepest",
        lambda s, t, o: DeepestStage(lambda a, b, _: pairwise_loss(a, b, pool=o.pool)),
    ),
    "ifvd": Baseline(
        "doi:10.1007/978-3-030-58571-6_21",
        20,
        "deepest",
        lambda s, t, o: DeepestStage(intra_class_loss),
        exclusive=True,
    ),
    "cwd": Baseline("arXiv:2011.13256", 3, "logits", lambda s, t, o: ChannelWiseLogits(temperature=o.temperature)),
    "cwd_features": Baseline(
        "arXiv:2011.13256",
        50,
        "deepest",
        lambda s, t, o: _projected(lambda a, b, _: channel_wise_loss(a, b, temperature=o.temperature), s, t),
    ),
    "dsd": Baseline("arXiv:2107.08591", 0.25, "stages", lambda s, t, o: DoubleSimilarity(category=o.category)),
    "cirkd": Baseline(
        "arXiv:2204.06986",
        1,
        "deepest",
        lambda s, t, o: DeepestStage(lambda a, b, _: cross_image_loss(a, b, temperature=o.temperature, pool=o.pool)),
    ),
    "mgd": Baseline(
        "arXiv:2205.01529",
        42,
        "deepest",
        lambda s, t, o: MaskedGeneration(s.stages[-1], t.stages[-1], mask_ratio=o.mask_ratio),
        masked=True,
    ),
    "dist": Baseline(
        "arXiv:2205.10536",
        1,
        "logits",
        lambda s, t, o: Relation(inter=o.inter, intra=o.intra, temperature=o.temperature),
        exclusive=True,
    ),
    "reviewkd": Baseline("arXiv:2104.09044", 1, "stages", lambda s, t, o: Review(s.stages, t.stages, width=o.width)),
    "vitkd": Baseline(
        "arXiv:2209.02432",
        2.3,
        "shallow_deep",
        lambda s, t, o: ShallowDeep(s.stages, t.stages, generation=o.generation, mask_ratio=o.mask_ratio),
        masked=True,
    ),
    "emkd": Baseline(
        "arXiv:2108.09987", 0.9, "deepest", lambda s, t, o: DeepestStage(region_affinity_loss), exclusive=True
    ),
    "feature_mse": Baseline("control of CDM", 1, "texture", lambda s, t, o: TextureControl(s.texture, t.texture)),
    "wavelet": Baseline(
        "control of CDM", 1, "texture", lambda s, t, o: WaveletControl(s.texture, t.texture, levels=o.levels)
    ),
}
"""Every method by the name of its options in `BaselineOptions`."""


def chosen(options: BaselineOptions) -> dict[str, TermOptions]:
    """Return the options of the methods that have a weight, in the order of the table.

    Examples
    --------
    >>> list(chosen(BaselineOptions.model_validate({"cwd": {"weight": 3}})))
    ['cwd']
    """
    every = {name: getattr(options, name) for name in BASELINES}
    return {name: own for name, own in every.items() if own.weight}


def stage_pairs(sees: Sees, student_depth: int, teacher_depth: int) -> tuple[tuple[int, int], ...]:
    """Return which stages of student and teacher a method compares, shallow to deep.

    Examples
    --------
    >>> stage_pairs("shallow_deep", 4, 8), stage_pairs("deepest", 4, 8)
    (((0, 0), (1, 1), (3, 7)), ((3, 7),))
    """
    if sees in ("logits", "texture"):
        return ()
    if sees == "shallow_deep":
        shallow = min(2, student_depth - 1, teacher_depth - 1)
        return (*((i, i) for i in range(shallow)), (student_depth - 1, teacher_depth - 1))
    count = 1 if sees == "deepest" else STAGES
    return tuple(zip(*match_blocks(student_depth, teacher_depth, count), strict=True))


_ALONE: dict[str, Any] = {name: {"weight": 0} for name in ("ranking", "texture", "fusion")}
METHODS: dict[str, Callable[[], DistillOptions]] = {
    "alone": lambda: DistillOptions.model_validate(_ALONE | {"logits": {"weight": 0}}),
    "kd": lambda: DistillOptions.model_validate(_ALONE | {"logits": {"temperature": 4, "balanced": False}}),
    "balanced_kd": lambda: DistillOptions.model_validate(_ALONE),
    "rskd": DistillOptions,
    "kl_importance": lambda: DistillOptions.model_validate(
        _ALONE | {"ranking": {"weight": 1, "loss": "kl_importance"}}
    ),
    **{
        name: partial(DistillOptions.model_validate, _ALONE | {"baselines": {name: {"weight": baseline.weight}}})
        for name, baseline in BASELINES.items()
    },
}
"""The objective of every method, for a comparison under one budget; the baselines stand beside pixel-wise KD."""


def method(name: str) -> DistillOptions:
    """Return the objective of a published method at its published weight, beside the task and pixel-wise KD.

    Raises
    ------
    ParameterError
        If there is no method of this name.

    Examples
    --------
    >>> options = method("at")
    >>> options.baselines.at.weight, options.fusion.weight, options.logits.weight
    (0.9, 0.0, 1.0)
    """
    if name not in METHODS:
        raise ParameterError(f"There is no method named {name!r}: choose one of {', '.join(METHODS)}.")
    return METHODS[name]()
