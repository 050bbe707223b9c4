"""What a client notes on a session."""

from __future__ import annotations

from typing import Any

from mc_core.session.session import Session
from server.condition import NONE, Condition
from server.futures import settled
from server.state import ServerState


async def replace_metadata(
    state: ServerState, tenant: str, session_id: str, metadata: dict[str, Any], expected: Condition = NONE
) -> Session:
    """Other metadata for a session, stored."""
    async with state.host.use(session_id, tenant, expected) as lease:
        session = lease.session

        def change() -> None:
            session.metadata = metadata

        await settled(state.engine.call(change))
        await settled(state.engine.commit(session))
        return session
