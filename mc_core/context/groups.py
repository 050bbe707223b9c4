"""Runs of siblings in a working context: what could collapse into one parent, and making room by it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mc_core.context.entries import Bools, Entries, Ints
from mc_core.context.protection import Protection
from mc_core.errors import BudgetError


@dataclass(frozen=True, eq=False)
class Groups:
    """g runs of neighbouring siblings, chronological. A raw block is a run by itself: it holds all K children of its
    LOD1 node.

    levels, indices: the parent of each. first: row of the first member; counts: rows. whole: all children are there
    and none is protected, so that the run may collapse.
    """

    levels: NDArray[np.int8]
    indices: Ints
    first: Ints
    counts: Ints
    whole: Bools

    def __len__(self) -> int:
        return len(self.levels)

    def best(self, values: NDArray[Any]) -> NDArray[Any]:
        """Largest value [n] among the members of each group [g]."""
        return np.maximum.reduceat(values, self.first) if len(self) else values[:0]


def groups_of(entries: Entries, protected: Bools) -> Groups:
    """Group the entries by parent."""
    size = entries.block_size
    raw = entries.levels == 0
    levels = np.where(raw, 1, entries.levels + 1).astype(np.int8)
    indices = np.where(raw, entries.indices, entries.indices // size)
    begins = np.ones(len(entries), bool)
    begins[1:] = (levels[1:] != levels[:-1]) | (indices[1:] != indices[:-1])
    first = np.flatnonzero(begins)
    counts = np.diff(np.append(first, len(entries)))
    complete = np.where(raw[first], ~protected[first], counts == size)
    return Groups(levels[first], indices[first], first, counts, complete)


def collapsed(entries: Entries, groups: Groups, chosen: Ints) -> Entries:
    """Replace the chosen groups by their parents, which start without a cooldown."""
    keep = np.ones(len(entries), bool)
    first, counts = groups.first[chosen], groups.counts[chosen]
    last = np.cumsum(counts)
    offsets = np.arange(int(last[-1])) - np.repeat(last - counts, counts)
    keep[np.repeat(first, counts) + offsets] = False
    keep[first] = True
    result = entries.take(np.arange(len(entries)))  # a copy
    result.levels[first], result.indices[first] = groups.levels[chosen], groups.indices[chosen]
    for column in (result.residency, result.cooldown, result.held):
        column[first] = 0
    return result.take(keep)


def tidied(entries: Entries) -> Entries:
    """Where gists cost nothing, collapse all siblings that are gists, so that the raw blocks alone tell what stands."""
    while not entries.gist_cost:
        groups = groups_of(entries, np.ones(len(entries), bool))
        whole = np.flatnonzero(groups.whole)
        if not len(whole):
            break
        entries = collapsed(entries, groups, whole)
    return entries


def make_room(entries: Entries, protection: Protection, limit: int) -> Entries:
    """Collapse whole groups until the cost is at most ``limit``; only raw blocks where gists cost nothing.

    Gists first, then raw blocks, oldest first; blocks that the focus holds come last, the least
    wanted first. BudgetError if even the coarsest entries cost more.
    """
    while entries.cost > limit:
        groups = groups_of(entries, protection.of(entries))
        saves = groups.whole if entries.gist_cost else groups.whole & (groups.levels == 1)
        candidates = np.flatnonzero(saves)
        if not len(candidates):
            raise BudgetError(_too_small(entries, protection, limit))
        order = _by_age(entries, groups)
        candidates = candidates[np.argsort(order[candidates], kind="stable")]
        saved = np.where(groups.levels[candidates] == 1, entries.step(1), entries.step(2)).cumsum()
        needed = int(np.searchsorted(saved, entries.cost - limit)) + 1
        entries = tidied(collapsed(entries, groups, candidates[:needed]))
    return entries


def _by_age(entries: Entries, groups: Groups) -> NDArray[np.generic]:
    raw = (entries.levels[groups.first] == 0).astype(np.int16)
    return raw + groups.best(entries.held)


def _too_small(entries: Entries, protection: Protection, limit: int) -> str:
    protected = protection.of(entries)
    costs = entries.costs()
    return (
        f"{entries.num_tokens} tokens of history cost at least {entries.cost}, {limit} are left of the budget after the"
        f" reserve: pins and the last {protection.recent_tokens} tokens take {int(costs[protected].sum())},"
        f" the coarsest cover of the rest {int(costs[~protected].sum())}"
    )
