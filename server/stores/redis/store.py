"""RedisStore: sessions in one Redis (a primary, with or without replicas; not a cluster), shared by many servers.

**Durability.** Acknowledged means that Redis has replied. What Redis itself keeps through a crash is its own setting:
with ``appendfsync always`` the reply comes after the append-only file is on disk, so that nothing acknowledged is lost;
with ``appendfsync everysec`` (the usual one) a kill of the process loses nothing, a crash of the machine up to about a
second of acknowledged turns, always the newest ones, since every turn is one step in the file; without an append-only
file everything since the last snapshot is lost. A server that meets a Redis that lost what it had acknowledged notices
it (the sequence went back) and opens the session again as Redis has it.

**Keys**, each beginning with the namespace (``megacontext:``); T is the tenant and M the model, percent-encoded::

    meta               hash     counters (fence, storage, serial, probe) and the format; stays for good
    owners             hash     session id -> T
    writer:NAME        string   number of the last batch of one server; leaves with it
    T:sessions         zset     session ids by creation
    T:session:ID       hash     the record, its lease, its lineage and what is staged
    T:storage:N        hash     who uses a storage and up to which block, and how many pages it has at each level
    T:rows:N:LEVEL:P   string   page P of a storage's rows at a level: 1024 rows of fixed width
    T:prefix:M:HASH    zset     "position id" of the implicit sessions that hold this prefix, the newest last

**Atomicity.** Every call is one run of a Lua script, which checks fence, lease and sequence before it changes anything.

**When Redis is away** calls wait: a write for ``deadline`` seconds, a read or an open for ``patience``; then they fail
with StoreDownError. Waiting writes are bounded by ``max_pending`` bytes and go out in their order when Redis is back; a
write that failed was never sent, or what becomes of it is unknown (the connection broke before the reply), and its
lease is given up: the session must be opened again, and shows then what Redis has.
"""

from __future__ import annotations

import asyncio
import secrets
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from mc_core.errors import ConfigError, StoreError
from mc_core.store import (
    MAX_LIST,
    Floats,
    GistBatch,
    Ids,
    Indices,
    PrefixMatch,
    SessionPage,
    SessionRecord,
    SpanBatch,
    StoreDownError,
    StoredSession,
    StoreHealth,
    decode_cursor,
    encode_cursor,
)
from server.stores.codec import RowFormat
from server.stores.drafts import Draft, Staging, refused, row_range
from server.stores.lanes import Lanes, Operation, settle
from server.stores.redis import reader
from server.stores.redis.leases import Lease, Leases
from server.stores.redis.link import Link, Reply, retrying
from server.stores.redis.place import CONNECTIONS, Place
from server.stores.redis.replies import changing_fields, info_of, key_part, new_fields, record_of, value_of
from server.stores.redis.writer import Sending, Write, Writer

T = TypeVar("T")
FULL = 0.75
"""Share of the buffer from which new work is turned away, so that turns under way find room to end."""
PROBE = 1.0
"""Seconds that a health check waits for Redis."""


class RedisStore:
    """A ``SessionStore`` (see there for what each method promises) in Redis; see this module for keys and durability.

    Opening it tries for ``patience`` seconds to reach Redis, then raises StoreError.
    """

    def __init__(self, url: str, *, lease_seconds: float = 30.0, max_pending: int = 256 << 20) -> None:
        self.lease_seconds = lease_seconds
        self.place = Place.parse(url)
        self._max_pending = max_pending
        self._name = secrets.token_hex(8)
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
        self._link = Link(self.place)
        await self._link.connect()
        self._leases = Leases()
        self._lanes = Lanes(self._dispatch, self._max_pending)
        self._writer = Writer(self._name, self._link, self._leases, self._lanes.done)
        self._reads = asyncio.Semaphore(CONNECTIONS - 1)  # one is the writer's
        self._reading: set[asyncio.Task[None]] = set()
        self._writing = asyncio.create_task(self._writer.serve())

    # -- writes --------------------------------------------------------------------------------------------------

    def create(self, record: SessionRecord) -> Future[SessionRecord]:
        try:
            draft = Draft.new(record)
            fields = new_fields(draft)
        except ConfigError as error:
            return refused(error)
        command = ("create", self._op(), key_part(record.tenant), *fields)
        return self._write(lambda _: command, record.session_id, _stamped(record), size=_size(draft))

    def fork(self, session_id: str, tenant: str, record: SessionRecord) -> Future[SessionRecord]:
        try:
            draft = Draft.of(record)
            fields = new_fields(draft)
        except ConfigError as error:
            return refused(error)
        command = ("fork", self._op(), session_id, key_part(tenant), *fields)
        return self._write(lambda _: command, session_id, _stamped(record), size=_size(draft))

    def open(self, session_id: str, tenant: str, owner: str) -> Future[StoredSession]:
        op = self._op()

        def take(reply: Reply) -> StoredSession:
            record = record_of(reply[0])
            fence = int(dict(zip(reply[0][::2], reply[0][1::2], strict=True))[b"fence"])
            self._leases.put(Lease(fence, op, record, record.sequence))
            return StoredSession(replace(record, fence=fence), fence)

        command = ("open", op, session_id, key_part(tenant), owner, self.lease_seconds)
        return self._write(lambda _: command, session_id, take, patience=self.place.patience)

    def renew(self, leases: Mapping[str, int]) -> Future[tuple[str, ...]]:
        command = ("renew", self.lease_seconds, *(part for lease in leases.items() for part in lease))
        return self._write(lambda _: command, None, lambda reply: tuple(name.decode() for name in reply))

    def release(self, session_id: str, fence: int) -> Future[None]:
        """Resolves at once while Redis is away: the lease lapses by itself, and its owner may open again anyway."""

        def take(_: Reply) -> None:
            self._leases.drop(session_id, fence)

        done = self._write(lambda _: ("release", session_id, fence), session_id, take)
        if self._link.down_since is None:
            return done
        future: Future[None] = Future()
        future.set_result(None)
        return future

    def write_spans(self, session_id: str, fence: int, first_block: int, ids: Ids) -> Future[None]:
        try:
            return self._stage(Staging.spans(session_id, fence, first_block, ids))
        except ConfigError as error:
            return refused(error)

    def write_gists(
        self, session_id: str, fence: int, level: int, first_index: int, gists: Floats, keys: Floats | None = None
    ) -> Future[None]:
        try:
            return self._stage(Staging.gists(session_id, fence, level, first_index, gists, keys))
        except ConfigError as error:
            return refused(error)

    def commit(self, record: SessionRecord) -> Future[int]:
        try:
            draft = Draft.of(record)
        except ConfigError as error:
            return refused(error)
        op, fields, name, fence = self._op(), changing_fields(draft), record.session_id, record.fence

        def command(sending: Sending) -> Sequence[Any]:
            lease = sending.lease
            known = (lease.token, lease.sequence) if lease else ("", "")
            return ("commit", op, name, fence, *known, self.lease_seconds, *fields)

        def take(reply: Reply) -> int:
            lease, sequence = self._leases.get(name, fence), int(reply[0])
            if lease is not None:
                lease.sequence = sequence
            return sequence

        return self._write(command, name, take, fence=fence, size=_size(draft))

    def delete(self, session_id: str, tenant: str) -> Future[None]:
        def take(_: Reply) -> None:
            self._leases.drop(session_id)

        def command(sending: Sending) -> Sequence[Any]:
            return ("delete", session_id, key_part(tenant), int(sending.again))

        return self._write(command, session_id, take, patience=self.place.patience)

    def _stage(self, rows: Staging) -> Future[None]:
        def command(sending: Sending) -> Sequence[Any]:
            lease = sending.lease
            if lease is None:
                raise StoreError(f"session {rows.session_id!r}: a write needs a lease")
            form = RowFormat.of(lease.info, rows.level)
            if set(rows.payload) != set(form.payload):
                raise ConfigError(f"level {rows.level} of this session keeps {form.payload}, got {tuple(rows.payload)}")
            if rows.first < 0:
                raise StoreError(f"rows of level {rows.level} must be written without gaps from 0, got {rows.first}")
            blob = b"".join(form.encode(rows.first, rows.payload))
            place = (rows.level, rows.first, form.dtype.itemsize)
            known = (lease.token, lease.sequence)
            return ("stage", rows.session_id, rows.fence, *known, *place, self.lease_seconds, blob)

        return self._write(command, rows.session_id, fence=rows.fence, size=rows.size, durable=False)

    # -- reads ---------------------------------------------------------------------------------------------------

    def read_spans(self, session_id: str, blocks: Indices) -> Future[SpanBatch]:
        wanted = np.unique(np.asarray(blocks, np.int64))
        return self._read(lambda send: reader.read_spans(self._source(send, session_id), wanted), session_id)

    def read_span_range(self, session_id: str, first: int, count: int) -> Future[SpanBatch]:
        async def run(send: reader.Send) -> SpanBatch:
            return await reader.read_spans(self._source(send, session_id), row_range(first, count))

        return self._read(run, session_id)

    def read_gist_range(self, session_id: str, level: int, first: int, count: int) -> Future[GistBatch]:
        async def run(send: reader.Send) -> GistBatch:
            return await reader.read_gists(self._source(send, session_id), level, row_range(first, count))

        return self._read(run, session_id)

    def record(self, session_id: str, tenant: str) -> Future[SessionRecord]:
        async def run(send: reader.Send) -> SessionRecord:
            replies = await send([("record", "", "", session_id, key_part(tenant))])
            return record_of(value_of(replies[0], session_id)[0])

        return self._read(run, session_id)

    def list(self, tenant: str, limit: int = 20, after: str | None = None) -> Future[SessionPage]:
        async def run(send: reader.Send) -> SessionPage:
            if not 1 <= limit <= MAX_LIST:
                raise ConfigError(f"limit must lie in [1, {MAX_LIST}], got {limit}")
            created, session_id = decode_cursor(after) if after is not None else ("", "")
            command = ("list", "", "", key_part(tenant), limit + 1, _exact(created), session_id)
            found = [info_of(values) for values in value_of((await send([command]))[0], "")]
            return SessionPage(tuple(found[:limit]), encode_cursor(found[limit - 1]) if len(found) > limit else None)

        return self._read(run, None)

    def find_prefix(self, tenant: str, model: str, hashes: Sequence[str]) -> Future[PrefixMatch | None]:
        keys = tuple(hashes)

        async def run(send: reader.Send) -> PrefixMatch | None:
            replies = await send([("find_prefix", "", "", key_part(tenant), key_part(model), *keys)])
            found = value_of(replies[0], "")
            if not found:
                return None
            position, _, session_id = found[1].decode().partition(" ")
            return PrefixMatch(session_id, keys[found[0]], int(position))

        return self._read(run, None)

    # -- state ---------------------------------------------------------------------------------------------------

    def healthy(self) -> Future[StoreHealth]:
        answer: Future[StoreHealth] = Future()
        answer.set_running_or_notify_cancel()
        if self._link.down_since is not None and self._writer.busy:
            answer.set_result(self._health(self._link.down()))
            return answer
        probe: Future[None] = self._write(lambda _: ("probe",), None, patience=PROBE)
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
        pending = self._lanes.pending_bytes
        if self._link.down_since is None or pending < FULL * self._max_pending:
            return None
        return f"the store can't be reached and {pending} bytes wait for it, of {self._max_pending} at most"

    def close(self) -> None:
        with self._closing:
            if self._closed:
                return
            self._closed = True
            self._lanes.drain()
            self._run(self._finish())
            self._end_loop()

    async def _finish(self) -> None:
        self._writer.stop()
        await self._writing
        await self._link.close(self._name)

    # -- how calls travel ----------------------------------------------------------------------------------------

    def _op(self) -> str:
        """A name for one call, by which Redis knows it when it comes a second time."""
        return secrets.token_hex(12)

    def _write(
        self,
        run: Callable[[Sending], Sequence[Any]],
        lane: str | None,
        take: Callable[[Reply], T] = lambda _: None,  # type: ignore[assignment, return-value]
        *,
        fence: int | None = None,
        size: int = 0,
        patience: float | None = None,
        durable: bool = True,
    ) -> Future[T]:
        deadline = time.monotonic() + (self.place.deadline if patience is None else patience)
        write = Write(run, lane, True, durable, size, take=take, fence=fence, deadline=deadline)
        future = self._lanes.submit(write)
        if fence and lane and future.done() and isinstance(future.exception(), StoreDownError):
            # Refused, the buffer is full: what this lease writes next would have a gap before it.
            self._loop.call_soon_threadsafe(self._leases.lose, lane, fence)
        return future

    def _read(self, run: Callable[[reader.Send], Awaitable[T]], lane: str | None) -> Future[T]:
        return self._lanes.submit(Operation(run, lane))

    def _source(self, send: reader.Send, session_id: str) -> reader.Source:
        return reader.Source(send, session_id, self._leases.token(session_id))

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
        deadline = time.monotonic() + self.place.patience

        async def failed(error: Exception) -> None:
            await self._link.failed(error)
            if time.monotonic() >= deadline:
                raise self._link.down() from error

        result, trouble = None, None
        try:
            async with self._reads:
                result = await retrying().call_with_retry(lambda: operation.run(self._link.send), failed)
        except Exception as error:
            trouble = error
        self._lanes.done(operation)
        settle(operation, result, trouble)

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _end_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def _stamped(record: SessionRecord) -> Callable[[Reply], SessionRecord]:
    def take(reply: Reply) -> SessionRecord:
        return replace(record, created=float(reply[0]), updated=float(reply[1]), sequence=0, fence=0)

    return take


def _size(draft: Draft) -> int:
    """Bytes that a record holds while it waits."""
    return 1024 + len(draft.state) + len(draft.metadata) + draft.record.tail.nbytes + 100 * len(draft.record.prefixes)


def _exact(number: float | str) -> str:
    return number if isinstance(number, str) else repr(number)
