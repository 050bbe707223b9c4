"""Server-sent events of a turn. The response owns its clean-up: however it ends, the turn is let go."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol

import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from mc_core.engine.requests import Delta, Event, Failed, Finished, TokenLogprob
from server.errors import to_api_error
from server.turn_stream import TurnStream

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"
HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class Format(Protocol):
    """How one API writes a completion."""

    def opening(self) -> dict[str, Any] | None: ...

    def delta(self, delta: Delta) -> dict[str, Any]: ...

    def closing(self, finished: Finished, session_id: str | None) -> dict[str, Any]: ...

    def usage_chunk(self, finished: Finished) -> dict[str, Any]: ...

    def whole(
        self, text: str, logprobs: list[TokenLogprob], finished: Finished, session_id: str | None
    ) -> dict[str, Any]: ...


Observe = Callable[[Event, float], None]
"""Told of each event and when it came (monotonic seconds)."""


def event(data: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(data) + b"\n\n"


class TurnResponse(Response):
    """An ASGI response that streams a turn and cancels it the moment the client goes away."""

    def __init__(
        self,
        stream: TurnStream,
        form: Format,
        *,
        include_usage: bool,
        keep_alive: float,
        observe: Observe,
    ) -> None:
        super().__init__()
        self.raw_headers = list(HEADERS)
        self.stream, self.form, self.include_usage = stream, form, include_usage
        self.keep_alive, self.observe = keep_alive, observe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        gone = asyncio.create_task(disconnected(receive))
        writing = asyncio.create_task(self._write(send))
        try:
            await asyncio.wait({gone, writing}, return_when=asyncio.FIRST_COMPLETED)
            if writing.done():
                writing.result()
        except OSError:
            # The client went away in the middle of a write.
            return
        finally:
            self.stream.cancel()
            for task in (gone, writing):
                task.cancel()
            await asyncio.gather(gone, writing, return_exceptions=True)

    async def _write(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async for data in self._events():
            await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _events(self) -> AsyncIterator[bytes]:
        yield KEEP_ALIVE
        if (opening := self.form.opening()) is not None:
            yield event(opening)
        while True:
            try:
                one = await asyncio.wait_for(self.stream.next(), self.keep_alive)
            except TimeoutError:
                yield KEEP_ALIVE
                continue
            self.observe(one, time.monotonic())
            match one:
                case Delta():
                    if one.text or one.logprobs:
                        yield event(self.form.delta(one))
                case Finished():
                    yield event(self.form.closing(one, self.stream.session_id))
                    if self.include_usage:
                        yield event(self.form.usage_chunk(one))
                    yield DONE
                    return
                case Failed(error):
                    # Never a false "stop": the client sees that this reply is not whole.
                    yield b"event: error\n" + event(to_api_error(error).body())
                    return


async def whole(stream: TurnStream, form: Format, receive: Receive, observe: Observe) -> dict[str, Any] | None:
    """The turn as one body; None when the client went away. Raises the turn's error."""
    gone = asyncio.create_task(disconnected(receive))
    reading = asyncio.create_task(_collect(stream, form, observe))
    try:
        await asyncio.wait({gone, reading}, return_when=asyncio.FIRST_COMPLETED)
        return reading.result() if reading.done() else None
    finally:
        stream.cancel()
        for task in (gone, reading):
            task.cancel()
        await asyncio.gather(gone, reading, return_exceptions=True)


async def _collect(stream: TurnStream, form: Format, observe: Observe) -> dict[str, Any]:
    parts: list[str] = []
    logprobs: list[TokenLogprob] = []
    while True:
        one = await stream.next()
        observe(one, time.monotonic())
        match one:
            case Delta(text, _, more):
                parts.append(text)
                logprobs.extend(more)
            case Finished():
                return form.whole("".join(parts), logprobs, one, stream.session_id)
            case Failed(error):
                raise error


async def disconnected(receive: Receive) -> None:
    """Until the client goes away. The body must have been read."""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
