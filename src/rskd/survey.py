"""Explore the tokens of one image: every block and head, what one token attends to, and whether a ranking is true."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rskd.config import RankOptions
from rskd.errors import ParameterError
from rskd.events import Progress, Task
from rskd.importance import TokenImportance, agreement, align, rank_tokens
from rskd.importance.deletion import deletion_check, overlapping_certainty
from rskd.importance.ranking import agreement_curves
from rskd.importance.rows import observe_rows, row_sites
from rskd.importance.until import run_until
from rskd.jobs import Outcome
from rskd.models.segmenter import Segmenter
from rskd.rank import choose_blocks, evaluating, observe, observe_all, prepare
from rskd.scan import Scan

Arrays = dict[str, NDArray[Any]]


def survey(models: Mapping[str, Segmenter], scan: Scan, options: RankOptions) -> Task[Outcome]:
    """Return the importance of every token at every block and head, so that nothing need be computed to compare them.

    Parameters
    ----------
    models
        Network by role: ``teacher``, ``student``, or both.
    scan
        One 2-D image.
    options
        Definition of importance; block and head are not looked at.

    Yields
    ------
    Progress
        A step per network, but for the last: the outcome says as much.

    Returns
    -------
    Outcome
        Arrays ``{role}_block{b}`` (1 + heads, rows, columns) float32, each map summing to one: the mean over the heads,
        then every head where the definition has heads. `value` has per role ``name``, ``definition`` and ``blocks``: a
        list of ``block``, ``heads``, ``grid``, ``token`` (pixels of the image per token along y and x) and ``windows``
        (whether tokens meet inside windows only).
    """
    found = yield from _every_block(models, scan, lambda model: observe_all(model, scan, options.definition))
    value = {role: {**facts, "definition": options.definition} for role, facts in found.value.items()}
    return replace(found, value=value)


def attend(models: Mapping[str, Segmenter], scan: Scan, at: tuple[float, float]) -> Task[Outcome]:
    """Return what the token at one place attends to, at every block and head.

    Parameters
    ----------
    models
        Network by role.
    scan
        One 2-D image.
    at
        Row and column in pixels of the image.

    Returns
    -------
    Outcome
        As `survey` returns it.

    Raises
    ------
    ParameterError
        If the place is outside of the image.
    """
    sizes = dict(zip(scan.axes, scan.data.shape, strict=True))
    shares = ((at[0] + 0.5) / sizes["y"], (at[1] + 0.5) / sizes["x"])
    if not all(0 <= share < 1 for share in shares):
        raise ParameterError(f"({at[0]:g}, {at[1]:g}) is outside of the image of {sizes['y']} x {sizes['x']} pixels.")

    def rows(model: Segmenter) -> Mapping[int, TokenImportance]:
        image = prepare(model, scan)
        size = (image.shape[-2], image.shape[-1])
        with evaluating(model), torch.inference_mode(), observe_rows(model, shares, image=size) as found:
            run_until(model, image, [site.module for site in row_sites(model)])
        return found

    return (yield from _every_block(models, scan, rows))


def compare(teacher: NDArray[Any], student: NDArray[Any]) -> Outcome:
    """Compare two maps of token importance, for every number of tokens that may count as the top.

    Parameters
    ----------
    teacher, student
        Maps (rows, columns); the teacher's is brought to the student's grid.

    Returns
    -------
    Outcome
        `value` has ``kendall``, ``spearman`` and ``weighted_tau``, None where a map is constant; the arrays ``overlap``
        and ``ndcg`` (N,) hold the agreement of the first 1, 2 … N tokens.

    Examples
    --------
    >>> found = compare(np.array([[4.0, 3, 2, 1]]), np.array([[4.0, 3, 1, 2]]))
    >>> found.arrays["overlap"].round(2).tolist()
    [1.0, 1.0, 0.67, 1.0]
    """
    ours = torch.from_numpy(np.array(student, dtype=np.float64))
    theirs = torch.from_numpy(np.array(teacher, dtype=np.float64))
    aligned = align(theirs.flatten(), _grid(theirs), _grid(ours))
    numbers = asdict(agreement(aligned, ours.flatten()))
    overlap, ndcg = agreement_curves(aligned, ours.flatten())
    kept = ("kendall", "spearman", "weighted_tau")
    value = {name: numbers[name] if np.isfinite(numbers[name]) else None for name in kept}
    return Outcome(value, {"overlap": overlap, "ndcg": ndcg})


def check_deletion(
    models: Mapping[str, Segmenter], scan: Scan, options: RankOptions, *, random_orders: int = 8, seed: int = 0
) -> Task[Outcome]:
    """Delete the tokens of one image in the order of their importance and in random orders; see `deletion_check`.

    Parameters
    ----------
    models
        Network by role.
    scan
        One 2-D image.
    options
        Definition, block and head of the ranking.
    random_orders
        Orders to compare with.
    seed
        Of these orders.

    Returns
    -------
    Outcome
        Arrays ``shares`` (S,) and per role ``{role}_{curve}`` (S,) for the curves ``deletion``, ``random_deletion``,
        ``insertion`` and ``random_insertion``; `value` has per role ``deletion_gain`` and ``insertion_gain``, the areas
        between the curves (positive = the ranking knows more than chance), and ``name``.
    """
    blocks = choose_blocks(models, options)
    value: dict[str, Any] = {}
    arrays: Arrays = {}
    for role, model in models.items():
        _, found = observe(model, scan, options.model_copy(update={"block": blocks[role]}))
        ranking = rank_tokens(found.scores, found.grid)
        generator = torch.Generator().manual_seed(seed)
        with evaluating(model):
            image = prepare(model, scan)
            score = overlapping_certainty(model, image) if model.spec.overlapping else None
            check = yield from deletion_check(
                model, image, ranking=ranking, generator=generator, random_orders=random_orders, score=score
            )
        gains = {"deletion_gain": check.deletion_gain.mean, "insertion_gain": check.insertion_gain.mean}
        value[role] = {"name": model.spec.name, **gains}
        arrays["shares"] = check.shares
        for curve in ("deletion", "random_deletion", "insertion", "random_insertion"):
            arrays[f"{role}_{curve}"] = getattr(check, curve)[0]
    return Outcome(value, arrays)


def _every_block(
    models: Mapping[str, Segmenter], scan: Scan, look: Callable[[Segmenter], Mapping[int, TokenImportance]]
) -> Task[Outcome]:
    """Return what `look` finds in each network, (1, 1 + heads, N) by block, as maps with facts about them."""
    value: dict[str, Any] = {}
    arrays: Arrays = {}
    for done, (role, model) in enumerate(models.items(), 1):
        seen = look(model)
        value[role] = {"name": model.spec.name, "blocks": _facts(seen, scan)}
        for block, found in seen.items():
            maps = found.scores[0].reshape(-1, *found.grid)  # 1 + h, rows, columns
            arrays[f"{role}_block{block}"] = maps.float().cpu().numpy()
        if done < len(models):
            yield Progress(done, len(models), "networks")
    return Outcome(value, arrays)


def _facts(seen: Mapping[int, TokenImportance], scan: Scan) -> list[dict[str, Any]]:
    sizes = dict(zip(scan.axes, scan.data.shape, strict=True))
    return [
        {
            "block": block,
            "heads": found.scores.shape[1] - 1,
            "grid": list(found.grid),
            "token": [sizes["y"] / found.grid[0], sizes["x"] / found.grid[1]],
            "windows": found.windows is not None,
        }
        for block, found in sorted(seen.items())
    ]


def _grid(scores: Tensor) -> tuple[int, int]:
    return scores.shape[0], scores.shape[1]
