# Written by python -m clients.sync_from_async from async_stream.py: change that file.
"""A streamed reply: deltas as they come, the whole result at the end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Self

import httpx

from .assembly import Assembly, broken
from .types import ChatResult, Delta


class ChatStream:
    """Iterate for the deltas; ``result`` is there once they are through. Leaving early ends the turn on the server."""

    def __init__(self, response: httpx.Response, session_id: str | None) -> None:
        self._response = response
        self._assembly = Assembly(session_id)
        self._deltas = self._run()

    def __iter__(self) -> Iterator[Delta]:
        return self._deltas

    def __next__(self) -> Delta:
        return next(self._deltas)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *unused: Any) -> None:
        self.close()

    @property
    def result(self) -> ChatResult:
        """The whole reply; StreamEndedError while the stream is not through."""
        return self._assembly.result()

    def close(self) -> None:
        """Drop the connection; the server stops the turn."""
        self._response.close()

    def _run(self) -> Iterator[Delta]:
        try:
            for piece in self._response.iter_bytes():
                for delta in self._assembly.feed(piece):
                    yield delta
                if self._assembly.done:
                    return
        except httpx.HTTPError as error:
            raise broken(error) from error
        finally:
            self._response.close()
        self._assembly.result()
