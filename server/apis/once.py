"""Carries a request with an Idempotency-Key out once, by every API."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import Header, Request, Response

from server.apis.answer import follow
from server.errors import CLIENT_CLOSED_REQUEST, bad_request, stream_lost
from server.once.book import Running
from server.once.call import Call
from server.once.kept import Asked
from server.state import ServerState
from server.streaming.choice import Choice
from server.streaming.frames import EventId
from server.streaming.response import unless_gone

KEY = {"min_length": 1, "max_length": 255, "pattern": r"^[!-~]+$"}
IdempotencyKey = Annotated[str | None, Header(**KEY)]
LastEventID = Annotated[str, Header(pattern=rf"^({EventId.PATTERN})?$")]
LAST = "Last-Event-ID"
Work = Callable[[Call], Awaitable[Response]]
Again = Callable[[str], Awaitable[Response]]


async def once(
    state: ServerState,
    request: Request,
    tenant: str,
    key: str | None,
    work: Work,
    again: Again | None = None,
    last_event: str = "",
) -> Response:
    """What ``work`` answers, or what it answered before; ``again`` answers by the id of a response.

    A repetition that comes while the request runs is told its events, those behind ``last_event`` alone, or waits for
    its end. ApiError 410 if the stream of that event is not there.
    """
    after = EventId.of(last_event) if last_event else None
    if key is None:
        if after is not None:
            raise bad_request("Last-Event-ID needs the Idempotency-Key that the stream was asked for with", LAST)
        return await work(Call(state.book, tenant, None))
    asked = Asked.of(key, *address(request), await request.body())
    found = await unless_gone(state.book.begin(tenant, asked), request.receive)
    if found is None:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    if isinstance(found, Choice):
        return await follow(state, found, after)
    if isinstance(found, Running):
        call = Call(state.book, tenant, asked, found)
        try:
            if after is not None:
                raise stream_lost()
            return await work(call)
        finally:
            call.over()
    asked.check(found.digest)
    if found.response is not None and again is not None and after is None:
        return await again(found.response)
    return found.answer(after)


def address(request: Request) -> tuple[bytes, bytes, bytes]:
    """What makes a request beside its body: address, query, the session that a header names."""
    named = request.headers.get("x-session-id", "")
    return request.state.path.encode(), request.url.query.encode(), named.encode()
