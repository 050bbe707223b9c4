"""Notes as bytes, and cursors into a list of them; the same in every store.

A value is kept between a version byte and the CRC-32 of key, place and value, so that one under another key, or at
another place, is as corrupt as one with a flipped bit.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Sequence

from mc_core.errors import ConfigError, StoreError
from mc_core.notes import Beyond, Note
from mc_core.store import SessionRecord

VERSION = 1
_HEAD = struct.Struct("<Bqb")
_CURSOR = re.compile(r"[0-9]{1,15}/[0-9]{1,15}")
_SUM = struct.Struct("<I")


def encode_note(note: Note) -> bytes:
    """What a store keeps of a note beside key, position and whether it is indexed."""
    return b"".join((bytes((VERSION,)), note.value, _checksum(note.key, note.position, note.indexed, note.value)))


def decode_note(key: str, position: int, indexed: bool, data: bytes) -> Note | None:
    """The note, None if it is not as it was written."""
    if len(data) < 1 + _SUM.size or data[0] != VERSION:
        return None
    value = data[1 : -_SUM.size]
    good = data[-_SUM.size :] == _checksum(key, position, indexed, value)
    return Note(key, position, value, indexed) if good else None


def sound(key: str, note: Note | None) -> Note:
    """The note; StoreError for a corrupt one."""
    if note is None:
        raise StoreError(f"note {key!r} is corrupt in the store")
    return note


def check_notes(record: SessionRecord, notes: Sequence[Note], beyond: Beyond) -> None:
    """ConfigError for notes that no commit of ``record`` takes."""
    if beyond not in ("drop", "keep", "restore"):
        raise ConfigError(f"beyond must be drop, keep or restore, got {beyond!r}")
    if notes and beyond == "keep":
        raise ConfigError("a commit that keeps notes beyond its end takes none of its own")
    if len({note.key for note in notes}) < len(notes):
        raise ConfigError("notes of one commit must have different keys")
    for note in notes:
        if note.position > record.tokens:
            raise ConfigError(f"note {note.key!r} lies at {note.position}, past the record's {record.tokens} tokens")


def encode_cursor(position: int, serial: int) -> str:
    """The cursor right after the note that was written as number ``serial``."""
    return f"{position}/{serial}"


def decode_cursor(cursor: str) -> tuple[int, int]:
    """(position, serial) of a cursor. Raises ConfigError when it is none."""
    if not _CURSOR.fullmatch(cursor):
        raise ConfigError(f"after must be a cursor from an earlier page, got {cursor[:140]!r}")
    position, _, serial = cursor.partition("/")
    return int(position), int(serial)


def _checksum(key: str, position: int, indexed: bool, value: bytes) -> bytes:
    head = _HEAD.pack(VERSION, position, indexed) + key.encode() + b"\0"
    return _SUM.pack(zlib.crc32(value, zlib.crc32(head)))
