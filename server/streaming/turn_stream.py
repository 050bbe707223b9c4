"""The events of one turn, on their way from the engine's threads to one reader."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from mc_core.engine.requests import Delta, Event, Failed, Finished
from mc_core.errors import CancelledTurnError
from server.streaming.pieces import PieceReader, PlainReader

MAX_BEHIND = 16_384
"""Events that a reader may be behind; one that reads more slowly loses its turn, since memory is bounded."""


class TurnStream:
    """The events of one turn, for one reader. The last one is Finished or Failed.

    first_delta: seconds until the first one came. generated: tokens so far. watch: told of each event on the thread
    where it happens. pieces: finds calls of tools in the turn's words.
    """

    def __init__(self, watch: Callable[[Event], None] | None = None, pieces: PieceReader | None = None) -> None:
        self._watch, self.pieces = watch, pieces or PlainReader()
        self.session_id: str | None = None
        self.started = asyncio.Event()
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._stop: Callable[[], object] | None = None
        self._cancelled = False
        self._reason: Exception | None = None
        self._over: asyncio.Future[Finished | Failed] = self._loop.create_future()
        self._began = time.monotonic()
        self.first_delta: float | None = None
        self.generated = 0
        self.sequence: int | None = None

    async def next(self) -> Event:
        return await self._events.get()

    def failure(self) -> Exception | None:
        """What the turn failed with, if it has failed already."""
        return error_of(self._over.result()) if self._over.done() else None

    def cancel(self, reason: Exception | None = None) -> None:
        """Stop the turn, wherever it is; as often as one likes. Its reader is told the first reason that is given."""
        if not self._over.done():
            self._cancelled = True
            self._reason = self._reason or reason
            if self._stop is not None:
                self._stop()

    def stops_with(self, stop: Callable[[], object]) -> None:
        """What stops the turn from now on."""
        self._stop = stop
        if self._cancelled:
            stop()

    def sink(self, event: Event) -> None:
        """Called on threads of the engine and the store. The reader gets the event whatever becomes of who watches."""
        try:
            if self._watch is not None:
                self._watch(event)
        finally:
            self._loop.call_soon_threadsafe(self.put, event)

    def put(self, event: Event) -> None:
        """Hand an event to the reader; nothing follows the last one."""
        if self._over.done():
            return
        if self._reason is not None and isinstance(error_of(event), CancelledTurnError):
            event = Failed(self._reason)
        self._events.put_nowait(event)
        if isinstance(event, Delta):
            self.generated += len(event.token_ids)
            if self.first_delta is None:
                self.first_delta = time.monotonic() - self._began
        if isinstance(event, Finished):
            self.sequence = event.context.sequence
        if isinstance(event, Finished | Failed):
            self._over.set_result(event)
            self.started.set()
        elif self._events.qsize() > MAX_BEHIND:
            self.cancel()

    async def over(self) -> Finished | Failed:
        """Until the engine has let go of the session -> the last event."""
        return await self._over


def error_of(event: Event) -> Exception | None:
    return event.error if isinstance(event, Failed) else None
