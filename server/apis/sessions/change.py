"""What a client says of a session: its metadata, and how long it is kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mc_core.session.session import Session
from server.condition import NONE, Condition
from server.futures import settled
from server.state import ServerState


async def change(
    state: ServerState, tenant: str, session_id: str, fields: Mapping[str, Any], expected: Condition = NONE
) -> Session:
    """Other values for some of ``metadata``, ``keep`` and ``ttl``, stored."""
    async with state.host.use(session_id, tenant, expected) as lease:
        session = lease.session

        def set_fields() -> None:
            for name, value in fields.items():
                setattr(session, name, value)

        await settled(state.engine.call(set_fields))
        await settled(state.engine.commit(session))
        return session
