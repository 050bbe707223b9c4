"""Why blocks stand raw: what the plans that opened them, or kept them open, went by."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from mc_core.context.protection import Protection
from mc_core.context.working_context import WorkingContext
from mc_core.focus.leads import Lead
from mc_core.focus.view import Scores

Reason = Literal["pinned", "tail", "turn", "asked", "neighbour", "lead", "newest"]
"""pinned, tail: protected. turn: of the current turn. asked: the lens found it. neighbour: it stands beside what the
lens found. lead: what was found names it. newest: it stands since it was new, or filled room that was left."""
STATES = ("gist", *get_args(Reason), "unknown")
"""What can be said of an entry, as small numbers: their places here."""
CODES = {name: code for code, name in enumerate(STATES)}
TOLD: tuple[Reason | None, ...] = (None, *get_args(Reason), None)
GIST, PINNED, TAIL, NEWEST, UNKNOWN = (CODES[name] for name in ("gist", "pinned", "tail", "newest", "unknown"))
Ints = NDArray[np.int64]


def of_targets(scores: Scores, leads: Sequence[Lead], own: NDArray[np.bool_], least: float) -> dict[int, Reason]:
    """By target that is worth more than ``least``. own: which targets are of the current turn [m]."""
    hits = None if scores.hits is None else set(scores.hits.tolist())
    led = {block for lead in leads for block in lead.targets.tolist()}
    wanted = scores.target_scores > least
    targets, turn = scores.targets[wanted].tolist(), own[wanted].tolist()
    return {
        block: "turn" if of_turn else _of_target(block, hits, led) for block, of_turn in zip(targets, turn, strict=True)
    }


def _of_target(block: int, hits: set[int] | None, led: set[int]) -> Reason:
    if hits is None or block in hits:
        return "asked"
    return "lead" if block in led else "neighbour"


class Standing(Protocol):
    """Entries, or a working context."""

    @property
    def levels(self) -> NDArray[np.int8]: ...

    @property
    def indices(self) -> Ints: ...

    @property
    def num_tokens(self) -> int: ...

    def starts(self) -> Ints: ...


@dataclass(frozen=True, eq=False)
class Noted:
    """What was noted at one moment; never changed. known: that nothing is noted of a block means it is new."""

    by_block: Mapping[int, Reason | None]
    known: bool

    def codes(self, entries: Standing, protection: Protection) -> NDArray[np.int8]:
        """Why each entry stands raw, as places in ``STATES`` [n]."""
        codes = self._of_blocks(entries.indices)
        codes[entries.starts() >= protection.tail_start(entries.num_tokens)] = TAIL
        codes[protection.pinned(entries.indices)] = PINNED
        codes[entries.levels > 0] = GIST
        return codes

    def _of_blocks(self, blocks: Ints) -> NDArray[np.int8]:
        codes = np.full(len(blocks), NEWEST if self.known else UNKNOWN, np.int8)
        if self.by_block:
            noted = np.fromiter(self.by_block, np.int64, len(self.by_block))
            told = np.array([CODES[reason or "unknown"] for reason in self.by_block.values()], np.int8)
            order = np.argsort(noted)
            rows = order[np.minimum(np.searchsorted(noted, blocks, sorter=order), len(noted) - 1)]
            codes = np.where(noted[rows] == blocks, told[rows], codes)
        return codes


class Reasons:
    """Of the raw blocks of one working context. A block of which nothing is noted has not been opened by any plan: it
    stands since it was new.
    """

    def __init__(self) -> None:
        self._by_block: dict[int, Reason | None] = {}
        self._now: set[int] = set()  # noted in this refocus
        self._known = True

    def note(
        self,
        raw: Ints,
        targets: Mapping[int, Reason],
        opened: Ints,
        filled: Iterable[int],
        *,
        further: bool = False,
    ) -> None:
        """A plan was committed. raw: blocks that stand raw now. targets: why the plan wants its targets. opened: what
        it made raw, of which ``filled`` only took room that was left. further: as a part of the last refocus.
        """
        wanted: dict[int, Reason] = dict.fromkeys(opened.tolist(), "asked")
        wanted |= dict.fromkeys(filled, "newest")
        wanted |= targets
        before, self._now = self._by_block, self._now if further else set()
        self._by_block = {}
        for block in raw.tolist():
            if block in wanted and block not in self._now:
                self._by_block[block] = wanted[block]
                self._now.add(block)
            elif block in before:
                old = before[block]
                self._by_block[block] = "newest" if old == "turn" and block not in self._now else old
            elif not self._known:
                self._by_block[block] = None
        self._known = True

    def rewind(self, num_blocks: int) -> None:
        """The history was cut to its first ``num_blocks`` complete blocks."""
        self._by_block = {block: reason for block, reason in self._by_block.items() if block < num_blocks}

    @property
    def noted(self) -> Noted:
        """What is noted now."""
        return Noted(self._by_block, self._known)  # each note makes another dict

    def of(self, wc: WorkingContext) -> list[Reason | None]:
        """Of each entry [n]; None for a gist, and where a session was stored before reasons were noted."""
        return [TOLD[code] for code in self.noted.codes(wc, wc.protection).tolist()]

    @property
    def asked(self) -> Ints:
        """Blocks that the last refocus wanted for what they say."""
        told = ("asked", "neighbour", "lead")
        return np.array([block for block in self._now if self._by_block.get(block) in told], np.int64)

    def snapshot(self) -> dict[str, Any]:
        """As JSON can hold it."""
        names = [*get_args(Reason), None]
        blocks = {name: [block for block, reason in self._by_block.items() if reason == name] for name in names}
        return {str(name or "unknown"): numbers for name, numbers in blocks.items() if numbers}

    def restore(self, snapshot: Mapping[str, Any] | None) -> None:
        """Go on from a snapshot; None for a session that was stored before reasons were noted."""
        self._known, self._now = snapshot is not None, set()
        named = {str(name): name for name in get_args(Reason)}
        told = (snapshot or {}).items()
        self._by_block = {int(block): named.get(name) for name, blocks in told for block in blocks}
