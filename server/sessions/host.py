"""Gives out sessions: from memory or from the store, to one user at a time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any, TypeVar

from mc_core.engine.engine import Engine
from mc_core.engine.requests import Warmth
from mc_core.errors import MegaContextError
from mc_core.session.cut_end import CUT_OFF
from mc_core.session.factory import SessionFactory
from mc_core.session.session import Session
from mc_core.store import (
    DamagedRecordError,
    FencedError,
    LeaseHeldError,
    PrefixMatch,
    SessionPage,
    SessionRecord,
    SessionStore,
    StoreDownError,
    StoredSession,
    TurnsLostError,
    UnknownSessionError,
)
from server.condition import NONE, Condition
from server.errors import ApiError, not_found
from server.futures import settled
from server.live.followers import Followers
from server.sessions.background import Background
from server.sessions.expiry import Expiry
from server.sessions.kv_files import KVFiles
from server.sessions.lease_keeper import LeaseKeeper
from server.sessions.names import new_id
from server.sessions.opening import give_back, open_session
from server.sessions.owner import PATIENCE, SHORT_PATIENCE, Owner
from server.sessions.residents import Residents
from server.sessions.slots import Importing, Lease, Slot
from server.transfer.importing import Importer
from server.transfer.unborn import is_unborn

logger = logging.getLogger(__name__)
T = TypeVar("T")
STEADY_TRIES = 8
"""Times that a list is read again where turns end so fast that one ended while it was read."""


class SessionHost:
    """Sessions by (tenant, id). A bare id opens nothing: the tenant is part of every look-up."""

    def __init__(
        self,
        factory: SessionFactory,
        engine: Engine,
        store: SessionStore,
        *,
        model: str,
        max_resident: int,
        max_resident_tokens: int | None = None,
        idle_seconds: float | None = None,
        max_implicit: int,
        implicit_ttl: float | None = None,
        session_ttl: float | None = None,
        followers: Followers | None = None,
        name: str | None = None,
    ) -> None:
        """followers: told of sessions that are deleted; theirs are not idle. name: of this server, see ``Owner``."""
        self.factory, self.engine, self.store, self.model = factory, engine, store, model
        self._followers = Followers() if followers is None else followers
        self._owner, self._background = Owner(store, name), Background()
        self.residents = Residents(
            engine,
            store,
            self._background,
            most=max_resident,
            most_tokens=max_resident_tokens,
            idle_seconds=idle_seconds,
            followed=self._followers.any_of,
        )
        self.kv_files = KVFiles(engine.core.keeper, store)
        self.leases = LeaseKeeper(self.residents, store, self._owner, self._background)
        self.expiry = Expiry(
            self.residents,
            store,
            self._owner,
            self._background,
            self.delete,
            self.kv_files.sweep,
            most=max_implicit,
            implicit_ttl=implicit_ttl,
            session_ttl=session_ttl,
        )

    @property
    def name(self) -> str:
        """In which this server holds sessions."""
        return self._owner.name

    async def create(
        self,
        tenant: str,
        *,
        metadata: dict[str, Any],
        budget: int | None = None,
        implicit: bool = False,
        keep: bool = False,
        ttl: float | None = None,
        kind: str = "sess",
    ) -> Session:
        """A new session, stored and empty; ``kind`` is what its id begins with."""
        session = self.factory.create(
            new_id(kind), tenant, model=self.model, metadata=metadata, budget=budget, implicit=implicit
        )
        session.keep, session.ttl = keep, ttl
        try:
            stored = await settled(self.store.create(session.record()))
            opened = await settled(self.store.open(session.id, tenant, self._owner.name))
        except asyncio.CancelledError:
            self.forsake(session.id, tenant)
            raise
        session.fence, session.created, session.updated = opened.fence, stored.created, stored.updated
        self.residents.add(session)
        if implicit:
            self.expiry.made_implicit(tenant)
        return session

    @asynccontextmanager
    async def passing(self, tenant: str) -> AsyncIterator[Lease]:
        """A session for one request alone, of which nothing goes to the store; it takes no place among the others."""
        slot = Slot(session=self.factory.create(new_id(), tenant, model=self.model, durable=False))
        assert slot.session is not None
        try:
            yield Lease(slot.session, "warm", slot)
        finally:
            await self.residents.unload(slot)

    @asynccontextmanager
    async def use(
        self,
        session_id: str,
        tenant: str,
        expected: Condition = NONE,
        patience: float = PATIENCE,
        *,
        fresh: bool = False,
    ) -> AsyncIterator[Lease]:
        """Hold a session; others wait in line. UnknownSessionError if this tenant has none of that name, ApiError if it
        is not as ``expected`` when its turn has come, LeaseHeldError if another server does not hand it over within
        ``patience`` seconds. fresh: it was made for this use alone, and goes again if nothing is stored in it."""
        with self.residents.queued(session_id, tenant) as slot:
            expected.check_free(session_id, slot.users - 1)
            async with slot.lock:
                if slot.deleting:
                    raise UnknownSessionError(session_id)
                source: Warmth = "warm"
                if slot.session is None:
                    slot.session, source = await self._open(slot, session_id, tenant, expected, patience), "restored"
                    self._make_vectors(slot)
                self.residents.used(session_id, tenant)
                expected.check(session_id, before := slot.session.sequence)
                try:
                    yield Lease(slot.session, source, slot)
                except (FencedError, StoreDownError) as error:
                    # Somebody else owns it now, it is gone, or nobody knows what the store has of it; what is in
                    # memory is worth nothing.
                    await self.residents.forget(slot)
                    if isinstance(error, TurnsLostError):
                        self.residents.departed.forget(session_id)  # this client is told
                    raise
                finally:
                    slot.interrupt = slot.progress = None
                    if slot.session is not None and slot.session.broken:
                        await self.residents.forget(slot)
                    elif fresh and slot.session is not None and slot.session.sequence == before:
                        self._background.spawn(self._take_back(session_id, tenant, before))

    async def amend(
        self, session_id: str, tenant: str, fields: Mapping[str, Any], expected: Condition = NONE
    ) -> SessionRecord:
        """Other values for ``fields`` of a record, under a lease, of a session that need not be readable here, and is
        not in memory. Errors as of ``use``."""
        with self.residents.queued(session_id, tenant) as slot:
            expected.check_free(session_id, slot.users - 1)
            async with slot.lock:
                if slot.deleting:
                    raise UnknownSessionError(session_id)
                stored = await self._take(slot, session_id, tenant, expected, PATIENCE)
                try:
                    expected.check(session_id, stored.record.sequence)
                    await settled(self.store.commit(replace(stored.record, **fields), beyond="keep"))
                finally:
                    await give_back(self.store, session_id, stored.fence)
        return await self.info(session_id, tenant)

    async def _take_back(self, session_id: str, tenant: str, sequence: int) -> None:
        """Delete a session unless something was stored in it behind that commit: somebody may have heard of it."""
        with suppress(UnknownSessionError, LeaseHeldError):
            async with self.use(session_id, tenant, patience=SHORT_PATIENCE) as held:
                if held.session.sequence == sequence:
                    await self._remove(held.slot, session_id, tenant)

    def forsake(self, session_id: str, tenant: str) -> None:
        """Delete a session that nobody has heard of, in a while."""

        async def delete() -> None:
            with suppress(UnknownSessionError):
                await self.delete(session_id, tenant)

        self._background.spawn(delete())

    @asynccontextmanager
    async def importing(self, session_id: str, tenant: str) -> AsyncIterator[Importing]:
        """Make a session of an export; who asks for one of that name meanwhile waits."""
        with self.residents.queued(session_id, tenant) as slot:
            async with slot.lock:
                importer = Importer(self.store, self.factory, self.model, self._owner.name)
                try:
                    yield Importing(importer, slot)
                finally:
                    self._make_vectors(slot)

    def peek(self, session_id: str, tenant: str) -> Session | None:
        """The session if it is in memory, without holding it: for reading its plain fields."""
        slot = self.residents.get(session_id, tenant)
        return slot.session if slot is not None else None

    def look(self, session_id: str, tenant: str) -> Session | None:
        """The same for a request that would have it brought into memory: so it is in use, as if it had been."""
        session = self.peek(session_id, tenant)
        if session is not None:
            self.residents.used(session_id, tenant)
        return session

    def progress(self, session_id: str, tenant: str) -> dict[str, Any] | None:
        """How far the ingest is that holds the session, if one does."""
        slot = self.residents.get(session_id, tenant)
        return slot.progress() if slot is not None and slot.progress is not None else None

    def busy(self, session_id: str, tenant: str) -> bool:
        """Whether a request holds or waits for the session."""
        slot = self.residents.get(session_id, tenant)
        return slot is not None and slot.users > 0

    async def info(self, session_id: str, tenant: str) -> SessionRecord:
        """The committed record; UnknownSessionError if there is none."""
        record = await settled(self.store.record(session_id, tenant))
        if is_unborn(record):
            raise UnknownSessionError(session_id)
        return record

    async def steady(self, session_id: str, tenant: str, read: Callable[[], Awaitable[T]]) -> T:
        """What ``read`` finds in the store of a session while no turn there is about to write its end anew.

        Not for one who holds the session: it may have to be brought back to what it was before a server crashed.
        """
        for _ in range(STEADY_TRIES):
            before = await self.info(session_id, tenant)
            if CUT_OFF in before.state:
                async with self.use(session_id, tenant):
                    continue
            try:
                found = await read()
            except ApiError:
                if await self._stands(before):
                    raise
            else:
                if await self._stands(before):
                    return found
        return await read()

    async def _stands(self, record: SessionRecord) -> bool:
        """Whether nothing was stored of a session since its record was read."""
        return (await self.info(record.session_id, record.tenant)).sequence == record.sequence

    async def known(self, session_id: str, tenant: str) -> None:
        """UnknownSessionError if there is no such session; one in memory goes on though the store is away."""
        if self.peek(session_id, tenant) is None:
            await self.info(session_id, tenant)

    async def list(self, tenant: str, limit: int, after: str | None, implicit: bool | None = None) -> SessionPage:
        page = await settled(self.store.list(tenant, limit, after, implicit))
        return replace(page, sessions=tuple(info for info in page.sessions if not is_unborn(info)))

    async def delete(self, session_id: str, tenant: str) -> None:
        """Delete a session, its spans and gists; who holds it is stopped, who waits for it finds nothing."""
        with suppress(DamagedRecordError):  # which is there, and can be deleted
            await settled(self.store.record(session_id, tenant))
        with self.residents.queued(session_id, tenant) as slot:
            slot.deleting = True
            if slot.interrupt is not None:
                slot.interrupt(not_found("the session was deleted meanwhile", "session_not_found"))
            try:
                async with slot.lock:
                    await self._remove(slot, session_id, tenant)
            finally:
                slot.deleting = False

    async def _remove(self, slot: Slot, session_id: str, tenant: str) -> None:
        await self.residents.forget(slot)
        await settled(self.store.delete(session_id, tenant))
        await self.kv_files.drop(session_id, tenant)
        self._followers.gone(session_id)

    def stop(self, session_id: str, tenant: str, reason: Exception) -> bool:
        """Stop who holds the session, if anyone does who can be stopped; it is told the reason."""
        slot = self.residents.get(session_id, tenant)
        if slot is None or slot.interrupt is None:
            return False
        slot.interrupt(reason)
        return True

    async def match(self, tenant: str, hashes: Sequence[str]) -> PrefixMatch | None:
        """The implicit session that holds the longest prefix, hashes longest first."""
        return await settled(self.store.find_prefix(tenant, self.model, hashes))

    async def close(self) -> None:
        """Give up all leases; every session is stored already."""
        await self._background.join()
        await self.residents.clear()

    def _make_vectors(self, slot: Slot) -> None:
        """Those that the session of the slot lacks, beside its users and for as long as it is in memory."""
        session = slot.session

        async def make(session: Session) -> None:
            try:
                await settled(self.engine.make_vectors(session))
            except (FencedError, StoreDownError):
                if slot.session is session:  # what is in memory is worth nothing
                    await self.residents.drop(slot)
            except MegaContextError:
                logger.exception("session %s lacks vectors until it is loaded again", session.id)

        if session is not None and not session.tree.whole:
            self._background.spawn(make(session))

    async def _open(self, slot: Slot, session_id: str, tenant: str, expected: Condition, patience: float) -> Session:
        stored = await self._take(slot, session_id, tenant, expected, patience)
        return await open_session(stored, store=self.store, factory=self.factory, departed=self.residents.departed)

    async def _take(
        self, slot: Slot, session_id: str, tenant: str, expected: Condition, patience: float
    ) -> StoredSession:
        """A lease of the session."""
        patience = patience if expected.waits else SHORT_PATIENCE
        try:
            stored = await self._owner.open(session_id, tenant, patience, lambda: slot.deleting)
        except LeaseHeldError:
            expected.check_free(session_id, 1)
            raise
        slot.promised = False
        return stored
