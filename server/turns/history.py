"""What is done to a session's history as a whole: cut at a message or a place, or shared with a session of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from mc_core.engine.engine import Engine
from mc_core.session.fork import fork_record
from mc_core.session.session import Session
from mc_core.store import SessionRecord
from server.errors import ApiError, bad_request, not_found
from server.futures import settled
from server.sessions.host import SessionHost
from server.sessions.names import new_id
from server.templates.messages import Message
from server.turns.conversation import ChatState, begin_with
from server.turns.message_notes import Listed, Told, drop_from, find_message, listed_messages
from server.turns.prefixes import bounded

NOTHING = np.empty(0, np.int32)


@dataclass(frozen=True)
class Spot:
    """A place in the history of a session that is held. last: the last message of the list that ends before it."""

    position: int
    last: Listed | None


class History:
    """The history of one session, which its user holds."""

    def __init__(self, host: SessionHost, engine: Engine, session: Session) -> None:
        self._host, self._engine, self._session = host, engine, session

    async def at(self, position: int | None, message_id: str | None, param: str = "position") -> Spot:
        """A position, or the end of a message; the history's end for neither. ApiError if there is no such place."""
        session, store = self._session, self._host.store
        if message_id is not None:
            message = await find_message(store, session.id, session.tenant, message_id)
            if message is None:
                raise not_found(f"session {session.id} lists no message {message_id!r}", "message_not_found")
            return await self._spot(message.place.end)
        end = session.committed_tokens
        if position is not None and position > end:
            raise bad_request(f"position {position} lies beyond the history's {end} tokens", param)
        return await self._spot(end if position is None else position)

    async def before_the_last_question(self) -> Spot:
        """Where the last message of a user begins."""
        session = self._session
        async for listed in listed_messages(self._host.store, session.id, session.tenant, newest_first=True):
            if listed.role == "user":
                return await self.before(listed)
        raise ApiError(409, f"session {session.id} lists no message of a user", code="nothing_to_undo")

    async def before(self, message: Listed) -> Spot:
        """Where a message of the list begins."""
        return await self._spot(message.place.start, message.number)

    async def take_back(self, last: Listed) -> None:
        """Cut the history in front of the last message of its list."""
        session, spot = self._session, await self.before(last)
        await self.cut(spot)
        if last.place.end == spot.position:
            # A message that waits to be written with the next one: there is nothing to cut.
            await settled(self._engine.append(session, NOTHING, then=partial(go_on_from, session, spot)))
            await drop_from(self._host.store, session, last.number)

    async def cut(self, spot: Spot) -> int:
        """Cut the history there -> tokens of history."""
        session = self._session
        if spot.position == session.tokens:
            return session.tokens
        return await settled(self._engine.rewind(session, spot.position, partial(go_on_from, session, spot)))

    async def fork(self, spot: Spot, metadata: Mapping[str, Any]) -> SessionRecord:
        """A session of its own of all that is before the place."""
        session, host, position = self._session, self._host, spot.position
        parent = await host.info(session.id, session.tenant)
        tail = await settled(self._engine.read(session, position // session.block_size * session.block_size, position))
        child = host.factory.create(
            new_id(),
            session.tenant,
            model=host.model,
            metadata=metadata,
            budget=session.wc.budget if session.own_budget else None,
        )
        kept = session.wc.protection
        pins, chosen = (
            [(start, min(end, position)) for start, end in ranges if start < position]
            for ranges in (kept.pins, kept.chosen)
        )
        record = fork_record(child, parent, position, tail, pins, chosen)
        child.prefixes = [(digest, at) for digest, at in session.prefixes if at <= position]
        child.chat = dict(session.chat)
        if position < session.tokens:
            go_on_from(child, spot)
        record = replace(record, prefixes=tuple(child.prefixes), state={**record.state, "chat": child.chat})
        return await settled(host.store.fork(session.id, session.tenant, record))

    async def _spot(self, position: int, before: int | None = None) -> Spot:
        """before: of messages with lower numbers than this one alone."""
        session = self._session
        async for listed in listed_messages(self._host.store, session.id, session.tenant, newest_first=True):
            if listed.place.end <= position and (before is None or listed.number < before):
                return Spot(position, listed)
        return Spot(position, None)


def go_on_from(session: Session, spot: Spot) -> None:
    """Let the conversation go on from a place where the history was cut: it is known there what was said if that is a
    message's end."""
    last, position = spot.last, spot.position
    if last is not None and last.role == "system" and position == 0:
        begin_with(session, Message("system", last.content or ""), 0)
        Told(1, last.place, (last.place,)).keep(session)
        return
    if last is not None and last.place.end == position and last.place.digest:
        digest = last.place.digest
        if not session.prefixes or session.prefixes[-1] != (digest, position):
            session.prefixes = bounded([*session.prefixes, (digest, position)])
        system = ChatState.of(session).system
        session.chat = ChatState(system, digest, position, False, 0, ()).json()
    elif position == 0:
        session.prefixes, session.chat = [], {}
    Told.behind(last).keep(session)
