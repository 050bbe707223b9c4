"""Notes of sessions in the SQLite store: each function inside a transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence

from mc_core.notes import PAGE_BYTES, Beyond, Note, NotePage
from mc_core.store import NoteTakenError, SessionRecord
from server.stores.arguments import check_limit
from server.stores.note_codec import decode_cursor, decode_note, encode_cursor, encode_note, sound
from server.stores.sqlite.records import Row, find

Columns = tuple[int, str, int, int, bytes]


def save_notes(
    connection: sqlite3.Connection, row: Row, tokens: int, notes: Sequence[Note], beyond: Beyond = "drop"
) -> None:
    """See SessionStore.commit."""
    if beyond == "keep":
        hide = "UPDATE notes SET hidden = 1 WHERE session = ? AND position > ?"
        connection.execute(hide, (row.id, tokens))
        return
    if beyond == "restore":
        connection.execute("UPDATE notes SET hidden = 0 WHERE session = ? AND hidden", (row.id,))
    connection.execute("DELETE FROM notes WHERE session = ? AND (position > ? OR hidden)", (row.id, tokens))
    insert = """INSERT INTO notes (session, tenant, key, position, indexed, hidden, value) VALUES (?, ?, ?, ?, ?, 0, ?)
                ON CONFLICT (session, key) DO UPDATE SET
                position = excluded.position, indexed = excluded.indexed, value = excluded.value"""
    tenant = row.info.tenant
    rows = ((row.id, tenant, note.key, note.position, int(note.indexed), encode_note(note)) for note in notes)
    try:
        connection.executemany(insert, rows)
    except sqlite3.IntegrityError as error:
        raise NoteTakenError(row.info.session_id) from error


def copy_notes(connection: sqlite3.Connection, parent: Row, child: SessionRecord) -> None:
    """Gives a fork its parent's notes, as if they had been written in their order."""
    copy = """INSERT INTO notes (session, tenant, key, position, indexed, hidden, value)
              SELECT (SELECT id FROM sessions WHERE session_id = ?), tenant, key, position, 0, 0, value FROM notes
              WHERE session = ? AND hidden = 0 AND position <= ? AND NOT indexed ORDER BY position, serial"""
    connection.execute(copy, (child.session_id, parent.id, child.tokens))


def load(connection: sqlite3.Connection, session_id: str, tenant: str, key: str) -> Note | None:
    """See SessionStore.note."""
    row = find(connection, session_id, tenant)
    query = "SELECT serial, key, position, indexed, value FROM notes WHERE session = ? AND key = ? AND NOT hidden"
    found = connection.execute(query, (row.id, key)).fetchone()
    return sound(key, _note_of(found)) if found else None


def find_note(connection: sqlite3.Connection, tenant: str, key: str) -> tuple[str, Note] | None:
    """See SessionStore.find_note."""
    query = """SELECT n.serial, n.key, n.position, n.indexed, n.value, s.session_id
               FROM notes n JOIN sessions s ON s.id = n.session
               WHERE n.tenant = ? AND n.key = ? AND n.indexed AND NOT n.hidden"""
    found = connection.execute(query, (tenant, key)).fetchone()
    return (found[-1], sound(key, _note_of(found[:-1]))) if found else None


def delete(connection: sqlite3.Connection, session_id: str, tenant: str, key: str) -> bool:
    """See SessionStore.delete_note."""
    row = find(connection, session_id, tenant)
    return connection.execute("DELETE FROM notes WHERE session = ? AND key = ?", (row.id, key)).rowcount > 0


def page(
    connection: sqlite3.Connection,
    session_id: str,
    tenant: str,
    prefix: str,
    after: str | None,
    limit: int,
    newest_first: bool,
) -> NotePage:
    """See SessionStore.notes."""
    check_limit(limit)
    row = find(connection, session_id, tenant)
    beyond, order = ("<", "DESC") if newest_first else (">", "ASC")
    query = """SELECT serial, key, position, indexed, value FROM notes
               WHERE session = ? AND hidden = 0 AND substr(key, 1, ?) = ?"""
    values: list[object] = [row.id, len(prefix), prefix]
    if after is not None:
        query += f" AND (position, serial) {beyond} (?, ?)"
        values.extend(decode_cursor(after))
    query += f" ORDER BY position {order}, serial {order} LIMIT ?"
    return _page(connection.execute(query, (*values, limit + 1)), limit)


def _page(rows: Iterable[Columns], limit: int) -> NotePage:
    notes: list[Note] = []
    corrupt: list[str] = []
    size, cursor = 0, None
    for serial, key, position, indexed, value in rows:
        size += len(value)
        if len(notes) + len(corrupt) == limit or (size > PAGE_BYTES and cursor):
            return NotePage(tuple(notes), cursor, tuple(corrupt))
        cursor = encode_cursor(position, serial)
        note = decode_note(key, position, bool(indexed), value)
        if note is None:
            corrupt.append(key)
        else:
            notes.append(note)
    return NotePage(tuple(notes), None, tuple(corrupt))


def _note_of(columns: Columns) -> Note | None:
    _, key, position, indexed, value = columns
    return decode_note(key, position, bool(indexed), value)
