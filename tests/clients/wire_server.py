"""A small server that speaks the wire format; what it is asked to do stands in the user's message."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

KEY = "key-1"
USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
CONTEXT = {
    "session_id": "s-1",
    "tokens": 1000,
    "raw": 250,
    "gisted": 0,
    "hidden": 750,
    "unavailable": 0,
    "budget": 512,
    "cost": 256,
}
# U+2028 ends a line for Python's splitlines, but not for server-sent events.
TEXT = ["Ahoy", " 🐳\u2028", " there"]


class Wire:
    """Routes, and what they were sent."""

    def __init__(self) -> None:
        self.received: list[dict[str, Any]] = []
        self.piece_sizes: list[int] = []
        self.content_length: str | None = None
        self.cancelled = threading.Event()
        self.sessions = [f"s-{i}" for i in range(5)]
        self.app = FastAPI(dependencies=[Depends(self.authorize)])
        self.app.exception_handler(HTTPException)(self.refuse)
        add = self.app.add_api_route
        add("/v1/models", lambda: {"object": "list", "data": [{"id": "tiny"}]})
        add("/v1/sessions", self.create, methods=["POST"], status_code=201)
        add("/v1/sessions", self.list)
        add("/v1/sessions/{session_id}", self.inspect)
        add("/v1/sessions/{session_id}", self.delete, methods=["DELETE"])
        add("/v1/sessions/{session_id}/ingest", self.ingest, methods=["POST"])
        add("/v1/sessions/{session_id}/focus", self.focus)
        add("/v1/sessions/{session_id}/rewind", self.rewind, methods=["POST"])
        add("/v1/chat/completions", self.chat, methods=["POST"])

    async def authorize(self, request: Request) -> None:
        if request.headers.get("Authorization") != f"Bearer {KEY}":
            raise HTTPException(401, "unknown API key")

    async def refuse(self, request: Request, raised: HTTPException) -> Response:
        return error(raised.status_code, raised.detail, code="invalid_api_key")

    async def create(self, request: Request) -> dict[str, Any]:
        self.received.append(await request.json())
        return self.describe("s-new") | {"metadata": self.received[-1].get("metadata", {})}

    async def list(self, limit: int, after: str | None = None) -> dict[str, Any]:
        start = 0 if after is None else self.sessions.index(after) + 1
        page = self.sessions[start : start + limit]
        more = start + limit < len(self.sessions)
        rows = [self.describe(session_id) for session_id in page]
        return {"object": "list", "data": rows, "has_more": more, "next": page[-1] if more else None}

    async def inspect(self, session_id: str) -> Any:
        return self.describe(session_id) if session_id in self.sessions else error(404, "no such session", "not_found")

    async def delete(self, session_id: str) -> dict[str, Any]:
        self.sessions.remove(session_id)
        return {"id": session_id, "deleted": True}

    async def ingest(self, session_id: str, request: Request) -> Any:
        self.content_length = request.headers.get("content-length")
        body = b""
        async for piece in request.stream():
            self.piece_sizes.append(len(piece))
            body += piece
        words = len(body.decode().split())
        self.received.append({"text": body.decode(), **request.query_params})
        return {"tokens_added": words, "tokens": words + 100}

    async def focus(self, session_id: str) -> dict[str, Any]:
        told = {"shown": 6, "reason": "asked"}
        entries = [
            {"level": 1, "start": 0, "end": 32, "cost": 1, "score": 0.5, "residency": 3, "shown": 0, "reason": None},
            {"level": 0, "start": 32, "end": 40, "cost": 8, "score": None, "residency": None, **told},
        ]
        return {"tokens": 40, "budget": 64, "cost": 9, "utilization": 9 / 64, "swap_rate": 0.25, "entries": entries}

    async def rewind(self, session_id: str, request: Request) -> Any:
        position = (await request.json())["position"]
        return {"tokens": position} if position <= 40 else error(400, "beyond the history", param="position")

    async def chat(self, request: Request) -> Response:
        body = await request.json()
        self.received.append(body)
        wanted = body["messages"][-1]["content"]
        if wanted == "full":
            return error(429, "queue full", "queue_full", headers={"Retry-After": "2"})
        if wanted == "proxy":
            return Response("<h1>Bad gateway</h1>", 502)
        if body.get("stream"):
            return StreamingResponse(self.stream(wanted), media_type="text/event-stream")
        choice = {"index": 0, "message": {"role": "assistant", "content": "".join(TEXT)}, "finish_reason": "stop"}
        head = {"id": "c-1", "object": "chat.completion", "model": body["model"]}
        return JSONResponse({**head, "choices": [choice], "usage": USAGE, "x_megacontext": CONTEXT})

    async def stream(self, wanted: str) -> AsyncIterator[bytes]:
        ended = False
        try:
            async for piece in self.pieces(wanted):
                yield piece
            ended = True
        finally:
            if not ended:
                self.cancelled.set()

    async def pieces(self, wanted: str) -> AsyncIterator[bytes]:
        yield b": keep-alive\n\n"
        yield chunk({"role": "assistant", "content": ""})
        for text in TEXT:
            yield b": keep-alive\n\n"
            yield chunk({"content": text})
            if wanted == "cut":
                raise ConnectionResetError("the stream is cut here on purpose")
            if wanted == "silent end":
                return
            if wanted == "error event":
                yield b'event: error\ndata: {"error": {"message": "store down", "code": "store_error"}}\n\n'
                yield b"data: [DONE]\n\n"
                return
            if wanted == "error data":
                yield b'data: {"error": {"message": "store down", "code": "store_error"}}\n\n'
                return
        while wanted == "endless":
            yield chunk({"content": "."})
            await asyncio.sleep(0.01)
        yield chunk({}, "stop", {"x_megacontext": CONTEXT})
        yield b"data: " + json.dumps({"id": "c-1", "model": "tiny", "choices": [], "usage": USAGE}).encode() + b"\n\n"
        yield b"data: [DONE]\n\n"

    @staticmethod
    def describe(session_id: str) -> dict[str, Any]:
        return {"id": session_id, "tokens": 100, "budget": 512, "cost": 64, "utilization": 0.125, "sequence": 4}


def chunk(delta: dict[str, Any], reason: str | None = None, more: dict[str, Any] | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    body = {"id": "c-1", "object": "chat.completion.chunk", "model": "tiny", "choices": [choice], **(more or {})}
    return b"data: " + json.dumps(body, ensure_ascii=False).encode() + b"\n\n"


def error(
    status: int,
    message: str,
    code: str | None = None,
    param: str | None = None,
    headers: dict[str, str] | None = None,
) -> JSONResponse:
    body = {"error": {"message": message, "type": "invalid_request_error", "code": code, "param": param}}
    return JSONResponse(body, status, headers)


@contextmanager
def serving(app: FastAPI) -> Iterator[str]:
    """The app on a free port of this machine; yields its URL."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        # At once, so that a connection made before the server runs waits for it.
        listener.listen()
        server = uvicorn.Server(uvicorn.Config(app, log_level="critical"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(10)
