"""To which of several servers a request goes: all of a session's to the same one, wherever the client named it.

Runs in proxies in front of the servers, so it imports none of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from hashlib import blake2b
from typing import Any

import orjson
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

ROUTE = "x-megacontext-route"
"""The header that tells a request's route, 8 hexadecimal digits. Requests of one route go to one server."""
MAX_READ = 64 << 20
"""Bytes of a body that are looked into; a longer one goes anywhere."""
NAMED = re.compile(r"/v1/(sessions|conversations|responses)/([^/]+)")
SPOKEN = re.compile(r"/v1/(chat/completions|completions|messages|responses)/?$")
"""Requests that say in their body which session they are for."""
RESPONSE = re.compile(r"resp_([0-9a-f]{8})[0-9a-f]{24}")
NO_SESSION = "import"


def route_of(path: str, headers: Headers, body: bytes = b"") -> str | None:
    """The route of a request; None where it is for no session, or begins one that has no name yet.

    A chat that names no session goes by how it begins, so that all of its turns go together.
    """
    if (found := NAMED.search(path)) is not None and found[2] != NO_SESSION:
        return _response(found[2]) if found[1] == "responses" else _tag(found[2])
    try:
        told = orjson.loads(body) if body else None
    except orjson.JSONDecodeError:
        told = None  # the server says what is wrong with it
    told = told if isinstance(told, dict) else {}
    if isinstance(previous := told.get("previous_response_id"), str):
        return _response(previous)
    conversation = told.get("conversation")
    named = conversation.get("id") if isinstance(conversation, dict) else conversation
    for name in (named, told.get("session_id"), headers.get("x-session-id")):
        if name and isinstance(name, str):
            return _tag(name)
    beginning = list(_beginning(told))
    if not beginning:
        return None
    # Chats of different keys begin alike, and share nothing.
    key = headers.get("authorization") or headers.get("x-api-key")
    return _tag(orjson.dumps([key, *beginning]).decode())


def _beginning(told: dict[str, Any]) -> Iterator[Any]:
    """What stays the same of a chat as it grows: all up to its first message of the user."""
    messages = told.get("messages", told.get("input"))
    if not messages:
        return
    yield from (told.get("system"), told.get("instructions"))
    for message in messages if isinstance(messages, list) else [messages]:
        yield [message.get("role"), message.get("content")] if isinstance(message, dict) else message
        if not isinstance(message, dict) or message.get("role") == "user":
            return


def _tag(name: str) -> str:
    return blake2b(name.encode(errors="surrogatepass"), digest_size=4).hexdigest()


def _response(id: str) -> str:
    """A response is called after the route that made it, and is on it as all that follow it."""
    return found[1] if (found := RESPONSE.fullmatch(id)) is not None else _tag(id)


def route_told(headers: Headers) -> str:
    """The route that a proxy told; empty where there is none."""
    told = headers.get(ROUTE, "")
    return told if re.fullmatch(r"[0-9a-f]{8}", told) else ""


class Affinity:
    """ASGI middleware of a proxy: tells the route of each request in its header ``ROUTE``."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        read, body = list[Message](), b""
        if scope["method"] == "POST" and SPOKEN.search(scope["path"]):
            read, body = await _read(receive)
        route = route_of(scope["path"], Headers(scope=scope), body)
        headers = [(name, value) for name, value in scope["headers"] if name != ROUTE.encode()]
        if route is not None:
            headers.append((ROUTE.encode(), route.encode()))

        async def again() -> Message:
            return read.pop(0) if read else await receive()

        await self.app({**scope, "headers": headers}, again, send)


async def _read(receive: Receive) -> tuple[list[Message], bytes]:
    """What came, and the body; nothing of one that is too long, or whose client went away."""
    read, size = list[Message](), 0
    while size <= MAX_READ:
        read.append(message := await receive())
        size += len(message.get("body", b""))
        if message["type"] != "http.request":
            break
        if not message.get("more_body"):
            return read, b"".join(part.get("body", b"") for part in read)
    return read, b""


def middlewares() -> list[Middleware]:
    """For Ray Serve's proxies (RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH)."""
    return [Middleware(Affinity)]
