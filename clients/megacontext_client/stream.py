# Written by python -m clients.sync_from_async from async_stream.py: change that file.
"""A streamed reply: deltas as they come, the whole result at the end."""

from __future__ import annotations

import time
from collections.abc import Iterator, Callable
from typing import Any, Self

import httpx

from .assembly import Assembly, broken
from .errors import APIConnectionError, APIError, StreamEndedError, StreamLostError
from .retries import Retries
from .types import ChatResult, Delta


class ChatStream:
    """Iterate for the deltas; ``result`` is there once they are through. Leaving early ends the turn on the server.

    A connection that breaks off is made anew, and goes on behind the last event that came: each delta comes once.
    StreamLostError if the server does not have the rest, StreamEndedError if it can't be reached any more.
    """

    def __init__(
        self,
        response: httpx.Response,
        session_id: str | None,
        retries: Retries,
        reopen: Callable[[str | None], httpx.Response] | None = None,
        cancel: Callable[[], None] | None = None,
    ) -> None:
        """retries: attempts to go on where nothing new has come. reopen: asks for the events behind one, or for all;
        cancel: stops the turn; None for one that can't be gone on with."""
        self._response, self._session_id = response, session_id
        self._retries, self._reopen, self._cancel = retries, reopen, cancel
        self._assembly = Assembly(session_id)
        self._failed = False
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
        """Drop the connection, and stop the turn unless it has ended."""
        self._response.close()
        if self._cancel is not None and not (self._assembly.done or self._failed):
            self._failed = True
            self._cancel()

    def _run(self) -> Iterator[Delta]:
        attempts = 0
        try:
            while True:
                fault: APIConnectionError = StreamEndedError("the stream ended before the reply was complete")
                try:
                    for piece in self._response.iter_bytes():
                        for delta in self._assembly.feed(piece):
                            attempts = 0
                            yield delta
                        if self._assembly.done:
                            return
                except httpx.HTTPError as error:
                    fault = broken(error)
                self._go_on(attempts, fault)
                attempts += 1
        except Exception:
            self._failed = True
            raise
        finally:
            self._response.close()

    def _go_on(self, attempts: int, fault: APIConnectionError) -> None:
        """Connect anew; raises what the stream broke off with if it can't be gone on with."""
        pause, assembly = self._retries.after(attempts), self._assembly
        if self._reopen is None or pause is None or (assembly.told and assembly.last_id is None):
            raise fault
        self._response.close()
        time.sleep(pause)
        try:
            self._response = self._reopen(assembly.last_id if assembly.told else None)
        except APIError as error:
            if error.code != "stream_lost":
                raise
            raise StreamLostError(f"{fault}; the rest is lost, and the text so far is in no history") from error
        if assembly.told:
            assembly.reconnected()
        else:
            self._assembly = Assembly(self._session_id)
