"""Requests with an Idempotency-Key: carried out once, however often they are sent."""

import json
import secrets
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from redis_server import shared_redis
from support import ForkedServer, ServerThread, free_port, running, settings_for, state_in, wait_until

ASK = {"model": "tiny", "messages": [{"role": "user", "content": "Tell me of the lighthouse"}], "max_tokens": 8}
RESPONSE = {"model": "tiny", "input": "Tell me of the lighthouse", "max_output_tokens": 8}
TURNS = [
    ("/v1/chat/completions", ASK),
    ("/v1/completions", {"model": "tiny", "prompt": "It was", "max_tokens": 8}),
    ("/v1/messages", ASK),
    ("/v1/responses", RESPONSE),
]


@pytest.fixture
def key() -> dict[str, str]:
    """The header with a key that no other test has."""
    return {"Idempotency-Key": secrets.token_hex(8)}


@pytest.fixture
def fresh(model_dir: Path, tmp_path: Path) -> Iterator[httpx.Client]:
    with running(settings_for(model_dir, tmp_path / "s.sqlite")) as address:
        yield httpx.Client(base_url=address, timeout=60)


def new_session(http: httpx.Client) -> str:
    return http.post("/v1/sessions", json={}).json()["id"]


def tokens_of(http: httpx.Client, session: str) -> int:
    return http.get(f"/v1/sessions/{session}").json()["tokens"]


def told(answer: httpx.Response) -> list[str]:
    """What an answer says: its body, or the events of its stream without comments."""
    assert answer.status_code == 200, answer.text
    if not answer.headers["content-type"].startswith("text/event-stream"):
        return [answer.text]
    return [line for line in answer.text.splitlines() if line and not line.startswith(":") and line != "event: ping"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("path", "body"), TURNS, ids=[path for path, _ in TURNS])
def test_a_repetition_gets_the_same_answer(http, path, body, stream, key):
    """Law: a turn of any API that is sent again with its key gets the very same answer, whole or as events, and the
    history grows once; another body, session or address under that key is 409, and a new key is a new turn."""
    session = new_session(http)
    ask = {**body, "stream": stream}
    named = {**key, "X-Session-ID": session}
    first = http.post(path, json=ask, headers=named)
    tokens = tokens_of(http, session)
    again = http.post(path, json=ask, headers=named)
    quiet = [line for line in told(again) if line != 'data: {"type":"ping"}']
    assert quiet == [line for line in told(first) if line != 'data: {"type":"ping"}']
    assert (first.headers.get("Idempotent-Replayed"), again.headers["Idempotent-Replayed"]) == (None, "true")
    assert again.headers["X-Session-ID"] == session
    assert tokens_of(http, session) == tokens
    for other in ({**ask, "temperature": 0.5}, ask):
        headers = {**named, "X-Session-ID": new_session(http)} if other == ask else named
        refused = http.post(path, json=other, headers=headers)
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "idempotency_key_reused")
    told(http.post(path, json=ask, headers={**named, "Idempotency-Key": secrets.token_hex(8)}))
    assert tokens_of(http, session) > tokens


def test_items_that_are_sent_again_are_added_once(http, key):
    """Law: items that are added to a conversation again under their key are there once, and are told as before."""
    session, body = new_session(http), {"items": [{"role": "user", "content": "Hello"}]}
    path = f"/v1/conversations/{session}/items"
    first, again = (http.post(path, json=body, headers=key) for _ in range(2))
    assert told(first) == told(again)
    assert (first.headers.get("Idempotent-Replayed"), again.headers["Idempotent-Replayed"]) == (None, "true")
    for name in ("ETag", "X-Session-ID"):
        assert first.headers[name] == again.headers[name]
    assert http.get(path).json()["data"] == first.json()["data"]
    refused = http.post(path, json={"items": [{"role": "user", "content": "Ho"}]}, headers=key)
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "idempotency_key_reused")


def test_a_chat_without_a_session_is_found_by_its_key(fresh, key):
    """Law: a chat that names no session is not branched by its repetition."""
    first, again = (fresh.post("/v1/chat/completions", json=ASK, headers=key) for _ in range(2))
    assert told(first) == told(again)
    assert first.headers["X-Session-ID"] == again.headers["X-Session-ID"]
    assert len(fresh.get("/v1/sessions").json()["data"]) == 1


@pytest.mark.parametrize("kind", ["text/plain", "application/json"])
def test_an_ingest_is_taken_in_once(http, kind, key):
    """Law: an ingest that is sent again with its key gets the same answer and adds nothing; another text is 409."""
    session = new_session(http)
    headers = {**key, "Content-Type": kind}
    texts = ["It was the best of times. " * 50, "It was the worst of times. " * 50]
    bodies = texts if kind == "text/plain" else [json.dumps({"text": text}) for text in texts]
    first, again, other = (
        http.post(f"/v1/sessions/{session}/ingest", content=body, headers=headers)
        for body in (bodies[0], bodies[0], bodies[1])
    )
    assert told(first) == told(again)
    assert tokens_of(http, session) == first.json()["tokens"] == first.json()["tokens_added"]
    assert (other.status_code, other.json()["error"]["code"]) == (409, "idempotency_key_reused")


@pytest.mark.parametrize("kind", ["text/plain", "application/json"])
def test_the_key_of_a_chat_that_streams_is_none_for_an_ingest(fresh, kind, key):
    """Law: a key is for one request, also while that is a stream under way: an ingest under it is 409, adds nothing,
    and the stream goes on."""
    body = {**ASK, "session_id": new_session(fresh), "stream": True, "max_tokens": 10**6, "ignore_eos": True}
    session = new_session(fresh)
    text = "It was" if kind == "text/plain" else json.dumps({"text": "It was"})
    with fresh.stream("POST", "/v1/chat/completions", json=body, headers=key) as stream:
        lines = (line for line in stream.iter_lines() if line.startswith("data: "))
        next(lines)
        url = f"/v1/sessions/{session}/ingest"
        refused = fresh.post(url, content=text, headers={**key, "Content-Type": kind})
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "idempotency_key_reused")
        assert "error" not in json.loads(next(lines).removeprefix("data: "))
        assert fresh.post("/v1/requests/cancel", json={"idempotency_key": key["Idempotency-Key"]}).json()["cancelled"]
    assert tokens_of(fresh, session) == 0


def test_a_response_in_the_background_is_begun_once(fresh, key):
    """Law: a response in the background that is created again with its key is the same response, as it is now."""
    body = {**RESPONSE, "background": True}
    first = fresh.post("/v1/responses", json=body, headers=key).json()
    wait_until(lambda: fresh.get(f"/v1/responses/{first['id']}").json()["status"] != "in_progress")
    again = fresh.post("/v1/responses", json=body, headers=key).json()
    assert (again["id"], again["status"]) == (first["id"], "incomplete")
    assert len(fresh.get("/v1/sessions").json()["data"]) == 1


def test_a_repetition_waits_for_the_first(http, key):
    """Law: of requests of one key that come together one is carried out, and all get its answer."""
    session = new_session(http)
    body = {**ASK, "session_id": session, "max_tokens": 200, "ignore_eos": True}
    answers: list[httpx.Response] = []
    threads = [
        threading.Thread(target=lambda: answers.append(http.post("/v1/chat/completions", json=body, headers=key)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({answer.text for answer in answers}) == 1
    assert sorted(answer.headers.get("Idempotent-Replayed", "") for answer in answers) == ["", "true", "true", "true"]
    assert len(http.get(f"/v1/sessions/{session}/messages").json()["data"]) == 2


def test_a_failed_request_is_carried_out_when_it_is_repeated(http, key):
    """Law: only what was carried out is kept: a refused request and one that was cancelled leave the key free."""
    session = new_session(http)
    body = {**ASK, "session_id": session, "stream": True, "max_tokens": 400, "ignore_eos": True}
    assert http.post("/v1/chat/completions", json={**body, "top_p": 7}, headers=key).status_code == 400
    with http.stream("POST", "/v1/chat/completions", json=body, headers=key) as answer:
        next(line for line in answer.iter_lines() if line.startswith("data: "))
        assert http.post(f"/v1/sessions/{session}/cancel").json()["cancelled"]
    first, second = (http.post("/v1/chat/completions", json=body, headers=key) for _ in range(2))
    assert "Idempotent-Replayed" not in first.headers
    assert told(first) == told(second)
    assert len(http.get(f"/v1/sessions/{session}/messages").json()["data"]) == 2


def test_a_rewind_does_not_free_a_key(http, key):
    """Law: what was taken back is not done again by a late repetition."""
    session = new_session(http)
    body = {**ASK, "session_id": session}
    first = http.post("/v1/chat/completions", json=body, headers=key)
    http.post(f"/v1/sessions/{session}/undo")
    assert told(http.post("/v1/chat/completions", json=body, headers=key)) == told(first)
    assert tokens_of(http, session) < first.json()["x_megacontext"]["tokens"]


def test_a_key_is_its_tenants_and_needs_what_is_kept(model_dir, tmp_path, key):
    """Law: keys of two tenants never meet; where nothing is kept a key is refused, as is one that is no key."""
    with running(settings_for(model_dir, tmp_path / "s.sqlite", api_key=["alice", "bob"])) as address:
        answers = []
        for name in ("alice", "bob"):
            headers = {**key, "Authorization": f"Bearer {name}"}
            answers.append(httpx.post(f"{address}/v1/chat/completions", json=ASK, headers=headers))
            assert "Idempotent-Replayed" not in answers[-1].headers
        assert told(answers[0]) != told(answers[1])
        unkept = [("/v1/chat/completions", {**ASK, "store": False}), TURNS[1]]
        for path, body in unkept:
            refused = httpx.post(f"{address}{path}", json=body, headers={**headers, "Idempotency-Key": "x"})
            assert refused.status_code == 400
            assert "Idempotency-Key needs a request that is kept" in refused.json()["error"]["message"]
        for bad in ("", "a b", "x" * 256):
            refused = httpx.post(
                f"{address}/v1/chat/completions", json=ASK, headers={**headers, "Idempotency-Key": bad}
            )
            assert refused.status_code == 400, bad


def test_answers_are_bounded_in_number_and_age(model_dir, tmp_path):
    """Law: a session keeps so many answers, the newest, and none beyond its age; a key that is forgotten is new."""
    settings = settings_for(model_dir, tmp_path / "s.sqlite", idempotency_keys=2, idempotency_seconds=600)
    with ServerThread(settings) as server, httpx.Client(base_url=server.address, timeout=60) as http:
        session, book = new_session(http), state_in(server).book
        body = {**ASK, "session_id": session, "max_tokens": 1}

        def replayed(key: str) -> bool:
            answer = http.post("/v1/chat/completions", json=body, headers={"Idempotency-Key": key})
            wait_until(lambda: not book._chores)
            return "Idempotent-Replayed" in answer.headers

        assert [replayed(key) for key in "abcd"] == [False] * 4
        assert [replayed(key) for key in "dc"] == [True, True]
        assert not replayed("a")
        book._seconds = 0.0
        assert not replayed("a")


def test_a_repetition_may_go_to_another_server(model_dir, key):
    """Law: another server of the same store gives the answer that the first one kept, and refuses another body; one
    that carries the request out a moment later than another server is told so, also once it has generated its reply,
    and stores nothing."""
    store = f"{shared_redis().url}?namespace=once-{free_port()}:"
    with (
        ServerThread(settings_for(model_dir, store)) as first,
        ServerThread(settings_for(model_dir, store)) as second,
        httpx.Client(timeout=60) as http,
    ):
        urls = [f"{server.address}/v1/chat/completions" for server in (first, second)]
        answers = [http.post(url, json=ASK, headers=key) for url in urls]
        assert told(answers[0]) == told(answers[1])
        other = http.post(urls[1], json={**ASK, "seed": 5}, headers=key)
        assert other.json()["error"]["code"] == "idempotency_key_reused"
        book = state_in(second).book
        find, found = book.find, iter([None, None, None, None, None])

        async def late(tenant: str, key: str) -> object:
            return next(found, await find(tenant, key))

        book.find = late  # type: ignore[method-assign, assignment]
        for _ in range(3):  # twice it is found when the reply is stored, and then before it is generated
            crossed = http.post(urls[1], json=ASK, headers=key)
            assert (crossed.status_code, crossed.json()["error"]["code"]) == (409, "idempotency_key_answered")
        wait_until(lambda: len(http.get(f"{second.address}/v1/sessions").json()["data"]) == 1)


def test_an_answer_that_is_too_large_is_told(http, monkeypatch, key):
    """Law: where an answer could not be kept a repetition is told that it was carried out, and does nothing."""
    monkeypatch.setattr("server.once.kept.MAX_NOTE", 300)
    session = new_session(http)
    body = {**ASK, "session_id": session, "logprobs": True, "top_logprobs": 20}
    first, again = (http.post("/v1/chat/completions", json=body, headers=key) for _ in range(2))
    assert first.status_code == 200
    assert (again.status_code, again.json()["error"]["code"]) == (409, "idempotency_answer_too_large")
    assert tokens_of(http, session) == first.json()["x_megacontext"]["tokens"]


def stores(tmp_path: Path) -> dict[str, str]:
    return {
        "sqlite": str(tmp_path / "s.sqlite"),
        "redis": f"{shared_redis().url}?namespace=once-{free_port()}:",
    }


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sqlite", "redis"])
def test_a_client_that_repeats_through_kill_nine_gets_one_turn(model_dir, tmp_path, kind):
    """Law: a client that sends a turn again until it has the answer, through kill -9 at any moment and restarts, finds
    each of its turns in the history exactly once."""
    store = stores(tmp_path)[kind]
    asked: list[str] = []
    statuses: set[int] = set()
    stop, kills = threading.Event(), 10
    port, name = free_port(), {"server_name": "one"}
    session = ""

    def talk() -> None:
        while not stop.is_set():
            question = f"question-{len(asked)}"
            body = {**ASK, "session_id": session, "messages": [{"role": "user", "content": question}]}
            asked.append(question)
            while True:
                try:
                    answer = httpx.post(
                        f"http://127.0.0.1:{port}/v1/chat/completions",
                        json=body,
                        headers={"Idempotency-Key": question},
                        timeout=60,
                    )
                except httpx.TransportError:
                    time.sleep(0.02)
                    continue
                statuses.add(answer.status_code)
                if answer.status_code == 200:
                    break

    talker = threading.Thread(target=talk, daemon=True)
    for number in range(kills + 1):
        with ForkedServer(model_dir, store, use_port=port, **name) as server:
            if not session:
                session = httpx.post(f"{server.address}/v1/sessions", json={}).json()["id"]
                talker.start()
            before = len(asked)
            wait_until(lambda before=before: len(asked) > before + 3)
            if number < kills:
                server.stop()
                continue
            stop.set()
            talker.join()
            found = httpx.get(f"{server.address}/v1/sessions/{session}/messages?limit=1000").json()["data"]
            assert [message["content"] for message in found if message["role"] == "user"] == asked
            assert statuses <= {200, 503}
