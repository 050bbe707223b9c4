"""How a turn is answered, streamed or whole, by every API."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress

import orjson
from fastapi import Request, Response

from server.condition import etag
from server.errors import CLIENT_CLOSED_REQUEST
from server.once.call import Call
from server.once.kept import REPLAYED
from server.state import ServerState
from server.streaming.choice import Choice
from server.streaming.frames import EventId
from server.streaming.response import TurnResponse, whole

GRACE = 0.25
"""Seconds in which a failure still becomes an HTTP status; after that the stream begins, and tells it as an event."""


async def answer(
    state: ServerState,
    request: Request,
    call: Call,
    choices: Sequence[Choice],
    *,
    stream: bool,
    background: bool = False,
) -> Response:
    """Stream the turns as server-sent events, or wait for all of them. Each is a choice of the answer.

    background: they run to their end though the client leaves, as long as that may take.
    """
    keyed, settings = call.asked is not None, state.settings
    if keyed or background:
        for choice in choices:
            choice.stream.keep(settings.background_seconds if background else settings.resume_seconds)
    call.turn(choices[0].stream, events=stream)
    if not stream:
        result = await whole(choices, request.receive)
        if result is None:
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        return _told(Response(orjson.dumps(result), media_type="application/json"), choices)
    return await _streamed(state, choices, numbered=keyed)


async def follow(state: ServerState, choice: Choice, after: EventId | None) -> Response:
    """A turn under way, told once more: from its start, or behind an event. ApiError 410 if it has told none such."""
    choice.stream.check_kept()
    first = 0 if after is None else after.next_in(choice.stream.tag, choice.stream.recorded)
    response = await _streamed(state, [choice], numbered=True, first=first)
    response.headers[REPLAYED] = "true"
    return response


async def _streamed(state: ServerState, choices: Sequence[Choice], *, numbered: bool, first: int = 0) -> Response:
    response = TurnResponse(choices, keep_alive=state.settings.keep_alive_seconds, numbered=numbered, first=first)
    try:
        await begin(choices)
    except BaseException:
        response.let_go()
        raise
    return _told(response, choices)


async def begin(choices: Sequence[Choice]) -> None:
    """Until all turns have begun, or ``GRACE`` is over; raises what one of them has failed with by then."""
    with suppress(TimeoutError):
        async with asyncio.timeout(GRACE):
            for choice in choices:
                await choice.stream.started.wait()
    for choice in choices:
        if (failure := choice.stream.failure()) is not None:
            raise failure


def _told(response: Response, choices: Sequence[Choice]) -> Response:
    """Say in a header which session answers, as soon as that is known; a stream's last chunk says it too."""
    if len(choices) == 1 and (session_id := choices[0].stream.session_id) is not None:
        response.headers["X-Session-ID"] = session_id
        if (sequence := choices[0].stream.sequence) is not None:
            response.headers["ETag"] = etag(sequence)
    return response
