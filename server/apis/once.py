"""Carries a request with an Idempotency-Key out once, by every API."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import Header, Request, Response

from server.once.call import Call
from server.once.kept import Asked
from server.state import ServerState

IdempotencyKey = Annotated[str | None, Header(min_length=1, max_length=255, pattern=r"^[!-~]+$")]
Work = Callable[[Call], Awaitable[Response]]
Again = Callable[[str], Awaitable[Response]]


async def once(
    state: ServerState, request: Request, tenant: str, key: str | None, work: Work, again: Again | None = None
) -> Response:
    """What ``work`` answers, or what it answered before; ``again`` answers by the id of a response.

    A repetition that comes while the request runs waits for its end.
    """
    if key is None:
        return await work(Call(state.book, tenant, None))
    asked = Asked.of(key, *address(request), await request.body())
    found = await state.book.begin(tenant, asked)
    if found is None:
        call = Call(state.book, tenant, asked)
        try:
            return await work(call)
        finally:
            call.over()
    asked.check(found.digest)
    if found.response is not None and again is not None:
        return await again(found.response)
    return found.answer()


def address(request: Request) -> tuple[bytes, bytes, bytes]:
    """What makes a request beside its body: address, query, the session that a header names."""
    named = request.headers.get("x-session-id", "")
    return request.url.path.encode(), request.url.query.encode(), named.encode()
