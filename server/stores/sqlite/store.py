"""SqliteStore: sessions in one SQLite file (WAL), one writer thread with group commit, a few reader threads."""

from __future__ import annotations

import queue
import sqlite3
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TypeVar

import numpy as np

from mc_core.errors import ConfigError
from mc_core.notes import Beyond, Note, NotePage
from mc_core.store import (
    Floats,
    GistBatch,
    GistType,
    Ids,
    Indices,
    PrefixMatch,
    SessionPage,
    SessionRecord,
    SpanBatch,
    StoredSession,
    StoreHealth,
)
from server.stores.arguments import EncodedRecord, Staging, check_limit, refused, row_range
from server.stores.lanes import Lanes, Operation, settle
from server.stores.note_codec import check_notes
from server.stores.sqlite import history, notes, records, sessions
from server.stores.sqlite.reserve import Reserve
from server.stores.sqlite.schema import FileIdentity, open_file
from server.stores.sqlite.wishes import Wishes
from server.stores.sqlite.writer import Writer

Connection = sqlite3.Connection
T = TypeVar("T")


class SqliteStore:
    """A ``SessionStore`` (see there for what each method promises) in one SQLite file; its folder must exist.

    One process serves a file: a second one is refused with StoreError (a lock file, ``<path>.lock``), so leases of an
    earlier process end when the file is opened. Commits and everything else that is durable are on disk (fsync of the
    write-ahead log, ``synchronous = FULL``) before their futures resolve; queued operations of many sessions share one
    transaction. ``max_pending`` bounds the bytes of writes that wait; ``readers`` threads read beside the writer. On a
    full disk what needs room fails with StoreFullError; leases and deletions use what is kept for them (``Reserve``).
    """

    def __init__(
        self, path: str | Path, *, lease_seconds: float = 30.0, readers: int = 2, max_pending: int = 1 << 30
    ) -> None:
        self.lease_seconds = lease_seconds
        self._path = Path(path).absolute()
        self._lock, connections = open_file(self._path, 1 + readers)
        self._closing = threading.Lock()
        self._closed = False
        self._wishes = Wishes()
        self._reads: queue.SimpleQueue[Operation | None] = queue.SimpleQueue()
        self._lanes = Lanes(self._dispatch, max_pending)
        self._writer = Writer(connections[0], FileIdentity(self._path), Reserve(self._path), self._lanes.done)
        self._readers = [
            threading.Thread(target=self._serve_reads, args=(connection,), name="store-reader", daemon=True)
            for connection in connections[1:]
        ]
        for thread in self._readers:
            thread.start()

    def create(self, record: SessionRecord) -> Future[SessionRecord]:
        def prepared() -> Callable[[Connection], SessionRecord]:
            encoded = EncodedRecord.of_new(record)
            return lambda connection: sessions.create(connection, encoded)

        return self._write(prepared, record.session_id, durable=True)

    def open(self, session_id: str, tenant: str, owner: str, wish: bool = False) -> Future[StoredSession]:
        wishes = self._wishes if wish else None

        def run(connection: Connection) -> StoredSession:
            return sessions.open_session(connection, session_id, tenant, owner, self.lease_seconds, wishes)

        return self._write(lambda: run, session_id, durable=True, frees=True)

    def asked(self, owner: str) -> Future[tuple[str, ...]]:
        answer: Future[tuple[str, ...]] = Future()
        answer.set_result(self._wishes.asked(owner))
        return answer

    def renew(self, leases: Mapping[str, int], owner: str | None = None) -> Future[tuple[str, ...]]:
        held = dict(leases)

        def run(connection: Connection) -> tuple[str, ...]:
            return sessions.renew(connection, held, self.lease_seconds, owner)

        return self._write(lambda: run, None, frees=True)

    def announce(self, owner: str, life: str, first: bool) -> Future[bool]:
        """Nobody else has any name: the file lock sees to that."""
        alone: Future[bool] = Future()
        alone.set_result(True)
        return alone

    def release(self, session_id: str, fence: int) -> Future[None]:
        def run(connection: Connection) -> None:
            sessions.release(connection, session_id, fence, self._wishes)

        return self._write(lambda: run, session_id, frees=True)

    def write_spans(self, session_id: str, fence: int, first_block: int, ids: Ids) -> Future[None]:
        return self._stage(lambda: Staging.spans(session_id, fence, first_block, ids), session_id)

    def write_gists(
        self, session_id: str, fence: int, level: int, first_index: int, gists: Floats, keys: Floats | None = None
    ) -> Future[None]:
        return self._stage(lambda: Staging.gists(session_id, fence, level, first_index, gists, keys), session_id)

    def commit(self, record: SessionRecord, notes: Sequence[Note] = (), beyond: Beyond = "drop") -> Future[int]:
        def prepared() -> Callable[[Connection], int]:
            own = tuple(notes)
            check_notes(record, own, beyond)
            encoded = EncodedRecord.of(record)
            return lambda connection: sessions.commit(connection, encoded, self.lease_seconds, own, beyond)

        size = sum(len(note.value) for note in notes)
        return self._write(prepared, record.session_id, durable=True, size=size)

    def note(self, session_id: str, tenant: str, key: str) -> Future[Note | None]:
        return self._read(lambda connection: notes.load(connection, session_id, tenant, key), session_id)

    def notes(
        self,
        session_id: str,
        tenant: str,
        *,
        prefix: str = "",
        after: str | None = None,
        limit: int = 100,
        newest_first: bool = False,
    ) -> Future[NotePage]:
        def run(connection: Connection) -> NotePage:
            return notes.page(connection, session_id, tenant, prefix, after, limit, newest_first)

        return self._read(run, session_id)

    def find_note(self, tenant: str, key: str) -> Future[tuple[str, Note] | None]:
        return self._read(lambda connection: notes.find_note(connection, tenant, key), None)

    def delete_note(self, session_id: str, tenant: str, key: str) -> Future[bool]:
        def run(connection: Connection) -> bool:
            return notes.delete(connection, session_id, tenant, key)

        return self._write(lambda: run, session_id, durable=True, frees=True)

    def reshape(
        self, session_id: str, fence: int, *, gist_dim: int, gist_dtype: GistType, gist_keys: int, key_dim: int
    ) -> Future[None]:
        shape = {"gist_dim": gist_dim, "gist_dtype": gist_dtype, "gist_keys": gist_keys, "key_dim": key_dim}

        def run(connection: Connection) -> None:
            sessions.reshape(connection, session_id, fence, shape, self.lease_seconds)

        return self._write(lambda: run, session_id, durable=True)

    def read_spans(self, session_id: str, blocks: Indices) -> Future[SpanBatch]:
        wanted = np.unique(np.asarray(blocks, np.int64))
        return self._read(lambda connection: history.read_spans(connection, session_id, wanted), session_id)

    def read_span_range(self, session_id: str, first: int, count: int) -> Future[SpanBatch]:
        return self._read(
            lambda connection: history.read_spans(connection, session_id, row_range(first, count)), session_id
        )

    def read_gist_range(self, session_id: str, level: int, first: int, count: int) -> Future[GistBatch]:
        return self._read(
            lambda connection: history.read_gists(connection, session_id, level, row_range(first, count)), session_id
        )

    def record(self, session_id: str, tenant: str) -> Future[SessionRecord]:
        def run(connection: Connection) -> SessionRecord:
            return records.load_record(connection, records.find(connection, session_id, tenant))

        return self._read(run, session_id)

    def list(
        self, tenant: str, limit: int = 20, after: str | None = None, implicit: bool | None = None
    ) -> Future[SessionPage]:
        return self._read(lambda connection: records.page(connection, tenant, limit, after, implicit), None)

    def foreign(self, tokenizer: str, limit: int) -> Future[int]:
        return self._read(lambda connection: records.foreign(connection, tokenizer, limit), None)

    def expire(self, limit: int, *, implicit: float | None = None, explicit: float | None = None) -> Future[int]:
        def prepared() -> Callable[[Connection], int]:
            check_limit(limit)
            return lambda connection: sessions.expire(connection, limit, implicit, explicit)

        return self._write(prepared, None, durable=True, frees=True)

    def fork(self, session_id: str, tenant: str, record: SessionRecord) -> Future[SessionRecord]:
        def prepared() -> Callable[[Connection], SessionRecord]:
            encoded = EncodedRecord.of(record)
            return lambda connection: sessions.fork(connection, session_id, tenant, encoded)

        return self._write(prepared, session_id, durable=True)

    def delete(self, session_id: str, tenant: str) -> Future[None]:
        def run(connection: Connection) -> None:
            sessions.delete(connection, session_id, tenant)

        return self._write(lambda: run, session_id, durable=True, frees=True)

    def find_prefix(self, tenant: str, model: str, hashes: Sequence[str]) -> Future[PrefixMatch | None]:
        keys = tuple(hashes)
        return self._read(lambda connection: records.find_prefix(connection, tenant, model, keys), None)

    def healthy(self) -> Future[StoreHealth]:
        answer: Future[StoreHealth] = Future()
        answer.set_running_or_notify_cancel()

        def tell(probe: Future[int]) -> None:
            error = probe.exception()
            answer.set_result(StoreHealth(error is None, str(error or ""), self._lanes.pending_bytes))

        probe = self._write(lambda: lambda connection: sessions.probe(connection), None, durable=True)
        probe.add_done_callback(tell)
        return answer

    def everything(self) -> Future[Sequence[tuple[str, str]]]:
        """(tenant, id) of all sessions, for who checks the whole store."""
        query = "SELECT tenant, session_id FROM sessions ORDER BY id"
        return self._read(lambda connection: connection.execute(query).fetchall(), None)

    def integrity(self) -> Future[Sequence[str]]:
        """What SQLite finds wrong with the file itself."""

        def run(connection: Connection) -> Sequence[str]:
            return [text for (text,) in connection.execute("PRAGMA integrity_check(20)") if text != "ok"]

        return self._read(run, None)

    def overloaded(self) -> str | None:
        return None

    def close(self) -> None:
        self._end(self._lock.release)

    def discard(self) -> None:
        """Close a store in which nothing was put that is to stay: files that opening it made go again."""
        self._end(self._lock.undo)

    def _end(self, unlock: Callable[[], None]) -> None:
        with self._closing:
            if self._closed:
                return
            self._closed = True
            self._lanes.drain()
            for _ in self._readers:
                self._reads.put(None)
            for thread in self._readers:
                thread.join()
            self._writer.stop()
            unlock()

    def _stage(self, staging: Callable[[], Staging], session_id: str) -> Future[None]:
        try:
            rows = staging()  # copied now: the caller may reuse its buffers
        except ConfigError as error:
            return refused(error)

        def run(connection: Connection) -> None:
            history.stage(connection, rows, self.lease_seconds)

        return self._lanes.submit(Operation(run, session_id, writes=True, size=rows.size))

    def _write(
        self,
        prepared: Callable[[], Callable[[Connection], T]],
        lane: str | None,
        durable: bool = False,
        size: int = 0,
        frees: bool = False,
    ) -> Future[T]:
        """Queues a write. ``prepared`` runs now, in the caller's thread; what it raises ends in the future as well."""
        try:
            run = prepared()
        except ConfigError as error:
            return refused(error)
        return self._lanes.submit(Operation(run, lane, writes=True, durable=durable, size=size, frees=frees))

    def _read(self, run: Callable[[Connection], T], lane: str | None) -> Future[T]:
        return self._lanes.submit(Operation(run, lane))

    def _dispatch(self, operation: Operation) -> None:
        if operation.writes:
            self._writer.put(operation)
        else:
            self._reads.put(operation)

    def _serve_reads(self, connection: Connection) -> None:
        while operation := self._reads.get():
            result, error = _attempt(operation, connection)
            self._lanes.done(operation)
            settle(operation, result, error)
        connection.close()


def _attempt(operation: Operation, connection: Connection) -> tuple[object, Exception | None]:
    """Runs a read within one snapshot of the file."""
    try:
        connection.execute("BEGIN")
        try:
            return operation.run(connection), None
        finally:
            connection.execute("ROLLBACK")
    except Exception as error:
        # Cursors that its frames hold would keep this snapshot open for the reads that follow.
        traceback.clear_frames(error.__traceback__)
        return None, error
