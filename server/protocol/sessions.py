"""Bodies of /v1/sessions."""

from __future__ import annotations

import json
import unicodedata
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator

from mc_core.session.session import Session
from mc_core.store import SessionInfo
from server.protocol.answers import SessionObject
from server.protocol.strict import Natural, Positive, StrictModel

MAX_METADATA_BYTES = 16_384
MAX_TITLE = 200
"""Characters: a title stands in front of what is shown of its text, in the room that frames have."""
MAX_METADATA_DEPTH = 64
"""Objects and lists within each other. What writes answers fails at some 250; lists would then fail with them."""


class CreateSession(StrictModel):
    metadata: dict[str, Any] = Field(default_factory=dict)
    system: str | None = Field(None, min_length=1)
    budget: Positive | None = None

    @field_validator("metadata")
    @classmethod
    def _small(cls, value: dict[str, Any]) -> dict[str, Any]:
        if _deeper(value, MAX_METADATA_DEPTH):
            raise ValueError(f"metadata is nested deeper than {MAX_METADATA_DEPTH} levels")
        # Not every Python object that JSON makes can be written as JSON again.
        if len(json.dumps(value, ensure_ascii=False, allow_nan=False).encode()) > MAX_METADATA_BYTES:
            raise ValueError(f"metadata is larger than {MAX_METADATA_BYTES} bytes")
        return value


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
    position: Natural


def _deeper(value: Any, levels: int) -> bool:
    """Whether objects and lists are nested deeper than so many levels."""
    if not isinstance(value, dict | list):
        return False
    inside = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_deeper(one, levels - 1) for one in inside)


def describe(session: Session) -> SessionObject:
    """A session in memory."""
    return SessionObject(
        id=session.id,
        object="session",
        model=session.model,
        tokens=session.committed_tokens,
        budget=session.wc.budget,
        cost=session.wc.cost,
        utilization=session.wc.utilization,
        sequence=session.sequence,
        turns=session.counters.turns,
        created=int(session.created),
        updated=int(session.updated),
        metadata=session.metadata,
        implicit=session.implicit,
    )


def summarize(info: SessionInfo) -> SessionObject:
    """A session as the store lists it."""
    return SessionObject(
        id=info.session_id,
        object="session",
        model=info.model,
        tokens=info.tokens,
        sequence=info.sequence,
        created=int(info.created),
        updated=int(info.updated),
        metadata=dict(info.metadata),
        implicit=info.implicit,
    )
