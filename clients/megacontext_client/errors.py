"""What can go wrong, seen from a client: the server said no, or the connection failed."""

from __future__ import annotations

import json
from typing import Any


class ClientError(Exception):
    """Base of every error that this client raises on purpose."""


class APIError(ClientError):
    """The server's answer was an error.

    ``status`` is the HTTP status (of a running stream: the status it began with, 200), ``code`` and ``type`` are the
    server's short words, ``param`` names the field at fault and ``retry_after`` is in seconds; each may be None.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        type: str | None = None,
        param: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.type = type
        self.param = param
        self.retry_after = retry_after

    def __str__(self) -> str:
        return f"{self.message} (status {self.status}{f', {self.code}' if self.code else ''})"


class APIConnectionError(ClientError, ConnectionError):
    """The server could not be reached, did not answer in time, or broke off."""


class StreamEndedError(APIConnectionError):
    """A stream stopped before its end mark: the text so far is not a finished reply."""


class StreamLostError(StreamEndedError):
    """A stream broke off and can't be gone on with: its turn was not stored, so the text so far is in no history."""


def api_error(status: int, body: Any, retry_after: str | None = None) -> APIError:
    """The error that a decoded body describes: OpenAI's error object, or anything else a proxy may have sent."""
    error = body.get("error") if isinstance(body, dict) else None
    if not isinstance(error, dict):
        text = error if isinstance(error, str) else body if isinstance(body, str) else json.dumps(body)
        error = {"message": text.strip()[:500] if text and text != "null" else "no reason given"}
    return APIError(
        status,
        str(error.get("message") or "no reason given"),
        code=_text(error.get("code")),
        type=_text(error.get("type")),
        param=_text(error.get("param")),
        retry_after=_seconds(retry_after),
    )


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _seconds(header: str | None) -> float | None:
    """Retry-After may also be a date, which no MegaContext server sends."""
    try:
        return None if header is None else float(header)
    except ValueError:
        return None
