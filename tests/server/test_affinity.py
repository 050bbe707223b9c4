"""Requests of one session have one route, wherever a client names it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from starlette.datastructures import Headers
from starlette.types import Message

from server import affinity
from server.affinity import ROUTE, Affinity, route_of, route_told
from server.apis.responses.service import new_id

CHAT = "/v1/chat/completions"
USER = {"role": "user", "content": "Hello"}


def route(path: str, body: Any = None, **headers: str) -> str | None:
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    return route_of(path, Headers(sent), b"" if body is None else json.dumps(body).encode())


def test_a_session_has_one_route_wherever_it_is_named() -> None:
    """Law: path, header and body fields that name one session give one route; another session has another."""
    ways = [
        route("/v1/sessions/s-1/messages"),
        route("/llm/v1/sessions/s-1"),
        route("/v1/conversations/s-1/items"),
        route(CHAT, {"messages": [USER]}, x_session_id="s-1"),
        route(CHAT, {"session_id": "s-1"}),
        route("/v1/responses", {"conversation": "s-1"}),
        route("/v1/responses", {"conversation": {"id": "s-1"}}),
        route("/v1/completions", {"prompt": "x", "session_id": "s-1"}),
    ]
    assert len(set(ways)) == 1
    assert ways[0] is not None
    assert route("/v1/sessions/s-2") != ways[0]


def test_responses_stay_on_the_route_that_made_them() -> None:
    """Law: a response's id tells its route, so what is asked of it, or follows it, goes where it was made."""
    made = route("/v1/responses", {"input": "Hello"})
    assert made is not None
    told = route_told(Headers({ROUTE: made}))
    first = new_id(told)
    assert len(first) == len(new_id("")) == len("resp_") + 32
    assert route(f"/v1/responses/{first}/cancel") == made
    assert route("/v1/responses", {"input": "And?", "previous_response_id": first}) == made
    assert new_id(told) != first
    assert [route_told(Headers({ROUTE: wrong})) for wrong in ("../../etc", "0" * 9, "")] == ["", "", ""]


@pytest.mark.parametrize("list_in", ["messages", "input"])
def test_a_chat_without_a_session_goes_by_how_it_begins(list_in: str) -> None:
    """Law: all turns of one chat have the route of its first one; chats of other keys or beginnings have others."""
    system = {"role": "system", "content": "Be kind"}
    first = route(CHAT, {list_in: [system, USER]}, authorization="Bearer a")
    later = [system, USER, {"role": "assistant", "content": "Hi"}, {"role": "user", "content": "And?"}]
    assert first is not None
    assert route(CHAT, {list_in: later}, authorization="Bearer a") == first
    assert route(CHAT, {list_in: later}, authorization="Bearer b") != first
    assert route(CHAT, {list_in: [{**system, "content": "Be curt"}, USER]}, authorization="Bearer a") != first


def test_what_belongs_to_no_session_has_no_route() -> None:
    """Law: a request that names no session, or whose body nobody can read, goes anywhere."""
    for path, body in (
        ("/v1/sessions", {}),
        ("/v1/models", None),
        ("/v1/sessions/import", None),
        (CHAT, [1]),
        (CHAT, 7),
    ):
        assert route(path, body) is None
    assert route_of(CHAT, Headers({}), b"{nonsense") is None


@pytest.mark.parametrize("limit", [1 << 20, 4])
async def test_a_proxy_passes_on_what_it_read(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    """Law: the body arrives whole and in order, and the route is the proxy's own, whatever a client wrote there; of a
    body that is too long there is none."""
    monkeypatch.setattr(affinity, "MAX_READ", limit)
    body = json.dumps({"session_id": "s-1"}).encode()
    came = [{"type": "http.request", "body": bytes([byte]), "more_body": True} for byte in body]
    came += [{"type": "http.request", "body": b"", "more_body": False}, {"type": "http.disconnect"}]
    seen: list[Any] = []

    async def receive() -> Message:
        return came.pop(0)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(Headers(scope=scope).getlist(ROUTE))
        while (message := await receive())["type"] == "http.request":
            seen.append(message["body"])

    scope = {"type": "http", "method": "POST", "path": CHAT, "headers": [(ROUTE.encode(), b"00000000")]}
    await Affinity(app)(scope, receive, receive)  # type: ignore[arg-type]
    assert b"".join(seen[1:]) == body
    assert seen[0] == ([route("/v1/sessions/s-1")] if limit > len(body) else [])
