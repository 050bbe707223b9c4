"""An ingest that others watch, that stops when its client goes, and that goes on where it broke off."""

import json
import socket
import threading

import httpx
import numpy as np
import pytest

from server.auth import OPEN_TENANT
from support import ServerThread, settings_for, state_in, wait_until
from test_ingest import MODEL, in_chunks, prose

TEXT = prose(1_300_000, seed=5)
DATA = TEXT.encode()


@pytest.fixture(scope="module")
def place(model_dir, tmp_path_factory):
    """Settings of the server; a JSON body may hold the text, but not twice."""
    return settings_for(model_dir, tmp_path_factory.mktemp("parts") / "s.sqlite", max_body_bytes=3 << 20)


@pytest.fixture(scope="module")
def server(place):
    with ServerThread(place) as server:
        yield server


@pytest.fixture
def http(server):
    with httpx.Client(base_url=server.address, timeout=60) as http:
        yield http


@pytest.fixture
def session(http):
    return http.post("/v1/sessions", json={}).json()["id"]


@pytest.fixture(scope="module")
def at_once(server):
    """The token ids of the text, taken in in one go."""
    with httpx.Client(base_url=server.address, timeout=60) as http:
        session = http.post("/v1/sessions", json={}).json()["id"]
        http.post(f"/v1/sessions/{session}/ingest", content=DATA).raise_for_status()
    return ids_of(server, session)


def ids_of(server, session):
    """All ids of a session's history, as the store and, for its open block, the session have them."""
    state = state_in(server)
    resident = state.host.peek(session, OPEN_TENANT)
    blocks = resident.tree.num_blocks
    stored = state.store.read_spans(session, np.arange(blocks)).result().ids
    tail = state.engine.call(lambda: resident.tree.ids(blocks * resident.block_size, resident.tokens).copy()).result()
    return np.concatenate([stored.reshape(-1), tail])


def begin(server, session, data, query="", kind="text/plain", length=None):
    """Begin an ingest on a socket: all of ``data``; chunked and without an end, or with ``length`` announced."""
    host, _, port = server.address.removeprefix("http://").partition(":")
    connection = socket.create_connection((host, int(port)))
    head = f"POST /v1/sessions/{session}/ingest{query} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\n"
    if length is not None:
        connection.sendall(f"{head}Content-Length: {length}\r\n\r\n".encode() + data)
    else:
        connection.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n{len(data):x}\r\n".encode() + data + b"\r\n")
    return connection


def progress(http, session):
    return http.get(f"/v1/sessions/{session}/ingest").json()


def break_off(server, http, session, data, query="?partial=true"):
    """Send a part of a text, wait until the server has made of it what it can, and go away -> the offset it kept."""
    connection = begin(server, session, data, query)
    wait_until(lambda: progress(http, session)["offset"] > 0)
    connection.close()
    wait_until(lambda: not progress(http, session)["active"])
    return progress(http, session)["offset"]


def inside(what):
    """A place of the text's bytes after its first million characters: within a character, a word, or between words."""
    at = len(TEXT[:1_200_000].encode())
    if what == "character":
        while not 0x80 <= DATA[at] < 0xC0:
            at += 1
    else:
        while (DATA[at - 1 : at + 1].isalpha() and DATA[at - 1 : at + 1].isascii()) != (what == "word"):
            at += 1
    return at


@pytest.mark.parametrize("what", ["character", "word", "blank"])
def test_a_resumed_ingest_is_the_ingest_in_one_go(server, http, session, at_once, what):
    """Wherever the connection broke, going on from the offset that was kept gives the ids of the whole text."""
    offset = break_off(server, http, session, DATA[: inside(what)])
    assert 0 < offset < len(DATA)
    path = f"/v1/sessions/{session}/ingest?partial=true&offset={offset}"
    answer = http.post(path, content=in_chunks(DATA[offset:], 70_001)).json()
    assert answer["tokens"] == len(at_once)
    assert answer["offset"] == len(DATA)
    np.testing.assert_array_equal(ids_of(server, session), at_once)


def test_what_was_kept_outlives_the_server(place, tmp_path):
    """An offset that was told is as durable as the history: another process goes on from it; the mark counts in it."""
    settings = place.model_copy(update={"store": f"sqlite:///{tmp_path / 'own.sqlite'}"})
    data = "\ufeff".encode() + DATA
    with ServerThread(settings) as server, httpx.Client(base_url=server.address, timeout=60) as http:
        whole, session = (http.post("/v1/sessions", json={}).json()["id"] for _ in range(2))
        http.post(f"/v1/sessions/{whole}/ingest", content=data).raise_for_status()
        expected = ids_of(server, whole)
        offset = break_off(server, http, session, data[: inside("word")])
    with ServerThread(settings) as server, httpx.Client(base_url=server.address, timeout=60) as http:
        assert progress(http, session) == {"active": False, "tokens": 0, "bytes": 0, "offset": offset}
        rest = http.post(f"/v1/sessions/{session}/ingest?partial=true&offset={offset}", content=data[offset:])
        assert rest.json()["offset"] == len(data)
        np.testing.assert_array_equal(ids_of(server, session), expected)


def test_only_the_byte_that_comes_next_is_taken(http, session):
    """An offset is right or refused with 409; a history that went on, or was cut, has none to go on from."""
    path = f"/v1/sessions/{session}/ingest"
    assert http.post(f"{path}?partial=true", content=b"One two. ").json()["offset"] == 9
    wrong = http.post(f"{path}?partial=true&offset=8", content=b"three.")
    assert wrong.status_code == 409
    assert "byte 9" in wrong.json()["error"]["message"]
    assert http.post(f"{path}?partial=true&offset=9", content=b"three. ").json()["offset"] == 16
    assert http.post(path, content=b"\xff").status_code == 400
    assert progress(http, session)["offset"] == 16
    tokens = http.post(path, content=b"Another text.").json()["tokens"]
    assert progress(http, session)["offset"] is None
    late = http.post(f"{path}?partial=true&offset=16", content=b"x")
    assert late.status_code == 409
    assert "no ingest in parts" in late.json()["error"]["message"]
    http.post(f"{path}?partial=true", content=b"Four.")
    assert http.post(f"/v1/sessions/{session}/rewind", json={"position": tokens}).json()["tokens"] == tokens
    assert progress(http, session)["offset"] == 0


@pytest.mark.parametrize(
    ("query", "kind", "param"),
    [
        ("?partial=true", "application/json", "partial"),
        ("?offset=5", "text/plain", "offset"),
        ("?offset=-1", "text/plain", "offset"),
    ],
)
def test_parts_that_make_no_sense(http, session, query, kind, param):
    """Parts are of plain text, and an offset is of an ingest in parts; anything else is refused by name."""
    answer = http.post(
        f"/v1/sessions/{session}/ingest{query}", content=b'{"text": "x"}', headers={"content-type": kind}
    )
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


@pytest.mark.parametrize("kind", ["application/json", "text/plain"])
def test_a_client_that_goes_while_the_engine_works_leaves_nothing(server, http, session, kind):
    """A client that goes after its last byte, or before it, is noticed at once: what is staged is taken back."""
    before = http.post(f"/v1/sessions/{session}/ingest", content=b"Before. ").json()["tokens"]
    data = json.dumps({"text": TEXT}).encode() if kind == "application/json" else DATA
    length = len(data) if kind == "application/json" else None
    connection = begin(server, session, data, kind=kind, length=length)
    wait_until(lambda: progress(http, session)["tokens"] > 0)
    release = threading.Event()
    held = state_in(server).engine.call(release.wait)
    assert http.get(f"/v1/sessions/{session}").json()["ingest"]["active"]
    connection.close()
    # Asked after the connection was closed, so the loop has seen its end when it answers; nothing else has happened.
    assert [http.get("/health").status_code for _ in range(3)] == [200] * 3
    release.set()
    assert held.result()
    wait_until(lambda: not progress(http, session)["active"])
    assert http.get(f"/v1/sessions/{session}/focus").json()["tokens"] == before
    after = http.post(f"/v1/sessions/{session}/ingest", content=b"After.").json()
    assert after["tokens"] == before + after["tokens_added"]


def test_others_see_how_far_an_ingest_is(server, http, session):
    """The session, its focus and the ingest itself tell what has been taken in so far, and nothing when it is over."""
    connection = begin(server, session, DATA)
    wait_until(lambda: progress(http, session)["tokens"] > 100_000)
    for path in ("", "/focus"):
        seen = http.get(f"/v1/sessions/{session}{path}").json()["ingest"]
        assert seen["active"]
        assert seen["offset"] == 0
        assert seen["tokens"] > 100_000
    assert http.get(f"/v1/sessions/{session}").json()["tokens"] == 0
    connection.close()
    wait_until(lambda: "ingest" not in http.get(f"/v1/sessions/{session}").json())
    assert http.get("/v1/sessions/sess_lost/ingest").status_code == 404


def test_json_over_its_limit_is_refused_while_it_is_read(server, http, session):
    """A JSON ingest is bounded as JSON is, not as a stream: 413 comes before its end."""
    data = b'{"text": "' + b"x " * (3 << 19)
    connection = begin(server, session, data, kind="application/json; charset=utf-8")
    connection.settimeout(20)
    assert b" 413 " in connection.recv(4096).partition(b"\r\n")[0]
    connection.close()
    assert http.get(f"/v1/sessions/{session}").json()["tokens"] == 0


def test_a_session_whose_rollback_fails_is_read_anew(server, http, session, monkeypatch):
    """An error in the clean-up of a failed ingest is not the client's: it gets its own, and the session works on."""
    path = f"/v1/sessions/{session}/ingest"
    before = http.post(path, content=b"Before. ").json()["tokens"]
    spoiled = state_in(server).host.peek(session, OPEN_TENANT)

    def fail(position):
        raise RuntimeError("injected")

    monkeypatch.setattr(spoiled.tree, "rewind", fail)
    broken = http.post(path, content=in_chunks(b"text " * 300_000 + b"\xff", 1 << 16))
    assert broken.status_code == 400
    assert broken.json()["error"]["code"] == "invalid_utf8"
    after = http.post(path, content=b"After.").json()
    assert after["tokens"] == before + after["tokens_added"]
    assert state_in(server).host.peek(session, OPEN_TENANT) is not spoiled
    body = {"model": MODEL, "session_id": session, "max_tokens": 2, "messages": [{"role": "user", "content": "Well?"}]}
    assert http.post("/v1/chat/completions", json=body).status_code == 200
