"""When a request may be sent again. A turn must never count twice: what the server may have begun is repeated only if a
key tells that it is the same."""

from __future__ import annotations

from dataclasses import dataclass

import httpx

from .errors import APIError

FIRST_PAUSE = 0.25
LONGEST_PAUSE = 30.0
"""Seconds; a server that asks for a longer wait is left to the caller."""
REFUSED = frozenset({"queue_full", "draining", "session_busy"})
"""Codes of a 503 that say that nothing was begun. Any other 503 may come after the turn did its work."""
ANSWERED = "idempotency_key_answered"
"""Code of a 409: another server has the answer by now."""
NOTHING_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
BROKEN_OFF = (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError)


@dataclass(frozen=True)
class Retries:
    """``limit`` repeats at most; 0: none."""

    limit: int

    def pause(self, attempt: int, repeatable: bool, used_up: bool, error: httpx.HTTPError | APIError) -> float | None:
        """Seconds to wait before the next attempt, counted from 0; None if there must be none.

        No connection: nothing was sent. A refusal before the turn: nothing was begun, but the body may be ``used_up``.
        Whatever else fails leaves open what the server did, so only what is ``repeatable`` is sent again.
        """
        wait = self.after(attempt)
        if wait is None or isinstance(error, NOTHING_SENT):
            return wait
        if isinstance(error, APIError):
            begun = error.status >= 500 or error.code == ANSWERED
            refused = error.status == 429 or (error.status == 503 and error.code in REFUSED)
            wait = wait if error.retry_after is None else error.retry_after
            again = (refused or (begun and repeatable)) and 0 <= wait <= LONGEST_PAUSE
        else:
            again = isinstance(error, BROKEN_OFF) and repeatable
        return wait if again and not used_up else None

    def of_a_restart(self) -> Retries:
        """For a stream that broke off: as long as a server takes to start, half a minute by default."""
        return Retries(self.limit + 3) if self.limit else self

    def after(self, attempt: int) -> float | None:
        """Seconds to wait behind so many attempts that failed; None if there were enough."""
        return FIRST_PAUSE * 2.0**attempt if attempt < self.limit else None
