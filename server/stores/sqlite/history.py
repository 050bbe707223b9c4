"""Reading and staging a session's rows in the SQLite store."""

from __future__ import annotations

import json
import sqlite3
import time
from dataclasses import replace

import numpy as np

from mc_core.errors import ConfigError, StoreError
from mc_core.store import GistBatch, Indices, SpanBatch
from server.stores.arguments import Staging
from server.stores.codec import RowFormat, Rows
from server.stores.sqlite.records import Row, find, held
from server.stores.sqlite.rows import RowReader, load_lineage


def stage(connection: sqlite3.Connection, staging: Staging, lease_seconds: float) -> None:
    """Writes the rows; see SessionStore on which rows may be written."""
    row = held(connection, staging.session_id, staging.fence)
    level, first = staging.level, staging.first
    form, committed = RowFormat.of(row.info, level), row.info.rows(level)
    if not 0 <= first <= row.rows(level):
        raise StoreError(f"rows of level {level} must be written without gaps: next is {row.rows(level)}, got {first}")
    if set(staging.payload) != set(form.payload):
        raise ConfigError(f"level {level} of this session keeps {form.payload}, got {tuple(staging.payload)}")
    rows = form.encode(first, staging.payload)
    reader = RowReader(connection, row.info, load_lineage(connection, row.id), level)
    _check_committed(reader, first, rows[: max(0, committed - first)], level)
    keys = reader.keys(first + np.arange(len(rows), dtype=np.int64)).tolist()
    connection.executemany("INSERT OR REPLACE INTO rows VALUES (?, ?)", zip(keys, rows, strict=True))
    _note_staged(connection, row, level, max(committed, first + len(rows)), lease_seconds)


def _check_committed(reader: RowReader, first: int, rows: list[bytes], level: int) -> None:
    """Sound committed rows must equal ``rows``; a missing or corrupt one may be written again."""
    indices, stored = reader.some(first + np.arange(len(rows), dtype=np.int64))
    _, sound = reader.decode(indices, stored)
    for index, data, good in zip(indices.tolist(), stored, sound.tolist(), strict=True):
        if good and data != rows[index - first]:
            raise StoreError(f"row {index} of level {level} is committed with other content: commit the rewind first")


def _note_staged(connection: sqlite3.Connection, row: Row, level: int, count: int, lease_seconds: float) -> None:
    """Records that ``level`` has ``count`` rows now, and which blocks have gists by that, and renews the lease."""
    row = replace(row, staged={**row.staged, level: count})
    known = row.info.gist_blocks
    if level and known is not None:
        known = row.complete(row.info.blocks)
    update = "UPDATE sessions SET staged = ?, gist_blocks = ?, lease_until = ? WHERE id = ?"
    connection.execute(update, (json.dumps(row.staged), known, time.time() + lease_seconds, row.id))


def read_spans(connection: sqlite3.Connection, session_id: str, wanted: Indices | range) -> SpanBatch:
    """Spans of some blocks (ascending, distinct) or, in bulk, of a range of blocks."""
    table, found, missing, corrupt = _read(connection, session_id, 0, wanted)
    return SpanBatch(found, table["ids"].astype(np.int32), missing, corrupt)


def read_gists(connection: sqlite3.Connection, session_id: str, level: int, wanted: range) -> GistBatch:
    """Gists of a range of nodes."""
    if level < 1:
        raise ConfigError(f"level of a gist must be at least 1, got {level}")
    table, found, missing, corrupt = _read(connection, session_id, level, wanted)
    native = table.dtype["gist"].base.newbyteorder("=")
    keys = table["keys"].astype(native) if "keys" in (table.dtype.names or ()) else None
    return GistBatch(found, table["gist"].astype(native), keys, missing, corrupt)


def _read(
    connection: sqlite3.Connection, session_id: str, level: int, wanted: Indices | range
) -> tuple[Rows, Indices, Indices, Indices]:
    """(sound rows, their indices, missing indices, corrupt indices) among the rows that may be seen."""
    row = find(connection, session_id)
    reader = RowReader(connection, row.info, load_lineage(connection, row.id), level)
    limit = row.rows(level)
    if isinstance(wanted, range):
        stop = max(wanted.start, min(wanted.stop, limit))
        indices, data = reader.span(wanted.start, stop)
        wanted = np.arange(wanted.start, wanted.stop, dtype=np.int64)
    else:
        indices, data = reader.some(wanted[(wanted >= 0) & (wanted < limit)])
    table, sound = reader.decode(indices, data)
    missing = np.setdiff1d(wanted, indices, assume_unique=True)
    if sound.all():  # no copy of a long history in the common case
        return table, indices, missing, indices[:0]
    return table[sound], indices[sound], missing, indices[~sound]
