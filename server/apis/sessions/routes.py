"""/v1/sessions: create, list, inspect, change, delete."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Response

from server.apis.api import Api
from server.apis.condition import Expected
from server.apis.sessions.change import change
from server.apis.sessions.file_routes import router as file_router
from server.apis.sessions.format import describe, summarize
from server.apis.sessions.history_routes import router as history_router
from server.apis.sessions.protocol import (
    CreateSession,
    DeletedSession,
    IngestProgress,
    SessionList,
    SessionObject,
    UpdateSession,
)
from server.condition import NONE, etag
from server.errors import bad_request, naming
from server.openapi import errors
from server.state import ServerState, accepting, state_of, tenant_of
from server.templates.chat_template import Message

router = APIRouter(prefix="/v1/sessions")
State = Annotated[ServerState, Depends(state_of)]
Tenant = Annotated[str, Depends(tenant_of)]


@router.post(
    "",
    status_code=201,
    response_model_exclude_unset=True,
    dependencies=[Depends(accepting)],
    responses=errors(413, 415),
)
async def create(body: CreateSession, state: State, tenant: Tenant, response: Response) -> SessionObject:
    """A new session; its system prompt is read at once and never collapses."""
    if body.system is not None and state.template is None:
        raise bad_request("this model has no chat template, so there is no system prompt", "system")
    session = await state.host.create(tenant, metadata=body.metadata, budget=body.budget, keep=body.keep, ttl=body.ttl)
    if body.system is not None:
        try:
            async with state.host.use(session.id, tenant) as lease:
                await state.turns.open_with(lease.session, Message("system", body.system))
        except BaseException:
            await state.host.delete(session.id, tenant)
            raise
    response.headers["ETag"] = etag(session.sequence)
    return describe(session, state)


@router.get("", response_model_exclude_unset=True)
async def list_sessions(
    state: State,
    tenant: Tenant,
    limit: Annotated[int, Query(ge=1, le=1000)] = 20,
    after: Annotated[str | None, Query(max_length=200)] = None,
    implicit: bool | None = None,
) -> SessionList:
    """The caller's sessions, newest first; pass ``next`` as ``after`` for the next page.

    ``implicit``: false leaves out those that requests without a session id made, true lists these alone.
    """
    with naming("after"):
        page = await state.host.list(tenant, limit, after, implicit)
    sessions = [summarize(info, state) for info in page.sessions]
    return SessionList(object="list", data=sessions, has_more=page.next is not None, next=page.next)


@router.get("/{session_id}", response_model_exclude_unset=True, responses=errors(404, 409, 410))
async def inspect(session_id: str, state: State, tenant: Tenant, response: Response) -> SessionObject:
    """The session as committed; what only memory knows (cost, utilization) is there while it is in memory."""
    info = await state.host.steady(session_id, tenant, lambda: state.host.info(session_id, tenant))
    resident = state.host.peek(session_id, tenant)
    shown = describe(info if resident is None else resident, state)
    response.headers["ETag"] = etag(shown.sequence)
    return shown.model_copy(update=_ingest_under_way(session_id, state, tenant))


@router.delete("/{session_id}", responses=errors(404))
async def delete(session_id: str, state: State, tenant: Tenant) -> DeletedSession:
    """Delete a session and all of its history; a turn that runs in it is stopped."""
    await state.host.delete(session_id, tenant)
    return DeletedSession(id=session_id)


@router.patch(
    "/{session_id}",
    response_model_exclude_unset=True,
    dependencies=[Depends(accepting)],
    responses=errors(404, 409, 410, 412, 413, 415),
)
async def update(
    session_id: str, body: UpdateSession, state: State, tenant: Tenant, response: Response, expected: Expected = NONE
) -> SessionObject:
    """Replace the metadata, or say how long the session is kept: for good, or so many seconds without use."""
    fields = {name: getattr(body, name) for name in body.model_fields_set}
    if fields.get("ttl") == 0:
        fields["ttl"] = None
    session = await change(state, tenant, session_id, fields, expected)
    response.headers["ETag"] = etag(session.sequence)
    return describe(session, state)


def _ingest_under_way(session_id: str, state: ServerState, tenant: str) -> dict[str, IngestProgress]:
    progress = state.host.progress(session_id, tenant)
    return {} if progress is None else {"ingest": IngestProgress(**progress)}


# Each has the whole address in its own routes, by which parameters are checked and requests counted.
whole = APIRouter(tags=["sessions"], responses=errors(400, 401, 403, 500, 503))
for part in (router, history_router, file_router):
    whole.include_router(part)
API = Api(whole, tags={"sessions": "Histories of any length, and documents that are read into them."})
