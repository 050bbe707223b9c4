"""The first thing that a request meets: its id, its line in the log, its count, and what proxies do to it."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import ApiError
from server.front.handlers import respond
from server.state import ServerState

logger = logging.getLogger(__name__)
PROBES = ("/health", "/ready", "/metrics")
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
OTHER = "other"
"""The label of methods and routes that there are not: what clients think up must not make series."""
LINGER = 10.0
"""Seconds in which the rest of a body may still come that nobody wants any more."""


class Front:
    """ASGI middleware. HEAD is answered as GET, without a body; slashes too many do not matter; ``request_id`` goes
    into the state, whether the answer's ``head`` is all that is asked for, and the ``path`` that is, as the API has it.

    root_path: below which a proxy shows the server, whether the proxy strips it or not. Without one it is the path at
    which another app has mounted this one. Who tells addresses finds it in the scope; ``path`` is without it.
    """

    def __init__(self, app: ASGIApp, root_path: str = "") -> None:
        self.app, self._root_path = app, root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        method, headers = scope["method"], Headers(scope=scope)
        mounted = scope.get("root_path", "").rstrip("/")
        root, path = self._root_path or mounted, _below(self._root_path, _plain(_below(mounted, scope["path"])))
        request_id = _request_id(headers.get("x-request-id", ""))
        told = {"request_id": request_id, "head": method == "HEAD", "path": path}
        scope = {
            **scope,
            "method": "GET" if method == "HEAD" else method,
            "root_path": root,
            "path": root + path,
            "state": {**scope.get("state", {}), **told},
        }
        scope.pop("route", None)  # of the app that mounted this one
        server: ServerState | None = getattr(scope["app"].state, "server", None)
        if server is None:
            await respond(_not_started(), scope)(scope, receive, send)
            return
        body = _Body(receive, headers)
        began, status = time.monotonic(), 0

        async def tagged(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                told = request_id.encode("latin-1")
                # The second name is what Anthropic's clients look for.
                named = [(b"x-request-id", told), (b"request-id", told)]
                message["headers"] = [*message.get("headers", []), *named]
            elif method == "HEAD":
                message = {**message, "body": b""}
            if message["type"] == "http.response.body" and not message.get("more_body") and body.unread:
                await send({**message, "more_body": True})
                await body.discard()
                message = {"type": "http.response.body", "body": b""}
            await send(message)

        try:
            await self.app(scope, body.receive, tagged)
        finally:
            route = getattr(scope.get("route"), "path", OTHER)
            server.metrics.http.labels(route, method if method in METHODS else OTHER, str(status)).inc()
            if route not in PROBES:
                fields = {"request_id": request_id, "method": method, "route": route, "status": status}
                fields["seconds"] = round(time.monotonic() - began, 4)
                logger.info("request", extra={"fields": fields})


class _Body:
    """What comes in; ``unread`` while some of an announced body has not.

    A server that closes a connection on unread bytes resets it, and the client may never see the answer that says why.
    """

    def __init__(self, receive: Receive, headers: Headers) -> None:
        self._receive = receive
        self.unread = "transfer-encoding" in headers or headers.get("content-length", "0") != "0"
        # Who asked first, and was not told to go on, sends nothing.
        self._waits = "expect" in headers

    async def receive(self) -> Message:
        self._waits = False
        message = await self._receive()
        if not message.get("more_body", False):
            self.unread = False
        return message

    async def discard(self) -> None:
        """Read what is left, for a while; nothing of it is kept."""
        try:
            async with asyncio.timeout(LINGER):
                while self.unread and not self._waits:
                    await self.receive()
        except TimeoutError:
            return


def _not_started() -> ApiError:
    message = (
        "this server has not started: its life span was not run. Who mounts it in another app runs it in that one's: "
        "async with server.router.lifespan_context(server)"
    )
    return ApiError(500, message, "server_error", "not_started")


def _below(root: str, path: str) -> str:
    """/llm, /llm/v1/models -> /v1/models; a path that isn't below the root stays as it is."""
    return path.removeprefix(root) or "/" if f"{path}/".startswith(f"{root}/") else path


def _plain(path: str) -> str:
    """/v1//models/ -> /v1/models: addresses are often put together of parts that both bring a slash."""
    return re.sub("/{2,}", "/", path).rstrip("/") or "/"


def _request_id(given: str) -> str:
    """The caller's id if it is a sane one, else a new one."""
    return given if 0 < len(given) <= 128 and given.isascii() and given.isprintable() else secrets.token_hex(16)
