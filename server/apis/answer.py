"""How a turn is answered, streamed or whole, by every API."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress

import orjson
from fastapi import Request, Response

from mc_core.engine.requests import Failed
from server.condition import etag
from server.errors import CLIENT_CLOSED_REQUEST
from server.state import ServerState
from server.streaming.choice import Choice
from server.streaming.format import Format
from server.streaming.response import TurnResponse, whole
from server.streaming.turn_stream import TurnStream

GRACE = 0.25
"""Seconds in which a failure still becomes an HTTP status; after that the stream begins, and tells it as an event."""


async def answer(
    state: ServerState, request: Request, turns: Sequence[tuple[TurnStream, Format]], *, stream: bool
) -> Response:
    """Stream the turns as server-sent events, or wait for all of them. Each is a choice of the answer."""
    choices = [Choice(one, form, state.metrics.watch_turn()) for one, form in turns]
    if not stream:
        result = await whole(choices, request.receive)
        if result is None:
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        return _told(Response(orjson.dumps(result), media_type="application/json"), choices)
    await begin(choices)
    return _told(TurnResponse(choices, keep_alive=state.settings.keep_alive_seconds), choices)


async def begin(choices: Sequence[Choice]) -> None:
    """Until all turns have begun, or ``GRACE`` is over; raises what one of them has failed with by then."""
    try:
        with suppress(TimeoutError):
            async with asyncio.timeout(GRACE):
                for choice in choices:
                    await choice.stream.started.wait()
        for choice in choices:
            if (failure := choice.stream.failure()) is not None:
                raise failure
    except BaseException:
        for choice in choices:
            choice.stream.cancel()
            if (failure := choice.stream.failure()) is not None:
                choice.observed(Failed(failure))
        raise


def _told(response: Response, choices: Sequence[Choice]) -> Response:
    """Say in a header which session answers, as soon as that is known; a stream's last chunk says it too."""
    if len(choices) == 1 and (session_id := choices[0].stream.session_id) is not None:
        response.headers["X-Session-ID"] = session_id
        if (sequence := choices[0].stream.sequence) is not None:
            response.headers["ETag"] = etag(sequence)
    return response
