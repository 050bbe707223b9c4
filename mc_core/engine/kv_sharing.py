"""Keys and values that two sessions have in common: who begins as another one does computes only what comes after.

A question that is asked anew or edited, a chat behind a system message that others have: each is a session of its own,
and its beginning is in another one's slab. Tenants share nothing.
"""

from __future__ import annotations

import numpy as np

from mc_core.engine.core import EngineCore
from mc_core.kv.session_kv import SessionKV
from mc_core.session.session import Session


def shared_tokens(one: Session, other: Session) -> int:
    """How many tokens two histories begin alike: block by block, and in the first that differs token by token if both
    have it in memory."""
    size, hashes = one.block_size, (one.trail.hashes(), other.trail.hashes())
    count = min(len(each) for each in hashes)
    differ = np.flatnonzero(hashes[0][:count] != hashes[1][:count])
    block = int(differ[0]) if len(differ) else count
    start = block * size
    end = min(start + size, one.tokens, other.tokens)
    if any(each.tree.num_blocks > block and len(each.tree.missing(np.array([block]))) for each in (one, other)):
        return start
    other_ids = np.flatnonzero(one.tree.ids(start, end) != other.tree.ids(start, end))
    return start + int(other_ids[0]) if len(other_ids) else end


def take_beginning(core: EngineCore, session: Session) -> None:
    """Fill a session's slab, which is empty, from that one which has most of its beginning, if that is a block."""
    kv = session.kv
    assert kv is not None
    if not _may_share(core):
        return
    found = [(held.beginning(shared_tokens(session, other)), held.row) for other, held in _others(core, session)]
    units, row = max(found, key=lambda each: len(each[0].slots), default=(None, 0))
    if units is not None and len(units.slots) >= session.block_size:
        kv.share(units, row)


def take_over(core: EngineCore, session: Session, owner: Session) -> None:
    """Give the slab of ``owner`` to ``session``, with the beginning that they have in common unless a file has more."""
    kv = owner.kv
    assert kv is not None
    has_file = core.keeper is not None and core.keeper.has(session)
    alike = session.tenant == owner.tenant and not has_file and _may_share(core)
    units, row = kv.beginning(shared_tokens(session, owner) if alike else 0), kv.row
    owner.release_slab()
    core.runner.seat(session)
    if len(units.slots) >= session.block_size and session.kv is not None and session.kv.row == row:
        session.kv.share(units, row)


def _may_share(core: EngineCore) -> bool:
    # What others left behind may differ from what is computed in the last bits.
    return core.config.share_kv and not core.config.deterministic


def _others(core: EngineCore, session: Session) -> list[tuple[Session, SessionKV]]:
    """Sessions of the same tenant that have something in their slabs."""
    seated = [(other, other.kv) for other in core.runner.seated.values() if other.tenant == session.tenant]
    return [(other, kv) for other, kv in seated if kv is not None and kv is not session.kv and not kv.filling]
