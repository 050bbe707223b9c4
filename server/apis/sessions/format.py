"""Writes sessions as answers."""

from __future__ import annotations

import math
from typing import Any, cast

from mc_core.session.session import Session
from mc_core.store import SessionInfo
from server.apis.sessions.protocol import Kind, SessionMessage, SessionObject
from server.state import ServerState
from server.turns.message_notes import Listed


def describe(session: Session | SessionInfo, state: ServerState) -> SessionObject:
    """A session, in memory or as the store has it, and what this server does with it."""
    if isinstance(session, SessionInfo):
        return summarize(session, state)
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
        **_life(session, state.host.expiry.expires(session)),
    )


def show(listed: Listed) -> SessionMessage:
    """A message of the list."""
    return SessionMessage(
        id=listed.place.id,
        role=listed.role,
        content=listed.content,
        name=listed.name,
        tool_calls=list(listed.tool_calls) or None,
        tool_call_id=listed.tool_call_id,
        title=listed.title,
        kind=cast(Kind | None, listed.kind),
        created=listed.place.created,
        start=listed.place.start,
        end=listed.place.end,
    )


def summarize(info: SessionInfo, state: ServerState) -> SessionObject:
    """A session as the store lists it, and what this server does with it."""
    beside = _life(info, state.host.expiry.expires(info))
    if info.tokenizer != state.bundle.tokenizer.fingerprint:
        beside["other_tokenizer"] = True
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
        **beside,
    )


def _life(session: Session | SessionInfo, expires: float | None) -> dict[str, Any]:
    """How long it is kept; no field without a value."""
    told: dict[str, Any] = {"keep": session.keep}
    if session.ttl is not None:
        told["ttl"] = session.ttl
    if expires is not None:
        told["expires"] = math.ceil(expires)
    return told
