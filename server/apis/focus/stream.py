"""Strips as they come, for one reader."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from server.apis.focus.format import strip_body
from server.live.follower import Follower, Seen
from server.streaming.frames import KEEP_ALIVE, Frame
from server.streaming.response import EventResponse

PAUSE = 0.05
"""Seconds between two strips at least: faster than the eye, slower than an ingest."""


class StripResponse(EventResponse):
    """What a follower sees."""

    def __init__(self, follower: Follower, *, keep_alive: float, limit: int | None, let_go: Callable[[], None]) -> None:
        """limit: strips after which it ends; None: as long as the client stays. let_go: called when it has ended."""
        super().__init__()
        self._follower, self._keep_alive, self._limit, self._let_go = follower, keep_alive, limit, let_go

    def let_go(self) -> None:
        self._let_go()

    async def events(self) -> AsyncIterator[bytes]:
        yield KEEP_ALIVE
        before: Seen | None = None
        told = 0
        while self._limit is None or told < self._limit:
            seen = await self._follower.next(self._keep_alive)
            if seen is None:
                yield KEEP_ALIVE
            elif isinstance(seen, Seen):
                body = await asyncio.to_thread(strip_body, seen, before)
                yield Frame(body, event="strip").encode()
                before, told = seen, told + 1
                await asyncio.sleep(PAUSE)
            else:
                yield Frame({"reason": seen}, event="end").encode()
                return
