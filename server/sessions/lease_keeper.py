"""Keeps this server's leases while it runs, and gives other servers the sessions that they ask for."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

from mc_core.errors import StoreError
from mc_core.store import SessionStore
from server.futures import settled
from server.sessions.background import Background
from server.sessions.owner import Owner
from server.sessions.residents import Residents

logger = logging.getLogger(__name__)
LEND_EVERY = 0.1
"""Seconds between two looks for sessions that another server asks for."""


class LeaseKeeper:
    """Of all sessions in memory."""

    def __init__(self, residents: Residents, store: SessionStore, owner: Owner, background: Background) -> None:
        self._residents, self._store, self._owner, self._background = residents, store, owner, background

    async def keep(self) -> None:
        """Renew the leases, until cancelled; drop sessions that somebody else took over."""
        while True:
            held = {s.session.id: (s, s.session.fence) for s in self._residents if s.session is not None}
            try:
                lost = await self._owner.renew({name: fence for name, (_, fence) in held.items()})
            except StoreError:
                logger.warning("leases could not be renewed", exc_info=True)
                lost = ()
            for slot, fence in (held[name] for name in lost):
                if not slot.users and slot.session is not None and slot.session.fence == fence:
                    await self._residents.drop(slot)
            await asyncio.sleep(self._store.lease_seconds / 3)

    async def lend(self) -> None:
        """Give other servers the sessions that they ask for, each as soon as it is free here, until cancelled."""
        while True:
            asked: tuple[str, ...] = ()
            with suppress(StoreError):  # while it is away nobody asks
                asked = await settled(self._store.asked(self._owner.name))
            for slot in self._residents if asked else ():
                if slot.session is not None and slot.session.id in asked and not slot.promised:
                    slot.promised = True
                    self._background.spawn(self._residents.drop(slot))
            await asyncio.sleep(LEND_EVERY)
