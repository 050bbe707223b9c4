"""Where a response's turn begins: which session it takes, and which messages are new to that."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

from mc_core.store import LeaseHeldError, UnknownSessionError
from server.apis.responses.stored import GONE, Place, Unread, find
from server.errors import bad_request
from server.futures import settled
from server.sessions.forks import fork_at
from server.sessions.owner import SHORT_PATIENCE
from server.sessions.slots import Lease
from server.state import ServerState
from server.templates.messages import Message
from server.tools.shape import Shape
from server.turns.conversation import ChatState, Ids, Window, render, unseen
from server.turns.matching import MatchedLease
from server.turns.message_notes import parts_open
from server.turns.parts import Parts


@dataclass(frozen=True)
class Reads:
    """What a turn reads: ``new`` messages behind the ``known`` ones. wanted: as of a ``MatchedLease``. parts: what the
    first of the new ones were called as items, where they come from a history."""

    new: Sequence[Message]
    known: Sequence[Message] = ()
    wanted: Ids | None = None
    parts: Sequence[Parts] = ()


class Start(Protocol):
    """A session for one turn."""

    @property
    def lease(self) -> AbstractAsyncContextManager[Lease]: ...

    async def reads(self, held: Lease) -> Reads:
        """Called once, when the session is held."""
        ...


@dataclass(frozen=True)
class Behind:
    """At the end of a session. repeated: the messages may repeat those that it holds."""

    lease: AbstractAsyncContextManager[Lease]
    messages: Sequence[Message]
    repeated: bool = False

    async def reads(self, held: Lease) -> Reads:
        return Reads(unseen(held.session, self.messages) if self.repeated else self.messages)


@dataclass(frozen=True)
class Matched:
    """In the session whose history the messages continue."""

    lease: MatchedLease
    messages: Sequence[Message]

    @classmethod
    def of(cls, state: ServerState, tenant: str, messages: Sequence[Message], shape: Shape) -> Matched:
        assert state.template is not None
        return cls(MatchedLease(state.host, state.template.with_tools(shape.use), tenant, messages), messages)

    async def reads(self, held: Lease) -> Reads:
        known = self.lease.known
        return Reads(self.messages[known:], self.messages[:known], self.lease.wanted)


class AfterResponse:
    """Behind an earlier response: in its session, if nothing came after it there, else in a branch.

    keep: what is read and written stays; without it there is always a branch, which goes when the turn has ended.
    """

    def __init__(
        self, state: ServerState, tenant: str, previous: str, messages: Sequence[Message], *, keep: bool
    ) -> None:
        self._state, self._host, self._tenant = state, state.host, tenant
        self._previous, self._messages, self._keep = previous, messages, keep
        self._held: AbstractAsyncContextManager[Lease] | None = None
        self._branch: str | None = None
        self._place: Place | None = None
        self._prefixes: list[tuple[str, int]] = []

    @property
    def lease(self) -> AbstractAsyncContextManager[Lease]:
        return self

    @classmethod
    async def of(
        cls, state: ServerState, tenant: str, previous: str, messages: Sequence[Message], *, keep: bool
    ) -> AfterResponse:
        """ApiError 400 if nothing can follow that response."""
        await place_of(state, tenant, previous)
        return cls(state, tenant, previous, messages, keep=keep)

    async def __aenter__(self) -> Lease:
        session_id, place = await place_of(self._state, self._tenant, self._previous)
        self._place = place
        if self._keep and (lease := await self._in_place(session_id, place)) is not None:
            return lease
        self._branch = await self._fork(session_id, place)
        self._held = self._host.use(self._branch, self._tenant, fresh=self._keep)
        return await self._held.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        assert self._held is not None
        try:
            return await self._held.__aexit__(kind, error, trace)
        finally:
            if self._branch is not None and not self._keep:
                await self._host.delete(self._branch, self._tenant)

    async def reads(self, held: Lease) -> Reads:
        if self._branch is None:
            return Reads(self._messages)
        assert self._place is not None
        chat, session = ChatState.of_json(self._place.chat), held.session

        def recall() -> None:
            session.prefixes = list(self._prefixes)
            session.chat = ChatState(system=chat.system, aside=chat.aside).json()

        await settled(self._state.engine.call(recall))
        return Reads([*(chat.messages or ()), *self._messages], parts=parts_open(self._place.chat))

    async def _in_place(self, session_id: str, place: Place) -> Lease | None:
        if self._host.busy(session_id, self._tenant):
            return None
        self._held = self._host.use(session_id, self._tenant, patience=SHORT_PATIENCE)
        try:
            lease = await self._held.__aenter__()
        except (LeaseHeldError, UnknownSessionError):
            return None
        prefixes = lease.session.prefixes
        if prefixes and prefixes[-1] == (place.chat["digest"], lease.session.tokens):
            return lease
        await self._held.__aexit__(None, None, None)
        return None

    async def _fork(self, session_id: str, place: Place) -> str:
        """A session of what stood before the messages that were open when the response ended -> its id."""
        chat = ChatState.of_json(place.chat)
        start = place.tokens if chat.messages is None else chat.start
        while True:
            parent = await self._host.info(session_id, self._tenant)
            self._prefixes = [(digest, at) for digest, at in parent.prefixes if at <= start]
            forked = await fork_at(self._host, parent, start, implicit=parent.implicit or not self._keep)
            if forked is not None:
                return forked


@dataclass(frozen=True)
class Unfinished:
    """A turn that was under way when its server went away, in the session that it had."""

    state: ServerState
    lease: AbstractAsyncContextManager[Lease]
    unread: Unread
    shape: Shape

    async def reads(self, held: Lease) -> Reads:
        messages = list(ChatState.of_json({"messages": self.unread.messages}).messages or ())
        if not self.unread.whole:
            return Reads(messages)
        assert self.state.template is not None
        template = self.state.template.with_tools(self.shape.use)
        wanted = await asyncio.to_thread(render, template, Window((), 0, True), messages, None)
        return Reads(messages, wanted=wanted)


async def place_of(state: ServerState, tenant: str, previous: str) -> tuple[str, Place]:
    """(session, where in it the response ends); ApiError 400 for one that is not there, or is not whole."""
    found = await find(state.store, tenant, previous)
    if found is None:
        message = f"previous response {previous!r} does not exist: {GONE}"
        raise bad_request(message, "previous_response_id", "previous_response_not_found")
    session_id, stored = found
    if stored.place is None:
        message = (
            f"previous response {previous!r} is {(stored.ended or stored.head)['status']}, so nothing can follow it"
        )
        raise bad_request(message, "previous_response_id", "previous_response_unfinished")
    return session_id, stored.place
