"""Sessions that nobody used for long are deleted, and those that nobody named, too, when there are too many of them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from mc_core.errors import StoreError
from mc_core.session.session import Session
from mc_core.store import MAX_LIST, LeaseHeldError, SessionInfo, SessionStore, UnknownSessionError
from server.futures import settled
from server.sessions.background import Background
from server.sessions.owner import Owner
from server.sessions.residents import Residents

logger = logging.getLogger(__name__)
PRUNE_SHARE = 16
"""A tenant's implicit sessions beyond the limit are deleted once there may be 1 / 16 too many."""
EXPIRE_EVERY = 60.0
"""Seconds between two looks for sessions that nobody has used for long; a quarter of the settings' if shorter."""
EXPIRE_AT_ONCE = 50
"""Sessions deleted in one call, so that others' calls need not wait long behind it."""


class Expiry:
    """Of one server's store; servers that share it may all do this."""

    def __init__(
        self,
        residents: Residents,
        store: SessionStore,
        owner: Owner,
        background: Background,
        delete: Callable[[str, str], Awaitable[None]],
        expired: Callable[[], Coroutine[Any, Any, None]],
        *,
        most: int,
        implicit_ttl: float | None,
        session_ttl: float | None,
    ) -> None:
        """delete: a session by id and tenant. expired: called when the store deleted some. most: implicit sessions
        of a tenant. implicit_ttl, session_ttl: seconds without use of implicit sessions and of the others, None for
        ever; a session may have its own."""
        self._residents, self._store, self._owner, self._background = residents, store, owner, background
        self._delete, self._expired, self._most = delete, expired, most
        self._implicit_ttl, self._session_ttl = implicit_ttl, session_ttl
        self._unpruned: Counter[str] = Counter()

    def made_implicit(self, tenant: str) -> None:
        """A tenant has one implicit session more."""
        self._unpruned[tenant] += 1
        if self._unpruned[tenant] > self._most // PRUNE_SHARE:
            del self._unpruned[tenant]
            self._background.spawn(self._prune(tenant))

    def expires(self, session: Session | SessionInfo) -> float | None:
        """When a session may be deleted if nobody uses it until then, in seconds since the epoch; None: never."""
        of_kind = self._implicit_ttl if session.implicit else self._session_ttl
        ttl = of_kind if session.ttl is None else session.ttl
        return None if session.keep or ttl is None else session.updated + ttl

    async def keep(self) -> None:
        """Delete sessions that were not used for long, until cancelled."""
        pause = min([EXPIRE_EVERY, *(ttl / 4 for ttl in (self._implicit_ttl, self._session_ttl) if ttl is not None)])
        while True:
            try:
                await self._expire()
            except StoreError:
                logger.warning("unused sessions could not be deleted", exc_info=True)
            await asyncio.sleep(pause)

    async def _expire(self) -> None:
        # Those that merely rest in this server's memory are in nobody's use.
        for slot in self._residents:
            if not slot.users and slot.session is not None and self._is_due(slot.session):
                await self._residents.drop(slot)
        gone, some = EXPIRE_AT_ONCE, False
        while gone == EXPIRE_AT_ONCE:
            gone = await settled(
                self._store.expire(EXPIRE_AT_ONCE, implicit=self._implicit_ttl, explicit=self._session_ttl)
            )
            some |= gone > 0
        if some:
            self._background.spawn(self._expired())

    def _is_due(self, session: Session) -> bool:
        expires = self.expires(session)
        return expires is not None and expires <= time.time()

    async def _prune(self, tenant: str) -> None:
        """Delete those implicit sessions beyond the limit that were not used for longest."""
        found, after = list[tuple[float, str]](), None
        while True:
            page = await settled(self._store.list(tenant, MAX_LIST, after, implicit=True))
            found += [(info.updated, info.session_id) for info in page.sessions if not info.keep]
            if (after := page.next) is None:
                break
        for _, session_id in sorted(found, reverse=True)[self._most :]:
            await self._delete_idle(session_id, tenant)

    async def _delete_idle(self, session_id: str, tenant: str) -> None:
        """Delete a session unless it is in use, here or at another server."""
        slot = self._residents.get(session_id, tenant)
        if slot is not None and slot.users:
            return
        try:
            if slot is None or slot.session is None:
                await settled(self._store.open(session_id, tenant, self._owner.name))
            await self._delete(session_id, tenant)
        except (LeaseHeldError, UnknownSessionError):
            pass  # another server uses it, or was faster
