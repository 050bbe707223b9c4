"""The events of one turn, on their way from the engine's threads to those who read them."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable

from mc_core.engine.requests import Delta, Event, Failed, Finished
from mc_core.errors import CancelledTurnError
from server.errors import gone_for_long, stream_lost

logger = logging.getLogger(__name__)
MAX_BEHIND = 16_384
"""Events that the one reader of a turn may be behind; one that reads more slowly loses its turn: memory is bounded."""
MAX_KEPT = 65_536
"""Newest events of a turn that are kept for those who come back; while a longer reply runs it can't be told again."""

Observe = Callable[[Event, float], None]
"""Told of each event and when it came (monotonic seconds)."""


class TurnStream:
    """The events of one turn, numbered from 0. The last one is Finished or Failed.

    A turn lives as long as somebody listens, and has one reader, who takes the events along. One that is told to
    ``keep`` lives longer, and its events stay, so that any number may read them, each from the first one on.

    tag: tells this turn from others. first_delta: seconds until the first one came. generated: tokens so far. recorded:
    events so far for a client, where a record of them is kept; never fewer than any client was told. watch: told of
    each event on the thread where it happens.
    """

    def __init__(self, watch: Callable[[Event], None] | None = None, observe: Observe | None = None) -> None:
        self._watch, self._observe = watch, observe
        self.tag = secrets.token_hex(4)
        self.session_id: str | None = None
        self.started = asyncio.Event()
        self.patience = 0.0
        self._listeners = 0
        self._events: list[Event | None] = []
        self._read = 0
        self._more = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._leaving: asyncio.TimerHandle | None = None
        self._stop: Callable[[], object] | None = None
        self._cancelled = False
        self._reason: Exception | None = None
        self._over: asyncio.Future[Finished | Failed] = self._loop.create_future()
        self._began = time.monotonic()
        self.first_delta: float | None = None
        self.generated = self.recorded = 0
        self.sequence: int | None = None

    # -- who listens -----------------------------------------------------------------------------------------------

    def keep(self, patience: float) -> None:
        """Go on so long while nobody listens, from now on, and keep the events. Called before anybody reads."""
        self.patience = patience
        self.arrive()
        self.leave()

    def arrive(self) -> None:
        """Somebody listens from now on."""
        self._listeners += 1
        if self._leaving is not None:
            self._leaving.cancel()

    def leave(self) -> None:
        """Who had arrived listens no more: the last one takes the turn along, if none comes in time."""
        self._listeners -= 1
        if self._listeners or self._over.done():
            return
        if not self.patience:
            self.cancel()
        else:
            self._leaving = self._loop.call_later(self.patience, self.cancel, gone_for_long(self.patience))

    async def at(self, place: int) -> Event:
        """The event of that number, as soon as it is there. ApiError 410 for one that is not kept any more."""
        while place >= len(self._events):
            await self._more.wait()
        event, self._read = self._events[place], max(self._read, place + 1)
        if not self.patience:
            self._events[place] = None
        if event is None:
            raise stream_lost()
        return event

    def check_kept(self) -> None:
        """ApiError 410 unless the turn can be told from its start."""
        if self._events and self._events[0] is None:
            raise stream_lost()

    # -- how it ends -----------------------------------------------------------------------------------------------

    @property
    def lost(self) -> bool:
        """Whether the turn has failed, or is about to."""
        return self.failure() is not None or (self._cancelled and not self._over.done())

    def failure(self) -> Exception | None:
        """What the turn failed with, if it has failed already."""
        return error_of(self._over.result()) if self._over.done() else None

    def cancel(self, reason: Exception | None = None) -> None:
        """Stop the turn, wherever it is; as often as one likes. Its readers are told the first reason that is given."""
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

    @property
    def ended(self) -> bool:
        """Whether its end was told."""
        return self._over.done()

    async def over(self) -> Finished | Failed:
        """Until the engine has let go of the session -> the last event."""
        return await self._over

    # -- what it tells ---------------------------------------------------------------------------------------------

    def sink(self, event: Event) -> None:
        """Called on threads of the engine and the store. The reader gets the event whatever becomes of who watches."""
        try:
            if self._watch is not None:
                self._watch(event)
        finally:
            self._loop.call_soon_threadsafe(self.put, event)

    def put(self, event: Event) -> None:
        """Hand an event to the readers; nothing follows the last one."""
        if self._over.done():
            return
        if self._reason is not None and isinstance(error_of(event), CancelledTurnError):
            event = Failed(self._reason)
        self._measured(event)
        self._events.append(event)
        self._more.set()
        self._more = asyncio.Event()
        if isinstance(event, Delta):
            self.generated += len(event.token_ids)
            if self.first_delta is None:
                self.first_delta = time.monotonic() - self._began
        if isinstance(event, Finished):
            self.sequence = event.context.sequence
        if isinstance(event, Finished | Failed):
            self._over.set_result(event)
            self.started.set()
            if self._leaving is not None:
                self._leaving.cancel()
        else:
            self._bound()

    def _measured(self, event: Event) -> None:
        """Tell who measures; what fails there harms no stream."""
        try:
            if self._observe is not None:
                self._observe(event, time.monotonic())
        except Exception:
            logger.exception("an event of a turn could not be measured")

    def _bound(self) -> None:
        if not self.patience:
            if len(self._events) - self._read > MAX_BEHIND:
                self.cancel()
        elif len(self._events) > MAX_KEPT:
            self._events[-1 - MAX_KEPT] = None


def error_of(event: Event) -> Exception | None:
    return event.error if isinstance(event, Failed) else None
