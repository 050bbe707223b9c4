"""The figures by which a focus is judged; each is defined here and nowhere else."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mc_core.context.entries import Entries
from mc_core.context.groups import groups_of
from mc_core.context.plan import Plan
from mc_core.context.protection import Protection


@dataclass(frozen=True)
class Swaps:
    """Swap rate = changed / eligible, counted in blocks of K siblings, at whatever level.

    eligible: changes that one edit could make at the start of the refocus: a gist into its K children, or K siblings
    (a raw block's K tokens) into their parent, pinned and recent ones excepted. changed: those of them that the plan
    made. A descent of many levels changes one; a collapse that an earlier edit of the plan made possible is no new one.
    """

    eligible: int
    changed: int

    @property
    def rate(self) -> float:
        return self.changed / self.eligible if self.eligible else 0.0

    @classmethod
    def of(cls, entries: Entries, protection: Protection, plan: Plan) -> Swaps:
        """Of a plan for these entries."""
        groups = groups_of(entries, protection.of(entries))
        gist = entries.levels > 0
        expandable = _keys(entries.levels[gist], entries.indices[gist])
        collapsible = _keys(groups.levels[groups.whole], groups.indices[groups.whole])
        changed = 0
        for kind, eligible in (("expand", expandable), ("collapse", collapsible)):
            nodes = np.array([edit.node for edit in plan.edits if edit.kind == kind], np.int64).reshape(-1, 2)
            changed += int(np.isin(_keys(nodes[:, 0], nodes[:, 1]), eligible).sum())
        return cls(len(expandable) + len(collapsible), changed)


@dataclass(frozen=True)
class Spread:
    """Mean, deviation, 95th percentile and range of some figures; zeros if there are none."""

    mean: float = 0.0
    std: float = 0.0
    p95: float = 0.0
    min: float = 0.0
    max: float = 0.0

    @classmethod
    def of(cls, values: NDArray[np.number]) -> Spread:
        if not len(values):
            return cls()
        ranked = np.sort(values)
        # Nearest rank: np.percentile costs a tenth of a millisecond.
        p95 = ranked[-(-95 * len(ranked) // 100) - 1]
        return cls(float(values.mean()), float(values.std()), float(p95), float(ranked[0]), float(ranked[-1]))


def entries_by_level(entries: Entries) -> dict[int, int]:
    """Entries at each level from 0 up to the highest one that stands."""
    return dict(enumerate(np.bincount(entries.levels.astype(np.int64), minlength=1).tolist()))


def _keys(levels: NDArray[np.integer], indices: NDArray[np.int64]) -> NDArray[np.int64]:
    """One number for each node (level, index)."""
    return (levels.astype(np.int64) << 56) | indices
