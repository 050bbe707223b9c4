"""Rows of the SQLite store: where they lie, how they are written, read and dropped.

Rows belong to *storages*; a session's *lineage* lists the storages that hold its history, each up to an end block, the
last one (active, no end) taking new rows. A fork shares its parent's storages up to the fork and adds its own, so
nothing is copied. A session that rewinds below what a fork shares leaves the shared rows and goes on in a new storage.
Gists lie beside the spans, in the same storages, until the session is reshaped: then in one storage of their own. So do
those that a fork has to make itself, since its parent has not made them yet.
"""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mc_core.errors import StoreError
from mc_core.store import MAX_LEVEL, DamagedRecordError, SessionInfo, rows_at
from server.stores.codec import RowFormat

INDEX_BITS, LEVEL_BITS = 32, 4
MAX_ROWS = 1 << INDEX_BITS
MAX_STORAGES = 1 << (63 - INDEX_BITS - LEVEL_BITS)


@dataclass(frozen=True)
class Segment:
    """The part of a history up to ``end`` blocks (None: the active one, open-ended).

    Its spans lie in the storage ``spans``, its gists of all levels in the storage ``gists``.
    """

    spans: int
    gists: int
    end: int | None


Lineage = Sequence[Segment]
Kind = Literal["spans", "gists"]
LEVELS: dict[Kind, range] = {"spans": range(1), "gists": range(1, MAX_LEVEL + 1)}


def row_key(storage: int, level: int, index: int) -> int:
    """The primary key of a row."""
    return (((storage << LEVEL_BITS) | level) << INDEX_BITS) | index


def next_number(connection: sqlite3.Connection, name: str) -> int:
    """The next value of a counter of the file, never given out before."""
    update = "UPDATE meta SET value = value + 1 WHERE name = ? RETURNING value"
    return int(connection.execute(update, (name,)).fetchall()[0][0])


def new_storage(connection: sqlite3.Connection) -> int:
    """A fresh storage number."""
    number = next_number(connection, "storage")
    if number >= MAX_STORAGES:
        raise StoreError(f"the store file has used all of its {MAX_STORAGES} row storages: start a new file")
    return number


def lineage_sum(session: int, ordinal: int, spans: int, end: int | None, gists: int) -> int:
    """CRC-32 of one segment: where it leads, rows of another session would look sound."""
    return zlib.crc32(f"{session} {ordinal} {spans} {end} {gists}".encode())


def load_lineage(connection: sqlite3.Connection, session: int, checked: bool = True) -> list[Segment]:
    """The session's segments in order; ``session`` is the row id. DamagedRecordError if they are not as they were
    written."""
    query = "SELECT ordinal, spans, end_block, gists, sum FROM lineage WHERE session = ? ORDER BY ordinal"
    lineage = []
    for *place, checksum in connection.execute(query, (session,)):
        if checked and lineage_sum(session, *place) != checksum:
            raise DamagedRecordError(f"where the rows of session number {session} lie is not as it was written")
        _, spans, end, gists = place
        lineage.append(Segment(spans, gists, end))
    return lineage


def save_lineage(connection: sqlite3.Connection, session: int, lineage: Lineage) -> None:
    """Replaces the session's segments."""
    connection.execute("DELETE FROM lineage WHERE session = ?", (session,))
    places = [(session, ordinal, part.spans, part.end, part.gists) for ordinal, part in enumerate(lineage)]
    insert = "INSERT INTO lineage (session, ordinal, spans, end_block, gists, sum) VALUES (?, ?, ?, ?, ?, ?)"
    connection.executemany(insert, [(*place, lineage_sum(*place)) for place in places])


def cut(lineage: Lineage, blocks: int) -> list[Segment]:
    """The segments of the first ``blocks`` blocks, all closed; empty ones are left out."""
    parts, start = [], 0
    for part in lineage:
        end = blocks if part.end is None else min(part.end, blocks)
        if end > start:
            parts.append(replace(part, end=end))
        start = max(start, end)
    return parts


def with_own_gists(connection: sqlite3.Connection, lineage: Lineage, blocks: int) -> list[Segment]:
    """The lineage with all gists but those of the first ``blocks`` blocks in a fresh storage."""
    gists = new_storage(connection)
    later = [part for part in lineage if part.end is None or part.end > blocks]
    return [*cut(lineage, blocks), *(replace(part, gists=gists) for part in later)]


def shared_blocks(connection: sqlite3.Connection, kind: Kind, storage: int, session: int) -> int:
    """Blocks whose ``kind`` sessions other than ``session`` need of ``storage``: all if one of them writes there."""
    query = f"SELECT max(coalesce(end_block, ?)) FROM lineage WHERE {kind} = ? AND session != ?"
    return int(connection.execute(query, (MAX_ROWS, storage, session)).fetchone()[0] or 0)


def rewind_lineage(connection: sqlite3.Connection, session: int, lineage: Lineage, blocks: int) -> list[Segment]:
    """The lineage after a rewind to ``blocks``: as it was, unless a fork needs rows that would be written anew."""
    closed, active = cut(lineage, blocks), lineage[-1]
    if any(shared_blocks(connection, kind, getattr(active, kind), session) > blocks for kind in LEVELS):
        storage = new_storage(connection)
        return [*closed, Segment(storage, storage, None)]
    kept = [part for part in closed if part.spans != active.spans]
    return [*kept, active]


def drop_rows(connection: sqlite3.Connection, kind: Kind, storage: int, blocks: int, block_size: int) -> None:
    """Deletes the rows of ``storage`` beyond ``blocks`` blocks, at the levels of ``kind``."""
    if blocks >= MAX_ROWS:
        return
    firsts = [(level, rows_at(level, blocks, block_size)) for level in LEVELS[kind]]
    bounds = [(row_key(storage, level, first), row_key(storage, level, MAX_ROWS - 1)) for level, first in firsts]
    if not blocks:
        bounds = [(bounds[0][0], bounds[-1][1])]
    connection.executemany("DELETE FROM rows WHERE key BETWEEN ? AND ?", bounds)


class RowReader:
    """Reads the rows of one session at one level, within one snapshot."""

    def __init__(self, connection: sqlite3.Connection, info: SessionInfo, lineage: Lineage, level: int) -> None:
        self._connection = connection
        self._format = RowFormat.of(info, level)
        bounds = [rows_at(level, part.end, info.block_size) for part in lineage[:-1] if part.end is not None]
        self._bounds = np.array(bounds, np.int64)
        storages = [part.gists if level else part.spans for part in lineage]
        self._storages = np.array([row_key(storage, level, 0) for storage in storages], np.int64)

    def keys(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Primary keys of rows: the first storage whose end lies past the row."""
        return self._storages[np.searchsorted(self._bounds, indices, side="right")] + indices

    def some(self, indices: NDArray[np.int64]) -> tuple[NDArray[np.int64], list[bytes]]:
        """The rows that exist among ``indices`` (ascending, distinct), as (their indices, their bytes)."""
        keys = self.keys(indices)
        # json_each keeps this one prepared statement whatever the number of rows.
        query = "SELECT key, data FROM rows WHERE key IN (SELECT value FROM json_each(?))"
        found = dict(self._connection.execute(query, (str(keys.tolist()),)).fetchall())
        present = np.fromiter((key in found for key in keys.tolist()), np.bool_, count=len(keys))
        return indices[present], [found[key] for key in keys[present].tolist()]

    def span(self, first: int, stop: int) -> tuple[NDArray[np.int64], list[bytes]]:
        """The rows that exist in [first, stop), one sequential scan for each storage."""
        edges = [first, *(bound for bound in self._bounds.tolist() if first < bound < stop), stop]
        query = "SELECT key, data FROM rows WHERE key BETWEEN ? AND ? ORDER BY key"
        found_keys: list[int] = []
        rows: list[bytes] = []
        base = []
        for start, end in pairwise(edges):
            low = int(self.keys(np.array([start]))[0])
            pairs = self._connection.execute(query, (low, low + end - start - 1)).fetchall()
            found_keys.extend(key for key, _ in pairs)
            rows.extend(data for _, data in pairs)
            base.append(np.full(len(pairs), low - start, np.int64))
        return np.array(found_keys, np.int64) - (np.concatenate(base) if base else 0), rows

    def decode(self, indices: NDArray[np.int64], rows: list[bytes]) -> tuple[NDArray[np.void], NDArray[np.bool_]]:
        """See RowFormat.decode."""
        return self._format.decode(indices, rows)
