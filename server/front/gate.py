"""Who may come in, before anything of a body is read; and the last word on errors."""

from __future__ import annotations

import logging

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import ApiError
from server.front.front import PROBES
from server.front.handlers import respond
from server.front.hosts import Hosts
from server.state import ServerState

logger = logging.getLogger(__name__)


class BrokenOffError(Exception):
    """An answer ended before it was whole. It says nothing of why, for it is told to who traces requests."""


class Gate:
    """ASGI middleware. Checks name, key and coding of a request; ``tenant`` goes into the state.

    hosts: the names under which a server without keys answers; None with keys, which no foreign page has.
    """

    def __init__(self, app: ASGIApp, hosts: Hosts | None) -> None:
        self.app, self._hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun = False

        async def watched(message: Message) -> None:
            nonlocal begun
            begun = begun or message["type"] == "http.response.start"
            await send(message)

        try:
            self._admit(scope)
            await self.app(scope, receive, watched)
        except Exception as error:
            request_id = scope["state"]["request_id"]
            if begun:
                # Too late for words; the connection is closed, so that nobody takes this answer for whole.
                logger.error("request %s broke off", request_id, exc_info=error)
                raise BrokenOffError from None
            await respond(error, scope)(scope, receive, watched)

    def _admit(self, scope: Scope) -> None:
        headers, path = Headers(scope=scope), scope["state"]["path"]
        if self._hosts is not None and path not in PROBES:
            self._hosts.check(headers.get("host", ""))
        # OPTIONS tells nothing that the documentation doesn't; who sends it can't send a key yet.
        if path.startswith("/v1/") and scope["method"] != "OPTIONS":
            server: ServerState = scope["app"].state.server
            scope["state"]["tenant"] = server.keys.tenant(headers.get("authorization"), headers.get("x-api-key"))
        coding = headers.get("content-encoding", "identity")
        if coding.strip().lower() not in ("", "identity"):
            message = f"send the body as it is, without Content-Encoding {coding[:40]!r}"
            more = {"Accept-Encoding": "identity"}
            raise ApiError(415, message, code="unsupported_encoding", param="content-encoding", more=more)
