"""A plan in the making: expands and the collapses that pay for them, each step of which can be undone."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from itertools import count

import numpy as np
from numpy.typing import NDArray

from mc_core.context.groups import groups_of
from mc_core.context.plan import Edit, Node
from mc_core.context.working_context import WorkingContext
from mc_core.errors import BudgetError

ROUNDING = 1e-6


@dataclass(eq=False, slots=True)
class Siblings:
    """K siblings that may collapse into (level, index) once all of them stand.

    standing: how many do. harm: the largest of theirs. cooling: one of them came by an expand a short while ago.
    """

    level: int
    index: int
    standing: int
    harm: float
    cooling: bool


@dataclass(frozen=True, slots=True)
class _Step:
    edit: Edit
    siblings: Siblings | None  # what collapsed, or what the expanded entry was one of
    parent_harm: float = 0.0  # the harm, before, of the siblings that the new parent joined


Key = tuple[float, int, int, int, Siblings]


class PlanDraft:
    """Edits on top of a working context. Expanding comes first, paying by collapses after; what fails is undone."""

    def __init__(self, wc: WorkingContext, harm: NDArray[np.float32], limit: int) -> None:
        """harm of collapsing each entry [n]; limit: the cost at most."""
        self.wc, self.limit, self.cost = wc, limit, wc.cost
        self.size, self._step = wc.block_size, wc.entries.step
        self._levels, self._indices = wc.levels, wc.indices
        self._starts = wc.starts()
        self._journal: list[_Step] = []
        self._expanded: set[Node] = set()
        self._collapsed: set[Node] = set()
        self._ticket = count()
        self._siblings = self._all_siblings(harm)
        # Siblings that may collapse: those that stand for long, and those that came a short while ago.
        self._heaps: tuple[list[Key], list[Key]] = ([], [])
        for group in self._siblings.values():
            self._offer(group)

    @property
    def edits(self) -> tuple[Edit, ...]:
        return tuple(step.edit for step in self._journal)

    def was_collapsed(self, row: int) -> bool:
        """Whether this plan has collapsed the entry of a row."""
        return self._parent(int(self._levels[row]), int(self._indices[row])) in self._collapsed

    def descent(self, row: int, block: int) -> list[Node]:
        """The expands that are still missing until a block, covered by the entry of ``row``, stands raw."""
        nodes = ((level, block // self.size ** (level - 1)) for level in range(int(self._levels[row]), 0, -1))
        return [node for node in nodes if node not in self._expanded]

    def fits(self, nodes: list[Node]) -> bool:
        """Whether to expand these nodes fits without a collapse."""
        return self.cost + sum(self._step(level) for level, _ in nodes) <= self.limit

    def swap(self, nodes: list[Node], ceiling: float, *, cooling: bool) -> str | None:
        """Expand nodes, and collapse the least harmful siblings until that fits -> None, or why it was not done.

        ceiling: harm of each collapse at most. cooling: siblings that came a short while ago may go, the last of all.
        """
        mark = len(self._journal)
        for node in nodes:
            self._expand(node)
        reason = self._pay(ceiling, cooling)
        if reason is not None:
            while len(self._journal) > mark:
                self._undo()
        return reason

    def make_room(self) -> None:
        """Collapse until the cost keeps the limit, whatever it harms."""
        if self._pay(np.inf, cooling=True) is not None:
            raise BudgetError(
                f"the working context costs {self.cost} at its coarsest, {self.limit} are left of the budget of"
                f" {self.wc.budget} after the reserve"
            )

    def fold(self, least: float, cost: int = 0) -> None:
        """Collapse raw blocks that may go and would harm less than ``least``, the least harmful first, while that costs
        more than ``cost``."""
        keys = [key for heap in self._heaps for key in heap]
        for *_, group in sorted(keys, key=lambda key: key[:4]):
            if self.cost <= cost:
                return
            if group.level == 1 and group.standing == self.size and group.harm < least:
                self._collapse(group)

    def _pay(self, ceiling: float, cooling: bool) -> str | None:
        while self.cost > self.limit:
            # What came a short while ago goes before what is worth too much, not only where nothing else is left.
            groups = [group for group in map(self._standing, (False, True)) if group is not None]
            fit = next((group for group in groups if group.harm <= ceiling + ROUNDING), None)
            if fit is None:
                return "harm" if groups else "budget"
            if fit.cooling and not cooling:
                return "cooldown"
            self._collapse(fit)
        return None

    def _standing(self, cooling: bool) -> Siblings | None:
        """The least harmful siblings that may collapse, of those that came a short while ago or of the others."""
        heap = self._heaps[cooling]
        while heap and heap[0][-1].standing != self.size:
            heapq.heappop(heap)
        return heap[0][-1] if heap else None

    def _expand(self, node: Node) -> None:
        group = self._siblings.get(self._parent(*node))
        if group is not None:
            group.standing -= 1
        self._expanded.add(node)
        self.cost += self._step(node[0])
        self._journal.append(_Step(Edit("expand", *node), group))

    def _collapse(self, group: Siblings) -> None:
        node = (group.level, group.index)
        above = self._siblings.setdefault(self._parent(*node), Siblings(*self._parent(*node), 0, 0.0, False))
        self._journal.append(_Step(Edit("collapse", *node), group, above.harm))
        self._collapsed.add(node)
        self.cost -= self._step(node[0])
        group.standing = 0
        above.standing += 1
        above.harm = max(above.harm, group.harm)
        self._offer(above)

    def _undo(self) -> None:
        step = self._journal.pop()
        node, group = step.edit.node, step.siblings
        if step.edit.kind == "expand":
            self._expanded.discard(node)
            self.cost -= self._step(node[0])
            if group is not None:
                group.standing += 1
        else:
            assert group is not None
            self._collapsed.discard(node)
            self.cost += self._step(node[0])
            above = self._siblings[self._parent(*node)]
            above.standing, above.harm = above.standing - 1, step.parent_harm
            group.standing = self.size
        if group is not None:
            # It may have left the heap meanwhile; a second key of the same group does no harm.
            self._offer(group)

    def _offer(self, group: Siblings) -> None:
        """It may collapse from now on, if all of it stands and that saves anything."""
        if group.standing == self.size and self._step(group.level):
            heapq.heappush(self._heaps[group.cooling], self._key(group))

    def _parent(self, level: int, index: int) -> Node:
        return (1, index) if level == 0 else (level + 1, index // self.size)

    def _key(self, group: Siblings) -> Key:
        """Order of collapse: least harm, then gists before raw blocks, then the oldest."""
        return group.harm, -group.level, group.index, next(self._ticket), group

    def _all_siblings(self, harm: NDArray[np.float32]) -> dict[Node, Siblings]:
        """Siblings by parent. All K stand only if nothing below the parent is protected, for what is stands raw."""
        groups = groups_of(self.wc.entries, self.wc.protected())
        raw = self._levels[groups.first] == 0
        standing = np.where(raw, np.where(groups.whole, self.size, 0), groups.counts)
        columns = (groups.levels, groups.indices, standing, groups.best(harm), groups.best(self.wc.cooldown) > 0)
        result: dict[Node, Siblings] = {}
        for level, index, many, worst, cooling in zip(*(column.tolist() for column in columns), strict=True):
            group = result.get((level, index))
            if group is None:
                result[level, index] = Siblings(level, index, many, worst, cooling)
            else:  # runs of one parent, with a sibling between them that stands deeper
                group.standing += many
                group.harm, group.cooling = max(group.harm, worst), group.cooling or cooling
        return result
