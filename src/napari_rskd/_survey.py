"""What a survey of tokens found, and the layers of the part that is shown; no window is needed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from napari_rskd._layers import attention_layer, importance_layers, kept_layer, rank_order
from napari_rskd._session import ROLES
from napari_rskd._source import Array, LayerData, Source
from rskd.depth import matching_block
from rskd.jobs import Outcome


@dataclass(frozen=True)
class Shown:
    """Which part of a survey is shown.

    Parameters
    ----------
    block
        From 0; of two networks it is the student's, the teacher is looked at in the same depth.
    head
        Attention head, from 0; ``None`` = all together.
    keep
        Share of the tokens that counts as the top.
    """

    block: int
    head: int | None = None
    keep: float = 0.25


@dataclass(frozen=True)
class Survey:
    """Maps on the token grids of one or two networks, at every block and head.

    Parameters
    ----------
    outcome
        Of a `rskd.jobs.SurveyJob` or `rskd.jobs.AttendJob`.
    """

    outcome: Outcome

    @property
    def roles(self) -> tuple[str, ...]:
        """The networks that were looked into, the teacher first."""
        return tuple(role for role in ROLES if role in self.outcome.value)

    @property
    def depth(self) -> int:
        """Blocks that can be shown."""
        return len(self._blocks(self.roles[-1]))

    def heads(self, block: int) -> int:
        """Return how many heads every network has in a block."""
        return min(int(self.facts(role, block)["heads"]) for role in self.roles)

    def facts(self, role: str, block: int) -> Mapping[str, Any]:
        """Return what is known about a block: its number, heads, grid, and pixels per token."""
        blocks = self._blocks(role)
        facts: Mapping[str, Any] = blocks[matching_block(block, self.depth, len(blocks))]
        return facts

    def as_deep_as(self, other: Survey, shown: Shown) -> Shown:
        """Return what to show of this survey beside a part of another one, which may have other blocks."""
        return replace(shown, block=matching_block(shown.block, other.depth, self.depth))

    def map(self, role: str, shown: Shown) -> Array:
        """Return a network's map (rows, columns)."""
        maps = self.outcome.arrays[f"{role}_block{self.facts(role, shown.block)['block']}"]
        found: Array = maps[0 if shown.head is None else min(1 + shown.head, len(maps) - 1)]
        return found

    def layers(self, role: str, shown: Shown, source: Source) -> dict[str, LayerData]:
        """Return a network's importance, its numbered top tokens, and a cover for all others."""
        importance = self.map(role, shown)
        order = rank_order(importance)
        top = min(order.size, max(1, round(shown.keep * order.size)))
        facts = {**self.facts(role, shown.block), "top": top, "definition": self.outcome.value[role]["definition"]}
        image, points = importance_layers(role, facts, importance, order, source)
        return {"map": image, "points": points, "kept": kept_layer(role, facts, importance, order, source)}

    def attention(self, role: str, shown: Shown, source: Source) -> LayerData:
        """Return what the token that was asked about attends to."""
        return attention_layer(role, self.facts(role, shown.block), self.map(role, shown), source)

    def _blocks(self, role: str) -> list[Mapping[str, Any]]:
        blocks: list[Mapping[str, Any]] = self.outcome.value[role]["blocks"]
        return blocks
