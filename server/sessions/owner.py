"""Which of the servers that share a store this one is: in its name it holds leases."""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
import time
from collections.abc import Callable, Mapping

from mc_core.store import LeaseHeldError, SessionStore, StoredSession, UnknownSessionError
from server.futures import settled
from server.settings import Settings

logger = logging.getLogger(__name__)
PATIENCE = 60.0
"""Seconds that a request waits for a session that is in use at another server."""
SHORT_PATIENCE = 1.0
"""The same of one that can do without: time enough for a server that lives to hand over what nobody uses there."""
ASK_EVERY = 0.1
"""Seconds between two tries."""


def name_of(settings: Settings) -> str | None:
    """What this server is called: the same after a restart. None where nothing tells it from others of its machine."""
    if settings.server_name is not None:
        return settings.server_name
    place = settings.unix_socket or settings.port
    return f"{socket.gethostname()}:{place}" if place else None


class Owner:
    """The owner of this server's leases.

    A restarted server has the name that it had, and so what it held. If another one that runs took that name, by
    mistake, this one is told with the next renewal and goes on under a name that nobody has, with its sessions.
    """

    def __init__(self, store: SessionStore, name: str | None) -> None:
        self._store, self._life = store, secrets.token_hex(8)
        self._shared, self._announced = name is not None, False
        self.name = f"server-{self._life}" if name is None else name

    async def renew(self, leases: Mapping[str, int]) -> tuple[str, ...]:
        """Say that this server lives, and extend its leases {session_id: fence} -> ids of those that are lost."""
        if self._shared:
            alone = await settled(self._store.announce(self.name, self._life, not self._announced))
            self._announced = True
            if not alone:
                logger.error(
                    "another server of this store calls itself %s too: give each its own server_name", self.name
                )
                self._shared, self.name = False, f"{self.name}~{self._life}"
        return await settled(self._store.renew(leases, self.name))

    async def open(self, session_id: str, tenant: str, patience: float, gone: Callable[[], bool]) -> StoredSession:
        """Take the lease of a session, from another server if need be, which hands over once it has done with it.

        LeaseHeldError if it has not within ``patience`` seconds; UnknownSessionError if it is ``gone`` meanwhile.
        """
        end = time.monotonic() + patience
        while True:
            try:
                return await settled(self._store.open(session_id, tenant, self.name, wish=True))
            except LeaseHeldError:
                if time.monotonic() >= end:
                    raise
            if gone():
                raise UnknownSessionError(session_id)
            await asyncio.sleep(ASK_EVERY)
