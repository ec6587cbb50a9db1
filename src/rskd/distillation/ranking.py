"""TIRD: teach a student the teacher's top-k order of token importance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rskd.config import RankingOptions
from rskd.distillation.plackett_luce import topk_listmle
from rskd.distillation.ranking_losses import (
    FLAT,
    LOSSES,
    is_flat,
    kl_importance,
    sort_lists,
    standardise,
)
from rskd.errors import ParameterError
from rskd.importance.layout import Grid
from rskd.importance.ranking import align, descending, top_count

__all__ = ["FLAT", "RankingTerm", "is_flat", "standardise", "topk_listmle"]


@dataclass(frozen=True)
class _Tokens:
    """Importance of student and teacher on one grid, one row per list that is ranked."""

    student: Tensor
    """(L, N)."""
    teacher: Tensor
    """(L, N), no gradient."""
    valid: Tensor
    """(L, N)."""
    weights: Tensor | None
    """(L, N)."""


class RankingTerm(nn.Module):
    """TIRD as a term of the objective: importance of student and teacher in, one number out.

    Parameters
    ----------
    options
        Loss, share of tokens that is taught, temperature and weights of the places.

    Examples
    --------
    >>> term = RankingTerm(RankingOptions(keep_ratio=0.5))
    >>> m = torch.tensor([[0.1, 0.2, 0.3, 0.4]])
    >>> term(m, m, (2, 2), (2, 2)) < term(m.flip(1), m, (2, 2), (2, 2))
    tensor(True)
    """

    def __init__(self, options: RankingOptions | None = None) -> None:
        super().__init__()
        self.options = options or RankingOptions()
        if self.options.loss not in LOSSES and self.options.loss != "kl_importance":
            raise ParameterError(f"loss={self.options.loss!r} is unknown: use one of {(*LOSSES, 'kl_importance')}.")

    def forward(
        self,
        student_importance: Tensor,
        teacher_importance: Tensor,
        student_grid: Grid,
        teacher_grid: Grid,
        *,
        valid: Tensor | None = None,
        windows: Tensor | None = None,
        token_weights: Tensor | None = None,
    ) -> Tensor:
        """Return the mean loss over the images whose teacher has an order to teach; zero if there is none.

        Parameters
        ----------
        student_importance, teacher_importance
            (B, Ns) and (B, Nt), row-major on their grids; the teacher's is brought to the student's grid.
        student_grid, teacher_grid
            Heights and widths of the token maps.
        valid
            (B, Ns) False for tokens of padding.
        windows
            (Ns) window of every token where importance can only be compared inside a window (Swin): every window is a
            list of its own. Needs equal grids.
        token_weights
            (B, Ns) weight of every token, for example larger on foreground.
        """
        with torch.autocast(student_importance.device.type, enabled=False):
            teacher = self._teacher(teacher_importance, teacher_grid, student_grid, windows)
            tokens = _lists(student_importance, teacher, valid, windows, token_weights)
            informative = ~is_flat(tokens.teacher, valid=tokens.valid)
            losses = torch.where(informative, self._losses(tokens), 0.0)
            return losses.sum() / informative.sum().clamp(min=1)

    @torch.no_grad()
    def scale(
        self,
        student_importance: Tensor,
        teacher_importance: Tensor,
        student_grid: Grid,
        teacher_grid: Grid,
        *,
        valid: Tensor | None = None,
        permutations: int = 32,
        seed: int = 0,
    ) -> Tensor:
        """Return the loss of every image on a scale that means something, (B): 0 = sorted, 1 = random.

        0 is the loss of the student's own scores sorted into the teacher's order (for top-k ListMLE the least over all
        permutations), 1 the mean loss over seeded random permutations of them. NaN where teacher or student is flat.
        """
        teacher = self._teacher(teacher_importance, teacher_grid, student_grid, None)
        tokens = _lists(student_importance, teacher, valid, None, None)
        generator = torch.Generator().manual_seed(seed)
        best = self._losses(_rearranged(tokens, None))
        chance = torch.stack([self._losses(_rearranged(tokens, generator)) for _ in range(permutations)]).mean(0)
        flat = is_flat(tokens.teacher, valid=tokens.valid) | is_flat(tokens.student, valid=tokens.valid)
        return torch.where(flat, torch.nan, (self._losses(tokens) - best) / (chance - best))

    def _teacher(self, importance: Tensor, grid: Grid, to_grid: Grid, windows: Tensor | None) -> Tensor:
        if windows is not None and tuple(grid) != tuple(to_grid):
            raise ParameterError(
                f"windows of a {tuple(to_grid)} map are not those of the teacher's {tuple(grid)}: use 'feature_norm'."
            )
        importance = importance.detach()
        return align(importance if importance.dtype == torch.float64 else importance.float(), grid, to_grid)

    def _losses(self, tokens: _Tokens) -> Tensor:
        """Return the loss of every list, (L)."""
        options = self.options
        if options.loss == "kl_importance":
            return kl_importance(tokens.student, tokens.teacher, valid=tokens.valid)
        scores = standardise(tokens.student, temperature=options.temperature, valid=tokens.valid)
        sorting: dict[str, Any] = {
            "k": top_count(1.0 if options.loss == "listmle" else options.keep_ratio, scores.shape[1]),
            "valid": tokens.valid,
            "position_weights": options.position_weights,
            "token_weights": tokens.weights,
        }
        if options.loss in ("topk_listmle", "listmle"):
            return topk_listmle(scores, tokens.teacher, **sorting)
        return LOSSES[options.loss](sort_lists(scores, tokens.teacher, **sorting))


def _lists(
    student: Tensor, teacher: Tensor, valid: Tensor | None, windows: Tensor | None, weights: Tensor | None
) -> _Tokens:
    """Return one list per image, or one per image and window."""
    if student.shape != teacher.shape:
        raise ParameterError(f"student {tuple(student.shape)} and teacher {tuple(teacher.shape)} differ: same images?")
    valid = torch.ones_like(student, dtype=torch.bool) if valid is None else valid
    if windows is None:
        return _Tokens(student, teacher, valid, weights)
    sizes = windows.bincount()
    places = torch.arange(int(sizes.max()), device=student.device)
    real = places < sizes.to(student.device)[:, None]  # W M
    index = torch.zeros_like(real, dtype=torch.long)
    index[real] = windows.to(student.device).argsort(stable=True)
    student, teacher, valid = (x[:, index].flatten(0, 1) for x in (student, teacher, valid))
    weights = None if weights is None else weights[:, index].flatten(0, 1)
    return _Tokens(student, teacher, valid & real.repeat(len(valid) // len(real), 1), weights)


def _rearranged(tokens: _Tokens, generator: torch.Generator | None) -> _Tokens:
    """Return the student's own scores in the teacher's order, or shuffled by `generator`; padding stays where it is."""
    order = descending(tokens.teacher, tokens.valid)
    values = tokens.student.gather(1, descending(tokens.student, tokens.valid))  # real tokens first
    if generator is not None:
        keys = torch.rand(values.shape, generator=generator).to(values.device)
        behind = torch.arange(values.shape[1], device=values.device) >= tokens.valid.sum(1, keepdim=True)
        values = values.gather(1, keys.masked_fill(behind, 2.0).argsort(dim=1, stable=True))
    return _Tokens(torch.empty_like(values).scatter(1, order, values), tokens.teacher, tokens.valid, tokens.weights)
