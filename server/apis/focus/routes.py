"""/v1/sessions/{id}/focus, .../focus/stream and .../text."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, Query, Response

from mc_core.errors import ConfigError
from mc_core.models.cut_text import LONGEST, text_of_part
from mc_core.session.session import Session
from server.apis.api import Api
from server.apis.condition import Expected
from server.apis.focus.protocol import MAX_TEXT_TOKENS, Focus, FocusEnd, FocusStrip, HistoryText, Pins
from server.apis.focus.stream import StripResponse
from server.apis.sessions.protocol import IngestProgress
from server.condition import NONE, etag
from server.errors import bad_request, draining
from server.futures import settled
from server.live.follower import Seen
from server.openapi import errors, events
from server.state import ServerState, accepting, state_of, tenant_of

T = TypeVar("T")
router = APIRouter(
    prefix="/v1/sessions/{session_id}", tags=["focus"], responses=errors(400, 401, 403, 404, 409, 500, 503)
)
State = Annotated[ServerState, Depends(state_of)]
Tenant = Annotated[str, Depends(tenant_of)]


@router.get("/focus", response_model=Focus, response_model_exclude_unset=True)
async def focus(session_id: str, state: State, tenant: Tenant) -> dict[str, Any]:
    """The working context as the model sees it now, also while a turn runs."""
    async with _at_hand(state, session_id, tenant) as session:
        return await _focus(state, session) | _ingest_under_way(session_id, state, tenant)


@router.post(
    "/focus",
    response_model=Focus,
    response_model_exclude_unset=True,
    dependencies=[Depends(accepting)],
    responses=errors(410, 412, 413, 415),
)
async def pin(
    session_id: str, body: Pins, state: State, tenant: Tenant, response: Response, expected: Expected = NONE
) -> dict[str, Any]:
    """Let go of what was pinned, then keep more in full view, for good: in whole blocks, wherever it stands now."""
    async with state.host.use(session_id, tenant, expected) as lease:
        session = lease.session
        for name, ranges in (("pin", body.pin), ("unpin", body.unpin)):
            _check_ends(ranges, session.tokens, name)
        try:
            await settled(state.engine.pin(session, _pairs(body.pin), _pairs(body.unpin)))
        except ConfigError as error:
            raise bad_request(str(error), "unpin") from error
        response.headers["ETag"] = etag(session.sequence)
        return await _focus(state, session)


@router.get("/focus/stream", responses=events(strip=FocusStrip, end=FocusEnd), response_class=Response)
async def follow(
    session_id: str, state: State, tenant: Tenant, limit: Annotated[int | None, Query(ge=1)] = None
) -> Response:
    """The strip as it stands, and again whenever it has changed; always the newest, however slowly it is read.

    limit: it ends after so many.
    """
    if state.engine.draining:
        raise draining()
    await state.host.known(session_id, tenant)
    follower = state.followers.add(session_id)
    try:
        async with _at_hand(state, session_id, tenant) as session:
            look = await settled(state.engine.call(_within_its_room(state, session, session.look)))
    except BaseException:
        state.followers.remove(session_id, follower)
        raise
    follower.put(Seen(look, "now"))

    def let_go() -> None:
        state.followers.remove(session_id, follower)
        state.host.look(session_id, tenant)  # until now it was in use

    return StripResponse(follower, keep_alive=state.settings.keep_alive_seconds, limit=limit, let_go=let_go)


@router.get("/text")
async def text(
    session_id: str,
    state: State,
    tenant: Tenant,
    start: Annotated[int, Query(ge=0)],
    end: Annotated[int, Query(ge=1)],
) -> HistoryText:
    """The text of tokens [start, end) of the history, 8,192 at most; control tokens by their name."""
    if not start < end <= start + MAX_TEXT_TOKENS:
        raise bad_request(f"end must lie above start, by {MAX_TEXT_TOKENS} at most; got [{start}, {end})", "end")
    async with _at_hand(state, session_id, tenant) as session:
        _check_ends([[start, end]], session.tokens, "end")
        first = max(0, start - LONGEST)
        ids = await settled(state.engine.peek(session, first, min(end + LONGEST, session.tokens)))
    parts = ids[: start - first], ids[start - first : end - first], ids[end - first :]
    return HistoryText(start=start, end=end, text=await asyncio.to_thread(text_of_part, state.bundle.tokenizer, *parts))


@asynccontextmanager
async def _at_hand(state: ServerState, session_id: str, tenant: str) -> AsyncIterator[Session]:
    """The session, to be looked at whoever holds it; loaded if it is not in memory."""
    resident = state.host.look(session_id, tenant)
    if resident is not None:
        yield resident
        return
    async with state.host.use(session_id, tenant) as lease:
        yield lease.session


def _within_its_room(state: ServerState, session: Session, shows: Callable[[int], T]) -> Callable[[], T]:
    return lambda: shows(state.engine.core.room(session))


async def _focus(state: ServerState, session: Session) -> dict[str, Any]:
    shown: Future[dict[str, Any]] = state.engine.call(_within_its_room(state, session, session.focus))
    return await settled(shown)


def _check_ends(ranges: Sequence[Sequence[int]], tokens: int, param: str) -> None:
    for start, end in ranges:
        if end > tokens:
            raise bad_request(f"[{start}, {end}) reaches beyond the history's {tokens} tokens", param)


def _pairs(ranges: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
    return [(start, end) for start, end in ranges]


def _ingest_under_way(session_id: str, state: ServerState, tenant: str) -> dict[str, IngestProgress]:
    progress = state.host.progress(session_id, tenant)
    return {} if progress is None else {"ingest": IngestProgress(**progress)}


API = Api(
    router,
    tags={"focus": "What the model sees of a history, live, and what it is to keep in view."},
    events=(FocusStrip, FocusEnd),
)
