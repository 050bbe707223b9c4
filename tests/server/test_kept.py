"""What of a request is kept, where, and for how long."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from clients.megacontext_client import MegaContext
from redis_server import shared_redis
from server.settings import Settings
from support import running, small, wait_until

SECRET = "The vault of Ms Quill opens with seven blue herons and nine quiet lanterns. " * 30


class SqliteFiles:
    """What an SQLite store has on disk: counters that only rise, and all bytes, its log's and those beside it too."""

    def __init__(self, folder):
        self.path = folder / "sessions.sqlite"
        self.url = f"sqlite:///{self.path}"

    def counters(self):
        connection = sqlite3.connect(self.path)
        try:
            meta = connection.execute("SELECT name, value FROM meta WHERE name != 'probe' ORDER BY name").fetchall()
            rows = [connection.execute(f"SELECT count(*) FROM {name}").fetchone() for name in ("rows", "prefixes")]
        finally:
            connection.close()
        return meta, rows

    def holds(self, needle):
        return any(needle in path.read_bytes() for path in self.path.parent.rglob("*") if path.is_file())


class RedisKeys:
    """The same of a Redis store."""

    def __init__(self, folder):
        self.server = shared_redis()
        self.namespace = f"{folder.name}:"
        self.url = f"{self.server.url}?namespace={self.namespace}"

    def counters(self):
        with self.server.client() as client:
            meta = client.hgetall(f"{self.namespace}meta")
            meta.pop(b"probe", None)
            return meta, sorted(client.scan_iter(f"{self.namespace}*:*:*"))

    def holds(self, needle):
        with self.server.client() as client:
            strings = (key for key in client.scan_iter(f"{self.namespace}*") if client.type(key) == b"string")
            return any(needle in (client.get(key) or b"") for key in strings)


@pytest.fixture(params=[SqliteFiles, RedisKeys])
def place(request, tmp_path):
    return request.param(tmp_path)


def settings_at(place, model_dir, **others):
    return Settings(**small(model_dir, Path("unused")) | {"store": place.url} | others)


@pytest.fixture
def http(place, model_dir) -> Iterator[httpx.Client]:
    settings = settings_at(place, model_dir, hot_tokens=64)
    with running(settings) as address, httpx.Client(base_url=address, timeout=60) as client:
        yield client


def told_to(text, **others):
    body = {"model": "tiny", "messages": [{"role": "user", "content": text}], "max_tokens": 40, "seed": 1}
    return body | {"ignore_eos": True} | others


def chat(http, text=SECRET, **others):
    return http.post("/v1/chat/completions", json=told_to(text, **others))


def test_a_request_that_is_not_to_be_stored_never_touches_the_store(http, place, tokenizer):
    """Law: with store false, and for a completion without a session, no row, key, number or lease of the store is
    used, whole or streamed or refused, though the history exceeds the budget and the hot tokens; and the reply is
    the one that a stored request gets."""
    before = place.counters()
    told = chat(http, store=False)
    assert told.status_code == 200, told.text
    assert told.json()["x_megacontext"]["session_id"] is None
    assert told.json()["x_megacontext"]["tokens"] > 384
    with http.stream("POST", "/v1/chat/completions", json=told_to(SECRET, store=False, stream=True)) as stream:
        assert "[DONE]" in "".join(stream.iter_text())
    for extra in ({}, {"store": False}):
        body = {"model": "tiny", "prompt": SECRET, "max_tokens": 40, "ignore_eos": True, **extra}
        assert http.post("/v1/completions", json=body).status_code == 200
    assert chat(http, store=False, model="another").status_code == 404
    assert place.counters() == before
    ids = np.asarray(tokenizer.encode(SECRET), "<i4")
    needle = ids[64:80].tobytes()
    assert not place.holds(needle)
    # Each with a text of its own: a second request for the same one goes on with the first one's history and focus.
    for text, stored in ((SECRET, True), (f"Or {SECRET}", None)):
        told = chat(http, text, store=False)
        kept = chat(http, text, store=stored).json()
        assert kept["choices"] == told.json()["choices"]
        assert kept["x_megacontext"]["session_id"]
    assert place.counters() != before
    assert any(place.holds(ids[at : at + 8].tobytes()) for at in range(64, 96)), "what is stored can be found so"


def test_store_false_and_a_session_exclude_each_other(http):
    """Law: a request to keep nothing in a session that keeps everything is refused, and names both fields."""
    session = http.post("/v1/sessions", json={}).json()["id"]
    for path, body in (
        ("chat/completions", {"messages": [{"role": "user", "content": "Hi"}]}),
        ("completions", {"prompt": "Hi"}),
    ):
        for fields, headers in (({"session_id": session}, {}), ({}, {"X-Session-ID": session})):
            answer = http.post(f"/v1/{path}", json={"model": "tiny", "store": False, **body, **fields}, headers=headers)
            assert answer.status_code == 400
            assert "store" in answer.json()["error"]["message"]
            assert "session_id" in answer.json()["error"]["message"]


def test_lists_can_leave_out_what_requests_without_an_id_made(http):
    """Law: without the filter all are listed; with it pages hold one kind alone and are full."""
    made = [http.post("/v1/sessions", json={}).json()["id"] for _ in range(3)]
    for number in range(7):
        chat(http, f"Number {number}.", max_tokens=1)
    for kind, expected in ((None, 10), ("false", 3), ("true", 7)):
        seen, after = [], None
        while True:
            query = {"limit": 2} | ({"implicit": kind} if kind else {}) | ({"after": after} if after else {})
            page = http.get("/v1/sessions", params=query).json()
            assert len(page["data"]) == 2 or not page["has_more"]
            seen += [session["id"] for session in page["data"]]
            if (after := page["next"]) is None:
                break
        assert len(seen) == len(set(seen)) == expected
        assert kind != "false" or seen == made[::-1]
    assert http.get("/v1/sessions?implicit=maybe").status_code == 400
    with MegaContext(str(http.base_url)) as client:
        assert [session.id for session in client.sessions(page_size=2, implicit=False)] == made[::-1]


def test_implicit_sessions_that_nobody_uses_expire(place, model_dir):
    """Law: they go after implicit_ttl, those of an earlier run of the server and idle ones in memory too; explicit
    ones, and one whose turn still runs, stay."""

    with running(settings_at(place, model_dir)) as address, httpx.Client(base_url=address, timeout=60) as http:
        explicit = http.post("/v1/sessions", json={}).json()["id"]
        old = chat(http, "Old.", max_tokens=1).json()["x_megacontext"]["session_id"]
    with running(settings_at(place, model_dir, implicit_ttl=0.4)) as address, httpx.Client(base_url=address) as http:

        def there(session):
            return http.get(f"/v1/sessions/{session}").status_code == 200

        endless = told_to("Go.", max_tokens=4000, stream=True)
        with httpx.stream("POST", f"{address}/v1/chat/completions", json=endless, timeout=60) as stream:
            chunks = stream.iter_text()
            next(chunks)
            idle = chat(http, "Idle.", max_tokens=1).json()["x_megacontext"]["session_id"]
            wait_until(lambda: next(chunks) and not there(old) and not there(idle))
            running_now = http.get("/v1/sessions?implicit=true").json()["data"]
            assert len(running_now) == 1, "the one whose turn runs"
        assert there(explicit)
        wait_until(lambda: not there(running_now[0]["id"]))
        assert there(explicit)


def test_named_sessions_live_as_long_as_they_say(place, model_dir):
    """Law: they go after session_ttl without use, or after a time of their own; one that is kept stays, implicit ones
    too; lists tell when each may go."""
    ttl = {"session_ttl": 0.5, "implicit_ttl": 0.5}
    with running(settings_at(place, model_dir)) as address, httpx.Client(base_url=address, timeout=60) as http:
        bodies = {"usual": {}, "kept": {"keep": True}, "long": {"ttl": 3600}, "named": {}}
        made = {name: http.post("/v1/sessions", json=body).json() for name, body in bodies.items()}
        ids = {name: one["id"] for name, one in made.items()}
        assert not any("expires" in made[name] for name in ("usual", "kept"))
        assert made["long"]["expires"] - made["long"]["updated"] in (3600, 3601)
        chatted = chat(http, "Hello.", max_tokens=1).json()["x_megacontext"]["session_id"]
        assert http.patch(f"/v1/sessions/{chatted}", json={"keep": True}).json()["keep"] is True
        short = http.patch(f"/v1/sessions/{ids['named']}", json={"ttl": 0.5}).json()
        assert (short["ttl"], short["keep"], short["metadata"]) == (0.5, False, {})
        assert http.patch(f"/v1/sessions/{chatted}", json={}).json()["keep"] is True
        for body in ({"ttl": -1}, {"keep": "always"}, {"ttl": 1e300}):
            assert http.patch(f"/v1/sessions/{chatted}", json=body).status_code == 400, body
    with running(settings_at(place, model_dir, **ttl)) as address, httpx.Client(base_url=address, timeout=60) as http:

        def listed():
            return {one["id"]: one for one in http.get("/v1/sessions").json()["data"]}

        kept = {ids["kept"], ids["long"], chatted}
        wait_until(lambda: set(listed()) == kept)
        assert ["expires" in listed()[one] for one in (ids["kept"], ids["long"], chatted)] == [False, True, False]
        with MegaContext(address) as client:
            assert "ttl" not in client.update(ids["long"], ttl=0).raw
        wait_until(lambda: set(listed()) == kept - {ids["long"]})
        assert http.get(f"/v1/sessions/{ids['long']}").status_code == 404
