"""/v1/sessions: create, list, inspect, delete, focus, rewind."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query

from server.chat_template import Message
from server.errors import bad_request
from server.futures import settled
from server.protocol.sessions import CreateSession, Rewind, describe, summarize
from server.state import ServerState, accepting, state_of, tenant_of

router = APIRouter(prefix="/v1/sessions")
State = Annotated[ServerState, Depends(state_of)]
Tenant = Annotated[str, Depends(tenant_of)]


@router.post("", status_code=201, dependencies=[Depends(accepting)])
async def create(body: CreateSession, state: State, tenant: Tenant) -> dict[str, Any]:
    """A new session; its system prompt is read at once and never collapses."""
    if body.system is not None and state.template is None:
        raise bad_request("this model has no chat template, so there is no system prompt", "system")
    session = await state.host.create(tenant, metadata=body.metadata, budget=body.budget)
    if body.system is not None:
        try:
            async with state.host.use(session.id, tenant) as lease:
                await state.turns.open_with(lease.session, Message("system", body.system))
        except BaseException:
            await state.host.delete(session.id, tenant)
            raise
    return describe(session)


@router.get("")
async def list_sessions(
    state: State,
    tenant: Tenant,
    limit: Annotated[int, Query(ge=1, le=1000)] = 20,
    after: Annotated[str | None, Query(max_length=200)] = None,
    implicit: bool | None = None,
) -> dict[str, Any]:
    """The caller's sessions, newest first; pass ``next`` as ``after`` for the next page.

    ``implicit``: false leaves out those that requests without a session id made, true lists these alone.
    """
    page = await state.host.list(tenant, limit, after, implicit)
    sessions = [summarize(info) for info in page.sessions]
    return {"object": "list", "data": sessions, "has_more": page.next is not None, "next": page.next}


@router.get("/{session_id}")
async def inspect(session_id: str, state: State, tenant: Tenant) -> dict[str, Any]:
    """The session as committed; what only memory knows (cost, utilization) is there while it is in memory."""
    info = await state.host.info(session_id, tenant)
    resident = state.host.peek(session_id, tenant)
    shown = describe(resident) if resident is not None else summarize(info)
    return shown | _ingest_under_way(session_id, state, tenant)


@router.delete("/{session_id}")
async def delete(session_id: str, state: State, tenant: Tenant) -> dict[str, Any]:
    await state.host.delete(session_id, tenant)
    return {"id": session_id, "object": "session.deleted", "deleted": True}


@router.get("/{session_id}/focus")
async def focus(session_id: str, state: State, tenant: Tenant) -> dict[str, Any]:
    """The working context as the model sees it now, also while a turn runs."""
    resident = state.host.peek(session_id, tenant)
    if resident is not None:
        return await settled(state.engine.call(resident.focus)) | _ingest_under_way(session_id, state, tenant)
    async with state.host.use(session_id, tenant) as lease:
        return await settled(state.engine.call(lease.session.focus))


@router.post("/{session_id}/rewind", dependencies=[Depends(accepting)])
async def rewind(session_id: str, body: Rewind, state: State, tenant: Tenant) -> dict[str, int]:
    """Cut the history back to ``position`` tokens."""
    async with state.host.use(session_id, tenant) as lease:
        if body.position > lease.session.committed_tokens:
            limit = lease.session.committed_tokens
            raise bad_request(f"position {body.position} lies beyond the history's {limit} tokens", "position")
        return {"tokens": await settled(state.engine.rewind(lease.session, body.position))}


def _ingest_under_way(session_id: str, state: ServerState, tenant: str) -> dict[str, Any]:
    progress = state.host.progress(session_id, tenant)
    return {} if progress is None else {"ingest": progress}
