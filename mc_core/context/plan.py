"""Edits of a working context, the plans that bundle them, and applying a plan."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mc_core.context.entries import Entries, Ints, spans_by_level
from mc_core.context.groups import tidied
from mc_core.context.protection import Protection
from mc_core.errors import PlanError

Node = tuple[int, int]
"""(level, index); level 0 is a block of K token ids."""


@dataclass(frozen=True)
class Edit:
    """``expand``: node (level, index) gives way to its K children. ``collapse``: its K children give way to it.

    At level 1 the K children are one raw block. Either way the cost changes by ``Entries.step``.
    """

    kind: Literal["expand", "collapse"]
    level: int
    index: int

    @property
    def node(self) -> Node:
        return self.level, self.index


@dataclass(frozen=True)
class Plan:
    """Edits that apply in order, whole or not at all, to a working context of ``num_tokens`` tokens.

    Midway the cost may pass over the budget. cooldown: refocuses in which the edits shall not be reversed.
    hold: raw blocks that the focus wants kept, best first; growth collapses them last. elapsed: refocuses that pass
    with it: 1, or 0 for a further part of one.
    """

    edits: tuple[Edit, ...]
    num_tokens: int
    cooldown: int = 0
    hold: tuple[int, ...] = ()
    elapsed: int = 1

    @property
    def expands(self) -> int:
        return sum(edit.kind == "expand" for edit in self.edits)

    @property
    def collapses(self) -> int:
        return len(self.edits) - self.expands

    @property
    def expanded_blocks(self) -> NDArray[np.int64]:
        """Blocks that the plan makes raw, ascending: their ids must be in memory before it is committed."""
        opened = [edit.index for edit in self.edits if edit.kind == "expand" and edit.level == 1]
        return np.unique(np.array(opened, np.int64))


def applied(entries: Entries, protection: Protection, plan: Plan, budget: int) -> Entries:
    """The entries one refocus later, with the plan's edits; PlanError if any of them is impossible."""
    if plan.num_tokens != entries.num_tokens:
        raise PlanError(f"the plan is for {plan.num_tokens} tokens of history, there are {entries.num_tokens}")
    changes = _Changes(entries, protection)
    for edit in plan.edits:
        if edit.level < 1 or edit.index < 0:
            raise PlanError(f"a {edit.kind} needs a node of level >= 1 and index >= 0, got {edit.node}")
        if edit.kind == "expand":
            changes.expand(edit.node)
        else:
            changes.collapse(edit.node)
    result = changes.result(plan)
    if result.cost > budget:
        raise PlanError(f"the plan ends at a cost of {result.cost}, over the budget of {budget}")
    return result


class _Changes:
    """Rows of the old entries that are gone, and the nodes that came: +1 from an expand, -1 from a collapse."""

    def __init__(self, entries: Entries, protection: Protection) -> None:
        self._entries, self._protection = entries, protection
        self._starts = entries.starts()
        self._gone = np.zeros(len(entries), bool)
        self._came: dict[Node, int] = {}

    def expand(self, node: Node) -> None:
        level, first, count = self._children(node)
        self._remove(node[0], node[1], 1)
        self._came.update(dict.fromkeys(((level, index) for index in range(first, first + count)), 1))

    def collapse(self, node: Node) -> None:
        span = int(spans_by_level(self._entries.block_size)[node[0]])
        start, end, num_tokens = node[1] * span, (node[1] + 1) * span, self._entries.num_tokens
        if end > num_tokens:
            raise PlanError(f"node {node} is not complete: it covers [{start}, {end}) of {num_tokens} tokens")
        if self._protection.touches(start, end, num_tokens):
            raise PlanError(f"node {node} covers pinned or recent tokens, which never collapse")
        self._remove(*self._children(node))
        self._came[node] = -1

    def result(self, plan: Plan) -> Entries:
        """What stays grows older by the plan's refocus; what came is new."""
        old = self._entries
        kept = old.take(~self._gone)
        if plan.elapsed:
            kept = replace(kept, residency=kept.residency + 1, cooldown=kept.cooldown - np.sign(kept.cooldown))
        if self._came:
            nodes = np.array([*self._came], np.int64)
            fresh = Entries.fresh(old.block_size, old.num_tokens, nodes[:, 0].astype(np.int8), nodes[:, 1])
            direction = np.fromiter(self._came.values(), np.int8, len(nodes))
            kept = kept.joined(replace(fresh, cooldown=direction * np.int8(plan.cooldown)))
            kept = kept.take(np.argsort(kept.starts()))
            kept = tidied(kept)
        return replace(kept, held=_held(kept, plan.hold))

    def _children(self, node: Node) -> tuple[int, int, int]:
        """(level, first index, count) of the entries that the children of a node are."""
        level, index = node
        size = self._entries.block_size
        return (0, index, 1) if level == 1 else (level - 1, index * size, size)

    def _remove(self, level: int, first: int, count: int) -> None:
        """Take out ``count`` neighbouring nodes, all of which must stand in the working context now."""
        indices = [i for i in range(first, first + count) if self._came.pop((level, i), None) is None]
        if not indices:
            return
        wanted: Ints = np.array(indices, np.int64)
        span = spans_by_level(self._entries.block_size)[level]
        rows = np.searchsorted(self._starts, wanted * span)
        here = rows < len(self._entries)
        rows = np.minimum(rows, len(self._entries) - 1)
        here &= (self._entries.levels[rows] == level) & (self._entries.indices[rows] == wanted) & ~self._gone[rows]
        if not here.all():
            raise PlanError(f"node {(level, int(wanted[~here][0]))} does not stand in the working context")
        self._gone[rows] = True


def _held(entries: Entries, hold: tuple[int, ...]) -> NDArray[np.int16]:
    """How much each entry is held [n]: the first block of ``hold`` the most."""
    held = np.zeros(len(entries), np.int16)
    if hold and len(entries):
        blocks = np.array(hold, np.int64)
        rows = np.minimum(np.searchsorted(entries.starts(), blocks * entries.block_size), len(entries) - 1)
        raw = (entries.levels[rows] == 0) & (entries.indices[rows] == blocks)
        held[rows[raw]] = np.arange(len(blocks), 0, -1, dtype=np.int16)[raw]
    return held
