"""How calls of the Redis store travel: in lanes, on one event loop in a thread of its own."""

from __future__ import annotations

import asyncio
import secrets
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

from mc_core.store import StoreDownError, StoreHealth
from server.stores.lanes import Lanes, Operation, settle
from server.stores.redis.leases import Leases
from server.stores.redis.link import Link, Reply, retrying
from server.stores.redis.place import CONNECTIONS, Place
from server.stores.redis.reader import Send
from server.stores.redis.writer import Sending, Write, Writer

T = TypeVar("T")
FULL = 0.75
"""Share of the buffer from which new work is turned away, so that turns under way find room to end."""
PROBE = 1.0
"""Seconds that a health check waits for Redis."""


class Calls:
    """Opens the connections (StoreError), orders calls by session, gives up those that waited too long for Redis.

    ``leases`` is for the event loop alone: for what commands and replies do.
    """

    def __init__(self, place: Place, max_pending: int) -> None:
        self.place = place
        self._max_pending = max_pending
        self._closing = threading.Lock()
        self._closed = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="store-redis", daemon=True)
        self._thread.start()
        try:
            self._run(self._start())
        except BaseException:
            self._end_loop()
            raise

    async def _start(self) -> None:
        self._name = secrets.token_hex(8)
        self._link = Link(self.place)
        await self._link.connect()
        self.leases = Leases()
        self._lanes = Lanes(self._dispatch, self._max_pending)
        self._writer = Writer(self._name, self._link, self.leases, self._lanes.done, self._missed)
        self._reads = asyncio.Semaphore(CONNECTIONS - 1)  # one is the writer's
        self._reading: set[asyncio.Task[None]] = set()
        self._writing = asyncio.create_task(self._writer.serve())

    @property
    def away(self) -> bool:
        """Whether Redis did not answer last time."""
        return self._link.down_since is not None

    def health(self) -> Future[StoreHealth]:
        """See SessionStore.healthy; no need to try while others already do."""
        answer: Future[StoreHealth] = Future()
        answer.set_running_or_notify_cancel()
        if self.away and self._writer.busy:
            answer.set_result(self._health(self._link.down()))
            return answer
        probe: Future[None] = self.write(lambda _: ("probe",), None, patience=PROBE)
        probe.add_done_callback(lambda done: answer.set_result(self._health(done.exception())))
        return answer

    def _health(self, error: BaseException | None) -> StoreHealth:
        pending, since = self._lanes.pending_bytes, self._link.down_since
        if error is None:
            return StoreHealth(True, "", pending)
        if since is None:
            return StoreHealth(False, str(error), pending)
        text = f"{error}; down for {time.monotonic() - since:.0f} s, {pending} bytes wait to be written"
        return StoreHealth(False, text, pending, degraded=self.overloaded() is None)

    def overloaded(self) -> str | None:
        """See SessionStore.overloaded."""
        pending = self._lanes.pending_bytes
        if self._link.down_since is None or pending < FULL * self._max_pending:
            return None
        return f"the store can't be reached and {pending} bytes wait for it, of {self._max_pending} at most"

    def close(self) -> None:
        """Applies what is queued, then ends."""
        with self._closing:
            if self._closed:
                return
            self._closed = True
            self._lanes.drain()
            self._run(self._finish())
            self._end_loop()

    def write(
        self,
        run: Callable[[Sending], Sequence[Any]],
        lane: str | None,
        take: Callable[[Reply], T] = lambda _: None,  # type: ignore[assignment, return-value]
        *,
        fence: int | None = None,
        size: int = 0,
        patience: float | None = None,
        durable: bool = True,
        frees: bool = False,
    ) -> Future[T]:
        """See Write; ``patience`` instead of the place's deadline."""
        deadline = time.monotonic() + (self.place.deadline if patience is None else patience)
        write = Write(run, lane, True, durable, size, frees, take=take, fence=fence, deadline=deadline)
        future = self._lanes.submit(write)
        if fence and lane and future.done() and isinstance(future.exception(), StoreDownError):
            # Refused, the buffer is full: what this lease writes next would have a gap before it.
            self._loop.call_soon_threadsafe(self.leases.lose, lane, fence)
        return future

    def read(self, run: Callable[[Send], Awaitable[T]], lane: str | None) -> Future[T]:
        return self._lanes.submit(Operation(run, lane, deadline=time.monotonic() + self.place.patience))

    async def _finish(self) -> None:
        self._writer.stop()
        await self._writing
        await self._link.close(self._name)

    def _dispatch(self, operation: Operation) -> None:
        if isinstance(operation, Write):
            self._loop.call_soon_threadsafe(self._writer.put, operation)
        else:
            self._loop.call_soon_threadsafe(self._begin_read, operation)

    def _begin_read(self, operation: Operation) -> None:
        task = self._loop.create_task(self._serve_read(operation))
        self._reading.add(task)
        task.add_done_callback(self._reading.discard)

    async def _serve_read(self, operation: Operation) -> None:
        async def failed(error: Exception) -> None:
            await self._missed(error)
            if time.monotonic() >= operation.deadline:
                raise self._link.down() from error

        result, trouble = None, None
        try:
            async with self._reads:
                if self.away and time.monotonic() >= operation.deadline:
                    raise self._link.down()  # those before it in line waited for as long
                result = await retrying().call_with_retry(lambda: operation.run(self._link.send), failed)
        except Exception as error:
            trouble = error
        self._lanes.done(operation)
        settle(operation, result, trouble)

    async def _missed(self, error: Exception) -> None:
        """Redis did not answer: no read waits any longer for a write that may wait much longer than it."""
        await self._link.failed(error)
        for operation in self._lanes.overdue(time.monotonic()):
            settle(operation, None, self._link.down())

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _end_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
