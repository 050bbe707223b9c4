"""The first thing that a request meets: its id, the caller's key, its line in the log, and the last word on errors."""

from __future__ import annotations

import logging
import secrets
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.handlers import respond
from server.state import ServerState

logger = logging.getLogger(__name__)
PROBES = ("/health", "/ready", "/metrics")


class BrokenOffError(Exception):
    """An answer ended before it was whole. It says nothing of why, for it is told to who traces requests."""


class Front:
    """ASGI middleware. Keys are checked before a body is read; ``tenant`` and ``request_id`` go into the state."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        server: ServerState = scope["app"].state.server
        headers = dict(scope["headers"])
        request_id = _request_id(headers.get(b"x-request-id", b""))
        own = scope.setdefault("state", {})
        own["request_id"] = request_id
        began, status = time.monotonic(), 0

        async def tagged(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), (b"x-request-id", request_id.encode("latin-1"))]
            await send(message)

        try:
            if scope["path"].startswith("/v1/"):
                own["tenant"] = server.keys.tenant(headers.get(b"authorization", b"").decode("latin-1"))
            await self.app(scope, receive, tagged)
        except Exception as error:
            if status:
                # Too late for words; the connection is closed, so that nobody takes this answer for whole.
                logger.error("request %s broke off", request_id, exc_info=error)
                raise BrokenOffError from None
            await respond(error, request_id)(scope, receive, tagged)
        finally:
            route = getattr(scope.get("route"), "path", "unknown")
            server.metrics.http.labels(route, scope["method"], str(status)).inc()
            if route not in PROBES:
                fields = {"request_id": request_id, "method": scope["method"], "route": route, "status": status}
                fields["seconds"] = round(time.monotonic() - began, 4)
                logger.info("request", extra={"fields": fields})


def _request_id(given: bytes) -> str:
    """The caller's id if it is a sane one, else a new one."""
    text = given.decode("latin-1")
    return text if 0 < len(text) <= 128 and text.isascii() and text.isprintable() else secrets.token_hex(16)
