"""Bodies are bounded before anything reads them."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import too_large
from server.front.content import is_json

STREAMED = ("/ingest", "/sessions/import")


class BodyLimit:
    """ASGI middleware: 413 for a body over ``limit`` bytes, announced or not; streamed ingests have their own."""

    def __init__(self, app: ASGIApp, limit: int, streamed_limit: int) -> None:
        self.app, self.limit, self.streamed_limit = app, limit, streamed_limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        # JSON is read as a whole, wherever it goes.
        streamed = scope["path"].endswith(STREAMED) and not is_json(headers.get("content-type", ""))
        limit = self.streamed_limit if streamed else self.limit
        announced = headers.get("content-length", "")
        if announced.isdigit() and int(announced) > limit:
            raise too_large("the body", limit)
        size = 0

        async def counted() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > limit:
                # FastAPI takes anything else that happens while it reads a body for bad JSON.
                raise HTTPException(413) from too_large("the body", limit)
            return message

        await self.app(scope, counted, send)
