"""A streamed reply put together from its bytes, whichever way they come."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx

from .errors import APIConnectionError, StreamEndedError, api_error
from .sse import DONE, Event, EventDecoder
from .types import JSON, ChatResult, Delta, Usage


class Assembly:
    """Reads the events of one stream; knows when it is done and what the reply came to.

    last_id: of the newest event that was read. told: whether it has given out anything.
    """

    def __init__(self, session_id: str | None) -> None:
        self.done = self.told = False
        self.last_id: str | None = None
        self._decoder = EventDecoder()
        self._session_id = session_id
        self._content: list[str] = []
        self._finish_reason: str | None = None
        self._usage: Usage | None = None
        self._extra: JSON = {}
        self._head: JSON = {}

    def feed(self, piece: bytes) -> Iterator[Delta]:
        """The deltas in a piece of the body; raises APIError on an error event, as soon as it is reached."""
        for event in self._decoder.feed(piece):
            if self.done:
                return
            if event.data == DONE and event.name == "message":
                self.done = True
                continue
            delta = self._chunk(_decode(event))
            self.last_id = event.id or self.last_id
            if delta is not None:
                self.told = True
                yield delta

    def reconnected(self) -> None:
        """Another connection goes on behind ``last_id``: what was left over of the one before is no part of it."""
        self._decoder = EventDecoder()

    def result(self) -> ChatResult:
        """The whole reply; StreamEndedError unless the stream has ended as it should."""
        if not self.done:
            raise StreamEndedError("the stream ended before the reply was complete")
        return ChatResult(
            id=str(self._head.get("id", "")),
            model=str(self._head.get("model", "")),
            content="".join(self._content),
            finish_reason=self._finish_reason,
            usage=self._usage,
            x_megacontext=self._extra,
            session_id=self._extra.get("session_id") or self._session_id,
        )

    def _chunk(self, chunk: JSON) -> Delta | None:
        self._head = self._head or chunk
        self._extra = {**self._extra, **(chunk.get("x_megacontext") or {})}
        if chunk.get("usage"):
            self._usage = Usage.parse(chunk["usage"])
        if not chunk.get("choices"):
            return None
        choice = chunk["choices"][0]
        content = (choice.get("delta") or {}).get("content") or ""
        reason = choice.get("finish_reason")
        self._finish_reason = reason or self._finish_reason
        self._content.append(content)
        if not content and reason is None:
            return None
        return Delta(content, reason, choice.get("logprobs"))


def _decode(event: Event) -> JSON:
    try:
        body = json.loads(event.data)
    except ValueError:
        body = event.data
    if event.name == "error" or not isinstance(body, dict) or body.get("error"):
        # A bare {"message": ...} after `event: error` says the same as {"error": {...}}.
        wrapped = body if isinstance(body, dict) and "error" in body else {"error": body}
        raise api_error(200, wrapped)
    return body


def broken(error: httpx.HTTPError) -> APIConnectionError:
    """A failure of the connection in this client's words."""
    if isinstance(error, httpx.TimeoutException):
        return APIConnectionError("the server did not answer in time")
    if isinstance(error, httpx.RemoteProtocolError | httpx.ReadError):
        return StreamEndedError(f"the connection broke off: {error}")
    return APIConnectionError(f"cannot reach the server at {error.request.url.netloc.decode()}: {error}")
