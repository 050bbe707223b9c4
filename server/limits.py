"""Bodies are bounded before anything reads them."""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import too_large

STREAMED = "/ingest"


class BodyLimit:
    """ASGI middleware: 413 for a body over ``limit`` bytes, announced or not; ingests have their own limit."""

    def __init__(self, app: ASGIApp, limit: int, streamed_limit: int) -> None:
        self.app, self.limit, self.streamed_limit = app, limit, streamed_limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        limit = self.streamed_limit if scope["path"].endswith(STREAMED) else self.limit
        announced = dict(scope["headers"]).get(b"content-length", b"")
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
