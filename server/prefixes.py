"""Chats without a session id: sessions remember hashes of their message boundaries, and are found by them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager

from mc_core.engine.engine import Engine
from mc_core.session.session import Session
from mc_core.store import LeaseHeldError
from server.chat_template import Message
from server.futures import settled
from server.sessions import Lease, SessionHost

MAX_PREFIXES = 256
"""Message boundaries that an implicit session remembers, newest last."""


class MatchedLease:
    """Finds the session when entered, so that two requests can't both take it."""

    def __init__(self, host: SessionHost, engine: Engine, tenant: str, chain: Sequence[str], known: list[int]) -> None:
        self._host, self._engine, self._tenant, self._chain, self._known = host, engine, tenant, chain, known
        self._held: AbstractAsyncContextManager[Lease] | None = None

    async def __aenter__(self) -> Lease:
        # The last message is always new: it asks for a reply.
        match = await self._host.match(self._tenant, list(reversed(self._chain[:-1])))
        if match is not None:
            lease = await self._enter(*match)
            if lease is not None:
                return lease
        session = await self._host.create(self._tenant, metadata={}, implicit=True)
        self._held = self._host.use(session.id, self._tenant)
        return await self._held.__aenter__()

    async def _enter(self, session_id: str, digest: str) -> Lease | None:
        """The matched session at the matched boundary; None if it isn't there any more, or is at another server."""
        self._held = self._host.use(session_id, self._tenant)
        try:
            lease = await self._held.__aenter__()
        except LeaseHeldError:
            return None
        try:
            if await self._go_back(lease.session, digest):
                return lease
        except BaseException as error:
            await self._held.__aexit__(type(error), error, error.__traceback__)
            raise
        await self._held.__aexit__(None, None, None)
        return None

    async def _go_back(self, session: Session, digest: str) -> bool:
        """Take the session back to the matched boundary; False if it is not there any more."""
        position = dict(session.prefixes).get(digest)
        if position is None:
            return False
        if position < session.tokens:
            # The client went back; what it dropped is not its history any more.
            await settled(self._engine.rewind(session, position))
        self._known[0] = self._chain.index(digest) + 1
        return True

    async def __aexit__(self, *error: object) -> bool | None:
        assert self._held is not None
        return await self._held.__aexit__(*error)  # type: ignore[arg-type]


def chain_hash(before: str, message: Message) -> str:
    """Hash of all messages up to and with this one."""
    parts = (before, message.role, message.content)
    digest = hashlib.sha256()
    for part in parts:
        raw = part.encode("utf-8", "surrogatepass")
        digest.update(len(raw).to_bytes(8, "little") + raw)
    return digest.hexdigest()


def hash_chain(messages: Sequence[Message]) -> list[str]:
    """One hash for each prefix of the messages."""
    chain, digest = [], ""
    for message in messages:
        digest = chain_hash(digest, message)
        chain.append(digest)
    return chain
