"""Making room: collapse what matters least until a working context fits."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from mc_core.context.entries import Entries, Ints
from mc_core.context.groups import Groups, collapsed, groups_of, tidied
from mc_core.context.protection import Protection
from mc_core.errors import BudgetError

Harm = Callable[[NDArray[np.int8], Ints], NDArray[np.floating]]
"""(levels [n], indices [n]) -> harm of collapsing each entry [n]."""


def make_room(entries: Entries, protection: Protection, limit: int, harm: Harm | None = None) -> Entries:
    """Collapse whole groups until the cost is at most ``limit``; only raw blocks where gists cost nothing.

    Without ``harm``: gists first, then raw blocks, oldest first; blocks that the focus holds come last, the least
    wanted first. BudgetError if even the coarsest entries cost more.
    """
    while entries.cost > limit:
        groups = groups_of(entries, protection.of(entries))
        saves = groups.whole if entries.gist_cost else groups.whole & (groups.levels == 1)
        candidates = np.flatnonzero(saves)
        if not len(candidates):
            raise BudgetError(_too_small(entries, protection, limit))
        order = _by_age(entries, groups) if harm is None else groups.best(harm(entries.levels, entries.indices))
        candidates = candidates[np.argsort(order[candidates], kind="stable")]
        needed = -(-(entries.cost - limit) // entries.step(1))
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
