"""Which requests with an Idempotency-Key run now, and which were carried out."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from mc_core.errors import MegaContextError
from mc_core.store import MAX_LIST, SessionStore
from server.futures import settled
from server.once.kept import PREFIX, Asked, Kept
from server.streaming.choice import Choice, Tell
from server.streaming.turn_group import TurnGroup
from server.streaming.turn_stream import TurnStream

logger = logging.getLogger(__name__)
SLACK = 8
"""A session's oldest answers beyond the limit are dropped once there are 1 / 8 too many."""
COUNTED = 4096
"""Sessions whose answers are counted in memory."""


@dataclass
class Running:
    """A request under way. stream: its turn, if it has one yet. tell: how that is told as events, if it is."""

    digest: str
    stream: TurnStream | None = None
    tell: Tell | None = None
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _over: asyncio.Event = field(default_factory=asyncio.Event)

    def begins(self, stream: TurnStream, tell: Tell | None) -> None:
        """Its turn is under way."""
        self.stream, self.tell = stream, tell
        self._changed.set()

    def ends(self) -> None:
        self._over.set()
        self._changed.set()

    async def told(self) -> Choice | None:
        """Its turn, to be told as events from the start. None for one that is told whole, or that comes to nothing."""
        await self._changed.wait()
        if self.tell is None or self.stream is None or self.stream.lost:
            return None
        return self.tell(self.stream)

    def stop(self, reason: Exception) -> bool:
        """Stop its turn; whether it has one."""
        if self.stream is None:
            return False
        self.stream.cancel(reason)
        return True

    async def over(self) -> None:
        """Listen until it has ended."""
        await self._changed.wait()
        group = TurnGroup([] if self.stream is None else [self.stream])
        try:
            await self._over.wait()
        finally:
            group.close()


class Book:
    """Keeps at most ``most`` answers a session, each for ``seconds``, for each tenant by itself.

    While a request runs, repetitions of it listen to its turn. Where that is not told as events they wait here until it
    has ended: then they get its answer, or, if it failed and so left no trace, one of them is carried out.
    """

    def __init__(self, store: SessionStore, most: int, seconds: float) -> None:
        self._store, self._most, self._seconds = store, most, seconds
        self._running: dict[tuple[str, str], Running] = {}
        self._counts: OrderedDict[str, int] = OrderedDict()
        self._chores: set[asyncio.Task[None]] = set()

    async def begin(self, tenant: str, asked: Asked) -> Kept | Choice | Running:
        """The answer that is kept, or one that is being told. Running: there is none, and this request runs from here
        until ``end``.

        ApiError 409 for a key of another request.
        """
        name = tenant, asked.note
        while (running := self._running.get(name)) is not None:
            if running.digest and asked.digest:
                asked.check(running.digest)
            if (choice := await running.told()) is not None:
                return choice
            await running.over()
        self._running[name] = Running(asked.digest)
        try:
            found = await self.find(tenant, asked.note)
        except BaseException:
            self.end(tenant, asked)
            raise
        if found is None:
            return self._running[name]
        self.end(tenant, asked)
        return found

    def cancel(self, tenant: str, asked: Asked, reason: Exception) -> bool:
        """Stop the turn of a request; whether there was one."""
        running = self._running.get((tenant, asked.note))
        return running is not None and running.stop(reason)

    def end(self, tenant: str, asked: Asked, turn: Awaitable[object] | None = None) -> None:
        """The request runs no more, once its turn, if it has one, is over."""
        if turn is not None:
            self._chore(self._end_with(tenant, asked, turn))
        else:
            self._running.pop((tenant, asked.note)).ends()

    async def _end_with(self, tenant: str, asked: Asked, turn: Awaitable[object]) -> None:
        try:
            await turn
        finally:
            self.end(tenant, asked)

    async def find(self, tenant: str, key: str) -> Kept | None:
        """The answer of a request that was carried out, if it is kept."""
        found = await settled(self._store.find_note(tenant, key))
        if found is None:
            return None
        session_id, note = found
        kept = Kept.of(note)
        if kept.created > time.time() - self._seconds:
            return kept
        await settled(self._store.delete_note(session_id, tenant, key))
        return None

    def stored(self, session_id: str, tenant: str) -> None:
        """An answer was stored: count it, and drop the session's oldest ones when they are too many."""
        count = self._counts.pop(session_id, None)
        if count is None or count >= self._most + self._most // SLACK:
            self._chore(self._prune(session_id, tenant))
            return
        self._counts[session_id] = count + 1
        while len(self._counts) > COUNTED:
            self._counts.popitem(last=False)

    async def join(self) -> None:
        """Until all that it does beside requests is done."""
        while self._chores:
            await asyncio.wait(set(self._chores))

    def _chore(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._chores.add(task)
        task.add_done_callback(self._chores.discard)

    async def _prune(self, session_id: str, tenant: str) -> None:
        try:
            keys: list[str] = []
            after = None
            while True:
                page = await settled(self._store.notes(session_id, tenant, prefix=PREFIX, after=after, limit=MAX_LIST))
                old = time.time() - self._seconds
                keys += page.corrupt
                for note in page.notes:
                    if Kept.of(note).created <= old:
                        await settled(self._store.delete_note(session_id, tenant, note.key))
                    else:
                        keys.append(note.key)
                if (after := page.next) is None:
                    break
            for key in keys[: max(0, len(keys) - self._most)]:
                await settled(self._store.delete_note(session_id, tenant, key))
            self._counts[session_id] = min(len(keys), self._most)
        except MegaContextError:
            logger.warning("old answers of session %s could not be dropped", session_id, exc_info=True)
