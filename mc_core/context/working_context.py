"""WorkingContext: what the model sees of a history, as entries that tile it within a budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mc_core.context.entries import COLUMNS, Bools, Entries, Ints
from mc_core.context.groups import make_room, tidied
from mc_core.context.growth import grown, opened, rewound
from mc_core.context.plan import Edit, Node, Plan, applied
from mc_core.context.protection import Protection, Range, broken_law
from mc_core.errors import BudgetError, ConfigError

__all__ = ["Edit", "Node", "Plan", "WorkingContext"]


class WorkingContext:
    """Entries (level, index) in chronological order; metadata on the host, no vectors.

    An entry is a gist node (level >= 1), a whole raw block (level 0, cost K), or the open block at the end. A gist
    costs as many as it has vectors; or 0 where the model is not shown any, and then they are as coarse as the raw
    blocks between them allow.
    It always holds that the entries tile [0, num_tokens), cost at most ``budget``, and leave block 0, the pins and the
    tail raw. Every change happens whole or, on an error, not at all.
    """

    def __init__(
        self,
        block_size: int,
        budget: int,
        recent_tokens: int = 128,
        pins: Sequence[tuple[int, int]] = (),
        gist_cost: int = 1,
    ) -> None:
        """pins: token ranges [start, end) that stay raw, widened to whole blocks; they may lie ahead of the history.

        BudgetError if pins, tail and one more block cost more than the budget.
        """
        if block_size < 2:
            raise ConfigError(f"block_size must be at least 2, got {block_size}")
        if not 0 <= gist_cost < block_size or (gist_cost and block_size % gist_cost):
            raise ConfigError(f"gist_cost must be 0 or a part of block_size {block_size}, got {gist_cost}")
        self.budget = budget
        self.protection = _affordable(Protection(block_size, recent_tokens, pins), budget)
        self._entries = Entries.none(block_size, gist_cost)

    # ---- what stands in it

    @property
    def entries(self) -> Entries:
        """All columns, as an immutable value."""
        return self._entries

    @property
    def levels(self) -> NDArray[np.int8]:
        return self._entries.levels

    @property
    def indices(self) -> Ints:
        return self._entries.indices

    @property
    def residency(self) -> NDArray[np.int32]:
        """Refocuses since each entry came to its level [n]."""
        return self._entries.residency

    @property
    def cooldown(self) -> NDArray[np.int8]:
        """Refocuses for which an entry shall not collapse (> 0) or not expand (< 0) [n]."""
        return self._entries.cooldown

    @property
    def num_tokens(self) -> int:
        return self._entries.num_tokens

    @property
    def block_size(self) -> int:
        return self._entries.block_size

    @property
    def recent_tokens(self) -> int:
        return self.protection.recent_tokens

    @property
    def open_length(self) -> int:
        """Tokens of the open block, 0 .. K - 1."""
        return self._entries.open_length

    @property
    def gist_cost(self) -> int:
        return self._entries.gist_cost

    @property
    def cost(self) -> int:
        return self._entries.cost

    @property
    def utilization(self) -> float:
        return self.cost / self.budget

    @property
    def tail_start(self) -> int:
        """First token of the tail; it lies on a block border, and everything from there on is raw."""
        return self.protection.tail_start(self.num_tokens)

    def __len__(self) -> int:
        return len(self._entries)

    def starts(self) -> Ints:
        """First token of each entry [n]."""
        return self._entries.starts()

    def ends(self) -> Ints:
        """Token after the last of each entry [n]."""
        return self._entries.ends()

    def entry_costs(self) -> NDArray[np.int32]:
        """Tokens of a raw block, ``gist_cost`` for a gist [n]."""
        return self._entries.costs()

    def protected(self) -> Bools:
        """Whether each entry is pinned or in the tail [n]."""
        return self.protection.of(self._entries)

    # ---- following the history

    def pin(self, start: int, end: int) -> None:
        """Keep tokens [start, end) raw from now on; they must stand raw or lie ahead of the history."""
        pins = [*self.protection.pins, (start, end)]
        protection = self._protection(pins, self.protection.chosen)
        if broken_law(self._entries, protection, self.budget) is not None:
            raise ConfigError(f"tokens [{start}, {end}) cannot be pinned: some of them stand as gists")
        self.protection = protection

    def choose(self, chosen: Sequence[Range], reserve: int = 0) -> None:
        """Keep these token ranges raw, in whole blocks, in place of those that were chosen before.

        What stands as gists of them is opened, and room is made for it with ``reserve`` of the budget left free;
        ``blocks_to_choose`` tells which ids that takes. BudgetError if it does not fit.
        """
        protection = self._protection(self.protection.pins, chosen)
        self._entries = make_room(opened(self._entries, protection), protection, self.budget - reserve)
        self.protection = protection

    def blocks_to_choose(self, chosen: Sequence[Range]) -> Ints:
        """Blocks that are to stand raw but do not now, ascending."""
        wanted = [np.arange(start // self.block_size, -(-end // self.block_size)) for start, end in chosen]
        end = -(-self.num_tokens // self.block_size)
        blocks = np.unique(np.concatenate([np.empty(0, np.int64), *wanted]))
        return np.setdiff1d(blocks[blocks < end], self.indices[self.levels == 0])

    def extend(self, num_tokens: int, reserve: int = 0) -> None:
        """Follow a history that grew to ``num_tokens``, and leave ``reserve`` of the budget free.

        The newest tokens stand raw, the middle of a bulk is covered by the coarsest nodes. Room is made by collapsing
        gists first, then raw blocks, oldest first, last those that the focus holds.
        BudgetError if pins, tail and the coarsest cover cost too much.
        """
        if num_tokens < self.num_tokens:
            raise ConfigError(f"num_tokens must be at least {self.num_tokens}, got {num_tokens}; rewind cuts a history")
        longer = grown(self._entries, num_tokens, self.protection, self.budget)
        self._entries = make_room(longer, self.protection, self.budget - reserve)

    def cover(self, num_tokens: int, reserve: int = 0) -> None:
        """Start over on a history of ``num_tokens``: pins and tail raw, all else as coarse as can be."""
        nothing = Entries.none(self.block_size, self.gist_cost)
        coarsest = grown(nothing, num_tokens, self.protection, 0)
        self._entries = make_room(coarsest, self.protection, self.budget - reserve)

    def rewind(self, position: int, reserve: int = 0) -> None:
        """Follow a history that was cut to ``position`` tokens. ``blocks_to_rewind`` tells which ids that takes.

        Pins end there too: what they held is no longer in the history.
        """
        pins, chosen = (
            [(start, min(end, position)) for start, end in ranges if start < position]
            for ranges in (self.protection.pins, self.protection.chosen)
        )
        protection = Protection(self.block_size, self.recent_tokens, pins, chosen)
        self._entries = make_room(self._rewound(position), protection, self.budget - reserve)
        self.protection = protection

    def blocks_to_rewind(self, position: int) -> Ints:
        """Blocks that stand raw after a rewind to ``position`` but do not now: their ids are needed, ascending."""
        after = self._rewound(position)
        raw_before = self.indices[self.levels == 0]
        return np.setdiff1d(after.indices[after.levels == 0], raw_before)

    def _rewound(self, position: int) -> Entries:
        if not 0 <= position <= self.num_tokens:
            raise ConfigError(f"position must lie in [0, {self.num_tokens}], got {position}")
        return rewound(self._entries, position, self.protection)

    # ---- editing

    def commit(self, plan: Plan) -> None:
        """Apply a plan: entries that stay grow older by the refocus that passes with it. PlanError changes nothing."""
        self._entries = applied(self._entries, self.protection, plan, self.budget)

    # ---- keeping and checking

    def copy(self) -> WorkingContext:
        """An independent copy (entries are immutable, so it is cheap)."""
        twin = WorkingContext(self.block_size, self.budget, self.recent_tokens)
        twin._entries = self._entries  # and with them what a gist costs
        twin.protection = self.protection
        return twin

    def under(self, budget: int, recent_tokens: int, gist_cost: int) -> WorkingContext:
        """The same history under other settings: entries as they stand where they may, else all as coarse as can be.

        Pins that the budget cannot hold are given up: those that were chosen, then the others, the newest first;
        BudgetError if it cannot hold the rest either.
        """
        pins, chosen = self.protection.pins, self.protection.chosen
        while True:
            try:
                twin = WorkingContext(self.block_size, budget, recent_tokens, pins, gist_cost)
                twin.protection = twin._protection(pins, chosen)
                twin._follow(self._entries)
            except BudgetError:
                if not pins and not chosen:
                    raise
                pins, chosen = (pins, chosen[:-1]) if chosen else (pins[:-1], chosen)
            else:
                return twin

    def _follow(self, entries: Entries) -> None:
        """Take over entries that stood under other settings."""
        charged = tidied(replace(entries, gist_cost=self.gist_cost))
        try:
            self._entries = make_room(charged, self.protection, self.budget)
        except BudgetError:
            self.cover(entries.num_tokens)
        if broken_law(self._entries, self.protection, self.budget) is not None:
            self.cover(entries.num_tokens)

    def snapshot(self) -> dict[str, Any]:
        """All state, as JSON can hold it."""
        return {
            "block_size": self.block_size,
            "budget": self.budget,
            "recent_tokens": self.recent_tokens,
            "pins": [list(pin) for pin in self.protection.pins],
            "chosen": [list(pin) for pin in self.protection.chosen],
            "num_tokens": self.num_tokens,
            "gist_cost": self.gist_cost,
            **{name: getattr(self._entries, name).tolist() for name in COLUMNS},
        }

    @classmethod
    def restore(cls, snapshot: Mapping[str, Any]) -> WorkingContext:
        """The working context that ``snapshot`` was taken of; ConfigError if it is damaged."""
        try:
            pins, chosen = (
                [(int(start), int(end)) for start, end in ranges]
                for ranges in (snapshot["pins"], snapshot.get("chosen", ()))
            )
            gist_cost = int(snapshot.get("gist_cost", 1))
            wc = cls(snapshot["block_size"], snapshot["budget"], snapshot["recent_tokens"], pins, gist_cost)
            wc.protection = wc._protection(pins, chosen)
            columns = {name: np.array(snapshot[name], getattr(wc._entries, name).dtype) for name in COLUMNS}
            wc._entries = Entries(wc.block_size, int(snapshot["num_tokens"]), **columns, gist_cost=gist_cost)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ConfigError(f"the snapshot of a working context is damaged: {error!r}") from error
        problem = broken_law(wc._entries, wc.protection, wc.budget)
        if problem is not None:
            raise ConfigError(f"the snapshot of a working context is damaged: {problem}")
        return wc

    def _protection(self, pins: Sequence[Range], chosen: Sequence[Range]) -> Protection:
        return _affordable(Protection(self.block_size, self.recent_tokens, pins, chosen), self.budget)

    def check(self) -> None:
        """AssertionError if the entries break a law; no public operation leaves them so."""
        problem = broken_law(self._entries, self.protection, self.budget)
        if problem is not None:
            raise AssertionError(problem)


def _affordable(protection: Protection, budget: int) -> Protection:
    pinned = protection.pinned_blocks * protection.block_size
    if pinned + protection.recent_tokens + protection.block_size > budget:
        raise BudgetError(
            f"a budget of {budget} cannot hold {pinned} pinned tokens, {protection.recent_tokens} recent tokens and one"
            f" more block of {protection.block_size}"
        )
    return protection
