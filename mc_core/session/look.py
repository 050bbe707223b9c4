"""A look at a session's working context: all of it for one who asks, or as it stands for those who follow it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mc_core.context.entries import Entries
from mc_core.context.protection import Protection
from mc_core.focus.reasons import Noted
from mc_core.focus.refocuser import Proposal, signed_scores
from mc_core.session.pins import chosen, room_left

if TYPE_CHECKING:
    from mc_core.session.session import Session


@dataclass(frozen=True, eq=False)
class Look:
    """A working context at one moment. Nothing in it changes any more, and to take it costs next to nothing."""

    entries: Entries
    protection: Protection
    budget: int
    swap_rate: float
    framed: int
    pin_room: int
    noted: Noted
    last: Proposal | None

    @property
    def tokens(self) -> int:
        return self.entries.num_tokens

    def reasons(self) -> NDArray[np.int8]:
        """Why each entry stands raw, as places in ``STATES`` [n]."""
        return self.noted.codes(self.entries, self.protection)

    def scores(self) -> NDArray[np.float32]:
        """Signed score of each entry at the last refocus [n]."""
        return signed_scores(self.last, self.entries)


def look(session: Session, room: int) -> Look:
    """The working context as it stands. room: tokens that frames may take."""
    wc, report, refocuser = session.wc, session.last_report, session.refocuser
    return Look(
        wc.entries,
        wc.protection,
        wc.budget,
        report.swap_rate if report else 0.0,
        session.excerpt(room).framed,
        room_left(session),
        refocuser.noted,
        refocuser.last,
    )


def shown(session: Session, room: int) -> dict[str, Any]:
    """The working context as entries, as ``/focus`` shows it. room: tokens that frames may take."""
    wc, report, excerpt = session.wc, session.last_report, session.excerpt(room)
    starts, ends, scores = wc.starts(), wc.ends(), session.refocuser.scores_of(wc)
    seen = np.where(wc.levels == 0, excerpt.shown(starts, ends), 0)
    columns = (wc.levels, starts, ends, wc.entry_costs(), scores, wc.residency, seen)
    names = ("level", "start", "end", "cost", "score", "residency", "shown")
    entries = [dict(zip(names, row, strict=True)) for row in zip(*(c.tolist() for c in columns), strict=True)]
    for entry, reason in zip(entries, session.refocuser.reasons_of(wc), strict=True):
        entry["reason"] = reason
    return {
        "tokens": session.tokens,
        "budget": wc.budget,
        "cost": wc.cost,
        "utilization": wc.utilization,
        "swap_rate": report.swap_rate if report else 0.0,
        "framed": excerpt.framed,
        "read_last": None if excerpt.moved is None else [excerpt.moved.start, excerpt.moved.end],
        "pins": [list(pin) for pin in chosen(session)],
        "pin_room": room_left(session),
        "vectors": {"blocks": session.tree.num_blocks, "made": session.tree.made},
        "entries": entries,
    }
