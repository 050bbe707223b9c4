"""Session records as the SQLite file has them, and what finds them: lists, and prefixes of messages."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mc_core.store import (
    MAX_LEVEL,
    DamagedRecordError,
    FencedError,
    PrefixMatch,
    SessionInfo,
    SessionPage,
    SessionRecord,
    UnknownSessionError,
    complete_blocks,
    decode_cursor,
)
from server.stores.arguments import INFO_FIELDS, check_limit
from server.stores.listing import page_of
from server.stores.record_sum import unsealed

SELECT = f"SELECT {', '.join(INFO_FIELDS)}, id, fence, owner, lease_until, staged FROM sessions "

FLAGS = ("implicit", "keep")


@dataclass(frozen=True)
class Row:
    """A session's row in the file. ``staged``: level -> rows there, for levels written since the last commit."""

    info: SessionInfo
    id: int
    fence: int
    owner: str
    lease_until: float
    staged: Mapping[int, int]

    @property
    def gist_blocks(self) -> int:
        """Committed blocks that have gists."""
        return self.info.rows(1)

    def shared(self, blocks: int) -> int | None:
        """``gist_blocks`` of a fork of the first ``blocks`` blocks."""
        known = self.info.gist_blocks
        return known if known is not None and known < blocks else None

    def rows(self, level: int) -> int:
        """Rows at ``level`` that are committed or staged."""
        return self.staged.get(level, self.info.rows(level))

    def complete(self, blocks: int) -> int | None:
        """``gist_blocks`` of ``blocks`` blocks by what is written."""
        return complete_blocks([self.rows(level) for level in range(1, MAX_LEVEL + 1)], blocks, self.info.block_size)


def info_of(values: tuple[Any, ...]) -> SessionInfo:
    """SessionInfo from the columns INFO_FIELDS."""
    columns = dict(zip(INFO_FIELDS, values, strict=True))
    columns |= {"metadata": json.loads(columns["metadata"])} | {name: bool(columns[name]) for name in FLAGS}
    return SessionInfo(**columns)


def row_of(values: tuple[Any, ...]) -> Row:
    number, fence, owner, until, staged = values[len(INFO_FIELDS) :]
    levels = {int(level): count for level, count in json.loads(staged).items()} if staged else {}
    return Row(info_of(values[: len(INFO_FIELDS)]), number, fence, owner, until, levels)


def find(connection: sqlite3.Connection, session_id: str, tenant: str | None = None) -> Row:
    """The session's row; UnknownSessionError if there is none, or if it is another tenant's (None: any tenant)."""
    values = connection.execute(SELECT + "WHERE session_id = ?", (session_id,)).fetchone()
    row = row_of(values) if values else None
    if row is None or (tenant is not None and row.info.tenant != tenant):
        raise UnknownSessionError(session_id)
    return row


def held(connection: sqlite3.Connection, session_id: str, fence: int) -> Row:
    """The session's row if ``fence`` is its lease; FencedError otherwise, and for a deleted session."""
    try:
        row = find(connection, session_id)
    except UnknownSessionError as error:
        raise FencedError(f"session {session_id!r} was deleted") from error
    if row.fence != fence or not fence:
        raise FencedError(f"session {session_id!r} was opened by another owner (lease {row.fence}, not {fence})")
    return row


def load_record(connection: sqlite3.Connection, row: Row, fence: int = 0) -> SessionRecord:
    """The whole committed record. DamagedRecordError if it is not as it was written."""
    query = "SELECT tail, state, metadata FROM states JOIN sessions ON id = session WHERE id = ?"
    found = connection.execute(query, (row.id,)).fetchone()
    if found is None:
        raise DamagedRecordError(f"session {row.info.session_id!r} has lost its state")
    tail, state, metadata = found
    prefixes = load_prefixes(connection, row.id)
    return SessionRecord(
        **{name: getattr(row.info, name) for name in INFO_FIELDS},
        tail=np.frombuffer(tail, "<i4").astype(np.int32),
        state=unsealed(row.info, tail, prefixes, metadata, state),
        prefixes=prefixes,
        fence=fence,
    )


def page(
    connection: sqlite3.Connection, tenant: str, limit: int, after: str | None, implicit: bool | None
) -> SessionPage:
    """See SessionStore.list."""
    check_limit(limit)
    query = f"SELECT {', '.join(INFO_FIELDS)} FROM sessions WHERE tenant = ?"
    values: list[object] = [tenant]
    if implicit is not None:
        query += " AND implicit = ?"
        values.append(int(implicit))
    if after is not None:
        query += " AND (created, session_id) < (?, ?)"
        values.extend(decode_cursor(after))
    query += " ORDER BY created DESC, session_id DESC LIMIT ?"
    return page_of(connection.execute(query, (*values, limit + 1)).fetchall(), limit, info_of)


def foreign(connection: sqlite3.Connection, tokenizer: str, limit: int) -> int:
    """See SessionStore.foreign."""
    newest = "SELECT tokenizer, gist_dim FROM sessions ORDER BY id DESC LIMIT ?"
    query = f"SELECT count(*) FROM ({newest}) WHERE tokenizer != ? AND gist_dim"
    return int(connection.execute(query, (limit, tokenizer)).fetchone()[0])


def load_prefixes(connection: sqlite3.Connection, session: int) -> list[tuple[str, int]]:
    """The session's (hash, position) pairs in order of position."""
    query = "SELECT hash, position FROM prefixes WHERE session = ? ORDER BY position, serial"
    return connection.execute(query, (session,)).fetchall()


def save_prefixes(connection: sqlite3.Connection, session: int, record: SessionRecord) -> None:
    """Makes the stored pairs equal to the record's; pairs that stay keep their place."""
    query = "SELECT hash, position, implicit FROM prefixes WHERE session = ?"
    flag = int(record.implicit)
    wanted = dict.fromkeys((key, position, flag) for key, position in record.prefixes)
    stored = set(connection.execute(query, (session,)).fetchall())
    gone = [(session, *pair) for pair in stored.difference(wanted)]
    connection.executemany(
        "DELETE FROM prefixes WHERE session = ? AND hash = ? AND position = ? AND implicit = ?", gone
    )
    insert = "INSERT INTO prefixes (session, tenant, model, hash, position, implicit) VALUES (?, ?, ?, ?, ?, ?)"
    added = [
        (session, record.tenant, record.model, key, position, implicit)
        for key, position, implicit in wanted
        if (key, position, implicit) not in stored
    ]
    connection.executemany(insert, added)


def find_prefix(connection: sqlite3.Connection, tenant: str, model: str, hashes: Sequence[str]) -> PrefixMatch | None:
    """The first hash that an implicit session has, and the session that stored it last: one index probe a hash."""
    query = """SELECT s.session_id, p.hash, p.position FROM prefixes p JOIN sessions s ON s.id = p.session
               WHERE p.tenant = ? AND p.model = ? AND p.hash = ? AND p.implicit ORDER BY p.serial DESC LIMIT 1"""
    for key in hashes:
        match = connection.execute(query, (tenant, model, key)).fetchone()
        if match:
            return PrefixMatch(*match)
    return None
