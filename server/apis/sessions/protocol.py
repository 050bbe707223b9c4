"""Bodies of /v1/sessions."""

from __future__ import annotations

import json
import unicodedata
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from server.protocol.answers import Answer, Count
from server.protocol.strict import Natural, Positive, StrictModel

MAX_METADATA_BYTES = 16_384
MAX_SECONDS = 3.2e9
"""Of a session's own ttl: a century."""
MAX_TITLE = 200
"""Characters: a title stands in front of what is shown of its text, in the room that frames have."""
MAX_METADATA_DEPTH = 64
"""Objects and lists within each other. What writes answers fails at some 250; lists would then fail with them."""


def _small(value: dict[str, Any]) -> dict[str, Any]:
    if _deeper(value, MAX_METADATA_DEPTH):
        raise ValueError(f"metadata is nested deeper than {MAX_METADATA_DEPTH} levels")
    # Not every Python object that JSON makes can be written as JSON again.
    if len(json.dumps(value, ensure_ascii=False, allow_nan=False).encode()) > MAX_METADATA_BYTES:
        raise ValueError(f"metadata is larger than {MAX_METADATA_BYTES} bytes")
    return value


Metadata = Annotated[dict[str, Any], AfterValidator(_small)]
Seconds = Annotated[float, Field(gt=0, le=MAX_SECONDS)]
MessageId = Annotated[str, Field(min_length=1, max_length=64)]


class CreateSession(StrictModel):
    metadata: Metadata = Field(default_factory=dict)
    system: str | None = Field(None, min_length=1)
    budget: Positive | None = None
    keep: bool = False
    ttl: Seconds | None = None


class UpdateSession(StrictModel):
    """What is left out stays; ``ttl`` 0: as long as the server keeps sessions of its kind."""

    metadata: Metadata | None = None
    keep: bool | None = None
    ttl: Annotated[float, Field(ge=0, le=MAX_SECONDS)] | None = None


def _one_line(title: str) -> str:
    if not title.strip():
        raise ValueError("a title must not be blank")
    if any(unicodedata.category(letter) in ("Cc", "Zl", "Zp") for letter in title):
        raise ValueError("a title is one line, without control characters")
    return title.strip()


Title = Annotated[str, Field(min_length=1, max_length=MAX_TITLE), AfterValidator(_one_line)]
Kind = Literal["document", "chat"]


class IngestText(StrictModel):
    text: str
    title: Title | None = None
    kind: Kind = "document"


class Rewind(StrictModel):
    position: Natural | None = None
    message_id: MessageId | None = None


class Fork(StrictModel):
    position: Natural | None = None
    message_id: MessageId | None = None
    metadata: Metadata | None = None


def _deeper(value: Any, levels: int) -> bool:
    """Whether objects and lists are nested deeper than so many levels."""
    if not isinstance(value, dict | list):
        return False
    inside = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_deeper(one, levels - 1) for one in inside)


class IngestProgress(Answer):
    """Tokens and bytes that an ingest has taken in, and the byte of the text from which it could go on for good;
    null where the history went on behind an ingest in parts."""

    active: bool
    tokens: Count
    bytes: Count
    offset: Count | None


class SessionObject(Answer):
    """A session. ``budget``, ``cost``, ``utilization`` and ``turns`` are told while it is in memory,
    ``ingest`` while one is under way. ``expires``: when it may be deleted if nothing is stored in it until then;
    without it never. ``other_tokenizer``: true of a session that this server refuses, since it has another tokenizer.
    """

    id: str
    object: Literal["session"]
    model: str
    tokens: Count
    sequence: Count
    created: Count
    updated: Count
    metadata: dict[str, Any]
    implicit: bool
    keep: bool
    ttl: float | None = None
    expires: Count | None = None
    budget: Count | None = None
    cost: Count | None = None
    utilization: float | None = None
    turns: Count | None = None
    ingest: IngestProgress | None = None
    other_tokenizer: Literal[True] | None = None


class ImportedSession(SessionObject):
    """``notes_left_out``: notes that are found in all sessions of a key, and whose names other sessions have."""

    notes_left_out: Count


class SessionList(Answer):
    """``next`` is ``after`` of the next page."""

    object: Literal["list"]
    data: list[SessionObject]
    has_more: bool
    next: str | None


class DeletedSession(Answer):
    id: str
    object: Literal["session.deleted"] = "session.deleted"
    deleted: Literal[True] = True


class Ingested(Answer):
    """``offset`` is told of an ingest in parts: the byte of the text from which it may go on."""

    tokens_added: Count
    tokens: Count
    offset: Count | None = None


class Rewound(Answer):
    tokens: Count


class Cancelled(Answer):
    id: str
    cancelled: bool


class SessionMessage(Answer):
    """A message of a session's list, or a text that was ingested (``document``), and its place: tokens [start, end)."""

    id: str
    object: Literal["session.message"] = "session.message"
    role: str
    content: str | None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None
    title: str | None = None
    kind: Kind | None = None
    created: Count
    start: Count
    end: Count


class SessionMessages(Answer):
    """``complete``: the list tells all of the history. ``next`` is ``after`` of the next page."""

    object: Literal["list"] = "list"
    data: list[SessionMessage]
    has_more: bool
    next: str | None
    complete: bool
