"""A session leaves a server as one file and comes back elsewhere, whole or not at all."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import secrets
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.requests import ClientDisconnect

from mc_core.session.factory import SessionFactory
from redis_server import shared_redis
from server.apis.sessions.file_routes import FileResponse
from server.state import ServerState
from server.stores.sqlite import SqliteStore
from server.transfer.checked import check
from server.transfer.importing import Importer
from support import PROSE, ServerThread, settings_for, state_in, wait_until

QUESTION = "What is the magic number of the lighthouse?"
TEXT = " ".join(PROSE) * 4


@pytest.fixture(scope="module")
def redis_url() -> str:
    return f"{shared_redis().url}?namespace=export-{secrets.token_hex(4)}:"


@pytest.fixture(scope="module")
def here(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerThread]:
    """A server over SQLite."""
    with ServerThread(settings_for(model_dir, tmp_path_factory.mktemp("here") / "s.sqlite", budget=384)) as server:
        yield server


@pytest.fixture(scope="module")
def there(model_dir: Path, redis_url: str) -> Iterator[ServerThread]:
    """Another server, over Redis."""
    with ServerThread(settings_for(model_dir, redis_url, budget=384)) as server:
        yield server


@pytest.fixture(scope="module")
def told(here: ServerThread) -> str:
    """A session of a text, turns and a stored response that sees most of its history as gists."""
    with client_of(here) as http:
        created = http.post("/v1/sessions", json={"system": "You keep the light.", "metadata": {"of": "größe"}}).json()
        http.post(f"/v1/sessions/{created['id']}/ingest", content=TEXT, headers={"content-type": "text/plain"})
        ask(http, created["id"], "Hello?")
        answer = http.post("/v1/chat/completions", json=turn(created["id"], "Who?"), headers={"Idempotency-Key": "one"})
        assert answer.status_code == 200, answer.text
    return str(created["id"])


@pytest.fixture(scope="module")
def file(here: ServerThread, told: str) -> bytes:
    with client_of(here) as http:
        return exported(http, told)


def client_of(server: ServerThread) -> httpx.Client:
    return httpx.Client(base_url=server.address, timeout=60)


def turn(session: str, text: str) -> dict[str, Any]:
    messages = [{"role": "user", "content": text}]
    return {"model": "tiny", "session_id": session, "messages": messages, "max_tokens": 24, "temperature": 0}


def ask(http: httpx.Client, session: str, text: str) -> str:
    answer = http.post("/v1/chat/completions", json=turn(session, text))
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"])


def exported(http: httpx.Client, session: str) -> bytes:
    answer = http.get(f"/v1/sessions/{session}/export")
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/x-ndjson"
    return answer.content


def put(http: httpx.Client, content: Any, **params: Any) -> httpx.Response:
    return http.post(
        "/v1/sessions/import", content=content, params=params, headers={"content-type": "application/x-ndjson"}
    )


def lines(file: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.splitlines()]


def sealed(told: list[dict[str, Any]]) -> bytes:
    """A file of these lines with an end that is right for them."""
    body = b"".join(json.dumps(one, separators=(",", ":"), ensure_ascii=False).encode() + b"\n" for one in told)
    end = {
        "type": "end",
        "tokens": sum(len(one.get("ids", ())) for one in told),
        "notes": sum(one["type"] == "note" for one in told),
        "sha256": hashlib.sha256(body).hexdigest(),
    }
    return body + json.dumps(end, separators=(",", ":")).encode() + b"\n"


def sessions_of(http: httpx.Client) -> list[str]:
    return [one["id"] for one in http.get("/v1/sessions", params={"limit": 1000}).json()["data"]]


def without_times(told: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What must be the same of two exports of one history: all but who wrote them, when, and how often."""
    own = ("exported", "created", "updated", "sequence", "id", "sha256")
    return [{name: value for name, value in line.items() if name not in own} for line in told]


def test_a_session_answers_at_another_server_as_it_did(here: ServerThread, there: ServerThread, told: str) -> None:
    """Law: SQLite to Redis and back: the same messages and metadata, and the next reply is the original's."""
    with client_of(here) as http, client_of(there) as other:
        fork = http.post(f"/v1/sessions/{told}/fork", json={}).json()["id"]
        file = exported(http, told)
        moved = put(other, file, keep_id=True)
        assert moved.status_code == 201, moved.text
        assert moved.json()["id"] == told
        assert moved.json()["notes_left_out"] == 0
        assert moved.json()["metadata"] == {"of": "größe"}
        now = time.time()
        for answer in (moved, other.get(f"/v1/sessions/{told}")):
            assert now - 60 < answer.json()["created"] <= answer.json()["updated"] <= now + 1
        back = exported(other, told)
        returned = put(http, back).json()
        assert returned["id"] != told
        assert returned["notes_left_out"] == 1  # the key is the original's still
        lists = [
            one.get(f"/v1/sessions/{name}/messages").json()["data"]
            for one, name in ((http, told), (other, told), (http, returned["id"]))
        ]
        assert lists[0] == lists[1] == lists[2]
        assert len(lists[0]) == 6
        replies = [ask(http, told, QUESTION), ask(other, told, QUESTION), ask(http, returned["id"], QUESTION)]
        assert replies[0] == replies[1] == replies[2]
        replayed = other.post("/v1/chat/completions", json=turn(told, "Who?"), headers={"Idempotency-Key": "one"})
        assert replayed.headers["Idempotent-Replayed"] == "true"
        for one, name in ((other, told), (http, returned["id"]), (http, fork)):
            one.delete(f"/v1/sessions/{name}")


def test_an_export_of_an_import_is_the_same(here: ServerThread, there: ServerThread, file: bytes) -> None:
    """Law: nothing is lost on the way: what comes out again are the lines that went in."""
    with client_of(there) as other:
        name = put(other, file).json()["id"]
        again = exported(other, name)
        assert without_times(lines(again)) == without_times(lines(file))
        other.delete(f"/v1/sessions/{name}")


def test_a_file_is_read_without_the_server(here: ServerThread, file: bytes) -> None:
    """Law: each line is JSON of a type; ids are the whole history, and the last line has the digest of all before."""
    told = lines(file)
    ids = [token for line in told if line["type"] == "tokens" for token in line["ids"]]
    assert told[0]["format"] == "megacontext-session"
    assert len(ids) == told[0]["tokens"] == told[-1]["tokens"]
    body = file[: file.rindex(b"\n", 0, -1) + 1]
    assert told[-1]["sha256"] == hashlib.sha256(body).hexdigest()
    assert "lighthouse" in state_in(here).bundle.tokenizer.decode(ids)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_every_cut_and_flip_is_found_and_leaves_nothing(here: ServerThread, file: bytes, data: st.DataObject) -> None:
    """Law: a file that breaks off anywhere, or has one byte changed, is refused, and no session of it is there."""
    at = data.draw(st.integers(0, len(file) - 1))
    flip = data.draw(st.integers(0, 255))
    bad = file[:at] + bytes([file[at] ^ flip]) + file[at + 1 :] if flip else file[:at]
    with client_of(here) as http:
        before = sessions_of(http)
        answer = put(http, bad)
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]["code"] == "import_damaged"
        assert sessions_of(http) == before


def test_what_breaks_off_leaves_nothing(here: ServerThread, file: bytes) -> None:
    """Law: a client that goes away halfway leaves no session, no row, and its name free."""

    def half() -> Iterator[bytes]:
        yield file[: len(file) // 2]
        raise ConnectionError

    with client_of(here) as http:
        before = sessions_of(http)
        with pytest.raises(ConnectionError):
            put(http, half())
        assert sessions_of(http) == before


@pytest.mark.parametrize("kept", [False, True])
def test_what_cannot_be_read_leaves_nothing(here: ServerThread, file: bytes, kept: bool) -> None:
    """Law: a sealed file whose state is of another history is refused, though its bytes are as they were written."""
    told = lines(file)[:-1]
    told[0]["id"] = "sess_made_up"
    told[1]["state"]["context"]["num_tokens"] -= 1
    with client_of(here) as http:
        before = sessions_of(http)
        for state in (told[1]["state"], {}):
            told[1]["state"] = state
            answer = put(http, sealed(told), keep_id=kept)
            assert (answer.status_code, answer.json()["error"]["code"]) == (400, "import_damaged"), answer.text
        assert sessions_of(http) == before
        assert http.get("/v1/sessions/sess_made_up").status_code == 404


def test_another_tokenizer_is_named(here: ServerThread, file: bytes) -> None:
    """Law: ids of other words are refused, and the error says which tokenizer the file has and which the server, also
    where the server's has no such ids; of the own tokenizer such an id is named."""
    told = lines(file)[:-1]
    own, told[0]["tokenizer"] = told[0]["tokenizer"], "deadbeef"
    with client_of(here) as http:
        for most in (0, 99_999):
            told[2]["ids"][0] = max(most, told[2]["ids"][0])
            error = put(http, sealed(told)).json()["error"]
            assert error["code"] == "import_mismatch"
            assert own in error["message"]
            assert "deadbeef" in error["message"]
        told[0]["tokenizer"] = own
        error = put(http, sealed(told)).json()["error"]
    assert (error["code"], "99999" in error["message"]) == ("import_mismatch", True)


def test_an_id_that_is_taken_is_a_conflict(here: ServerThread, file: bytes, told: str) -> None:
    """Law: an import never touches a session that is there."""
    with client_of(here) as http:
        answer = put(http, file, keep_id=True)
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "session_exists")
        assert http.get(f"/v1/sessions/{told}").json()["tokens"] == lines(file)[0]["tokens"]


def test_an_export_stands_at_one_commit_while_turns_go_on(here: ServerThread, file: bytes) -> None:
    """Law: every export beside running turns is whole: it can be imported, and its messages end with a stored turn."""
    with client_of(here) as http, client_of(here) as asking:
        name = put(http, file).json()["id"]
        going = threading.Thread(target=lambda: [ask(asking, name, f"And {number}?") for number in range(4)])
        going.start()
        files = []
        while going.is_alive() or not files:
            files.append(exported(http, name))
        going.join()
        files.append(exported(http, name))
        counts = []
        for one in {lines(one)[0]["sequence"]: one for one in files}.values():
            copy = put(http, one)
            assert copy.status_code == 201, copy.text
            listed = http.get(f"/v1/sessions/{copy.json()['id']}/messages").json()
            assert listed["complete"]
            assert listed["data"][-1]["role"] == "assistant"
            assert listed["data"][-1]["end"] == copy.json()["tokens"]
            counts.append(len(listed["data"]))
            http.delete(f"/v1/sessions/{copy.json()['id']}")
        assert counts == sorted(counts)
        assert counts[-1] == sum(line.get("key", "").startswith("msg:") for line in lines(file)) + 8
        http.delete(f"/v1/sessions/{name}")


def die_in_import(state: ServerState, file: bytes, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave what a server leaves that is killed between the first row of an import and its last."""

    class Killed(BaseException):
        pass

    def die(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(SessionFactory, "load", die)
        patch.setattr(SqliteStore, "delete", die)
        importer = Importer(state.store, state.host.factory, "tiny", "another")
        with pytest.raises(Killed):
            importer.make(check(io.BytesIO(file)), name, "open")


def test_an_import_that_died_is_seen_by_nobody_and_can_be_repeated(
    model_dir: Path, tmp_path: Path, file: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law: if a server dies between the first row and the last, nobody finds what it left, and a repetition works."""
    name = lines(file)[0]["id"]

    with ServerThread(settings_for(model_dir, tmp_path / "s.sqlite")) as server:
        state = state_in(server)
        die_in_import(state, file, name, monkeypatch)
        assert [one.session_id for one in state.store.list("open").result().sessions] == [name]
    with ServerThread(settings_for(model_dir, tmp_path / "s.sqlite")) as server, client_of(server) as http:
        assert sessions_of(http) == []
        for path in ("", "/messages", "/export", "/focus"):
            assert http.get(f"/v1/sessions/{name}{path}").status_code == 404, path
        assert put(http, file, keep_id=True).status_code == 201
        assert sessions_of(http) == [name]


async def test_a_client_that_leaves_an_export_lets_its_file_go() -> None:
    """Law: the file of an export that nobody reads to its end is closed with its response, and not when the generator
    that reads it happens to be collected."""

    async def receive() -> dict[str, Any]:
        await asyncio.Event().wait()
        return {}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            raise OSError("broken pipe")

    file = io.BytesIO(b"x" * (1 << 20))
    response = FileResponse(file, {})
    kept = response.body_iterator
    with pytest.raises((OSError, ClientDisconnect, ExceptionGroup)):
        await response({"type": "http", "asgi": {"spec_version": "2.4"}}, receive, send)
    assert file.closed
    assert kept is not None


def test_what_an_import_left_that_died_goes_by_itself(
    model_dir: Path, tmp_path: Path, file: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law: nothing invisible stays: what a server left in the middle of an import has a short life, whatever the
    settings say of others."""
    monkeypatch.setattr("server.transfer.importing.LEFTOVER_TTL", 0.01)

    with ServerThread(settings_for(model_dir, tmp_path / "s.sqlite")) as server:
        die_in_import(state_in(server), file, "left", monkeypatch)
    with ServerThread(settings_for(model_dir, tmp_path / "s.sqlite")) as server:
        store = state_in(server).store
        wait_until(lambda: store.list("open").result().sessions == ())


def test_a_life_time_goes_with_the_file(here: ServerThread, file: bytes) -> None:
    """Law: whether and how long a session is kept is a part of what is exported."""
    with client_of(here) as http:
        name = put(http, file).json()["id"]
        http.patch(f"/v1/sessions/{name}", json={"keep": True, "ttl": 3600})
        copy = put(http, exported(http, name)).json()
        assert (copy["keep"], copy["ttl"]) == (True, 3600)
        for one in (name, copy["id"]):
            http.delete(f"/v1/sessions/{one}")
