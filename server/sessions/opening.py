"""A stored session, opened under a lease of this server and brought into memory."""

from __future__ import annotations

import asyncio

from mc_core.models.threads import aside
from mc_core.session.factory import SessionFactory
from mc_core.session.session import Session
from mc_core.store import SessionStore, StoreDownError, TurnsLostError, UnknownSessionError
from server.errors import unreadable
from server.futures import settled
from server.sessions.departed import Departed
from server.sessions.owner import Owner
from server.transfer.unborn import is_unborn


async def open_session(
    session_id: str, tenant: str, *, store: SessionStore, factory: SessionFactory, owner: Owner, departed: Departed
) -> Session:
    """UnknownSessionError if this tenant has none of that name, LeaseHeldError if another server has it, ApiError if it
    cannot be read."""
    stored = await settled(store.open(session_id, tenant, owner.name))
    try:
        if is_unborn(stored.record):
            raise UnknownSessionError(session_id)
        departed.check(session_id, stored.record.sequence)
        return await asyncio.to_thread(aside, lambda: factory.load(stored, store))
    except Exception as error:
        await settled(store.release(session_id, stored.fence))
        if isinstance(error, StoreDownError | TurnsLostError | UnknownSessionError):
            raise
        # Whatever it is, it is not the fault of the request that asked for the session.
        raise unreadable(session_id, error) from error
