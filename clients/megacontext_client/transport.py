"""What both clients do alike with a connection and an answer."""

from __future__ import annotations

from typing import Any

import httpx

from .errors import APIConnectionError, api_error

TIMEOUT = 600.0
"""Seconds of silence: a plain (not streamed) reply is silent until it is complete."""
CONNECT_TIMEOUT = 10.0
RETRIES = 4
"""By default: some four seconds of trouble are not noticed."""
CONNECTIONS = 100
KEEP_ALIVE = 4.0
"""Seconds that an idle connection is kept: less than the five after which servers close theirs, so that no turn is sent
down a connection that is just going away (and then can't be repeated)."""


def connection_settings(
    base_url: str, api_key: str | None, timeout: float | None, connections: int | None
) -> dict[str, Any]:
    """Arguments of httpx's clients. A base URL that ends in /v1, as other clients want it, works as well."""
    connect = CONNECT_TIMEOUT if timeout is None else min(timeout, CONNECT_TIMEOUT)
    return {
        "base_url": base_url.rstrip("/").removesuffix("/v1"),
        "headers": {"Authorization": f"Bearer {api_key}"} if api_key else {},
        "timeout": httpx.Timeout(timeout, connect=connect),
        "limits": httpx.Limits(
            max_connections=connections, max_keepalive_connections=connections, keepalive_expiry=KEEP_ALIVE
        ),
    }


def raise_for_error(response: httpx.Response) -> None:
    """APIError unless the answer, already read unless it is one, is a success."""
    if response.is_success:
        return
    try:
        body = response.json()
    except ValueError:
        body = response.text
    raise api_error(response.status_code, body, response.headers.get("Retry-After"))


def read_answer(response: httpx.Response) -> Any:
    """The decoded body of a success; None if it has none."""
    if not response.content:
        return None
    try:
        return response.json()
    except ValueError as error:
        raise APIConnectionError("the answer is not JSON; is this a MegaContext server?") from error
