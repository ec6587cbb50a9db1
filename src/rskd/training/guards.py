"""What is looked at before and during every step, so that a run fails early, or goes on by itself."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from rskd.config import DistillOptions
from rskd.data import Batch
from rskd.errors import ParameterError, RskdError

BAD_STEPS = 3
"""Bad steps in a row after which the run goes back."""
SETBACKS = 3
"""How often a run goes back before it gives up."""
_MAY_BE_ZERO = ("ranking",)
"""Terms that say nothing where the teacher has no order to teach."""


def first_bad(values: Mapping[str, float]) -> str | None:
    """Return the name of the first value that is not finite.

    Examples
    --------
    >>> first_bad({"task": 1.0, "logits": math.nan, "total": math.nan}), first_bad({"task": 0.0})
    ('logits', None)
    """
    return next((name for name, value in values.items() if not math.isfinite(value)), None)


def named_cases(batch: Batch) -> str:
    """Return where a batch comes from, in words: the images with values that are no numbers, else all.

    Examples
    --------
    >>> import torch
    >>> images = torch.zeros(3, 1, 2, 2)
    >>> images[1] = math.nan
    >>> named_cases(Batch(images, torch.zeros(3, 2, 2), ("a", "b", "a"), (0, 1, 2)))
    'b'
    """
    sound = batch.images.isfinite().flatten(1).all(1).tolist()
    broken = [case for case, good in zip(batch.cases, sound, strict=True) if not good]
    names = sorted(set(broken or batch.cases))
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def check_first_losses(losses: Mapping[str, float], batch: Batch) -> list[str]:
    """Look at the unweighted terms of the first step; return what the user should know.

    Parameters
    ----------
    losses
        Every enabled term.
    batch
        What they were computed on.

    Raises
    ------
    RskdError
        If a term is not a number.
    ParameterError
        If a term is zero although there is something to learn.
    """
    bad = first_bad(losses)
    if bad is not None:
        raise RskdError(
            f"The loss term {bad!r} is not a number at step 1 (images {named_cases(batch)}): "
            "use a lower learning rate, or set the weight of the term to 0."
        )
    silent = [name for name, value in losses.items() if value == 0]
    if not (batch.targets >= 0).any():
        silent = [name for name in silent if name != "task"]
    for name in silent:
        if name not in _MAY_BE_ZERO:
            raise ParameterError(
                f"The loss term {name!r} is zero at the first step, so it teaches nothing: choose a student that is no "
                "copy of the teacher, or set the weight of the term to 0."
            )
    return [
        f"The loss term {name!r} is zero at the first step: the teacher's importance is flat there, or the student "
        "ranks alike already."
        for name in silent
    ]


def check_terms(losses: Mapping[str, object], options: DistillOptions) -> None:
    """Make sure that every term that has a weight was computed (if not, that is our own mistake).

    Examples
    --------
    >>> from rskd.config import RankingOptions
    >>> names = {"task": 1, "logits": 1, "texture": 1, "fusion": 1}
    >>> check_terms(names, DistillOptions(ranking=RankingOptions(weight=0)))
    """
    groups = {name: getattr(options, name) for name in ("logits", "ranking", "texture", "fusion")}
    groups |= {name: getattr(options.baselines, name) for name in type(options.baselines).model_fields}
    weights = {"task": options.task} | {name: group.weight for name, group in groups.items()}
    missing = [name for name, weight in weights.items() if weight and name not in losses]
    assert not missing, f"terms that are not computed: {missing}"  # noqa: S101


def without_gradient(module: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that a backward pass did not reach."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad and parameter.grad is None]


class Buffers:
    """Statistics that a forward pass changes (batch norm), so that a bad batch can be undone.

    Examples
    --------
    >>> import torch
    >>> norm = nn.BatchNorm1d(1)
    >>> buffers = Buffers(norm)
    >>> _ = norm(torch.tensor([[math.nan], [1.0]]))
    >>> buffers.put_back()
    >>> norm.running_mean
    tensor([0.])
    """

    def __init__(self, module: nn.Module) -> None:
        self._tensors: Sequence[Tensor] = list(module.buffers())
        self._copies = [tensor.clone() for tensor in self._tensors]

    def keep(self) -> None:
        """Remember them as they are now."""
        for copy, tensor in zip(self._copies, self._tensors, strict=True):
            copy.copy_(tensor)

    def put_back(self) -> None:
        """Make them what they were when they were kept."""
        for copy, tensor in zip(self._copies, self._tensors, strict=True):
            tensor.copy_(copy)
