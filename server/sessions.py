"""Sessions in memory: loaded when asked for, one user at a time, the longest idle ones leave first."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from mc_core.engine.engine import Engine
from mc_core.engine.requests import Warmth
from mc_core.errors import SpanMissingError, StoreError
from mc_core.models.threads import aside
from mc_core.session.cut_end import CUT_OFF
from mc_core.session.factory import SessionFactory
from mc_core.session.fork import fork_record
from mc_core.session.session import Session
from mc_core.store import (
    MAX_LIST,
    FencedError,
    LeaseHeldError,
    PrefixMatch,
    SessionPage,
    SessionRecord,
    SessionStore,
    StoreDownError,
    TurnsLostError,
    UnknownSessionError,
)
from server.condition import NONE, Condition
from server.errors import ApiError, not_found, unreadable
from server.futures import settled
from server.live.followers import Followers
from server.memory import Leftovers
from server.owner import Owner
from server.transfer.importing import Importer
from server.transfer.unborn import is_unborn

logger = logging.getLogger(__name__)
PRUNE_SHARE = 16
"""A tenant's implicit sessions beyond the limit are deleted once there may be 1 / 16 too many."""
EXPIRE_EVERY = 60.0
"""Seconds between two looks for implicit sessions that nobody has used for long; a quarter of the time if shorter."""
REMEMBERED = 16_384
"""Sessions that left memory of which the host knows how far the store had them."""
HAND_OVER_EVERY = 0.1
"""Seconds between two looks for sessions that nobody uses any more, while the server drains."""
T = TypeVar("T")
STEADY_TRIES = 8
"""Times that a list is read again where turns end so fast that one ended while it was read."""
EXPIRE_AT_ONCE = 50
"""Sessions deleted in one call, so that others' calls need not wait long behind it."""


@dataclass
class Slot:
    """A place for one session. ``users`` counts who holds or waits for the lock, so that nobody unloads it then.

    interrupt: stops whoever holds the lock, who is told why. progress: tells how far an ingest is that holds it.
    deleting: nobody gets the session any more.
    """

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    session: Session | None = None
    users: int = 0
    interrupt: Callable[[Exception], None] | None = None
    progress: Callable[[], dict[str, Any]] | None = None
    deleting: bool = False


@dataclass(frozen=True)
class Lease:
    """A session, held by one request."""

    session: Session
    source: Warmth
    slot: Slot

    def on_stop(self, stop: Callable[[Exception], None]) -> None:
        """What to call, with the reason, when others want the holder to let go: the session is deleted, say."""
        self.slot.interrupt = stop

    def shows(self, progress: Callable[[], dict[str, Any]]) -> None:
        """What tells others how far the holder is, until it lets go."""
        self.slot.progress = progress


@dataclass(frozen=True)
class Importing:
    """A place for a session that is made of an export."""

    importer: Importer
    slot: Slot

    def done(self, session: Session) -> None:
        """It is there for all from now on."""
        self.slot.session = session


Key = tuple[str, str]


class SessionHost:
    """Gives out sessions by (tenant, id). A bare id opens nothing: the tenant is part of every look-up."""

    def __init__(
        self,
        factory: SessionFactory,
        engine: Engine,
        store: SessionStore,
        *,
        model: str,
        max_resident: int,
        max_implicit: int,
        implicit_ttl: float | None = None,
        followers: Followers | None = None,
        name: str | None = None,
    ) -> None:
        """followers: told of sessions that are deleted. name: of this server, see ``Owner``."""
        self.factory, self.engine, self.store, self.model = factory, engine, store, model
        self._max_resident, self._max_implicit = max_resident, max_implicit
        self._implicit_ttl = implicit_ttl
        self._followers = Followers() if followers is None else followers
        self._owner = Owner(store, name)
        self._slots: OrderedDict[Key, Slot] = OrderedDict()
        self._unpruned: Counter[str] = Counter()
        self._trimming = False
        self._left: OrderedDict[str, int] = OrderedDict()
        self.leftovers = Leftovers()
        self._background: set[asyncio.Task[None]] = set()

    @property
    def resident(self) -> int:
        """Sessions in memory."""
        return sum(slot.session is not None for slot in self._slots.values())

    async def create(
        self,
        tenant: str,
        *,
        metadata: dict[str, Any],
        budget: int | None = None,
        implicit: bool = False,
        kind: str = "sess",
    ) -> Session:
        """A new session, stored and empty; ``kind`` is what its id begins with."""
        session = self.factory.create(
            new_id(kind), tenant, model=self.model, metadata=metadata, budget=budget, implicit=implicit
        )
        stored = await settled(self.store.create(session.record()))
        opened = await settled(self.store.open(session.id, tenant, self._owner.name))
        session.fence, session.created, session.updated = opened.fence, stored.created, stored.updated
        self._slots[tenant, session.id] = Slot(session=session)
        self._bound()
        if implicit:
            self._count_implicit(tenant)
        return session

    async def fork(self, parent: SessionRecord, ids: NDArray[np.int32], pins: Sequence[tuple[int, int]]) -> str | None:
        """A new implicit session of the first tokens ``ids`` of a committed one, whose rows it shares -> its id.

        None if the other one changed meanwhile.
        """
        tail = ids[len(ids) // parent.block_size * parent.block_size :]
        return await self._fork(parent, len(ids), tail, pins, implicit=True)

    async def fork_at(self, parent: SessionRecord, position: int, *, implicit: bool) -> str | None:
        """A new session of the first ``position`` tokens of a committed one, with its pins, whose rows it shares -> its
        id. None if the other one changed meanwhile."""
        if not position:
            return (await self.create(parent.tenant, metadata={}, implicit=implicit)).id
        block, inside = divmod(position, parent.block_size)
        tail = parent.tail
        if inside and block < parent.blocks:
            batch = await settled(self.store.read_span_range(parent.session_id, block, 1))
            if not len(batch.ids):
                raise SpanMissingError(f"the store lost block {block} of session {parent.session_id}")
            tail = batch.ids[0]
        pins = [(start, min(end, position)) for start, end in parent.state["context"]["pins"] if start < position]
        return await self._fork(parent, position, tail[:inside], pins, implicit=implicit)

    async def _fork(
        self,
        parent: SessionRecord,
        tokens: int,
        tail: NDArray[np.int32],
        pins: Sequence[tuple[int, int]],
        *,
        implicit: bool,
    ) -> str | None:
        tenant = parent.tenant
        session = self.factory.create(new_id(), tenant, model=self.model, implicit=implicit)
        await settled(self.store.fork(parent.session_id, tenant, fork_record(session, parent, tokens, tail, pins)))
        if implicit:
            self._count_implicit(tenant)
        if (await self.info(parent.session_id, tenant)).sequence != parent.sequence:
            await self.delete(session.id, tenant)
            return None
        return session.id

    def _count_implicit(self, tenant: str) -> None:
        self._unpruned[tenant] += 1
        if self._unpruned[tenant] > self._max_implicit // PRUNE_SHARE:
            del self._unpruned[tenant]
            self._spawn(self._prune(tenant))

    @asynccontextmanager
    async def passing(self, tenant: str) -> AsyncIterator[Lease]:
        """A session for one request alone, of which nothing goes to the store; it takes no place among the others."""
        slot = Slot(session=self.factory.create(new_id(), tenant, model=self.model, durable=False))
        assert slot.session is not None
        try:
            yield Lease(slot.session, "warm", slot)
        finally:
            await self._unload(slot)

    @asynccontextmanager
    async def use(self, session_id: str, tenant: str, expected: Condition = NONE) -> AsyncIterator[Lease]:
        """Hold a session; others wait in line. UnknownSessionError if this tenant has none of that name, ApiError if it
        is not as ``expected`` when its turn has come."""
        key = (tenant, session_id)
        with self._queued(key) as slot:
            expected.check_free(session_id, slot.users - 1)
            async with slot.lock:
                if slot.deleting:
                    raise UnknownSessionError(session_id)
                source: Warmth = "warm"
                if slot.session is None:
                    slot.session, source = await self._load(session_id, tenant), "restored"
                if self._slots.get(key) is slot:
                    self._slots.move_to_end(key)
                expected.check(session_id, slot.session.sequence)
                try:
                    yield Lease(slot.session, source, slot)
                except (FencedError, StoreDownError) as error:
                    # Somebody else owns it now, it is gone, or nobody knows what the store has of it; what is in
                    # memory is worth nothing.
                    await self._forget(slot)
                    if isinstance(error, TurnsLostError):
                        self._left.pop(session_id, None)  # this client is told
                    raise
                finally:
                    slot.interrupt = slot.progress = None
                    if slot.session is not None and slot.session.broken:
                        await self._forget(slot)

    @asynccontextmanager
    async def importing(self, session_id: str, tenant: str) -> AsyncIterator[Importing]:
        """Make a session of an export; who asks for one of that name meanwhile waits."""
        with self._queued((tenant, session_id)) as slot:
            async with slot.lock:
                importer = Importer(self.store, self.factory, self.model, self._owner.name)
                yield Importing(importer, slot)

    @contextmanager
    def _queued(self, key: Key) -> Iterator[Slot]:
        """Be counted as a user of a slot, which goes when it holds nothing for nobody."""
        slot = self._slots.setdefault(key, Slot())
        slot.users += 1
        try:
            yield slot
        finally:
            slot.users -= 1
            if slot.session is None and not slot.users and self._slots.get(key) is slot:
                del self._slots[key]
            self._bound()

    def peek(self, session_id: str, tenant: str) -> Session | None:
        """The session if it is in memory, without holding it: for reading its plain fields."""
        slot = self._slots.get((tenant, session_id))
        return slot.session if slot is not None else None

    def progress(self, session_id: str, tenant: str) -> dict[str, Any] | None:
        """How far the ingest is that holds the session, if one does."""
        slot = self._slots.get((tenant, session_id))
        return slot.progress() if slot is not None and slot.progress is not None else None

    def busy(self, session_id: str, tenant: str) -> bool:
        """Whether a request holds or waits for the session."""
        slot = self._slots.get((tenant, session_id))
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
        await settled(self.store.record(session_id, tenant))
        with self._queued((tenant, session_id)) as slot:
            slot.deleting = True
            if slot.interrupt is not None:
                slot.interrupt(not_found("the session was deleted meanwhile", "session_not_found"))
            try:
                async with slot.lock:
                    await self._forget(slot)
                    await settled(self.store.delete(session_id, tenant))
                    self._followers.gone(session_id)
            finally:
                slot.deleting = False

    def stop(self, session_id: str, tenant: str, reason: Exception) -> bool:
        """Stop who holds the session, if anyone does who can be stopped; it is told the reason."""
        slot = self._slots.get((tenant, session_id))
        if slot is None or slot.interrupt is None:
            return False
        slot.interrupt(reason)
        return True

    async def match(self, tenant: str, hashes: Sequence[str]) -> PrefixMatch | None:
        """The implicit session that holds the longest prefix, hashes longest first."""
        return await settled(self.store.find_prefix(tenant, self.model, hashes))

    async def close(self) -> None:
        """Give up all leases; every session is stored already."""
        for task in list(self._background):
            await asyncio.gather(task, return_exceptions=True)
        for slot in self._slots.values():
            await self._forget(slot)
        self._slots.clear()

    def hand_over(self) -> None:
        """From now on, as the server drains, give up each session as soon as nobody uses it: other servers have it."""
        self._spawn(self._hand_over())

    async def _hand_over(self) -> None:
        while self.resident:
            for slot in list(self._slots.values()):
                if slot.users == 0 and slot.session is not None:
                    await self._drop(slot)
            await asyncio.sleep(HAND_OVER_EVERY)

    async def keep_leases(self) -> None:
        """Renew the leases of all sessions in memory, until cancelled; drop those that somebody else took over."""
        while True:
            held = {s.session.id: (s, s.session.fence) for s in self._slots.values() if s.session is not None}
            try:
                lost = await self._owner.renew({name: fence for name, (_, fence) in held.items()})
            except StoreError:
                logger.warning("leases could not be renewed", exc_info=True)
                lost = ()
            for slot in (held[name][0] for name in lost):
                if not slot.users and slot.session is not None:
                    await self._drop(slot)
            await asyncio.sleep(self.store.lease_seconds / 3)

    async def _load(self, session_id: str, tenant: str) -> Session:
        stored = await settled(self.store.open(session_id, tenant, self._owner.name))
        try:
            if is_unborn(stored.record):
                raise UnknownSessionError(session_id)
            self._check_whole(session_id, stored.record.sequence)
            return await asyncio.to_thread(aside, lambda: self.factory.load(stored, self.store))
        except Exception as error:
            await settled(self.store.release(session_id, stored.fence))
            if isinstance(error, StoreDownError | TurnsLostError | UnknownSessionError):
                raise
            # Whatever it is, it is not the fault of the request that asked for the session.
            raise unreadable(session_id, error) from error

    def _check_whole(self, session_id: str, sequence: int) -> None:
        """TurnsLostError, once, if the store has less of a session than it had when it left this server's memory."""
        known = self._left.pop(session_id, 0)
        if sequence < known:
            raise TurnsLostError(
                f"the store lost acknowledged commits of session {session_id!r}: it has {sequence} of {known}"
            )

    async def _forget(self, slot: Slot) -> None:
        if (session := slot.session) is not None:
            fence = session.id, session.fence
            del session  # what it holds must be free once it is unloaded
            await self._unload(slot)
            await settled(self.store.release(*fence))

    async def _unload(self, slot: Slot) -> None:
        session, slot.session = slot.session, None
        assert session is not None
        await settled(self.engine.release(session))
        self._left[session.id] = session.sequence
        while len(self._left) > REMEMBERED:
            self._left.popitem(last=False)
        tokens = session.tokens
        del session
        await self.leftovers.passed(tokens)

    def _bound(self) -> None:
        if self.resident > self._max_resident and not self._trimming:
            self._trimming = True
            self._spawn(self._trim())

    async def _trim(self) -> None:
        """Unload the longest idle sessions; they are stored."""
        try:
            for slot in list(self._slots.values()):
                if self.resident <= self._max_resident:
                    return
                if slot.users == 0 and slot.session is not None:
                    await self._drop(slot)
        finally:
            self._trimming = False

    async def _drop(self, slot: Slot) -> None:
        """Unload a session that nobody uses."""
        assert slot.session is not None
        with self._queued((slot.session.tenant, slot.session.id)):
            async with slot.lock:
                await self._forget(slot)

    async def _prune(self, tenant: str) -> None:
        """Delete those implicit sessions beyond the limit that were not used for longest."""
        found, after = list[tuple[float, str]](), None
        while True:
            page = await settled(self.store.list(tenant, MAX_LIST, after, implicit=True))
            found += [(info.updated, info.session_id) for info in page.sessions]
            if (after := page.next) is None:
                break
        for _, session_id in sorted(found, reverse=True)[self._max_implicit :]:
            await self._delete_idle(session_id, tenant)

    async def _delete_idle(self, session_id: str, tenant: str) -> None:
        """Delete a session unless it is in use, here or at another server."""
        if self.busy(session_id, tenant):
            return
        try:
            if self.peek(session_id, tenant) is None:
                await settled(self.store.open(session_id, tenant, self._owner.name))
            await self.delete(session_id, tenant)
        except (LeaseHeldError, UnknownSessionError):
            pass  # another server uses it, or was faster

    async def expire(self) -> None:
        """Delete implicit sessions that were not used for ``implicit_ttl``, until cancelled; not at all without one.

        Their rest in memory keeps nobody: here they are unloaded first. Servers that share a store may all do this.
        """
        if self._implicit_ttl is None:
            return
        while True:
            try:
                await self._expire(self._implicit_ttl)
            except StoreError:
                logger.warning("unused implicit sessions could not be deleted", exc_info=True)
            await asyncio.sleep(min(EXPIRE_EVERY, self._implicit_ttl / 4))

    async def _expire(self, ttl: float) -> None:
        before = time.time() - ttl
        for slot in list(self._slots.values()):
            session = slot.session
            if not slot.users and session is not None and session.implicit and session.updated <= before:
                del session
                await self._drop(slot)
        gone = EXPIRE_AT_ONCE
        while gone == EXPIRE_AT_ONCE:
            gone = await settled(self.store.expire(ttl, EXPIRE_AT_ONCE))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._background.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.error("keeping sessions within bounds failed", exc_info=task.exception())


def new_id(kind: str = "sess") -> str:
    """Of a session, never given out before."""
    return f"{kind}_{secrets.token_hex(12)}"
