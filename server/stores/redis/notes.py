"""Notes on their way to and from the script of the Redis store."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from mc_core.notes import PAGE_BYTES, Beyond, Note, NotePage
from server.stores.arguments import check_limit
from server.stores.note_codec import decode_cursor, decode_note, encode_cursor, encode_note, sound
from server.stores.redis.link import Command, Reply
from server.stores.redis.replies import key_part


def commit_parts(notes: Sequence[Note], beyond: Beyond) -> tuple[Beyond, str, bytes]:
    """What a commit sends beside the record: a list of the notes, and their values in one."""
    values = [encode_note(note) for note in notes]
    table = [
        (note.key, note.position, int(note.indexed), len(value)) for note, value in zip(notes, values, strict=True)
    ]
    return beyond, json.dumps(table), b"".join(values)


def page_command(
    session_id: str, tenant: str, prefix: str, after: str | None, limit: int, newest_first: bool
) -> Command:
    """Asks for one page. ConfigError for a bad limit or cursor."""
    check_limit(limit)
    position, number = ("", "") if after is None else decode_cursor(after)
    place = (session_id, key_part(tenant), prefix, position, number)
    return ("notes", "", "", *place, limit, int(newest_first), PAGE_BYTES)


def page_of(reply: Reply, limit: int) -> NotePage:
    """The page, of which the reply may have one note too many."""
    notes: list[Note] = []
    corrupt: list[str] = []
    cursor = None
    for index, columns in enumerate(reply):
        if index == limit or (index and not columns[4]):
            return NotePage(tuple(notes), cursor, tuple(corrupt))
        cursor = encode_cursor(int(columns[1]), int(columns[2]))
        note = _note_of(columns)
        if note is None:
            corrupt.append(columns[0].decode())
        else:
            notes.append(note)
    return NotePage(tuple(notes), None, tuple(corrupt))


def note_of(columns: Sequence[Any] | None) -> Note | None:
    """The note of a reply that may have none; StoreError for a corrupt one."""
    return sound(columns[0].decode(), _note_of(columns)) if columns else None


def _note_of(columns: Sequence[Any]) -> Note | None:
    key, position, _, flag, value = columns
    if flag not in (b"0", b"1"):
        return None
    return decode_note(key.decode(), int(position), flag == b"1", value)
