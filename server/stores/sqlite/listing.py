"""Listings of the SQLite store."""

from __future__ import annotations

import sqlite3

from mc_core.store import SessionPage, decode_cursor, encode_cursor
from server.stores.drafts import INFO_FIELDS, check_limit
from server.stores.sqlite.sessions import info_of


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
    found = [info_of(row) for row in connection.execute(query, (*values, limit + 1))]
    return SessionPage(tuple(found[:limit]), encode_cursor(found[limit - 1]) if len(found) > limit else None)
