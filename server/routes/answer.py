"""How a turn is answered, streamed or whole, by every API."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress

import orjson
from fastapi import Request, Response

from mc_core.engine.requests import Failed
from server.errors import CLIENT_CLOSED_REQUEST, bad_request, not_found
from server.protocol.common import SamplingFields
from server.state import ServerState
from server.streaming.response import Choice, Format, TurnResponse, whole
from server.turn_stream import TurnStream

GRACE = 0.25
"""Seconds in which a failure still becomes an HTTP status; after that the stream begins, and tells it as an event."""


def check_model(state: ServerState, model: str) -> None:
    """ApiError 404 for a model that is not served here."""
    if model != state.model_name:
        raise not_found(f"the model {model!r} does not exist; this server has {state.model_name!r}", "model_not_found")


def check_request(state: ServerState, body: SamplingFields) -> None:
    """ApiError for what only the model can tell to be wrong."""
    check_model(state, body.model)
    size = state.bundle.decoder.config.vocab_size
    strange = [token for token in body.biases if not 0 <= token < size]
    if strange:
        raise bad_request(f"logit_bias names token {strange[0]}, but the vocabulary has {size}", "logit_bias")
    strange = [token for token in body.stop_token_ids or [] if token >= size]
    if strange:
        raise bad_request(f"stop_token_ids names token {strange[0]}, but the vocabulary has {size}", "stop_token_ids")


async def named_session(state: ServerState, body: SamplingFields, header: str | None, tenant: str) -> str | None:
    """The session that a request names, in its body or by X-Session-ID; None if it names none.

    ApiError if the two differ, if there is no such session, or if nothing is to be kept of what goes into it.
    """
    if body.session_id and header and body.session_id != header:
        raise bad_request("session_id and X-Session-ID name different sessions", "session_id")
    session_id = body.session_id or header
    if session_id is not None:
        if body.store is False:
            raise bad_request(
                "store false keeps nothing, but session_id names a session that is kept: give one of them", "store"
            )
        await state.host.known(session_id, tenant)
    return session_id


async def answer(
    state: ServerState, request: Request, turns: Sequence[tuple[TurnStream, Format]], body: SamplingFields
) -> Response:
    """Stream the turns as server-sent events, or wait for all of them. Each is a choice of the answer."""
    choices = [Choice(stream, form, state.metrics.watch_turn()) for stream, form in turns]
    if not body.stream:
        result = await whole(choices, request.receive)
        if result is None:
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        return _told(Response(orjson.dumps(result), media_type="application/json"), choices)
    try:
        await _begin([stream for stream, _ in turns])
    except BaseException:
        for choice in choices:
            choice.stream.cancel()
            if (failure := choice.stream.failure()) is not None:
                choice.observe(Failed(failure), 0.0)
        raise
    keep_alive = state.settings.keep_alive_seconds
    return _told(TurnResponse(choices, include_usage=body.include_usage, keep_alive=keep_alive), choices)


def _told(response: Response, choices: Sequence[Choice]) -> Response:
    """Say in a header which session answers, as soon as that is known; a stream's last chunk says it too."""
    if len(choices) == 1 and (session_id := choices[0].stream.session_id) is not None:
        response.headers["X-Session-ID"] = session_id
    return response


async def _begin(streams: Sequence[TurnStream]) -> None:
    """Until all turns have begun, or ``GRACE`` is over; raises what one of them has failed with by then."""
    with suppress(TimeoutError):
        async with asyncio.timeout(GRACE):
            for stream in streams:
                await stream.started.wait()
    for stream in streams:
        if (failure := stream.failure()) is not None:
            raise failure
