"""The lines of an export: JSON objects, each of a ``type``, and the last one with the SHA-256 of all before it."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import orjson
from pydantic import Field, TypeAdapter

from mc_core.notes import MAX_NOTE, Note
from mc_core.store import SessionRecord
from server.protocol.strict import StrictModel

FORMAT, VERSION = "megacontext-session", 1
MEDIA_TYPE = "application/x-ndjson"
LINE_TOKENS = 4096
"""Ids in one line at most, when written."""
MAX_LINE = 4 * MAX_NOTE
"""Bytes of one line at most: a note of 4 MiB fits, however it is written."""
IN_MEMORY = 32 << 20
"""Bytes of an export that are kept in memory while it is made or checked; a longer one goes to a temporary file."""

Count = Annotated[int, Field(ge=0, le=2**53)]
Prefix = Annotated[list[Any], Field(min_length=2, max_length=2)]


class Head(StrictModel):
    """The first line: what the file is, and of which session."""

    type: Literal["session"]
    format: Literal["megacontext-session"]
    version: Literal[1]
    server: str
    exported: float
    id: str
    model: str
    tokenizer: str
    block_size: Annotated[int, Field(ge=2, le=1024)]
    tokens: Count
    sequence: Count
    created: float
    updated: float
    implicit: bool
    keep: bool = False
    ttl: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    metadata: dict[str, Any]


class State(StrictModel):
    """The second: the working context, counters and conversation, and where messages of a plain chat end."""

    type: Literal["state"]
    state: dict[str, Any]
    prefixes: list[Prefix]


class Ids(StrictModel):
    """Token ids of the history from ``start`` on."""

    type: Literal["tokens"]
    start: Count
    ids: Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1, max_length=2**20)]


class StoredNote(StrictModel):
    """A message, a stored response, or another note; its value is text where it is UTF-8, else base64."""

    type: Literal["note"]
    key: str
    position: Count
    indexed: bool
    text: str | None = None
    base64: str | None = None

    def note(self) -> Note:
        """ConfigError, or ValueError, for one that no store takes."""
        if (self.text is None) == (self.base64 is None):
            raise ValueError("a note has text or base64, one of them")
        value = self.text.encode() if self.text is not None else base64.b64decode(self.base64 or "", validate=True)
        return Note(self.key, self.position, value, self.indexed)


class End(StrictModel):
    """The last one."""

    type: Literal["end"]
    tokens: Count
    notes: Count
    sha256: str


Line = Annotated[Head | State | Ids | StoredNote | End, Field(discriminator="type")]
LINES: TypeAdapter[Head | State | Ids | StoredNote | End] = TypeAdapter(Line)


def head_line(record: SessionRecord, server: str, exported: float) -> bytes:
    return json_line(
        {
            "type": "session",
            "format": FORMAT,
            "version": VERSION,
            "server": server,
            "exported": exported,
            "id": record.session_id,
            "model": record.model,
            "tokenizer": record.tokenizer,
            "block_size": record.block_size,
            "tokens": record.tokens,
            "sequence": record.sequence,
            "created": record.created,
            "updated": record.updated,
            "implicit": record.implicit,
            **({"keep": True} if record.keep else {}),
            **({} if record.ttl is None else {"ttl": record.ttl}),
            "metadata": dict(record.metadata),
        }
    )


def state_line(record: SessionRecord) -> bytes:
    return json_line({"type": "state", "state": dict(record.state), "prefixes": [list(one) for one in record.prefixes]})


def ids_line(start: int, ids: Any) -> bytes:
    """ids: int32 [n], contiguous."""
    line = {"type": "tokens", "start": start, "ids": ids}
    return orjson.dumps(line, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE)


def note_line(note: Note) -> bytes:
    told = {"type": "note", "key": note.key, "position": note.position, "indexed": note.indexed}
    try:
        line = json_line({**told, "text": note.value.decode()})
        if len(line) <= 2 * len(note.value) + 1024:
            return line
    except UnicodeDecodeError:
        pass
    return json_line({**told, "base64": base64.b64encode(note.value).decode()})


def end_line(tokens: int, notes: int, sha256: str) -> bytes:
    return json_line({"type": "end", "tokens": tokens, "notes": notes, "sha256": sha256})


def json_line(told: Mapping[str, Any]) -> bytes:
    # Not orjson: a state may hold whole numbers of more than 64 bits.
    return json.dumps(told, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode("utf-8") + b"\n"
