"""Writes to Redis, in the order in which they were made: batches, one round trip each, sent again until answered."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import OutOfMemoryError

from mc_core.errors import MegaContextError, StoreError
from server.stores.lanes import Operation, settle
from server.stores.redis.leases import Lease, Leases
from server.stores.redis.link import Command, Link, Reply, retrying
from server.stores.redis.replies import info_of, value_of

BATCH_OPERATIONS = 512
BATCH_BYTES = 16 << 20


@dataclass(frozen=True)
class Sending:
    """What a write may want to know when it is sent: its lease, and whether it may have been made already."""

    lease: Lease | None
    again: bool


@dataclass(eq=False, kw_only=True)
class Write(Operation):
    """``run`` takes a Sending -> the command; ``take`` reads the reply. ``fence``: of the lease it needs, if any."""

    take: Callable[[Reply], Any] = lambda _: None
    fence: int | None = None
    sent: bool = False


class Writer:
    """Lives on the store's event loop.

    While Redis is away the queue grows up to the lanes' bound; each write waits until its deadline and then fails.
    A batch that got no answer is sent again: rows are the same rows, and a call with an ``op`` is made only once. Such
    a call waits for the next batch if this one has a write of its session already: so ``op`` of the newest one tells,
    and a commit is never on its way while rows before it may yet fail.
    """

    def __init__(
        self,
        name: str,
        link: Link,
        leases: Leases,
        done: Callable[[Operation], None],
        missed: Callable[[Exception], Awaitable[None]],
    ) -> None:
        """missed: told of each time that Redis did not answer."""
        self.name, self._link, self._leases, self._done, self._missed = name, link, leases, done, missed
        self._queue: deque[Write] = deque()
        self._batch: list[Write] = []
        self._wake = asyncio.Event()
        self._number = 0
        self._stopping = False

    @property
    def busy(self) -> bool:
        """Whether writes wait or are under way."""
        return bool(self._batch or self._queue)

    def put(self, write: Write) -> None:
        self._queue.append(write)
        self._wake.set()

    def stop(self) -> None:
        """Ends ``serve`` once everything is written."""
        self._stopping = True
        self._wake.set()

    async def serve(self) -> None:
        """Until stopped."""
        while not (self._stopping and not self._queue):
            await self._wake.wait()
            self._wake.clear()
            while self._queue:
                self._gather()
                try:
                    await retrying().call_with_retry(self._attempt, self._failed)
                except Exception as error:
                    for write in self._batch:
                        self._lose(write)
                        self._settle(write, None, error)

    def _gather(self) -> None:
        size, lanes = 0, set()
        while self._queue and len(self._batch) < BATCH_OPERATIONS and size < BATCH_BYTES:
            write = self._queue[0]
            if write.durable and write.lane in lanes:
                return
            if write.lane is not None:
                lanes.add(write.lane)
            size += write.size
            self._batch.append(self._queue.popleft())

    async def _attempt(self) -> None:
        self._give_up_overdue()
        if not self._batch:
            return
        await self._learn_leases()
        commands = self._commands()
        if not self._batch:
            return
        self._number += 1
        header = (self.name, self._number)
        begin: Command = ("begin", *header)
        sent = [(command[0], *header, *command[1:]) for command in commands]
        for write in self._batch:
            write.sent = True
        begun, *replies = await self._link.send([begin, *sent], durable=any(write.durable for write in self._batch))
        if isinstance(begun, Exception):
            replies = [begun] * len(replies)  # then none of them ran
        replies = await self._where_full(begin, sent, replies)
        answered = list(zip(self._batch, replies, strict=True))
        self._batch = [write for write, reply in answered if isinstance(reply, list) and reply[0] == b"stale"]
        for write, reply in answered:
            if write not in self._batch:
                self._answer(write, reply)
        if self._batch:
            raise RedisConnectionError("Redis forgot the batch that it was given")

    async def _where_full(self, begin: Command, sent: Sequence[Command], replies: list[Any]) -> list[Any]:
        """What needs no room is sent again to a Redis that refused it for want of it -> all replies."""
        refused = [isinstance(reply, OutOfMemoryError) for reply in replies]
        again = [at for at, write in enumerate(self._batch) if write.frees and refused[at]]
        if again:
            _, *freed = await self._link.send([begin, *(sent[at] for at in again)], durable=True, full=True)
            told = {at: reply for at, reply in zip(again, freed, strict=True) if isinstance(reply, list)}
            replies = [told.get(at, reply) for at, reply in enumerate(replies)]
        return replies

    async def _learn_leases(self) -> None:
        """A lease from before this store was opened is asked for; a wrong one fails here."""
        unknown = {
            (write.lane, write.fence): None
            for write in self._batch
            if write.fence and write.lane and self._leases.get(write.lane, write.fence) is None
        }
        if not unknown:
            return
        replies = await self._link.send([("describe", "", "", name, fence) for name, fence in unknown])
        for (name, fence), reply in zip(unknown, replies, strict=True):
            try:
                token, values = value_of(reply, str(name))
            except MegaContextError as error:
                for write in [write for write in self._batch if (write.lane, write.fence) == (name, fence)]:
                    self._settle(write, None, error)
            else:
                info = info_of(values)
                self._leases.put(Lease(fence or 0, token.decode(), info, info.sequence))

    def _commands(self) -> list[Command]:
        commands = []
        for write in list(self._batch):
            try:
                lease = None
                if write.fence is not None and write.lane is not None:
                    self._leases.check(write.lane, write.fence)
                    lease = self._leases.get(write.lane, write.fence)
                commands.append(write.run(Sending(lease, write.sent)))
            except Exception as error:
                self._settle(write, None, error)
        return commands

    def _answer(self, write: Write, reply: Any) -> None:
        try:
            result = write.take(value_of(reply, write.lane or ""))
        except Exception as error:
            if isinstance(error, StoreError) and not isinstance(reply, list):
                self._lose(write)  # Redis itself failed: out of memory, out of disk
            self._settle(write, None, error)
        else:
            self._settle(write, result, None)

    def _settle(self, write: Write, result: Any, error: Exception | None) -> None:
        if write in self._batch:
            self._batch = [other for other in self._batch if other is not write]
        self._done(write)
        settle(write, result, error)

    def _lose(self, write: Write) -> None:
        if write.fence and write.lane:
            self._leases.lose(write.lane, write.fence)

    async def _failed(self, error: Exception) -> None:
        await self._missed(error)
        self._give_up_overdue()

    def _give_up_overdue(self) -> None:
        """Fails what waited past its deadline while Redis is away; what may be on its way is void by the next batch."""
        if self._link.down_since is None:
            return
        now = time.monotonic()
        overdue = [write for write in (*self._batch, *self._queue) if write.deadline <= now]
        if not overdue:
            return
        self._queue = deque(write for write in self._queue if write.deadline > now)
        for write in overdue:
            self._lose(write)
            self._settle(write, None, self._link.down())
