"""Requests beyond what their key may ask for in a minute go no further."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.state import ServerState

HEADERS = [f"x-ratelimit-{name}-{kind}" for kind in ("requests", "tokens") for name in ("limit", "remaining", "reset")]


class QuotaGate:
    """ASGI middleware behind the gate. Only POST counts: looking costs nothing."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        tenant = scope.get("state", {}).get("tenant")
        if scope["type"] != "http" or scope["method"] != "POST" or tenant is None:
            await self.app(scope, receive, send)
            return
        server: ServerState = scope["app"].state.server
        told = [(name.encode(), value.encode()) for name, value in server.quotas.admit(tenant).items()]

        async def tagged(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *told]
            await send(message)

        await self.app(scope, receive, tagged)
