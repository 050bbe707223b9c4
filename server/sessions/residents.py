"""Sessions in memory, as many and as long as the settings allow: the longest idle ones leave first."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mc_core.engine.engine import Engine
from mc_core.session.session import Session
from mc_core.store import SessionStore
from server.futures import settled
from server.memory import Leftovers
from server.sessions.background import Background
from server.sessions.departed import Departed
from server.sessions.opening import give_back
from server.sessions.slots import Slot

IDLE_EVERY = 30.0
"""Seconds between two looks for sessions that nobody uses any more; a quarter of the setting's if shorter."""
Key = tuple[str, str]
"""Tenant and id of a session: a bare id opens nothing."""


class Residents:
    """A slot for each session that is in memory, or that somebody waits for, the longest unused first."""

    def __init__(
        self,
        engine: Engine,
        store: SessionStore,
        background: Background,
        *,
        most: int,
        most_tokens: int | None = None,
        idle_seconds: float | None = None,
        followed: Callable[[str], bool] = lambda _: False,
    ) -> None:
        """most, most_tokens: sessions in memory, and tokens of them all; beyond that idle ones leave, but for the last
        one. idle_seconds: without use, after which they leave anyway, but for those that are ``followed`` (by id)."""
        self._engine, self._store, self._background = engine, store, background
        self._most, self._most_tokens, self._idle_seconds = most, most_tokens, idle_seconds
        self._followed = followed
        self._slots: OrderedDict[Key, Slot] = OrderedDict()
        self._trimming = False
        self.departed = Departed()
        self.leftovers = Leftovers()

    def __len__(self) -> int:
        """Sessions in memory."""
        return sum(slot.session is not None for slot in self._slots.values())

    @property
    def tokens(self) -> int:
        """Of all histories in memory."""
        return sum(slot.session.tokens for slot in self._slots.values() if slot.session is not None)

    @property
    def blocks_without_vectors(self) -> int:
        """Of all histories in memory."""
        trees = [slot.session.tree for slot in self._slots.values() if slot.session is not None]
        return sum(tree.num_blocks - tree.made for tree in trees)

    def __iter__(self) -> Iterator[Slot]:
        """Slots as they are now, whatever comes and goes meanwhile."""
        return iter(list(self._slots.values()))

    def get(self, session_id: str, tenant: str) -> Slot | None:
        return self._slots.get((tenant, session_id))

    def add(self, session: Session) -> None:
        """A new session, of which nobody else knows yet."""
        self._slots[session.tenant, session.id] = Slot(session=session)
        self._bound()

    @contextmanager
    def queued(self, session_id: str, tenant: str) -> Iterator[Slot]:
        """Be counted as a user of a slot, which goes when it holds nothing for nobody."""
        key = tenant, session_id
        slot = self._slots.setdefault(key, Slot())
        slot.users += 1
        try:
            yield slot
        finally:
            slot.users -= 1
            slot.used = time.monotonic()
            if slot.session is None and not slot.users and self._slots.get(key) is slot:
                del self._slots[key]
            self._bound()

    def used(self, session_id: str, tenant: str) -> None:
        """It is the last one to leave now."""
        if (slot := self.get(session_id, tenant)) is not None:
            slot.used = time.monotonic()
            self._slots.move_to_end((tenant, session_id))

    async def drop(self, slot: Slot) -> None:
        """Unload a session once nobody uses it."""
        if slot.session is None:
            return
        with self.queued(slot.session.id, slot.session.tenant):
            async with slot.lock:
                await self.forget(slot, keep=True)

    async def forget(self, slot: Slot, *, keep: bool = False) -> None:
        """Unload the session of a slot that one holds, if there is one, and give up its lease. keep: it goes on from
        here when it comes back."""
        if (session := slot.session) is not None:
            fence = session.id, session.fence
            del session  # what it holds must be free once it is unloaded
            await self.unload(slot, keep=keep)
            await give_back(self._store, *fence)

    async def unload(self, slot: Slot, *, keep: bool = False) -> None:
        """The same of a session without a lease."""
        session, slot.session = slot.session, None
        assert session is not None
        await settled(self._engine.release(session, keep=keep))
        self.departed.add(session)
        tokens = session.tokens
        del session
        await self.leftovers.passed(tokens)

    async def clear(self) -> None:
        """Unload all, whoever uses them: the server ends."""
        for slot in self:
            await self.forget(slot, keep=True)
        self._slots.clear()

    async def hibernate(self) -> None:
        """Unload sessions that nobody used for ``idle_seconds``, until cancelled; not at all without."""
        if self._idle_seconds is None:
            return
        while True:
            await asyncio.sleep(min(IDLE_EVERY, self._idle_seconds / 4))
            for slot in self:
                idle = time.monotonic() - slot.used >= self._idle_seconds
                if idle and slot.session is not None and not self._followed(slot.session.id):
                    await self._drop_idle(slot)

    def _over(self) -> bool:
        """Whether there are more than the settings allow."""
        count = len(self)
        return count > self._most or (self._most_tokens is not None and count > 1 and self.tokens > self._most_tokens)

    def _bound(self) -> None:
        if self._over() and not self._trimming:
            self._trimming = True
            self._background.spawn(self._trim())

    async def _trim(self) -> None:
        """Unload the longest idle sessions; they are stored."""
        try:
            for slot in self:
                if not self._over():
                    return
                await self._drop_idle(slot)
        finally:
            self._trimming = False

    async def _drop_idle(self, slot: Slot) -> None:
        if slot.users == 0 and slot.session is not None:
            await self.drop(slot)
