"""The whole objective: L = w_task · L_seg + ramp · Σ w · term, and what has to be observed for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor, nn

from rskd.config import DistillOptions, FusionOptions, TaskLossOptions
from rskd.distillation.baselines.stages import Widths
from rskd.distillation.baselines.table import BASELINES, chosen, stage_pairs
from rskd.distillation.cache import TeacherCache
from rskd.distillation.calibration import Calibration, alone
from rskd.distillation.features import (
    Features,
    Taps,
    decoder_maps,
    importance_depth,
    in_float,
    match_blocks,
    observe,
    stage_widths,
    texture_width,
)
from rskd.distillation.fusion import FusionTerm
from rskd.distillation.logits import logits_loss
from rskd.distillation.ranking import RankingTerm
from rskd.distillation.task import task_loss
from rskd.distillation.texture import TextureTerm
from rskd.errors import ParameterError
from rskd.models.segmenter import Segmenter

Seen = TypeVar("Seen", Widths, Features)
_Pairs = tuple[tuple[int, int], ...]
"""Stages of student and teacher that are compared."""
UNRAMPED = ("task", "logits")
"""The terms that count from the first step; all others rise to their weight."""
_DEFAULT_TASK = TaskLossOptions()


class Objective(nn.Module):
    """The student, what is learnt beside it while training, and the losses of one batch.

    The teacher is observed but is no part of the module: its weights are never trained, moved or saved with it.

    Parameters
    ----------
    student
        The network to train.
    teacher
        The network to learn from, already in evaluation mode; ``None`` = train on the masks alone.
    options
        Terms and weights; a term of weight 0 is neither built nor observed.
    task
        The loss on the masks.
    """

    def __init__(
        self,
        student: Segmenter,
        teacher: Segmenter | None,
        options: DistillOptions,
        task: TaskLossOptions = _DEFAULT_TASK,
    ) -> None:
        super().__init__()
        self.student = student
        self.options = options
        self.task = task
        self._teacher: tuple[Segmenter, ...] = ()  # a tuple hides it from torch
        if teacher is not None:
            self._teacher = (teacher.eval().requires_grad_(False),)
        self.terms = nn.ModuleDict()
        self._student_taps, self._teacher_taps = Taps(), Taps()
        self._places: dict[str, tuple[int, ...]] = {}
        if teacher is not None:
            self._add_terms(student, teacher)
        self.calibration = Calibration(options.calibrate) if options.calibrate else None
        self.cache: TeacherCache | None = None
        """Where the teacher's answers on a pool of views are kept, if anywhere."""

    def _add_terms(self, student: Segmenter, teacher: Segmenter) -> None:
        options = self.options
        pairs = self._match_stages(student, teacher)
        ranked = _match_importance(student, teacher, options) if options.ranking.weight else ((), ())
        texture = options.texture.weight > 0
        shallow = texture or any(BASELINES[name].sees == "texture" for name in chosen(options.baselines))
        self._student_taps, self._teacher_taps = (
            Taps(tuple(pair[side] for pair in pairs), ranked[side], options.ranking.definition, shallow)
            for side in (0, 1)
        )
        widths = [
            Widths(
                tuple(_every_width(model)[pair[side]] for pair in pairs) if pairs else (),
                texture_width(model) if shallow else 0,
            )
            for side, model in enumerate((student, teacher))
        ]
        if options.ranking.weight:
            self.terms["ranking"] = RankingTerm(options.ranking)
        if texture:
            self.terms["texture"] = TextureTerm(widths[0].texture, widths[1].texture, options.texture)
        if options.fusion.weight:
            own = [self._pick(side, "fusion").stages for side in widths]
            self.terms["fusion"] = FusionTerm(own[0], own[1], options.fusion)
        for name, own_options in chosen(options.baselines).items():
            mine, theirs = (self._pick(side, name) for side in widths)
            self.terms[name] = BASELINES[name].build(mine, theirs, own_options)

    def _match_stages(self, student: Segmenter, teacher: Segmenter) -> _Pairs:
        """Return every pair of stages that some term compares, and note which term compares which."""
        wanted: dict[str, _Pairs] = {}
        methods = [name for name in chosen(self.options.baselines) if BASELINES[name].sees not in ("logits", "texture")]
        if self.options.fusion.weight or methods:
            depths = len(stage_widths(student)), len(stage_widths(teacher))
            if self.options.fusion.weight:
                decoded = _decoder_pairs(self.options.fusion.decoder_maps, student, teacher)
                wanted["fusion"] = (*decoded, *_fusion_pairs(self.options.fusion, *depths))
            wanted |= {name: stage_pairs(BASELINES[name].sees, *depths) for name in methods}
        pairs = tuple(dict.fromkeys(pair for own in wanted.values() for pair in own))
        self._places = {name: tuple(pairs.index(pair) for pair in own) for name, own in wanted.items()}
        return pairs

    def _pick(self, seen: Seen, term: str) -> Seen:
        """Return `seen` with the stages that a term compares, and no others."""
        return replace(seen, stages=tuple(seen.stages[place] for place in self._places.get(term, ())))

    def forward(self, images: Tensor, targets: Tensor, views: Sequence[int] | None = None) -> dict[str, Tensor]:
        """Return every term, unweighted.

        Parameters
        ----------
        images
            B C H W.
        targets
            B H W; negative = no label; B K H W where classes may overlap.
        views
            B numbers by which `cache` knows the images; ``None`` = the teacher is asked whatever there is.
        """
        student = observe(self.student, images, self._student_taps)
        losses = {}
        if self.options.task:
            losses["task"] = task_loss(student.logits, targets, self.task)
        if self._teacher:
            if self.cache is None or views is None:
                teacher = self.ask(images)
            else:
                teacher = self.cache.answers(views, lambda: self.ask(images))
            losses |= self._distillation(student, teacher, targets)
        return losses

    def ask(self, images: Tensor) -> Features:
        """Return what the teacher says about images (B, C, H, W), as far as any term wants to know."""
        with torch.no_grad(), self._teacher_precision(images):
            return in_float(observe(self._teacher[0], images, self._teacher_taps))

    def question(self) -> str:
        """Return in words what `ask` depends on beside teacher and images."""
        return f"{self._teacher_taps}, bfloat16={self.options.teacher_bfloat16}"

    def _teacher_precision(self, images: Tensor) -> AbstractContextManager[object]:
        """Return what the teacher runs under: what is around, or bfloat16 if asked for."""
        if not self.options.teacher_bfloat16:
            return nullcontext()
        return torch.autocast(images.device.type, torch.bfloat16)

    def _distillation(self, student: Features, teacher: Features, targets: Tensor) -> dict[str, Tensor]:
        losses = {}
        if self.options.logits.weight:
            how = self.options.logits.model_dump(exclude={"weight"})
            overlapping = self.student.spec.overlapping
            losses["logits"] = logits_loss(student.logits, teacher.logits, overlapping=overlapping, **how)
        for name, term in self.terms.items():
            if name == "ranking":
                losses[name] = _ranking(term, student, teacher)
            elif name == "texture":
                losses[name] = term(student.texture, teacher.texture)
            else:
                mine, theirs = self._pick(student, name), self._pick(teacher, name)
                losses[name] = term(mine.stages, theirs.stages) if name == "fusion" else term(mine, theirs, targets)
        return losses

    def total(self, losses: Mapping[str, Tensor], *, ramp: float = 1.0) -> Tensor:
        """Return the weighted sum of `losses`; `ramp` (0 … 1) scales the feature terms and the baselines."""
        if not losses:
            raise ParameterError("There is nothing to learn: every term has the weight 0; give one a weight above 0.")
        return torch.stack([self.weight(name, ramp=ramp) * loss for name, loss in losses.items()]).sum()

    def calibrate(self, losses: Mapping[str, Tensor], added_up: Callable[[Tensor], Tensor] = alone) -> bool:
        """Count a step; at the one that is fit for it, set the weights by the gradients of `losses`.

        Returns whether that was this one; `added_up` as for `Calibration.see`.
        """
        if self.calibration is None:
            return False
        return self.calibration.see(losses, list(self.student.parameters()), added_up)

    def weight(self, name: str, *, ramp: float = 1.0) -> float:
        """Return the weight of the term `name`."""
        if name == "task":
            return self.options.task
        group = self.options.baselines if name in BASELINES else self.options
        weight: float = getattr(group, name).weight
        if self.calibration is not None:
            weight *= self.calibration.factor(name)
        return weight if name in UNRAMPED else weight * ramp


def _fusion_pairs(options: FusionOptions, student_depth: int, teacher_depth: int) -> _Pairs:
    if not options.student_stages:
        return tuple(zip(*match_blocks(student_depth, teacher_depth, options.stages), strict=True))
    for whose, stages, depth in (
        ("student", options.student_stages, student_depth),
        ("teacher", options.teacher_stages, teacher_depth),
    ):
        if max(stages) >= depth or list(stages) != sorted(set(stages)):
            raise ParameterError(f"{whose}_stages={stages}: name stages from 0 to {depth - 1}, shallow to deep.")
    return tuple(zip(options.student_stages, options.teacher_stages, strict=True))


def _decoder_pairs(count: int, student: Segmenter, teacher: Segmenter) -> _Pairs:
    """Return the decoders' maps of equal resolution, fine to coarse: of these, the coarsest `count`."""
    if not count:
        return ()
    places = [
        {found.stride: len(stage_widths(model)) + place for place, found in enumerate(decoder_maps(model))}
        for model in (student, teacher)
    ]
    shared = sorted(places[0].keys() & places[1].keys())
    if not shared:
        raise ParameterError(
            f"decoder_maps={count}: {student.spec.name} and {teacher.spec.name} decode at no common resolution: use 0."
        )
    return tuple((places[0][stride], places[1][stride]) for stride in shared[-count:])


def _every_width(model: Segmenter) -> tuple[int, ...]:
    """Return the channels of the encoder's stages and of the decoder's maps."""
    return (*stage_widths(model), *(found.width for found in decoder_maps(model)))


def _match_importance(student: Segmenter, teacher: Segmenter, options: DistillOptions) -> tuple[tuple[int, ...], ...]:
    definition = options.ranking.definition
    depths = importance_depth(student, definition), importance_depth(teacher, definition)
    return match_blocks(*depths, options.ranking.layers)


def _ranking(term: nn.Module, student: Features, teacher: Features) -> Tensor:
    pairs = zip(student.importance_layout, teacher.importance_layout, strict=True)
    return torch.stack([term(s.scores, t.scores, s.grid, t.grid, windows=s.windows) for s, t in pairs]).mean()
