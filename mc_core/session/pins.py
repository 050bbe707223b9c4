"""What users keep in full view of a session's history: how much of it, and what stands after a wish of theirs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from mc_core.context.protection import Protection, Range, merged, widened, without
from mc_core.context.working_context import WorkingContext
from mc_core.errors import BudgetError, ConfigError, PinRoomError
from mc_core.focus.focus_config import FocusConfig, hardest_length

if TYPE_CHECKING:
    from mc_core.session.session import Session


def pin_room(focus: FocusConfig, gist_cost: int) -> int:
    """Tokens that can be pinned in all, block 0 among them, so that a history of any length still fits.

    The rest of the budget goes to the tail and its open block, the next block of a reply, one that the focus may open,
    and the coarsest cover of everything else.
    """
    size = focus.block_size
    cover = 4 * size * gist_cost
    free = focus.budget - focus.recent_tokens - 2 * size - focus.refocus_interval - cover
    return max(1, free // size) * size


def room_for_good(session: Session) -> int:
    """Tokens that can be pinned for good, beside those that were chosen."""
    chosen = session.wc.protection.pinned_blocks - _fixed(session).pinned_blocks
    return pin_room(session.focus_config, session.wc.gist_cost) - chosen * session.block_size


def room_left(session: Session) -> int:
    """Tokens that can still be pinned."""
    pinned = session.wc.protection.pinned_blocks * session.block_size
    return max(0, pin_room(session.focus_config, session.wc.gist_cost) - pinned)


def chosen(session: Session) -> list[Range]:
    """The token ranges that were chosen to stay raw, as far as the history goes."""
    return [(start, min(end, session.tokens)) for start, end in session.wc.protection.chosen if start < session.tokens]


def chosen_after(session: Session, pin: Sequence[Range], unpin: Sequence[Range]) -> tuple[Range, ...]:
    """What is chosen once ``unpin`` is let go and then ``pin`` kept, both widened to whole blocks.

    ConfigError for ranges that are none, or where what stands for good is to be let go; PinRoomError if there is no
    room.
    """
    for start, end in (*pin, *unpin):
        if not 0 <= start < end <= session.tokens:
            raise ConfigError(f"[{start}, {end}) must be tokens of the history's {session.tokens}")
    size, fixed = session.block_size, _fixed(session)
    for start, end in unpin:
        if fixed.over(np.array([start // size]), np.array([-(-end // size)])).any():
            raise ConfigError(
                f"[{start}, {end}) holds some of the first {size} tokens or of the system message, which always stay"
            )
    always = [
        (first * size, last * size) for first, last in zip(fixed.first.tolist(), fixed.last.tolist(), strict=True)
    ]
    kept = without(session.wc.protection.chosen, widened(unpin, size))
    wanted = without(merged([*kept, *widened(pin, size)]), always)
    _check_room(session, wanted)
    return wanted


def _check_room(session: Session, wanted: Sequence[Range]) -> None:
    wc, focus = session.wc, session.focus_config
    size, left = session.block_size, room_left(session)
    pins = Protection(size, wc.recent_tokens, wc.protection.pins, wanted).pinned_blocks
    more = (pins - wc.protection.pinned_blocks) * size
    if more <= 0:
        return
    if more > left:
        raise PinRoomError(f"{more} more tokens cannot be pinned: there is room for {left}", left)
    if wc.gist_cost:
        # Each place also costs the gists beside it, and the more so the longer the history grows.
        try:
            later = WorkingContext(size, wc.budget, wc.recent_tokens, wc.protection.pins, wc.gist_cost)
            later.choose(wanted)
            later.cover(hardest_length(size, session.tokens), reserve=focus.refocus_interval)
        except BudgetError as error:
            places = len(wanted)
            raise PinRoomError(
                f"{places} places cannot be pinned: with the gists around them a long history would not fit the budget"
                f" of {wc.budget}; of the tokens there is room for {left}, in fewer places",
                left,
            ) from error


def _fixed(session: Session) -> Protection:
    """What stands for good: block 0 and the system message."""
    return Protection(session.block_size, session.wc.recent_tokens, session.wc.protection.pins)
