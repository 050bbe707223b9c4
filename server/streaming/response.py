"""The response of turns. It owns its clean-up: however it ends, the turns are let go."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from typing import Any, TypeVar

from opentelemetry.trace import get_current_span
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from mc_core.engine.requests import Failed, Finished
from server.errors import to_api_error
from server.streaming.choice import Choice
from server.streaming.frames import Frame, with_ids
from server.streaming.reply import Reply
from server.streaming.turn_group import TurnGroup
from server.telemetry.spans import fail

logger = logging.getLogger(__name__)
T = TypeVar("T")
Settled = Callable[[], Awaitable[bool]]
"""Waits until what a turn failed with is dealt with; whether its readers are told."""
HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class EventResponse(Response):
    """An ASGI response that streams what ``events`` yields; ``let_go`` is called the moment the client goes away."""

    def __init__(self) -> None:
        super().__init__()
        self.raw_headers = list(HEADERS)

    def events(self) -> AsyncIterator[bytes]:
        raise NotImplementedError

    def let_go(self) -> None:
        """Nobody reads any more."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope.get("state", {}).get("head"):
            self.let_go()
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await send({"type": "http.response.body", "body": b""})
            return
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
            self.let_go()
            for task in (gone, writing):
                task.cancel()
            await asyncio.gather(gone, writing, return_exceptions=True)

    async def _write(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async for data in self.events():
            await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class FramesResponse(EventResponse):
    """Streams frames as they come. silence: what is sent at once, and where there are none for a while."""

    def __init__(self, frames: AsyncIterator[Sequence[Frame]], silence: bytes) -> None:
        super().__init__()
        self._frames, self._silence = frames, silence

    async def events(self) -> AsyncIterator[bytes]:
        yield self._silence
        async for frames in self._frames:
            yield b"".join(frame.encode() for frame in frames) if frames else self._silence


class TurnResponse(FramesResponse):
    """Streams the turns as their formats write them, and listens to them until the client goes.

    numbered: events have ids, by which a client goes on. first: the frames before that one are left out. settled: told
    before the rest of a turn that failed; False: the stream ends without it.
    """

    def __init__(
        self,
        choices: Sequence[Choice],
        *,
        keep_alive: float,
        numbered: bool = False,
        first: int = 0,
        settled: Settled | None = None,
    ) -> None:
        self.choices, self.group = choices, TurnGroup([choice.stream for choice in choices])
        frames = from_number(told(choices, self.group, keep_alive, settled), choices[0].stream.tag, first, numbered)
        super().__init__(frames, choices[0].form.keep_alive)

    def let_go(self) -> None:
        self.group.close()


async def from_number(
    groups: AsyncIterator[Sequence[Frame]], tag: str, first: int, numbered: bool
) -> AsyncIterator[Sequence[Frame]]:
    """Frames without those before number ``first``; with ids that say whose they are, and their numbers."""
    count = 0
    async for frames in groups:
        place, count = count, count + len(frames)
        kept = frames[max(0, first - place) :]
        if numbered:
            kept = with_ids(kept, tag, count - len(kept))
        if kept or not frames:
            yield kept


async def told(
    choices: Sequence[Choice], group: TurnGroup, silence: float | None = None, settled: Settled | None = None
) -> AsyncIterator[Sequence[Frame]]:
    """The frames of all turns as they come; none where ``silence`` seconds passed without any. Whatever fails, the last
    ones say how it ended."""
    try:
        async for frames in _told(choices, group, silence, settled):
            yield frames
    except Exception as error:
        logger.exception("a stream could not be written to its end")
        yield _failed(choices[0], error)


async def _told(
    choices: Sequence[Choice], group: TurnGroup, silence: float | None, settled: Settled | None
) -> AsyncIterator[Sequence[Frame]]:
    for choice in choices:
        if opening := choice.form.opening():
            yield opening
    finished: list[Finished] = []
    while len(finished) < len(choices):
        if (came := await group.next(silence)) is None:
            yield ()
            continue
        choice, event = choices[came[0]], came[1]
        if isinstance(event, Failed):
            if settled is None or await settled():
                yield _failed(choice, event.error)
            return
        for piece, logprobs in choice.pieces(event):
            if frames := choice.form.piece(piece, logprobs):
                yield frames
        if isinstance(event, Finished):
            yield choice.form.closing(event, choice.stream.session_id)
            finished.append(event)
    if frames := choices[0].form.ending(finished):
        yield frames


def _failed(choice: Choice, error: Exception) -> Sequence[Frame]:
    """The error as the client is told it; the span of the request, whose status was 200, has it too if it is ours."""
    told = to_api_error(error)
    if told.status >= 500:
        fail(get_current_span(), told)
    return choice.form.failed(told)


async def whole(choices: Sequence[Choice], receive: Receive) -> dict[str, Any] | None:
    """The turns as one body; None when the client went away. Raises a turn's error."""
    group = TurnGroup([choice.stream for choice in choices])
    try:
        return await unless_gone(collected(choices, group), receive)
    finally:
        group.close()


async def unless_gone(work: Coroutine[Any, Any, T], receive: Receive) -> T | None:
    """What ``work`` comes to; it is cancelled when the client goes away, and None. The body must have been read."""
    gone = asyncio.create_task(disconnected(receive))
    working = asyncio.create_task(work)
    try:
        await asyncio.wait({gone, working}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        for task in (gone, working):
            task.cancel()
        await asyncio.gather(gone, working, return_exceptions=True)


async def collected(choices: Sequence[Choice], group: TurnGroup) -> dict[str, Any]:
    """The turns as one body. Raises a turn's error."""
    replies = [Reply() for _ in choices]
    bodies: list[dict[str, Any]] = [{} for _ in choices]
    finished: list[Finished] = []
    while len(finished) < len(choices):
        came = await group.next()
        assert came is not None
        place, event = came
        choice = choices[place]
        if isinstance(event, Failed):
            raise event.error
        for piece in choice.pieces(event):
            replies[place].add(*piece)
        if isinstance(event, Finished):
            bodies[place] = choice.form.whole(replies[place], event, choice.stream.session_id)
            finished.append(event)
    return choices[0].form.together(bodies, finished)


async def disconnected(receive: Receive) -> None:
    """Until the client goes away. The body must have been read."""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
