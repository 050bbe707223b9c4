"""Keys and values that two sessions have in common: who begins as another one does computes only what comes after.

A question that is asked anew or edited, a chat behind a system message that others have: each is a session of its own,
and its beginning is in another one's slab, or left in a row that was given away. Tenants share nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

import numpy as np

from mc_core.engine.core import EngineCore
from mc_core.kv.layout import Layout
from mc_core.kv.session_kv import Left, Units
from mc_core.session.session import Session
from mc_core.session.trail import Hashes

logger = logging.getLogger(__name__)


def seat(core: EngineCore, session: Session, owner: Session | None = None) -> None:
    """Give a session a slab: a free one, or that of ``owner``, which loses it."""
    left = None
    if owner is not None:
        try:
            left = _left(core, owner)
        except Exception:
            # It is worth a prefill, and no more: the slab is given away in any case.
            logger.warning("what session %s leaves in its slab can't be told", owner.id, exc_info=True)
        owner.release_slab()
    core.runner.seat(session)
    if session.kv is not None:
        session.kv.left = left


def take_beginning(core: EngineCore, session: Session, layout: Layout) -> int:
    """Fill a session's slab, which is empty, from where most of its beginning is that ``layout`` wants, if that is a
    block -> units that are there now."""
    kv = session.kv
    assert kv is not None
    if not _may_share(core):
        return 0
    found = [(int(np.isin(units.identity, layout.identity).sum()), units, row) for units, row in _found(core, session)]
    wanted, units, row = max(found, key=lambda each: each[0], default=(0, None, 0))
    if units is not None and wanted >= session.block_size:
        kv.share(units, row)
    return len(kv)


def shared_tokens(one: Session, other: Session) -> int:
    """How many tokens two histories begin alike: block by block, and in the first that differs token by token if both
    have it in memory."""
    block = _shared_blocks(one.trail.hashes(), other.trail.hashes())
    start = block * one.block_size
    end = min(start + one.block_size, one.tokens, other.tokens)
    if any(each.tree.num_blocks > block and len(each.tree.missing(np.array([block]))) for each in (one, other)):
        return start
    differ = np.flatnonzero(one.tree.ids(start, end) != other.tree.ids(start, end))
    return start + int(differ[0]) if len(differ) else end


def _shared_blocks(one: Hashes, other: Hashes) -> int:
    count = min(len(one), len(other))
    differ = np.flatnonzero(one[:count] != other[:count])
    return int(differ[0]) if len(differ) else count


def _found(core: EngineCore, session: Session) -> Iterator[tuple[Units, int]]:
    """Units that are the session's own too, and the row that holds them."""
    kv = session.kv
    assert kv is not None
    if kv.left is not None and kv.left.tenant == session.tenant:
        blocks = _shared_blocks(session.trail.hashes(), kv.left.blocks)
        yield kv.left.units.before(blocks * session.block_size), kv.row
    for other in core.runner.seated.values():
        held = other.kv
        if held is None or held is kv or held.filling or other.broken or other.tenant != session.tenant:
            continue
        yield held.computed_units().before(shared_tokens(session, other)), held.row


def _left(core: EngineCore, owner: Session) -> Left | None:
    if owner.kv is None or owner.broken or not _may_share(core):
        return None
    return Left(owner.tenant, owner.trail.hashes().copy(), owner.kv.computed_units())


def _may_share(core: EngineCore) -> bool:
    # What others left behind may differ from what is computed in the last bits.
    return core.config.share_kv and not core.config.deterministic
