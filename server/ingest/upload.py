"""A request's body, read ahead of whoever uses it, so that a client that goes away is noticed while others work."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable

from starlette.types import Receive

READ_AHEAD = 16 << 20
"""Bytes that wait for their use. Beyond them nothing is read, and so nobody notices that the client has left."""


class Upload:
    """Reads a body in a task of its own, from ``async with`` to its end; calls ``gone`` if the client goes meanwhile.

    ``chunks`` is for one reader. ``digest``: told of what it reads.
    """

    def __init__(
        self,
        receive: Receive,
        gone: Callable[[], None],
        read_ahead: int = READ_AHEAD,
        digest: Callable[[bytes], object] = lambda chunk: None,
    ) -> None:
        self._receive, self._gone, self._read_ahead = receive, gone, read_ahead
        self._digest = digest
        self._waiting: deque[bytes] = deque()
        self._size = 0
        self._whole = False
        self._error: Exception | None = None
        self._news, self._space = asyncio.Event(), asyncio.Event()

    async def __aenter__(self) -> Upload:
        self._task = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.wait({self._task})

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it comes. Raises what reading it raised."""
        while True:
            while self._waiting:
                chunk = self._waiting.popleft()
                self._size -= len(chunk)
                self._space.set()
                self._digest(chunk)
                yield chunk
            if self._error is not None:
                raise self._error
            if self._whole:
                return
            self._news.clear()
            await self._news.wait()

    async def _read(self) -> None:
        try:
            while True:
                message = await self._receive()
                if message["type"] == "http.disconnect":
                    self._gone()
                    return
                await self._keep(message.get("body", b""), message.get("more_body", False))
        except Exception as error:
            self._error = error
            self._news.set()

    async def _keep(self, chunk: bytes, more: bool) -> None:
        if chunk:
            self._waiting.append(chunk)
            self._size += len(chunk)
        self._whole = self._whole or not more
        self._news.set()
        while not self._whole and self._size >= self._read_ahead:
            self._space.clear()
            await self._space.wait()
