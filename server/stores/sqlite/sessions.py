"""Sessions of the SQLite store: each function inside a transaction of the writer."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from mc_core.errors import ConfigError, StoreError
from mc_core.notes import Beyond, Note
from mc_core.store import (
    MAX_LEVEL,
    PASS_SECONDS,
    LeaseHeldError,
    SessionInfo,
    SessionRecord,
    StoredSession,
)
from server.stores.arguments import FIXED_FIELDS, INFO_FIELDS, SHAPE_FIELDS, EncodedRecord
from server.stores.sqlite.notes import copy_notes, save_notes
from server.stores.sqlite.records import SELECT, Row, find, held, load_record, row_of, save_prefixes
from server.stores.sqlite.rows import (
    MAX_ROWS,
    Kind,
    Lineage,
    Segment,
    cut,
    drop_rows,
    load_lineage,
    new_storage,
    next_number,
    rewind_lineage,
    save_lineage,
    shared_blocks,
    with_own_gists,
)
from server.stores.sqlite.wishes import Wishes


def create(
    connection: sqlite3.Connection, encoded: EncodedRecord, lineage: Lineage = (), gist_blocks: int | None = None
) -> SessionRecord:
    """Stores a new session over ``lineage`` (closed segments, with gists of ``gist_blocks`` blocks) and a storage."""
    now = time.time()
    record = replace(
        encoded.record,
        created=encoded.record.created or now,
        updated=now,
        sequence=0,
        fence=0,
        gist_blocks=gist_blocks,
    )
    columns = {name: getattr(record, name) for name in INFO_FIELDS} | {"metadata": encoded.metadata}
    names, marks = ", ".join(INFO_FIELDS), ", ".join("?" * len(INFO_FIELDS))
    insert = f"INSERT INTO sessions ({names}, fence, owner, lease_until) VALUES ({marks}, 0, '', 0)"
    try:
        session = connection.execute(insert, tuple(columns.values())).lastrowid
    except sqlite3.IntegrityError as error:
        raise StoreError(f"session id {record.session_id!r} is taken") from error
    assert session is not None
    _save_state(connection, session, encoded)
    save_prefixes(connection, session, record)
    storage = new_storage(connection)
    lineage = [*lineage, Segment(storage, storage, None)]
    if gist_blocks is not None:
        lineage = with_own_gists(connection, lineage, gist_blocks)
    save_lineage(connection, session, lineage)
    return record


def _save_state(connection: sqlite3.Connection, session: int, encoded: EncodedRecord) -> None:
    tail = encoded.record.tail.astype("<i4").tobytes()
    connection.execute("INSERT OR REPLACE INTO states VALUES (?, ?, ?)", (session, tail, encoded.state))


def open_session(
    connection: sqlite3.Connection,
    session_id: str,
    tenant: str,
    owner: str,
    lease_seconds: float,
    wishes: Wishes | None,
) -> StoredSession:
    """Takes the lease, and drops rows staged under the one before. wishes: where to ask whoever holds it, if at all."""
    row, now = find(connection, session_id, tenant), time.time()
    if row.owner not in ("", owner) and row.lease_until > now:
        if wishes is not None:
            wishes.wish(session_id, row.owner, owner)
        raise LeaseHeldError(session_id, row.lease_until - now)
    fence = next_number(connection, "fence")
    update = "UPDATE sessions SET fence = ?, owner = ?, lease_until = ?, staged = NULL WHERE id = ?"
    connection.execute(update, (fence, owner, now + lease_seconds, row.id))
    lineage = load_lineage(connection, row.id)
    written = lineage[-1:] if row.info.gist_blocks is None else lineage
    _tidy(connection, row, written, row.info.blocks, row.gist_blocks)
    return StoredSession(load_record(connection, row, fence), fence)


def renew(
    connection: sqlite3.Connection, leases: Mapping[str, int], lease_seconds: float, owner: str | None = None
) -> tuple[str, ...]:
    """Extends the leases, as the owner's if there is one; returns those that are lost."""
    update = """UPDATE sessions SET lease_until = ?, owner = coalesce(?, owner)
                WHERE session_id = ? AND fence = ? AND fence > 0"""
    lost = []
    for session_id, fence in leases.items():
        if not connection.execute(update, (time.time() + lease_seconds, owner, session_id, fence)).rowcount:
            lost.append(session_id)
    return tuple(lost)


def release(connection: sqlite3.Connection, session_id: str, fence: int, wishes: Wishes) -> None:
    """Ends the lease, unless it is over already: its fence is no one's. Who wished for the session has it next."""
    update = "UPDATE sessions SET owner = '', lease_until = 0, fence = ? WHERE session_id = ? AND fence = ?"
    over = connection.execute(update, (next_number(connection, "fence"), session_id, fence)).rowcount
    if over and (wisher := wishes.take(session_id)) is not None:
        update = "UPDATE sessions SET owner = ?, lease_until = ? WHERE session_id = ?"
        connection.execute(update, (wisher, time.time() + PASS_SECONDS, session_id))


def commit(
    connection: sqlite3.Connection,
    encoded: EncodedRecord,
    lease_seconds: float,
    notes: Sequence[Note] = (),
    beyond: Beyond = "drop",
) -> int:
    """Replaces the record; see SessionStore.commit."""
    record = encoded.record
    row = held(connection, record.session_id, record.fence)
    _check_fixed(row.info, record)
    _check_complete(row, record)
    now, sequence = time.time(), row.info.sequence + 1
    update = """UPDATE sessions SET tokens = ?, metadata = ?, implicit = ?, keep = ?, ttl = ?,
                sequence = ?, updated = ?, lease_until = ?, staged = NULL, gist_blocks = ? WHERE id = ?"""
    told = (record.tokens, encoded.metadata, record.implicit, record.keep, record.ttl)
    record = replace(record, gist_blocks=row.complete(record.blocks) if record.gist_dim else None)
    connection.execute(update, (*told, sequence, now, now + lease_seconds, record.gist_blocks, row.id))
    _save_state(connection, row.id, encoded)
    save_prefixes(connection, row.id, record)
    save_notes(connection, row, record.tokens, notes, beyond)
    shrank = record.blocks < row.info.blocks
    if shrank or any(count > record.rows(level) for level, count in row.staged.items()):
        lineage = load_lineage(connection, row.id)
        if shrank:
            save_lineage(connection, row.id, rewind_lineage(connection, row.id, lineage, record.blocks))
        _tidy(connection, row, lineage, record.blocks, record.rows(1))
    return sequence


def reshape(
    connection: sqlite3.Connection, session_id: str, fence: int, shape: Mapping[str, Any], lease_seconds: float
) -> None:
    """Drops the session's gists and changes their shape; see SessionStore.reshape."""
    row = held(connection, session_id, fence)
    info = replace(row.info, **shape)
    lineage = load_lineage(connection, row.id)
    save_lineage(connection, row.id, with_own_gists(connection, lineage, 0))
    _tidy(connection, row, lineage, MAX_ROWS, 0)
    staged = json.dumps({level: count for level, count in row.staged.items() if not level})
    update = f"""UPDATE sessions SET {", ".join(f"{name} = ?" for name in SHAPE_FIELDS)}, gist_blocks = ?, staged = ?,
                 sequence = sequence + 1, lease_until = ? WHERE id = ?"""
    values = [getattr(info, name) for name in SHAPE_FIELDS]
    connection.execute(update, (*values, 0 if info.blocks else None, staged, time.time() + lease_seconds, row.id))


def _check_fixed(info: SessionInfo, record: SessionRecord) -> None:
    for name in FIXED_FIELDS:
        old, new = getattr(info, name), getattr(record, name)
        if old != new:
            raise StoreError(f"{name} of session {info.session_id!r} is fixed: {old!r}, not {new!r}")


def _check_complete(row: Row, record: SessionRecord) -> None:
    for level in range(MAX_LEVEL + 1 if record.gist_dim else 1):
        there, needed = row.rows(level), record.rows(level)
        if there < needed:
            raise StoreError(
                f"session {record.session_id!r}: {record.tokens} tokens need {needed} rows of level {level}, "
                f"only {there} were written"
            )


def fork(connection: sqlite3.Connection, session_id: str, tenant: str, encoded: EncodedRecord) -> SessionRecord:
    """Stores a new session that shares the rows of ``session_id`` up to its own length."""
    row = find(connection, session_id, tenant)
    _check_fixed(row.info, encoded.record)
    if encoded.record.tokens > row.info.tokens:
        raise ConfigError(f"a fork's tokens must be at most {row.info.tokens}, got {encoded.record.tokens}")
    lineage = cut(load_lineage(connection, row.id), encoded.record.blocks)
    record = create(connection, encoded, lineage, row.shared(encoded.record.blocks))
    copy_notes(connection, row, record)
    return record


def delete(connection: sqlite3.Connection, session_id: str, tenant: str) -> None:
    """Deletes the session, and the rows that no fork shares."""
    _remove(connection, find(connection, session_id, tenant))


def expire(connection: sqlite3.Connection, limit: int, implicit: float | None, explicit: float | None) -> int:
    """Deletes sessions that nobody used for long, or leases; see SessionStore.expire."""
    now, gone = time.time(), 0
    free = "AND NOT keep AND (owner = '' OR lease_until <= ?) ORDER BY"
    own = f"WHERE ttl IS NOT NULL AND updated + ttl <= ? {free} updated + ttl LIMIT ?"
    of_kind = f"WHERE {{}} AND ttl IS NULL AND updated <= ? {free} updated LIMIT ?"
    kinds = (of_kind.format("implicit"), implicit), (of_kind.format("NOT implicit"), explicit)
    for query, seconds in ((own, 0.0), *kinds):
        if seconds is not None:
            found = connection.execute(SELECT + query, (now - seconds, now, limit - gone)).fetchall()
            for values in found:
                _remove(connection, row_of(values))
            gone += len(found)
    return gone


def _remove(connection: sqlite3.Connection, row: Row) -> None:
    """Deletes the session of ``row``."""
    lineage = load_lineage(connection, row.id, checked=False)  # what others need of it stays in any case
    for table in ("states", "prefixes", "lineage", "notes"):
        connection.execute(f"DELETE FROM {table} WHERE session = ?", (row.id,))
    connection.execute("DELETE FROM sessions WHERE id = ?", (row.id,))
    _tidy(connection, row, lineage, 0, 0)


def _tidy(connection: sqlite3.Connection, row: Row, lineage: Lineage, spans: int, gists: int) -> None:
    """Drops the rows of these storages that neither the session nor a fork needs.

    The session has spans of ``spans`` blocks now, and gists of ``gists`` blocks. Another session may still write to
    one of the storages; then its rows, also those it has only staged, stay.
    """
    own: dict[Kind, int] = {"spans": spans, "gists": gists}
    for part in lineage:
        for kind, blocks in own.items():
            storage = getattr(part, kind)
            needed = max(blocks, shared_blocks(connection, kind, storage, row.id))
            drop_rows(connection, kind, storage, needed, row.info.block_size)


def probe(connection: sqlite3.Connection) -> int:
    """Writes something, to see whether writing works."""
    return next_number(connection, "probe")
