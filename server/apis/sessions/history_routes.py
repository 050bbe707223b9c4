"""/v1/sessions/{id}: its messages, and what is done to its history: rewind, undo, fork, cancel."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query, Response

from mc_core.notes import NotePage
from mc_core.store import SessionRecord
from server.apis.condition import Expected
from server.apis.sessions.format import show, summarize
from server.apis.sessions.protocol import (
    Cancelled,
    Fork,
    Rewind,
    Rewound,
    SessionMessages,
    SessionObject,
)
from server.condition import NONE, etag
from server.errors import ApiError, bad_request, naming, turn_cancelled
from server.futures import settled
from server.openapi import errors
from server.state import ServerState, accepting, state_of, tenant_of
from server.turns.history import History
from server.turns.message_notes import PREFIX, Listed, newest, tells_all

router = APIRouter(prefix="/v1/sessions")
State = Annotated[ServerState, Depends(state_of)]
Tenant = Annotated[str, Depends(tenant_of)]


@router.get("/{session_id}/messages", responses=errors(404, 409, 410))
async def messages(
    session_id: str,
    state: State,
    tenant: Tenant,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    after: Annotated[str | None, Query(max_length=200)] = None,
    order: Literal["asc", "desc"] = "asc",
) -> SessionMessages:
    """The session's messages, as its turns brought them; pass ``next`` as ``after`` for the next page."""
    newest_first = order == "desc"

    async def read() -> tuple[NotePage, Listed | None, SessionRecord]:
        with naming("after"):
            page = await settled(
                state.store.notes(
                    session_id, tenant, prefix=PREFIX, after=after, limit=limit, newest_first=newest_first
                )
            )
        return page, await newest(state.store, session_id, tenant), await state.host.info(session_id, tenant)

    page, last, info = await state.host.steady(session_id, tenant, read)
    if page.corrupt:
        raise ApiError(500, f"{len(page.corrupt)} messages of this page can't be read", "server_error", "store_corrupt")
    listed = [Listed.read(note) for note in page.notes]
    return SessionMessages(
        data=[show(one) for one in listed],
        has_more=page.next is not None,
        next=page.next,
        complete=tells_all(listed, last, info.tokens),
    )


@router.post("/{session_id}/rewind", dependencies=[Depends(accepting)], responses=errors(404, 409, 410, 412, 413, 415))
async def rewind(
    session_id: str, body: Rewind, state: State, tenant: Tenant, response: Response, expected: Expected = NONE
) -> Rewound:
    """Cut the history back to ``position`` tokens, or to what it was with the message ``message_id`` as its last."""
    if (body.position is None) == (body.message_id is None):
        raise bad_request("a rewind needs a position or a message_id, one of them", "position")
    async with state.host.use(session_id, tenant, expected) as lease:
        history = History(state.host, state.engine, lease.session)
        tokens = await history.cut(await history.at(body.position, body.message_id))
        response.headers["ETag"] = etag(lease.session.sequence)
        return Rewound(tokens=tokens)


@router.post("/{session_id}/undo", dependencies=[Depends(accepting)], responses=errors(404, 409, 410, 412))
async def undo(session_id: str, state: State, tenant: Tenant, response: Response, expected: Expected = NONE) -> Rewound:
    """Take the last message of a user back, and all behind it."""
    async with state.host.use(session_id, tenant, expected) as lease:
        history = History(state.host, state.engine, lease.session)
        tokens = await history.cut(await history.before_the_last_question())
        response.headers["ETag"] = etag(lease.session.sequence)
        return Rewound(tokens=tokens)


@router.post(
    "/{session_id}/fork",
    status_code=201,
    response_model_exclude_unset=True,
    dependencies=[Depends(accepting)],
    responses=errors(404, 409, 410, 412, 413, 415),
)
async def fork(
    session_id: str, body: Fork, state: State, tenant: Tenant, response: Response, expected: Expected = NONE
) -> SessionObject:
    """A new session that begins as this one, up to a position or a message, and then lives alone; nothing is copied but
    its messages. Without metadata it has those of this one."""
    if body.position is not None and body.message_id is not None:
        raise bad_request("a fork takes a position or a message_id, not both", "position")
    async with state.host.use(session_id, tenant, expected) as lease:
        history = History(state.host, state.engine, lease.session)
        place = await history.at(body.position, body.message_id)
        metadata = lease.session.metadata if body.metadata is None else body.metadata
        record = await history.fork(place, metadata)
        forked = summarize(record, state)
        response.headers["ETag"] = etag(forked.sequence)
        return forked


@router.post("/{session_id}/cancel", responses=errors(404))
async def cancel(session_id: str, state: State, tenant: Tenant) -> Cancelled:
    """Stop the turn or ingest that runs in the session, as if its client had gone away; the client is told. Others may
    wait for the session still, and the next of them begins."""
    await state.host.known(session_id, tenant)
    return Cancelled(id=session_id, cancelled=state.host.stop(session_id, tenant, turn_cancelled()))
