"""Message prefixes in the SQLite store: which implicit session already holds the start of a conversation."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from mc_core.store import PrefixMatch, SessionRecord


def load(connection: sqlite3.Connection, session: int) -> list[tuple[str, int]]:
    """The session's (hash, position) pairs in order of position."""
    query = "SELECT hash, position FROM prefixes WHERE session = ? ORDER BY position, serial"
    return connection.execute(query, (session,)).fetchall()


def save(connection: sqlite3.Connection, session: int, record: SessionRecord) -> None:
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


def find(connection: sqlite3.Connection, tenant: str, model: str, hashes: Sequence[str]) -> PrefixMatch | None:
    """The first hash that an implicit session has, and the session that stored it last: one index probe a hash."""
    query = """SELECT s.session_id, p.hash, p.position FROM prefixes p JOIN sessions s ON s.id = p.session
               WHERE p.tenant = ? AND p.model = ? AND p.hash = ? AND p.implicit ORDER BY p.serial DESC LIMIT 1"""
    for key in hashes:
        match = connection.execute(query, (tenant, model, key)).fetchone()
        if match:
            return PrefixMatch(*match)
    return None
