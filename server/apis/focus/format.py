"""Writes looks at a working context as strips."""

from __future__ import annotations

from typing import Any

from mc_core.focus.reasons import STATES
from mc_core.focus.strip import moves, strip_of
from server.live.follower import Seen

MOST_MOVES = 100
"""Ranges that are told as opened, and as closed: the rest of a larger change is seen in the runs."""


def strip_body(seen: Seen, before: Seen | None) -> dict[str, Any]:
    """``FocusStrip``. before: what the reader was told last."""
    look = seen.look
    states, entries, size = look.reasons(), look.entries, look.entries.block_size
    moved = moves((before or seen).look.entries, entries, states, look.scores(), MOST_MOVES)
    return {
        "moment": seen.moment,
        "tokens": look.tokens,
        "budget": look.budget,
        "cost": entries.cost,
        "utilization": round(entries.cost / look.budget, 6),
        "swap_rate": round(look.swap_rate, 6),
        "framed": look.framed,
        "pin_room": look.pin_room,
        "tokens_per_second": rate(seen, before),
        "states": STATES,
        "runs": strip_of(entries, states).rows(),
        "opened": [[a * size, b * size, STATES[state], score] for a, b, state, score in moved.opened],
        "closed": [[a * size, b * size] for a, b in moved.closed],
    }


def rate(seen: Seen, before: Seen | None) -> float | None:
    """Tokens a second, while a reply is generated or a text is taken in."""
    follows = {"interval": ("turn", "interval"), "ingest": ("ingest",)}
    if before is None or before.moment not in follows.get(seen.moment, ()) or seen.at <= before.at:
        return None
    return round((seen.look.tokens - before.look.tokens) / (seen.at - before.at), 1)
