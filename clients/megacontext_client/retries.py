"""When a request may be sent again. A turn must never count twice: only what the server has not begun is repeated."""

from __future__ import annotations

from dataclasses import dataclass

import httpx

from .errors import APIError

FIRST_PAUSE = 0.25
LONGEST_PAUSE = 30.0
"""Seconds; a server that asks for a longer wait is left to the caller."""
REFUSED = frozenset({"queue_full", "draining", "session_busy"})
"""Codes of a 503 that say that nothing was begun. Any other 503 may come after the turn did its work."""
NOTHING_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
BROKEN_OFF = (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError)


@dataclass(frozen=True)
class Retries:
    """``limit`` repeats at most; 0: none."""

    limit: int

    def pause(self, attempt: int, method: str, streamed_body: bool, error: httpx.HTTPError | APIError) -> float | None:
        """Seconds to wait before the next attempt, counted from 0; None if there must be none.

        No connection: nothing was sent. A refusal before the turn: nothing was begun, but a streamed body is used up.
        A connection that breaks off leaves open what the server did, so only a GET is sent again.
        """
        if attempt >= self.limit:
            return None
        wait = FIRST_PAUSE * 2.0**attempt
        if isinstance(error, NOTHING_SENT):
            return wait
        if isinstance(error, APIError):
            refused = error.status == 429 or (error.status == 503 and error.code in REFUSED)
            wait = wait if error.retry_after is None else error.retry_after
            return wait if refused and not streamed_body and 0 <= wait <= LONGEST_PAUSE else None
        return wait if isinstance(error, BROKEN_OFF) and method == "GET" else None
