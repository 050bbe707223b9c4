"""Chats without a session id: found by their messages, gone on with in place, or shared up to where they differ."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager

import numpy as np

from mc_core.session.pins import pin_room
from mc_core.session.session import Session
from mc_core.store import (
    DamagedRecordError,
    LeaseHeldError,
    PrefixMatch,
    SessionMismatchError,
    SessionRecord,
    UnknownSessionError,
)
from server.futures import settled
from server.sessions.forks import fork
from server.sessions.host import SessionHost
from server.sessions.owner import SHORT_PATIENCE
from server.sessions.slots import Lease
from server.templates.chat_template import ChatTemplate, Message
from server.turns.conversation import Ids, Window, check_system, common, render, system_span
from server.turns.prefixes import all_hashes, hash_chain, seed_of

logger = logging.getLogger(__name__)
BLOCKS_AT_ONCE = 1024
"""Spans of a history that are read and compared at once."""


class MatchedLease:
    """Finds or makes the session when entered, so that two requests can't both take it.

    known: how many of the messages it holds, all of which the next turn may go on behind. wanted: the ids of all the
    messages, if the session is a new one or a branch; its history is then a beginning of them.
    """

    def __init__(self, host: SessionHost, template: ChatTemplate, tenant: str, messages: Sequence[Message]) -> None:
        self._host, self._template, self._tenant, self._messages = host, template, tenant, messages
        self._held: AbstractAsyncContextManager[Lease] | None = None
        self.known = 0
        self.wanted: Ids | None = None

    async def __aenter__(self) -> Lease:
        hashes = await asyncio.to_thread(all_hashes, self._messages, seed_of(self._template.use))
        match = await self._host.match(self._tenant, hashes[::-1])
        lease = await self._attempt(match) if match is not None else None
        if lease is not None:
            return lease
        whole = Window((), 0, True)
        system = self._messages[0] if self._messages[0].role == "system" else None
        wanted = await asyncio.to_thread(render, self._template, whole, self._messages, None)
        span = await asyncio.to_thread(system_span, self._template, whole, self._messages, system, wanted)
        self.wanted = wanted
        focus = self._host.factory.focus
        check_system(span, pin_room(focus, self._host.factory.bundle.gist_cost), focus.budget)
        lease = await self._branch(match, wanted, span) if match is not None else None
        return lease or await self._new()

    async def __aexit__(self, *error: object) -> bool | None:
        assert self._held is not None
        return await self._held.__aexit__(*error)  # type: ignore[arg-type]

    async def _attempt(self, match: PrefixMatch) -> Lease | None:
        """The matched session, if it holds nothing but what the messages repeat, and is free."""
        chain = hash_chain(self._messages[:-1], seed_of(self._template.use))
        if match.hash not in chain or self._host.busy(match.session_id, self._tenant):
            return None
        if not await self._ends(match):
            return None
        lease = await self._enter(match.session_id)
        if lease is None:
            return None
        if not _ends_with(lease.session, match.hash):
            # Somebody else was faster.
            await self.__aexit__(None, None, None)
            return None
        self.known = chain.index(match.hash) + 1
        return lease

    async def _ends(self, match: PrefixMatch) -> bool:
        """Whether the matched messages are all that the session holds."""
        try:
            held = self._host.peek(match.session_id, self._tenant) or await self._host.info(
                match.session_id, self._tenant
            )
        except (DamagedRecordError, UnknownSessionError):
            return False
        return _ends_with(held, match.hash)

    async def _enter(self, session_id: str, *, fresh: bool = False) -> Lease | None:
        """Hold a session; None if it can't be had, for whatever reason: another one can take its place."""
        self._held = self._host.use(session_id, self._tenant, patience=SHORT_PATIENCE, fresh=fresh)
        try:
            return await self._held.__aenter__()
        except (LeaseHeldError, SessionMismatchError, UnknownSessionError):
            return None
        except Exception:
            logger.warning("session %s can't be gone on with; its chat gets another one", session_id, exc_info=True)
            return None

    async def _branch(self, match: PrefixMatch, wanted: Ids, span: tuple[int, int] | None) -> Lease | None:
        """A new session that shares the beginning of another one, at least a block of it."""
        session_id = None
        try:
            parent = await self._host.info(match.session_id, self._tenant)
            self._host.factory.check(parent)
            # The last token is always read: it asks for the reply.
            length = await self._shared(parent, wanted[:-1])
            if length < parent.block_size:
                return None
            pins = [(span[0], min(span[1], length))] if span is not None and span[0] < length else []
            session_id = await fork(self._host, parent, wanted[:length], pins)
        except UnknownSessionError:
            return None
        except SessionMismatchError as error:
            logger.warning("%s; its chat is read anew", error)
            return None
        except Exception:
            logger.warning("session %s can't be shared; its chat is read anew", match.session_id, exc_info=True)
            return None
        lease = await self._enter(session_id, fresh=True) if session_id is not None else None
        if lease is None and session_id is not None:
            await self._host.delete(session_id, self._tenant)
        return lease

    async def _shared(self, record: SessionRecord, wanted: Ids) -> int:
        """How many tokens a committed history and ``wanted`` have in common at their beginning."""
        size, store = record.block_size, self._host.store
        for at in range(0, min(record.blocks, -(-len(wanted) // size)), BLOCKS_AT_ONCE):
            count = min(BLOCKS_AT_ONCE, record.blocks - at)
            batch = await settled(store.read_span_range(record.session_id, at, count))
            # A lost span is one that differs.
            held = np.full((count, size), -1, np.int32)
            held[batch.blocks - at] = batch.ids
            length = common(held.reshape(-1), wanted[at * size :])
            if length < count * size:
                return at * size + length
        end = record.blocks * size
        return end + common(record.tail, wanted[end:])

    async def _new(self) -> Lease:
        session = await self._host.create(self._tenant, metadata={}, implicit=True)
        self._held = self._host.use(session.id, self._tenant, fresh=True)
        return await self._held.__aenter__()


def _ends_with(held: Session | SessionRecord, digest: str) -> bool:
    """Whether nothing is behind the messages that ``digest`` stands for: no further ones, and no ingested text."""
    return bool(held.prefixes) and held.prefixes[-1] == (digest, held.tokens)
