"""One place where errors become words: an HTTP status and OpenAI's error object, in a body or in a stream."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from mc_core.errors import (
    BudgetError,
    CancelledTurnError,
    ConfigError,
    MegaContextError,
    PinRoomError,
    QueueFullError,
    SpanMissingError,
    StoreError,
)
from mc_core.store import (
    DamagedRecordError,
    FencedError,
    LeaseHeldError,
    NoteTakenError,
    SessionMismatchError,
    StoreDownError,
    StoreFullError,
    TurnsLostError,
    UnknownSessionError,
)

CLIENT_CLOSED_REQUEST = 499
"""Status of an answer that nobody waits for any more."""
PASSING = ("session_in_use", "idempotency_key_answered")
"""Codes of 409 that another try may not meet again. Clients of OpenAI and Anthropic repeat each 409 that does not
forbid it."""


@dataclass
class ApiError(Exception):
    """What a client is told. ``param`` names the field at fault; ``retry_after`` is in seconds; ``more``: headers."""

    status: int
    message: str
    type: str = "invalid_request_error"
    code: str | None = None
    param: str | None = None
    retry_after: float | None = None
    more: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.message

    def body(self) -> dict[str, Any]:
        """OpenAI's error object."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        after = {} if self.retry_after is None else {"Retry-After": str(max(1, round(self.retry_after)))}
        again = {"X-Should-Retry": "false"} if self.status == 409 and self.code not in PASSING else {}
        return {**self.more, **after, **again}


def bad_request(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    return ApiError(400, message, param=param, code=code)


def not_found(message: str, code: str, param: str | None = None) -> ApiError:
    return ApiError(404, message, code=code, param=param)


@contextmanager
def naming(param: str) -> Iterator[None]:
    """What is called here finds a fault of its own with one field of the request, and does not know its name."""
    try:
        yield
    except ConfigError as error:
        raise bad_request(str(error), param) from error


def unauthorized(message: str, code: str) -> ApiError:
    return ApiError(401, message, "authentication_error", code, more={"WWW-Authenticate": "Bearer"})


def too_large(what: str, limit: int) -> ApiError:
    return ApiError(413, f"{what} is larger than the limit of {limit} bytes", code="request_too_large")


def draining() -> ApiError:
    return ApiError(503, "the server is shutting down", "server_error", "draining", retry_after=5)


def store_down(message: str, retry_after: float = 5) -> ApiError:
    return ApiError(503, message, "server_error", "store_down", retry_after=retry_after)


def turn_cancelled() -> ApiError:
    return ApiError(CLIENT_CLOSED_REQUEST, "the turn was cancelled by another request", code="turn_cancelled")


def stream_lost() -> ApiError:
    """For a stream that can't be gone on with: nothing that it told counts."""
    return ApiError(
        410,
        "the stream of this event can't be gone on with: its turn was not stored, or is not kept, or it"
        " never told such an event; leave out Last-Event-ID to have the request carried out, or its answer told from"
        " the start",
        code="stream_lost",
        param="Last-Event-ID",
    )


def answered_elsewhere() -> ApiError:
    """For a request by key of which another server was the first to store the answer."""
    return ApiError(
        409,
        "another server carried this request out in the meantime; ask again for its answer",
        code="idempotency_key_answered",
        param="Idempotency-Key",
    )


def gone_for_long(seconds: float) -> ApiError:
    """What a turn ends with that nobody has listened to for so long."""
    return ApiError(
        CLIENT_CLOSED_REQUEST, f"nobody has listened to the turn for {seconds:g} s", code="client_gone_for_long"
    )


def unreadable(session_id: str, error: Exception) -> ApiError:
    """For a stored session that can't be brought back into memory."""
    reason = str(error) if isinstance(error, MegaContextError) else "internal error"
    if session_id not in reason:
        reason = f"session {session_id} can't be read: {reason}"
    return ApiError(500, reason, "server_error", "session_unreadable")


def to_api_error(error: BaseException) -> ApiError:
    """Any error -> what the client is told. What is not known stays inside: no text, no traceback, no path."""
    match error:
        case ApiError():
            return error
        case UnknownSessionError():
            return not_found(str(error), "session_not_found")
        case LeaseHeldError():
            return ApiError(503, str(error), "server_error", "session_busy", retry_after=error.retry_after)
        case TurnsLostError():
            return ApiError(
                410, f"{error}; look at its messages, and send again what is missing", "server_error", "turns_lost"
            )
        case FencedError():
            return ApiError(
                503,
                "another server took the session over, or it was deleted; this request left no trace in it",
                "server_error",
                "session_taken_over",
                retry_after=1,
            )
        case QueueFullError():
            return ApiError(429, str(error), "rate_limit_error", "queue_full", retry_after=2)
        case PinRoomError():
            return bad_request(str(error), "pin", "pin_room")
        case BudgetError():
            return bad_request(str(error), "budget", "budget_exceeded")
        case ConfigError():
            return bad_request(str(error))
        case SpanMissingError():
            return ApiError(500, str(error), "server_error", "span_missing")
        case DamagedRecordError():
            return ApiError(500, f"{error}; megacontext fsck tells more", "server_error", "session_damaged")
        case StoreFullError():
            return ApiError(
                503,
                "the session store is full, so nothing of this was kept; sessions can be read and deleted",
                "server_error",
                "store_full",
                retry_after=error.retry_after,
            )
        case StoreDownError():
            return store_down(
                "the session store can't be reached; look at the session before you repeat this", error.retry_after
            )
        case SessionMismatchError():
            return ApiError(409, str(error), code="session_mismatch")
        case NoteTakenError():
            return answered_elsewhere()
        case StoreError():
            return ApiError(
                503, "the session store failed; nothing was lost", "server_error", "store_error", retry_after=5
            )
        case CancelledTurnError():
            return ApiError(503, "the turn was cancelled", "server_error", "cancelled", retry_after=5)
        case _:
            return ApiError(500, "internal error", "server_error", "internal_error")
