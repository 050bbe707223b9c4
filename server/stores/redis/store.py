"""RedisStore: sessions in one Redis (a primary, with or without replicas; not a cluster), shared by many servers.

**Durability.** Acknowledged means that Redis has replied. What Redis itself keeps through a crash is its own setting:
with ``appendfsync always`` the reply comes after the append-only file is on disk, so that nothing acknowledged is lost;
with ``appendfsync everysec`` (the usual one) a kill of the process loses nothing, a crash of the machine up to about a
second of acknowledged turns, always the newest ones, since every turn is one step in the file; without an append-only
file everything since the last snapshot is lost. With ``replicas=N`` in the URL acknowledged means that N replicas have
it too (WAIT), so that a failover to one of them loses nothing. A server that meets a Redis that lost what it had
acknowledged notices it (the sequence went back, TurnsLostError); opened again the session is as Redis has it.

**Keys**, each beginning with the namespace (``megacontext:``); T is the tenant and M the model, percent-encoded::

    meta               hash     counters (fence, storage, serial, note, probe) and the format; stays for good
    owners             hash     session id -> T
    writer:NAME        string   number of the last batch of one server; leaves with it
    server:OWNER       string   the life of the server of that name that began last; goes when it is silent
    asked:OWNER        set      sessions of that server that others wish for
    implicit           zset     T:ID of the implicit sessions of all tenants, by their last commit
    explicit           zset     the same of the others; neither has those that are kept, or have a ttl of their own
    expiring           zset     T:ID of sessions with a ttl of their own, by the time from which on they may go
    T:sessions         zset     session ids by creation
    T:sessions:KIND    zset     those that are implicit, or explicit, by creation
    T:session:ID       hash     the record, its lease, its lineage and what is staged
    T:storage:N        hash     who uses a storage and up to which block, and how many pages it has at each level
    T:rows:N:LEVEL:P   string   page P of a storage's rows at a level: 1024 rows of fixed width
    T:prefix:M:HASH    zset     "position id" of the implicit sessions that hold this prefix, the newest last
    T:notes:ID         hash     the session's notes; see notes.lua
    T:order:ID         zset     their order
    T:indexed          hash     session id by the key of an indexed note

**Atomicity.** Every call is one run of a Lua script, which checks fence, lease and sequence before it changes anything.

**When Redis is away** calls wait: a write for ``deadline`` seconds, a read or an open for ``patience``; then they fail
with StoreDownError. Waiting writes are bounded by ``max_pending`` bytes and go out in their order when Redis is back; a
write that failed was never sent, or what becomes of it is unknown (the connection broke before the reply), and its
lease is given up: the session must be opened again, and shows then what Redis has. **A full one** (``maxmemory``)
refuses what needs room with StoreFullError; reads, deletions and leases go on.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, cast

from mc_core.errors import ConfigError, StoreError
from mc_core.notes import Beyond, Note
from mc_core.store import (
    PASS_SECONDS,
    WISH_SECONDS,
    FencedError,
    Floats,
    GistType,
    Ids,
    SessionRecord,
    StoredSession,
    StoreHealth,
)
from server.stores.arguments import EncodedRecord, Staging, check_limit, refused
from server.stores.codec import RowFormat
from server.stores.note_codec import check_notes
from server.stores.redis.calls import Calls
from server.stores.redis.leases import Lease
from server.stores.redis.link import Reply
from server.stores.redis.notes import commit_parts
from server.stores.redis.place import Place
from server.stores.redis.reads import Reads
from server.stores.redis.replies import (
    changing_fields,
    key_part,
    new_fields,
    record_of,
    shape_fields,
)
from server.stores.redis.writer import Sending


class RedisStore(Reads):
    """A ``SessionStore`` (see there for what each method promises) in Redis; see this module for keys and durability.

    Opening it tries for ``patience`` seconds to reach Redis, then raises StoreError.
    """

    def __init__(self, url: str, *, lease_seconds: float = 30.0, max_pending: int = 256 << 20) -> None:
        self.lease_seconds = lease_seconds
        self.place = Place.parse(url)
        self._calls = Calls(self.place, max_pending)

    def create(self, record: SessionRecord) -> Future[SessionRecord]:
        try:
            encoded = EncodedRecord.of_new(record)
            fields = new_fields(encoded)
        except ConfigError as error:
            return refused(error)
        command = ("create", _op(), key_part(record.tenant), *fields)
        return self._calls.write(lambda _: command, record.session_id, _stamped(record), size=_size(encoded))

    def fork(self, session_id: str, tenant: str, record: SessionRecord) -> Future[SessionRecord]:
        try:
            encoded = EncodedRecord.of(record)
            fields = new_fields(encoded)
        except ConfigError as error:
            return refused(error)
        command = ("fork", _op(), session_id, key_part(tenant), *fields)
        return self._calls.write(lambda _: command, session_id, _stamped(record), size=_size(encoded))

    def open(self, session_id: str, tenant: str, owner: str, wish: bool = False) -> Future[StoredSession]:
        op = _op()

        def take(reply: Reply) -> StoredSession:
            record = record_of(reply[0])
            fence = int(dict(zip(reply[0][::2], reply[0][1::2], strict=True))[b"fence"])
            self._calls.leases.put(Lease(fence, op, record, record.sequence))
            return StoredSession(replace(record, fence=fence), fence)

        command = ("open", op, session_id, key_part(tenant), owner, self.lease_seconds, int(wish))
        return self._calls.write(lambda _: command, session_id, take, patience=self.place.patience, frees=True)

    def renew(self, leases: Mapping[str, int], owner: str | None = None) -> Future[tuple[str, ...]]:
        asked = dict(leases)

        def command(_: Sending) -> Sequence[Any]:
            known = [(name, fence, self._calls.leases.get(name, fence)) for name, fence in asked.items()]
            parts = [part for name, fence, own in known for part in (name, fence, own.sequence if own else "")]
            return ("renew", self.lease_seconds, owner or "", *parts)

        return self._calls.write(command, None, lambda reply: tuple(name.decode() for name in reply), frees=True)

    def announce(self, owner: str, life: str, first: bool) -> Future[bool]:
        command = ("announce", key_part(owner), life, int(first), self.lease_seconds)
        return self._calls.write(lambda _: command, None, lambda reply: reply[0] == 1, frees=True)

    def release(self, session_id: str, fence: int) -> Future[None]:
        """Resolves at once while Redis is away: the lease lapses by itself, and its owner may open again anyway."""

        def take(_: Reply) -> None:
            self._calls.leases.drop(session_id, fence)

        command = ("release", session_id, fence, WISH_SECONDS, PASS_SECONDS)
        done = self._calls.write(lambda _: command, session_id, take, frees=True)
        if not self._calls.away:
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

    def commit(self, record: SessionRecord, notes: Sequence[Note] = (), beyond: Beyond = "drop") -> Future[int]:
        try:
            check_notes(record, notes, beyond)
            encoded = EncodedRecord.of(record)
        except ConfigError as error:
            return refused(error)
        op, fields, name, fence = _op(), changing_fields(encoded), record.session_id, record.fence
        needed = "" if record.gist_blocks is None else record.gist_blocks
        beside = (needed, *commit_parts(notes, beyond))

        def command(sending: Sending) -> Sequence[Any]:
            lease = sending.lease
            known = (lease.token, lease.sequence) if lease else ("", "")
            return ("commit", op, name, fence, *known, self.lease_seconds, *beside, *fields)

        size = _size(encoded) + len(beside[-1])
        return self._calls.write(
            command, name, lambda reply: self._acknowledge(name, fence, reply), fence=fence, size=size
        )

    def delete_note(self, session_id: str, tenant: str, key: str) -> Future[bool]:
        def command(sending: Sending) -> Sequence[Any]:
            return ("delete_note", session_id, key_part(tenant), key, int(sending.again))

        patience = self.place.patience
        return self._calls.write(command, session_id, lambda reply: bool(reply[0]), patience=patience, frees=True)

    def reshape(
        self, session_id: str, fence: int, *, gist_dim: int, gist_dtype: GistType, gist_keys: int, key_dim: int
    ) -> Future[None]:
        op = _op()
        shape = {"gist_dim": gist_dim, "gist_dtype": gist_dtype, "gist_keys": gist_keys, "key_dim": key_dim}

        def command(sending: Sending) -> Sequence[Any]:
            lease = _needed(sending, session_id)
            fields = shape_fields(info := replace(lease.info, **cast(dict[str, Any], shape)))
            lease.info = info  # now: gists of the new shape may go out together with this
            return ("reshape", op, session_id, fence, lease.token, lease.sequence, self.lease_seconds, *fields)

        def take(reply: Reply) -> None:
            self._acknowledge(session_id, fence, reply)

        return self._calls.write(command, session_id, take, fence=fence)

    def _acknowledge(self, session_id: str, fence: int, reply: Reply) -> int:
        """Notes the sequence that Redis counts now."""
        lease, sequence = self._calls.leases.get(session_id, fence), int(reply[0])
        if lease is not None:
            lease.sequence = sequence
        return sequence

    def delete(self, session_id: str, tenant: str) -> Future[None]:
        def take(_: Reply) -> None:
            self._calls.leases.drop(session_id)

        def command(sending: Sending) -> Sequence[Any]:
            return ("delete", session_id, key_part(tenant), int(sending.again))

        return self._calls.write(command, session_id, take, patience=self.place.patience, frees=True)

    def expire(self, limit: int, *, implicit: float | None = None, explicit: float | None = None) -> Future[int]:
        try:
            check_limit(limit)
        except ConfigError as error:
            return refused(error)
        command = ("expire", limit, *("" if seconds is None else seconds for seconds in (implicit, explicit)))
        patience = self.place.patience
        return self._calls.write(lambda _: command, None, lambda reply: int(reply[0]), patience=patience, frees=True)

    def _stage(self, rows: Staging) -> Future[None]:
        def command(sending: Sending) -> Sequence[Any]:
            lease = _needed(sending, rows.session_id)
            form = RowFormat.of(lease.info, rows.level)
            if set(rows.payload) != set(form.payload):
                raise ConfigError(f"level {rows.level} of this session keeps {form.payload}, got {tuple(rows.payload)}")
            if rows.first < 0:
                raise StoreError(f"rows of level {rows.level} must be written without gaps from 0, got {rows.first}")
            blob = b"".join(form.encode(rows.first, rows.payload))
            place = (rows.level, rows.first, form.dtype.itemsize)
            known = (lease.token, lease.sequence)
            return ("stage", rows.session_id, rows.fence, *known, *place, self.lease_seconds, blob)

        return self._calls.write(command, rows.session_id, fence=rows.fence, size=rows.size, durable=False)

    def healthy(self) -> Future[StoreHealth]:
        return self._calls.health()

    def overloaded(self) -> str | None:
        return self._calls.overloaded()

    def close(self) -> None:
        self._calls.close()


def _needed(sending: Sending, session_id: str) -> Lease:
    if sending.lease is None:
        raise FencedError(f"session {session_id!r}: a write needs a lease")
    return sending.lease


def _op() -> str:
    """A name for one call, by which Redis knows it when it comes a second time."""
    return secrets.token_hex(12)


def _stamped(record: SessionRecord) -> Callable[[Reply], SessionRecord]:
    def take(reply: Reply) -> SessionRecord:
        return replace(record, created=float(reply[0]), updated=float(reply[1]), sequence=0, fence=0)

    return take


def _size(encoded: EncodedRecord) -> int:
    """Bytes that a record holds while it waits."""
    record = encoded.record
    return 1024 + len(encoded.state) + len(encoded.metadata) + record.tail.nbytes + 100 * len(record.prefixes)
