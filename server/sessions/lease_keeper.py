"""Keeps this server's leases while it runs, and gives them up when it drains."""

from __future__ import annotations

import asyncio
import logging

from mc_core.errors import StoreError
from mc_core.store import SessionStore
from server.sessions.background import Background
from server.sessions.owner import Owner
from server.sessions.residents import Residents

logger = logging.getLogger(__name__)
HAND_OVER_EVERY = 0.1
"""Seconds between two looks for sessions that nobody uses any more, while the server drains."""


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
            for slot in (held[name][0] for name in lost):
                if not slot.users and slot.session is not None:
                    await self._residents.drop(slot)
            await asyncio.sleep(self._store.lease_seconds / 3)

    def hand_over(self) -> None:
        """From now on, as the server drains, give up each session as soon as nobody uses it: other servers have it."""
        self._background.spawn(self._hand_over())

    async def _hand_over(self) -> None:
        while len(self._residents):
            for slot in self._residents:
                if slot.users == 0 and slot.session is not None:
                    await self._residents.drop(slot)
            await asyncio.sleep(HAND_OVER_EVERY)
