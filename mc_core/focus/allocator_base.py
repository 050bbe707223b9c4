"""The allocator: from scores to a plan that keeps the budget."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mc_core.context.plan import Plan
from mc_core.context.working_context import WorkingContext
from mc_core.errors import ConfigError
from mc_core.focus.allocator_draft import PlanDraft
from mc_core.focus.focus_config import FocusConfig
from mc_core.focus.metrics import Swaps
from mc_core.focus.tuning import RECENCY_WORTH
from mc_core.focus.view import Scores

MOST_ENTRIES = 64
"""Entries wished for by their own gain, at most: a refocus makes only a few such edits."""


@dataclass(frozen=True, slots=True)
class Wish:
    """Open what the entry of ``row`` covers: down to ``block``, or one level if there is none.

    utility: its worth less the price of repair. place: targets that lie side by side share one.
    """

    utility: float
    row: int
    level: int
    place: int
    block: int | None = None


def wishes_of(wc: WorkingContext, scores: Scores, rows: NDArray[np.int64], config: FocusConfig) -> list[Wish]:
    """Targets that do not stand raw, and entries of positive gain that cover no target; thresholds are not applied.

    rows: of the entries that cover the targets [m].
    """
    price = _price(wc, config)
    places = _places(scores.targets)
    utility = scores.target_scores - price[rows]
    levels = wc.levels[rows]
    hidden = np.flatnonzero(levels > 0)
    columns = (utility, rows, levels, places, scores.targets)
    targets = [Wish(*wish) for wish in zip(*(column[hidden].tolist() for column in columns), strict=True)]
    return targets + _entry_wishes(wc, scores.gain - price, rows, int(places.max(initial=-1)) + 1)


def _entry_wishes(
    wc: WorkingContext, utility: NDArray[np.float32], covered: NDArray[np.int64], place: int
) -> list[Wish]:
    # Where gists cost nothing, those above LOD1 stand as coarse as raw blocks allow.
    may_open = wc.levels > 0 if wc.gist_cost else wc.levels == 1
    free = (utility > 0) & may_open & (wc.cooldown >= 0)
    free[covered] = False
    rows = np.flatnonzero(free)
    rows = rows[np.argsort(-utility[rows], kind="stable")][:MOST_ENTRIES]
    columns = (utility[rows], rows, wc.levels[rows], np.arange(place, place + len(rows)))
    return [Wish(*wish) for wish in zip(*(column.tolist() for column in columns), strict=True)]


def _price(wc: WorkingContext, config: FocusConfig) -> NDArray[np.float32]:
    """What an edit at each entry costs in repair: ``repair_price`` times the share of the budget behind it [n]."""
    if not config.repair_price:
        return np.zeros(len(wc), np.float32)
    costs = wc.entry_costs()
    behind = costs[::-1].cumsum()[::-1]
    return (config.repair_price * behind / wc.budget).astype(np.float32)


def _places(blocks: NDArray[np.int64]) -> NDArray[np.int64]:
    """Number the runs of neighbouring blocks [m]."""
    order = np.argsort(blocks)
    steps = np.diff(blocks[order]) > 1
    places = np.empty(len(blocks), np.int64)
    places[order] = np.concatenate([[0], np.cumsum(steps)])[: len(blocks)]
    return places


REJECTIONS = ("threshold", "limit", "budget", "harm", "cooldown", "displaced", "missing")
"""Reasons why a wish is not granted; see ``PlanReport``."""


@dataclass(frozen=True)
class PlanReport:
    """What a plan does. rejections: wishes that were not granted, by reason.

    "threshold": worth too little. "limit": enough was opened in this refocus. "budget": nothing is left that could
    collapse. "harm": what could collapse is worth too much. "cooldown": what could collapse came a short while ago.
    "displaced": made room for something better. "missing": its ids did not come back from the store.
    filled: blocks that took room which was left.
    """

    eligible: int
    changed: int
    expands: int
    collapses: int
    swap_rate: float
    rejections: Mapping[str, int] = field(default_factory=dict)
    filled: tuple[int, ...] = ()


class Allocator:
    """Greedy, and the base of the other kinds, which rank the wishes differently.

    A refocus grants wishes in order of their rank. The first are the look-ahead's targets, each opened by a descent
    from the entry that covers it down to LOD0. While the budget has room, that is all; after that each is paid with
    the least harmful collapses, if each of these harms less than the wish is worth, by ``collapse_threshold``. So
    close scores never swap, and a target yields to a clearly better one only. Room that is left goes to the newest
    history, unless the lens is sure of what it found: then what else stands raw is put away, lest it lead a small model
    astray. Cooldown keeps entries from going back and forth; room for the reserve, what is put away, and a target that
    cannot be opened otherwise, overrule it: a new question must not wait for the old one's.
    """

    kind = "greedy"

    def __init__(self, config: FocusConfig) -> None:
        self.config = config
        self.plans = 0

    def plan(self, wc: WorkingContext, scores: Scores, reserve: int, certainty: float = 0.0) -> tuple[Plan, PlanReport]:
        """Plan one refocus that leaves ``reserve`` of the budget free. BudgetError if that is impossible.

        certainty: worth of the best find outside of the current turn.
        """
        _check(wc, scores)
        self._begin(wc, scores)
        rows = np.searchsorted(wc.starts(), scores.targets * wc.block_size, side="right") - 1
        harm = scores.harm.astype(np.float32)
        # What covers a target is worth as much as the target, whatever the lens says of the entry.
        np.maximum.at(harm, rows, scores.target_scores.astype(np.float32))
        draft = PlanDraft(wc, harm, wc.budget - reserve)
        draft.make_room()
        floor = self._fold(draft, certainty)
        rejections: Counter[str] = Counter()
        granted = self._grant(draft, wishes_of(wc, scores, rows, self.config), floor, rejections)
        before = len(draft.edits)
        if not floor:
            self._fill(draft)
        filled = tuple(edit.index for edit in draft.edits[before:] if edit.kind == "expand" and edit.level == 1)
        hold = scores.targets[scores.target_scores > self.config.expand_threshold]
        plan = Plan(draft.edits, wc.num_tokens, self.config.cooldown, tuple(hold.tolist()))
        self._remember(wc, granted)
        self.plans += 1
        swaps = Swaps.of(wc.entries, wc.protection, plan)
        counts = swaps.eligible, swaps.changed, plan.expands, plan.collapses, swaps.rate
        return plan, PlanReport(*counts, dict(rejections), filled)

    def snapshot(self) -> dict[str, Any]:
        """State beside the working context's own, as JSON can hold it."""
        return {"kind": self.kind, "plans": self.plans}

    def restore(self, snapshot: Mapping[str, Any]) -> bool:
        """Go on from a snapshot; that of another kind is ignored -> whether it was taken."""
        taken = snapshot.get("kind") == self.kind
        if taken:
            self.plans = int(snapshot["plans"])
        return taken

    def _ranked(self, wishes: list[Wish]) -> list[Wish]:
        """Wishes in the order in which they are tried."""
        return sorted(wishes, key=lambda wish: -wish.utility)

    def _begin(self, wc: WorkingContext, scores: Scores) -> None:
        """A refocus begins: draw its random numbers, learn from the last one."""

    def _remember(self, wc: WorkingContext, granted: list[Wish]) -> None:
        """Note what was opened."""

    def _grant(self, draft: PlanDraft, wishes: list[Wish], floor: float, rejections: Counter[str]) -> list[Wish]:
        """Try the wishes worth ``floor``, ``edits_per_iteration`` places an iteration -> those granted."""
        config = self.config
        worthy = [wish for wish in wishes if wish.utility > config.expand_threshold and wish.utility >= floor]
        rejections["threshold"] += len(wishes) - len(worthy)
        places: set[int] = set()
        granted: list[Wish] = []
        for iteration in range(1, config.iterations + 1):
            postponed: list[Wish] = []
            for wish in self._ranked(worthy):
                if wish.place not in places and len(places) >= iteration * config.edits_per_iteration:
                    postponed.append(wish)
                    continue
                reason = self._try(draft, wish)
                if reason is None:
                    places.add(wish.place)
                    granted.append(wish)
                else:
                    rejections[reason] += 1
            worthy = postponed
            if not worthy:
                break
        rejections["limit"] += len(worthy)
        for reason in [reason for reason, times in rejections.items() if not times]:
            del rejections[reason]
        return granted

    def _try(self, draft: PlanDraft, wish: Wish) -> str | None:
        """Grant a wish if it can be paid -> None, or why not."""
        if draft.was_collapsed(wish.row):
            return "displaced"
        ceiling = wish.utility - self.config.collapse_threshold
        if wish.block is None:
            return draft.swap([(wish.level, int(draft.wc.indices[wish.row]))], ceiling, cooling=False)
        return draft.swap(draft.descent(wish.row, wish.block), ceiling, cooling=True)

    def _fold(self, draft: PlanDraft, certainty: float) -> float:
        """Put away what has not earned its place -> what must be earned to stand there, 0 where nothing need be."""
        config = self.config
        if not config.narrow or _fits_whole(draft):
            return 0.0
        if certainty < config.sure:
            draft.fold(RECENCY_WORTH, config.wide)
            return 0.0
        draft.fold(config.narrow * certainty)
        return config.narrow * certainty

    def _fill(self, draft: PlanDraft) -> None:
        """Spend room on the newest blocks that do not stand raw: on all if the whole history fits, else up to ``fill``
        and, where what has not earned its place is put away, ``wide``."""
        wc, config = draft.wc, self.config
        # What was put away a short while ago may not come back, unless all does.
        opens = (wc.levels > 0) & ((wc.cooldown >= 0) | _fits_whole(draft))
        if not _fits_whole(draft):
            draft.limit = min(draft.limit, int(config.fill * wc.budget))
            if config.narrow:
                draft.limit = min(draft.limit, config.wide)
        starts, ends = wc.starts() // wc.block_size, wc.ends() // wc.block_size
        for row in np.flatnonzero(opens)[::-1].tolist():
            if draft.was_collapsed(row):
                continue
            for block in range(int(ends[row]) - 1, int(starts[row]) - 1, -1):
                missing = draft.descent(row, block)
                if not draft.fits(missing):
                    return
                draft.swap(missing, -np.inf, cooling=False)


def _fits_whole(draft: PlanDraft) -> bool:
    return draft.wc.num_tokens <= draft.limit


def _check(wc: WorkingContext, scores: Scores) -> None:
    if len(scores.gain) != len(wc) or len(scores.harm) != len(wc):
        raise ConfigError(
            f"gain and harm must score the {len(wc)} entries, got {len(scores.gain)} and {len(scores.harm)}"
        )
    if len(scores.targets) != len(scores.target_scores):
        raise ConfigError(f"{len(scores.targets)} targets have {len(scores.target_scores)} scores")
    end = -(-wc.num_tokens // wc.block_size)
    if len(scores.targets) and not (scores.targets.min() >= 0 and scores.targets.max() < end):
        raise ConfigError(f"targets must be blocks in [0, {end}), got {scores.targets.min()} .. {scores.targets.max()}")
