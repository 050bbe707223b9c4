"""What a client says of a session: its metadata, and how long it is kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mc_core.session.session import Session
from mc_core.store import SessionMismatchError, SessionRecord
from server.condition import NONE, Condition
from server.futures import settled
from server.state import ServerState


async def change(
    state: ServerState, tenant: str, session_id: str, fields: Mapping[str, Any], expected: Condition = NONE
) -> Session | SessionRecord:
    """Other values for some of ``metadata``, ``keep`` and ``ttl``, stored. They mean the same whatever the history is
    written in: of another tokenizer or block size it is the record alone that changes, and is returned."""
    try:
        return await _change(state, tenant, session_id, fields, expected)
    except SessionMismatchError:
        return await state.host.amend(session_id, tenant, fields, expected)


async def _change(
    state: ServerState, tenant: str, session_id: str, fields: Mapping[str, Any], expected: Condition
) -> Session:
    async with state.host.use(session_id, tenant, expected) as lease:
        session = lease.session

        def set_fields() -> None:
            for name, value in fields.items():
                setattr(session, name, value)

        await settled(state.engine.call(set_fields))
        await settled(state.engine.commit(session))
        return session
