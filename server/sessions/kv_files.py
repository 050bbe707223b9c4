"""Files of keys and values go with their sessions, whoever deletes these."""

from __future__ import annotations

import asyncio

from mc_core.engine.kv_keeper import KVKeeper
from mc_core.errors import StoreError
from mc_core.store import SessionStore, UnknownSessionError
from server.futures import settled

SWEEP_EVERY = 3600.0
"""Seconds between two looks for files of sessions that another server deleted."""


class KVFiles:
    """Of one server's sessions; keeper: None where none are kept."""

    def __init__(self, keeper: KVKeeper | None, store: SessionStore) -> None:
        self._keeper, self._store = keeper, store

    async def drop(self, session_id: str, tenant: str) -> None:
        """Delete the file of a session that was deleted."""
        if self._keeper is not None:
            await settled(self._keeper.drop(tenant, session_id))

    async def sweep(self) -> None:
        """Delete the files of all sessions that the store has no more."""
        if self._keeper is None:
            return
        for tenant, session_id in await asyncio.to_thread(list, self._keeper.folder.owners()):
            try:
                await settled(self._store.record(session_id, tenant))
            except UnknownSessionError:
                await self.drop(session_id, tenant)
            except StoreError:
                pass  # it is there, though damaged; or the store is away, and is asked again

    async def keep(self) -> None:
        """Do so now and then, until cancelled."""
        while self._keeper is not None:
            await self.sweep()
            await asyncio.sleep(SWEEP_EVERY)
