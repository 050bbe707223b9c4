"""Turns of a named session for clients that say the system prompt with each request, beside the messages."""

from __future__ import annotations

from collections.abc import Sequence

from mc_core.session.session import Session
from server.sessions.slots import Lease
from server.state import ServerState
from server.templates.messages import Message
from server.tools.shape import Shape
from server.turns.conversation import ChatState
from server.turns.prefixes import hash_chain
from server.turns.service import Prepare, Prompt


def in_named(state: ServerState, told: Sequence[Message], shape: Shape) -> Prepare:
    """New messages, or all of the session's and new ones behind them; a system prompt that is not the session's own
    holds as long as requests repeat it."""

    async def prepare(lease: Lease) -> Prompt:
        messages, instructions = _taken(lease.session, told)
        return await state.turns.in_session(messages, instructions, shape)(lease)

    return prepare


def _taken(session: Session, told: Sequence[Message]) -> tuple[Sequence[Message], str | None]:
    """The messages as the session has them, and instructions."""
    if not session.prefixes:
        return told, None
    said = told[0].content if told[0].role == "system" else None
    rest = told if said is None else told[1:]
    own = ChatState.of(session).system
    instructions = said if said != own else None
    whole = rest if own is None else [Message("system", own), *rest]
    held = {digest for digest, _ in session.prefixes}
    repeats = len(rest) > 1 and hash_chain(whole[: 1 if own is None else 2])[-1] in held
    return (whole if repeats else rest), instructions
