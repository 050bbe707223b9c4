"""Repeating a request must never double a turn: what may have been begun is repeated with its key alone."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from clients.megacontext_client import APIError, AsyncMegaContext, ClientError, MegaContext
from clients.megacontext_client import retries as rules

JSON = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s"
MODELS = b'{"data": [{"id": "tiny"}]}'
REPLY = b'{"choices": [{"message": {"content": "ahoy"}, "finish_reason": "stop"}]}'


def refusal(status: int, code: str, retry_after: str = "0") -> bytes:
    body = b'{"error": {"message": "no", "code": "%s"}}' % code.encode()
    fields = [f"HTTP/1.1 {status} No", f"Retry-After: {retry_after}", f"Content-Length: {len(body)}"]
    return "\r\n".join([*fields, "Connection: close", "", ""]).encode() + body


class Request(str):
    """A request line. key: its Idempotency-Key; body: of the request."""

    key: str
    body: bytes


@contextmanager
def scripted(*answers: bytes) -> Iterator[tuple[str, list[Request]]]:
    """A server that gives these answers in turn, b"" by hanging up -> its URL, and the requests that reached it."""
    seen: list[Request] = []
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.settimeout(10)

        def serve() -> None:
            # An answer that nobody fetches is no error here: the test looks at what was seen.
            with suppress(OSError):
                for answer in answers:
                    connection, _ = listener.accept()
                    with connection:
                        seen.append(read_request(connection))
                        connection.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", seen


def read_request(connection: socket.socket) -> Request:
    """A request, once all of it has come."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(65536)
    head, _, body = data.partition(b"\r\n\r\n")
    chunked = b"transfer-encoding: chunked" in head.lower()
    length = next((int(h.split(b":")[1]) for h in head.split(b"\r\n") if h.lower().startswith(b"content-length:")), 0)
    while (not body.endswith(b"0\r\n\r\n")) if chunked else len(body) < length:
        body += connection.recv(65536)
    request = Request(head.split(b" HTTP")[0].decode())
    fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
    request.key, request.body = fields.get(b"idempotency-key", b"").decode(), body
    return request


def synchronous(url: str, call: Callable[[Any], Any], retries: int = 2) -> Any:
    with MegaContext(url, timeout=5, retries=retries) as client:
        return call(client)


def asynchronous(url: str, call: Callable[[Any], Any], retries: int = 2) -> Any:
    async def run() -> Any:
        async with AsyncMegaContext(url, timeout=5, retries=retries) as client:
            return await call(client)

    return asyncio.run(run())


BOTH = pytest.mark.parametrize("send", [synchronous, asynchronous])
TURN: Callable[[Any], Any] = lambda client: client.chat("s-1", "Hello", model="tiny")  # noqa: E731


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "FIRST_PAUSE", 0.02)


@BOTH
@pytest.mark.parametrize(
    "answer", [refusal(429, "queue_full"), refusal(503, "draining"), refusal(503, "session_busy"), refusal(429, "")]
)
def test_a_turn_that_was_not_begun_is_sent_again(send: Any, answer: bytes) -> None:
    """Law: after a refusal that says that nothing was begun, the turn is sent again and runs once."""
    with scripted(answer, answer, JSON % (len(REPLY), REPLY)) as (url, seen):
        assert send(url, TURN).content == "ahoy"
    assert seen == ["POST /v1/chat/completions"] * 3


UNCLEAR = [
    b"",
    b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{",
    refusal(503, "store_error"),
    refusal(503, "cancelled"),
    refusal(502, "proxy"),
    refusal(500, "internal_error"),
    refusal(409, "idempotency_key_answered"),
]
"""Answers that leave open whether the turn was stored."""


@BOTH
@pytest.mark.parametrize("answer", UNCLEAR)
def test_a_turn_that_may_have_begun_is_sent_again_with_its_key(send: Any, answer: bytes) -> None:
    """Law: where nobody knows whether the server did a turn, it is sent again under the same key, word by word; each
    turn has a key of its own."""
    reply = JSON % (len(REPLY), REPLY)
    with scripted(answer, answer, reply, reply) as (url, seen):
        assert send(url, TURN).content == "ahoy"
        assert send(url, TURN).content == "ahoy"
    keys = [request.key for request in seen]
    assert keys[0] == keys[1] == keys[2] != keys[3]
    assert all(keys)
    assert len({request.body for request in seen}) == 1


@BOTH
@pytest.mark.parametrize("answer", [*UNCLEAR[:-1], refusal(429, "queue_full", retry_after="3600")])
def test_a_turn_without_a_key_that_may_have_begun_is_sent_once(send: Any, answer: bytes) -> None:
    """Law: a turn that is not stored has no key, so it is never repeated once it may have begun; nobody waits an
    hour."""
    unkept: Callable[[Any], Any] = lambda client: client.chat(None, "Hello", model="tiny", store=False)  # noqa: E731
    with scripted(answer, JSON % (len(REPLY), REPLY)) as (url, seen):
        with pytest.raises(ClientError):
            send(url, unkept)
        assert [(request, request.key) for request in seen] == [("POST /v1/chat/completions", "")]


@BOTH
def test_without_retries_there_are_no_keys(send: Any) -> None:
    """Law: a client that repeats nothing asks the server to keep nothing, but for a key of the caller's own."""
    reply = JSON % (len(REPLY), REPLY)
    mine: Callable[[Any], Any] = lambda client: client.chat("s", "Hello", model="tiny", idempotency_key="k")  # noqa: E731
    with scripted(reply, reply) as (url, seen):
        send(url, TURN, 0)
        send(url, mine, 0)
    assert [request.key for request in seen] == ["", "k"]


@BOTH
def test_an_upload_that_can_be_read_again_is_sent_again(send: Any, tmp_path: Path) -> None:
    """Law: a text, or a file by its path, that broke off is sent again from its start under the same key."""
    file, body = tmp_path / "a.txt", b'{"tokens_added": 2, "tokens": 2}'
    file.write_text("call me Ishmael")
    for source in (file, "call me Ishmael"):
        with scripted(b"", refusal(503, "store_down"), JSON % (len(body), body)) as (url, seen):
            assert send(url, lambda client, source=source: client.ingest("s-1", source)).tokens == 2
        assert len({(request, request.key, request.body) for request in seen}) == 1
        assert b"call me Ishmael" in seen[-1].body


@BOTH
def test_reading_is_repeated(send: Any) -> None:
    """Law: a GET changes nothing, so a connection that broke off is tried again."""
    with scripted(b"", JSON % (len(MODELS), MODELS)) as (url, seen):
        assert [model.id for model in send(url, lambda client: client.models())] == ["tiny"]
    assert seen == ["GET /v1/models"] * 2


@BOTH
def test_an_upload_is_not_repeated(send: Any) -> None:
    """Law: a streamed body is used up by the first attempt; half a document must not follow."""
    with scripted(refusal(429, "queue_full"), JSON % (2, b"{}")) as (url, seen):
        with pytest.raises(APIError):
            send(url, lambda client: client.ingest("s-1", ["call me ", "Ishmael"]))
        assert seen == ["POST /v1/sessions/s-1/ingest"]


@BOTH
def test_a_server_that_comes_back_gets_the_turn_once(send: Any, free_port: int) -> None:
    """Law: as long as no connection is made, nothing was sent, so the turn waits for the server, upload or not."""
    seen: list[str] = []

    def late() -> None:
        time.sleep(0.05)
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", free_port))
            listener.listen()
            connection, _ = listener.accept()
            with connection:
                seen.append(read_request(connection))
                body = b'{"tokens_added": 2, "tokens": 2}'
                connection.sendall(JSON % (len(body), body))

    thread = threading.Thread(target=late, daemon=True)
    thread.start()
    added = send(f"http://127.0.0.1:{free_port}", lambda client: client.ingest("s-1", ["call me ", "Ishmael"]), 8)
    thread.join(5)
    assert (added.tokens, seen) == (2, ["POST /v1/sessions/s-1/ingest"])


@BOTH
def test_retries_end(send: Any) -> None:
    """Law: after the last retry the refusal itself is raised; with retries=0 at once."""
    no = refusal(429, "queue_full")
    for retries in (0, 1):
        with scripted(no, no, no) as (url, seen):
            with pytest.raises(APIError, match="no") as caught:
                send(url, TURN, retries)
            assert (caught.value.status, len(seen)) == (429, retries + 1)
