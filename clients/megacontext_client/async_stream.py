"""A streamed reply: deltas as they come, the whole result at the end."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Self

import httpx

from .assembly import Assembly, broken
from .types import ChatResult, Delta


class AsyncChatStream:
    """Iterate for the deltas; ``result`` is there once they are through. Leaving early ends the turn on the server."""

    def __init__(self, response: httpx.Response, session_id: str | None) -> None:
        self._response = response
        self._assembly = Assembly(session_id)
        self._deltas = self._run()

    def __aiter__(self) -> AsyncIterator[Delta]:
        return self._deltas

    async def __anext__(self) -> Delta:
        return await anext(self._deltas)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *unused: Any) -> None:
        await self.close()

    @property
    def result(self) -> ChatResult:
        """The whole reply; StreamEndedError while the stream is not through."""
        return self._assembly.result()

    async def close(self) -> None:
        """Drop the connection; the server stops the turn."""
        await self._response.aclose()

    async def _run(self) -> AsyncIterator[Delta]:
        try:
            async for piece in self._response.aiter_bytes():
                for delta in self._assembly.feed(piece):
                    yield delta
                if self._assembly.done:
                    return
        except httpx.HTTPError as error:
            raise broken(error) from error
        finally:
            await self._response.aclose()
        self._assembly.result()
