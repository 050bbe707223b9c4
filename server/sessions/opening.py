"""A stored session, opened under a lease of this server and brought into memory."""

from __future__ import annotations

import asyncio
import logging

from mc_core.errors import StoreError
from mc_core.models.threads import aside
from mc_core.session.factory import SessionFactory
from mc_core.session.session import Session
from mc_core.store import (
    SessionMismatchError,
    SessionStore,
    StoreDownError,
    StoredSession,
    TurnsLostError,
    UnknownSessionError,
)
from server.errors import unreadable
from server.futures import settled
from server.sessions.departed import Departed
from server.transfer.unborn import is_unborn

logger = logging.getLogger(__name__)


async def open_session(
    stored: StoredSession, *, store: SessionStore, factory: SessionFactory, departed: Departed
) -> Session:
    """Of a lease that was taken, which is given back if the session cannot be read (ApiError), is of another tokenizer
    or block size (SessionMismatchError), or is none yet (UnknownSessionError)."""
    session_id = stored.record.session_id
    try:
        if is_unborn(stored.record):
            raise UnknownSessionError(session_id)
        departed.check(stored.record)
        return await asyncio.to_thread(aside, lambda: factory.load(stored, store))
    except Exception as error:
        await give_back(store, session_id, stored.fence)
        if isinstance(error, StoreDownError | TurnsLostError | UnknownSessionError | SessionMismatchError):
            raise
        # Whatever it is, it is not the fault of the request that asked for the session.
        raise unreadable(session_id, error) from error


async def give_back(store: SessionStore, session_id: str, fence: int) -> None:
    """End a lease; where the store can't take that now, it lapses by itself."""
    try:
        await settled(store.release(session_id, fence))
    except StoreError:
        logger.warning("the lease of session %s is left to lapse", session_id, exc_info=True)
