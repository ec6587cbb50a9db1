"""The whole objective: L = w_task · L_seg + ramp · Σ w · term, and what has to be observed for it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from rskd.config import DistillOptions
from rskd.distillation.features import Features, Taps, match_blocks, observe, texture_level
from rskd.distillation.fusion import FusionTerm
from rskd.distillation.logits import logits_loss, task_loss
from rskd.distillation.ranking import RankingTerm
from rskd.distillation.texture import TextureTerm
from rskd.models.segmenter import Segmenter

RAMPED = ("ranking", "texture", "fusion")
"""The feature terms, which rise to their weight; the task and the logits count from the first step."""


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
    """

    def __init__(self, student: Segmenter, teacher: Segmenter | None, options: DistillOptions) -> None:
        super().__init__()
        self.student = student
        self.options = options
        self._teacher = (
            () if teacher is None else (teacher.eval().requires_grad_(False),)
        )  # a tuple hides it from torch
        self.terms = nn.ModuleDict()
        self._student_taps, self._teacher_taps = Taps(), Taps()
        if teacher is not None:
            self._add_terms(student, teacher)

    def _add_terms(self, student: Segmenter, teacher: Segmenter) -> None:
        options = self.options
        depths = len(student.encoder.blocks), len(teacher.encoder.blocks)
        ranked = match_blocks(*depths, options.ranking.layers) if options.ranking.weight else ((), ())
        staged = match_blocks(*depths, options.fusion.stages) if options.fusion.weight else ((), ())
        texture = options.texture.weight > 0
        self._student_taps, self._teacher_taps = (
            Taps(stages, importance, options.ranking.definition, texture)
            for stages, importance in zip(staged, ranked, strict=True)
        )
        if options.ranking.weight:
            self.terms["ranking"] = RankingTerm(options.ranking)
        if texture:
            narrow, wide = (model.spec.stem_widths[texture_level(model)] for model in (student, teacher))
            self.terms["texture"] = TextureTerm(narrow, wide, options.texture)
        if options.fusion.weight:
            narrow, wide = (model.encoder.num_features for model in (student, teacher))
            stages = len(staged[0])
            self.terms["fusion"] = FusionTerm([narrow] * stages, [wide] * stages, options.fusion)

    def forward(self, images: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Return every term, unweighted, for images (B, C, H, W) and targets (B, H, W; negative = no label)."""
        student = observe(self.student, images, self._student_taps)
        losses = {}
        if self.options.task:
            losses["task"] = task_loss(student.logits, targets)
        for model in self._teacher:
            with torch.no_grad():
                teacher = observe(model, images, self._teacher_taps)
            losses |= self._distillation(student, teacher)
        return losses

    def _distillation(self, student: Features, teacher: Features) -> dict[str, Tensor]:
        losses = {}
        if self.options.logits.weight:
            temperature = self.options.logits.temperature
            losses["logits"] = logits_loss(student.logits, teacher.logits, temperature=temperature)
        if "ranking" in self.terms:
            pairs = zip(student.importance, teacher.importance, strict=True)
            ranked = [self.terms["ranking"](s, t, student.grid, teacher.grid) for s, t in pairs]
            losses["ranking"] = torch.stack(ranked).mean()
        if "texture" in self.terms:
            losses["texture"] = self.terms["texture"](student.texture, teacher.texture)
        if "fusion" in self.terms:
            losses["fusion"] = self.terms["fusion"](student.stages, teacher.stages)
        return losses

    def total(self, losses: Mapping[str, Tensor], *, ramp: float = 1.0) -> Tensor:
        """Return the weighted sum of `losses`; `ramp` (0 … 1) scales the feature terms."""
        return torch.stack([self.weight(name, ramp=ramp) * loss for name, loss in losses.items()]).sum()

    def weight(self, name: str, *, ramp: float = 1.0) -> float:
        """Return the weight of the term `name`."""
        if name == "task":
            return self.options.task
        weight: float = getattr(self.options, name).weight
        return weight * ramp if name in RAMPED else weight
