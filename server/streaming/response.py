"""Server-sent events of turns. The response owns its clean-up: however it ends, the turns are let go."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from mc_core.engine.requests import Delta, Event, Failed, Finished, TokenLogprob
from server.errors import to_api_error
from server.protocol.common import together
from server.turn_group import TurnGroup
from server.turn_stream import TurnStream

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"
HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class Format(Protocol):
    """How one API writes a choice of a completion."""

    def opening(self) -> dict[str, Any] | None: ...

    def delta(self, delta: Delta) -> dict[str, Any]: ...

    def closing(self, finished: Finished, session_id: str | None) -> dict[str, Any]: ...

    def usage_chunk(self, finished: Sequence[Finished]) -> dict[str, Any]: ...

    def whole(
        self, text: str, logprobs: list[TokenLogprob], finished: Finished, session_id: str | None
    ) -> dict[str, Any]: ...


Observe = Callable[[Event, float], None]
"""Told of each event and when it came (monotonic seconds)."""


@dataclass(frozen=True)
class Choice:
    """A turn, how it is written, and who is told of its events."""

    stream: TurnStream
    form: Format
    observe: Observe


def event(data: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(data) + b"\n\n"


class TurnResponse(Response):
    """An ASGI response that streams the turns and cancels them the moment the client goes away."""

    def __init__(self, choices: Sequence[Choice], *, include_usage: bool, keep_alive: float) -> None:
        super().__init__()
        self.raw_headers = list(HEADERS)
        self.choices, self.group = choices, TurnGroup([choice.stream for choice in choices])
        self.include_usage, self.keep_alive = include_usage, keep_alive

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
            self.group.cancel()
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
        for choice in self.choices:
            if (opening := choice.form.opening()) is not None:
                yield event(opening)
        finished: list[Finished] = []
        while len(finished) < len(self.choices):
            if (told := await self.group.next(self.keep_alive)) is None:
                yield KEEP_ALIVE
                continue
            choice, one = self.choices[told[0]], told[1]
            choice.observe(one, time.monotonic())
            match one:
                case Delta():
                    if one.text or one.logprobs:
                        yield event(choice.form.delta(one))
                case Finished():
                    yield event(choice.form.closing(one, choice.stream.session_id))
                    finished.append(one)
                case Failed(error):
                    # Never a false "stop": the client sees that this reply is not whole.
                    yield b"event: error\n" + event(to_api_error(error).body())
                    return
        if self.include_usage:
            yield event(self.choices[0].form.usage_chunk(finished))
        yield DONE


async def whole(choices: Sequence[Choice], receive: Receive) -> dict[str, Any] | None:
    """The turns as one body; None when the client went away. Raises a turn's error."""
    group = TurnGroup([choice.stream for choice in choices])
    gone = asyncio.create_task(disconnected(receive))
    reading = asyncio.create_task(_collect(choices, group))
    try:
        await asyncio.wait({gone, reading}, return_when=asyncio.FIRST_COMPLETED)
        return reading.result() if reading.done() else None
    finally:
        group.cancel()
        for task in (gone, reading):
            task.cancel()
        await asyncio.gather(gone, reading, return_exceptions=True)


async def _collect(choices: Sequence[Choice], group: TurnGroup) -> dict[str, Any]:
    parts: list[list[str]] = [[] for _ in choices]
    logprobs: list[list[TokenLogprob]] = [[] for _ in choices]
    bodies: list[dict[str, Any]] = [{} for _ in choices]
    finished: list[Finished] = []
    while len(finished) < len(choices):
        told = await group.next()
        assert told is not None
        place, one = told
        choice = choices[place]
        choice.observe(one, time.monotonic())
        match one:
            case Delta(text, _, more):
                parts[place].append(text)
                logprobs[place].extend(more)
            case Finished():
                text = "".join(parts[place])
                bodies[place] = choice.form.whole(text, logprobs[place], one, choice.stream.session_id)
                finished.append(one)
            case Failed(error):
                raise error
    return together(bodies, finished)


async def disconnected(receive: Receive) -> None:
    """Until the client goes away. The body must have been read."""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
