"""Writes sessions as conversations, and messages as items."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mc_core.session.session import Session
from mc_core.store import SessionInfo
from server.apis.conversations.protocol import ConversationObject
from server.apis.responses.items_protocol import PREFIXES, Status, call_item, message_item, output_item
from server.templates.messages import Message
from server.turns.message_notes import Listed
from server.turns.parts import Part, Parts


def describe(session: Session | SessionInfo) -> ConversationObject:
    """A session, in memory or as the store has it."""
    if isinstance(session, SessionInfo):
        return summarize(session)
    return ConversationObject(id=session.id, created_at=int(session.created), metadata=session.metadata)


def summarize(info: SessionInfo) -> ConversationObject:
    """A session as the store has it."""
    return ConversationObject(id=info.session_id, created_at=int(info.created), metadata=dict(info.metadata))


def items_in(listed: Listed) -> list[dict[str, Any]]:
    """The items that a message of a session's list is told as; none for an ingested text."""
    if listed.role == "document":
        return []
    return list(items_of(listed.message(), parts_in(listed), known=listed.content is not None))


def parts_in(listed: Listed) -> Parts:
    """What these items are called: as they were when they came, or after the message."""
    if listed.place.parts:
        return listed.place.parts
    stem, words = listed.place.id.removeprefix("msg_"), len(listed.content or "")
    if listed.role == "tool":
        return (Part(f"{PREFIXES['function_call_output']}_{stem}"),)
    calls = tuple(Part(f"{PREFIXES['function_call']}_{stem}c{place}") for place in range(len(listed.tool_calls)))
    return calls if calls and listed.content == "" else (Part(listed.place.id, words), *calls)


def items_of(message: Message, parts: Parts, *, known: bool = True) -> Iterator[dict[str, Any]]:
    """A message as items of these names. known: its words are; they are left out else."""
    calls, at = iter(message.tool_calls), 0
    status: Status
    last = max((place for place, part in enumerate(parts) if _says(part)), default=0)
    for place, part in enumerate(parts):
        status = "incomplete" if part.cut else "completed"
        if message.role == "tool":
            yield output_item(part.id, message.tool_call_id or "", message.content if known else [])
        elif _says(part):
            end = None if place == last else at + part.size
            words, at = message.content[at:end], at + part.size
            yield message_item(part.id, message.role, [words] if known else [], status)
        else:
            call = next(calls)
            yield call_item(part.id, call.id, call.name, call.arguments, status)


def _says(part: Part) -> bool:
    """Whether it is words, and no call."""
    return part.id.startswith(f"{PREFIXES['message']}_")
