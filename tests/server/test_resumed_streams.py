"""Streams that break off and are gone on with by Last-Event-ID; turns that outlive their client, for a while."""

import json
import secrets
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from mc_core.engine.requests import Delta, Failed
from server.errors import ApiError
from server.streaming import turn_stream
from server.streaming.turn_stream import TurnStream
from support import ForkedServer, ServerThread, gauge, running, settings_for, state_in, wait_until

CHAT = "/v1/chat/completions"
LIMIT = 40
DRAWN = {"model": "tiny", "temperature": 0, "ignore_eos": True, "stream": True}
ASK = {**DRAWN, "messages": [{"role": "user", "content": "Tell me of the lighthouse"}], "max_tokens": LIMIT}
RESPONSE = {"model": "tiny", "input": "Tell me", "temperature": 0, "ignore_eos": True, "stream": True}
TURNS = {
    CHAT: {**ASK, "stream_options": {"include_usage": True}, "logprobs": True},
    "/v1/completions": {**DRAWN, "prompt": "It was", "max_tokens": LIMIT},
    "/v1/messages": ASK,
    "/v1/responses": {**RESPONSE, "max_output_tokens": LIMIT},
}
ENDLESS = {**ASK, "max_tokens": 10**6}
STALE = {"Last-Event-ID": "0123abcd-3"}


@dataclass(frozen=True)
class Event:
    id: str
    data: str


def events_of(lines: Iterator[str]) -> Iterator[Event]:
    """The events with an id, as a client reads them; pings have none."""
    id = ""
    for line in lines:
        if line.startswith("id: "):
            id = line.removeprefix("id: ")
        elif line.startswith("data: ") and id:
            yield Event(id, line.removeprefix("data: "))
            id = ""


def taken(http: httpx.Client, path: str, body: dict, headers: dict, most: int) -> list[Event]:
    """At most so many events; then the client leaves."""
    with http.stream("POST", path, json=body, headers=headers) as stream:
        assert stream.status_code == 200, stream.read()
        told = []
        for event in events_of(stream.iter_lines()):
            told.append(event)
            if len(told) == most:
                break
        return told


def whole(http: httpx.Client, path: str, body: dict, headers: dict) -> list[Event]:
    return taken(http, path, body, headers, 10**9)


def text_of(told: list[Event]) -> str:
    """The reply of a chat."""
    chunks = [json.loads(event.data) for event in told if event.data.startswith("{")]
    return "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])


def new_session(http: httpx.Client) -> str:
    return http.post("/v1/sessions", json={}).json()["id"]


def new_key(session: str | None = None) -> dict[str, str]:
    return {"Idempotency-Key": secrets.token_hex(8)} | ({"X-Session-ID": session} if session else {})


def leaves_early(http: httpx.Client, body: dict, headers: dict) -> None:
    """Begin a turn, and go before it has ended."""
    if body["stream"]:
        with http.stream("POST", CHAT, json=body, headers=headers) as stream:
            next(line for line in stream.iter_lines() if line.startswith("data: "))
    else:

        def read() -> float:
            return gauge(str(http.base_url), "megacontext_kv_recomputed_total")

        before = read()
        sent = http.build_request("POST", CHAT, json=body, headers=headers)
        head = "".join(f"{name}: {value}\r\n" for name, value in sent.headers.items())
        with socket.create_connection((sent.url.host, sent.url.port)) as connection:
            connection.sendall(f"POST {CHAT} HTTP/1.1\r\n{head}\r\n".encode() + sent.read())
            wait_until(lambda: read() > before)


def code_of(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


@pytest.fixture
def server(model_dir: Path, tmp_path: Path) -> Iterator[ServerThread]:
    with ServerThread(settings_for(model_dir, tmp_path / "s.sqlite", resume_seconds=60)) as server:
        yield server


@pytest.fixture
def fresh(server: ServerThread) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.address, timeout=60) as http:
        yield http


@pytest.mark.parametrize("path", TURNS)
@pytest.mark.parametrize("every", [1, 7])
def test_a_stream_that_breaks_off_at_every_kth_event_is_the_whole_one(http, path, every):
    """Law: a stream of any API that breaks off behind every k-th event, and goes on each time behind the last one that
    came, tells the same events as one that never broke off, each once; and the history has the turn once."""
    session, body = new_session(http), TURNS[path]
    headers = new_key(session)
    told = taken(http, path, body, headers, every)
    while len(more := taken(http, path, body, {**headers, "Last-Event-ID": told[-1].id}, every)) == every:
        told += more
    told += more
    assert told == whole(http, path, body, headers)
    assert [event.id for event in told] == [f"{told[0].id[:8]}-{number}" for number in range(len(told))]
    if path == CHAT:
        plain = http.post(path, json={**ASK, "stream": False, "session_id": new_session(http)}).json()
        assert text_of(told) == plain["choices"][0]["message"]["content"]
        listed = http.get(f"/v1/sessions/{session}/messages").json()["data"]
        assert [message["content"] for message in listed] == [ASK["messages"][0]["content"], text_of(told)]


def test_events_have_ids_where_they_can_be_gone_on_with(http):
    """Law: without a key there are no ids, for nobody could come back; who asks for it all the same, or by an id that
    is none, is refused, and no turn begins."""
    assert "id: " not in http.post(CHAT, json=ASK).text
    refused = http.post(CHAT, json=ASK, headers=STALE)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "Last-Event-ID")
    session = new_session(http)
    for id in ("7", "0123abcd-", "0123abcd-1-2", "x" * 201):
        refused = http.post(CHAT, json=ASK, headers={**new_key(session), "Last-Event-ID": id})
        assert refused.status_code == 400, id
        assert "last-event-id" in refused.json()["error"]["param"].lower()
    assert http.get(f"/v1/sessions/{session}").json()["tokens"] == 0


def test_a_stream_that_is_not_there_is_told_as_lost(http):
    """Law: where nothing is known of a stream, or the key's turn is another attempt, its rest is told as lost (410), no
    turn begins, and the key stays free."""
    session = new_session(http)
    headers = new_key(session)
    assert code_of(http.post(CHAT, json=ASK, headers={**headers, **STALE})) == (410, "stream_lost")
    assert http.get(f"/v1/sessions/{session}").json()["tokens"] == 0
    told = whole(http, CHAT, ASK, headers)
    assert told[-1].data == "[DONE]"
    assert code_of(http.post(CHAT, json=ASK, headers={**headers, **STALE})) == (410, "stream_lost")
    wrong = {**headers, "Last-Event-ID": told[0].id}
    assert code_of(http.post(CHAT, json={**ASK, "seed": 1}, headers=wrong)) == (409, "idempotency_key_reused")


def test_an_event_that_was_never_told_is_not_gone_on_from(fresh):
    """Law: an id beyond what a stream has told is refused (410) at once, while the turn runs and once it is kept;
    behind its last event nothing follows."""
    headers, endless = new_key(new_session(fresh)), {**ENDLESS, "messages": ASK["messages"]}
    told = taken(fresh, CHAT, endless, headers, 3)
    beyond = {**headers, "Last-Event-ID": f"{told[0].id[:8]}-999999999"}
    assert code_of(fresh.post(CHAT, json=endless, headers=beyond)) == (410, "stream_lost")
    assert len(taken(fresh, CHAT, endless, {**headers, "Last-Event-ID": told[-1].id}, 3)) == 3
    headers = new_key(new_session(fresh))
    told = whole(fresh, CHAT, ASK, headers)
    assert whole(fresh, CHAT, ASK, {**headers, "Last-Event-ID": told[-1].id}) == []
    beyond = {**headers, "Last-Event-ID": f"{told[0].id[:8]}-{len(told)}"}
    assert code_of(fresh.post(CHAT, json=ASK, headers=beyond)) == (410, "stream_lost")


def test_a_stream_is_its_tenants(model_dir, tmp_path):
    """Law: another tenant that knows key and event gets nothing of a stream, neither while it runs nor afterwards."""
    settings = settings_for(model_dir, tmp_path / "s.sqlite", api_key=["alice", "bob"])
    with running(settings) as address, httpx.Client(base_url=address, timeout=60) as http:
        key, ids = new_key(), {name: {"Authorization": f"Bearer {name}"} for name in ("alice", "bob")}
        long = {**ASK, "max_tokens": 300}
        told = taken(http, CHAT, long, key | ids["alice"], 3)
        behind = key | {"Last-Event-ID": told[-1].id}
        for _ in range(2):
            assert code_of(http.post(CHAT, json=long, headers=behind | ids["bob"])) == (410, "stream_lost")
            named = {"idempotency_key": key["Idempotency-Key"]}
            cancelled = http.post("/v1/requests/cancel", json=named, headers=ids["bob"])
            assert cancelled.json() == {"cancelled": False}
            rest = whole(http, CHAT, long, behind | ids["alice"])
            assert rest[-1].data == "[DONE]"


def test_readers_of_one_turn_are_told_the_same(fresh):
    """Law: who comes back while another connection still lives gets a telling of its own; one that stays unread costs
    nobody else anything."""
    headers, body = new_key(new_session(fresh)), {**ASK, "max_tokens": 300}
    with fresh.stream("POST", CHAT, json=body, headers=headers) as unread:
        assert unread.status_code == 200
        told = whole(fresh, CHAT, body, headers)
        assert told == whole(fresh, CHAT, body, headers)
        assert list(events_of(unread.iter_lines())) == told


@pytest.mark.parametrize("stream", [True, False])
def test_a_keyed_turn_waits_for_its_client_for_a_while(server, fresh, stream):
    """Law: a turn with a key goes on without its client for ``resume_seconds``, streamed or not; then it ends, leaves
    no trace, and its stream is lost."""
    session = new_session(fresh)
    headers, body = new_key(session), {**ENDLESS, "stream": stream}
    leaves_early(fresh, body, headers)
    wait_until(lambda: any(one.stream for one in state_in(server).book._running.values()))
    (request,) = state_in(server).book._running.values()
    turn = request.stream
    assert turn.patience == 60
    wait_until(lambda: turn._listeners == 0)
    before = turn.generated
    wait_until(lambda: turn.generated > before + 10)
    turn._loop.call_soon_threadsafe(turn.keep, 0.01)
    wait_until(lambda: not state_in(server).book._running)
    assert turn.failure().code == "client_gone_for_long"
    lost = fresh.post(CHAT, json=body, headers={**headers, "Last-Event-ID": f"{turn.tag}-1"})
    assert code_of(lost) == (410, "stream_lost")
    assert fresh.get(f"/v1/sessions/{session}").json()["tokens"] == 0


def test_who_waits_for_an_answer_keeps_its_turn(model_dir, tmp_path):
    """Law: a repetition that waits for a whole answer listens as the first request did, however short the patience."""
    settings = settings_for(model_dir, tmp_path / "s.sqlite", resume_seconds=0.05)
    with running(settings) as address, httpx.Client(base_url=address, timeout=60) as http:
        body, headers = {**ASK, "stream": False, "max_tokens": 300}, new_key(new_session(http))
        first = httpx.Client(base_url=address)
        with pytest.raises(httpx.ReadTimeout):
            first.post(CHAT, json=body, headers=headers, timeout=0.2)
        answers = [http.post(CHAT, json=body, headers=headers) for _ in range(2)]
        assert answers[0].json() == answers[1].json()
        first.close()


def test_a_request_is_cancelled_by_its_key(fresh, server):
    """Law: who leaves for good says so by the key: the turn ends at once, leaves no trace, and the key is free."""
    session = new_session(fresh)
    headers = new_key(session)
    taken(fresh, CHAT, ENDLESS, headers, 2)
    key = {"idempotency_key": headers["Idempotency-Key"]}
    assert fresh.post("/v1/requests/cancel", json=key).json() == {"cancelled": True}
    wait_until(lambda: not state_in(server).book._running)
    assert fresh.post("/v1/requests/cancel", json=key).json() == {"cancelled": False}
    assert fresh.get(f"/v1/sessions/{session}").json()["tokens"] == 0
    answer = fresh.post(CHAT, json={**ENDLESS, "max_tokens": 3}, headers={"X-Session-ID": session})
    assert answer.status_code == 200


@pytest.mark.parametrize("keyed", [True, False])
def test_a_detached_turn_outlives_its_client(model_dir, tmp_path, keyed):
    """Law: a turn in the background ends though its client has gone, streamed or not, with the reply that it would have
    had; the history has it, and with a key its answer can be had."""
    settings = settings_for(model_dir, tmp_path / "s.sqlite", resume_seconds=0.01)
    with running(settings) as address, httpx.Client(base_url=address, timeout=60) as http:
        plain = http.post(CHAT, json={**ASK, "max_tokens": 100, "stream": False}).json()["choices"][0]["message"]
        for stream in (True, False):
            session = new_session(http)
            headers = new_key(session) if keyed else {"X-Session-ID": session}
            body = {**ASK, "max_tokens": 100, "stream": stream, "background": True}
            leaves_early(http, body, headers)
            wait_until(lambda session=session: http.get(f"/v1/sessions/{session}").json()["tokens"] > 100)
            listed = http.get(f"/v1/sessions/{session}/messages").json()["data"]
            assert listed[-1]["content"] == plain["content"]
            if keyed:
                assert http.post(CHAT, json=body, headers=headers).headers["Idempotent-Replayed"] == "true"


def test_a_detached_turn_has_a_limit_and_needs_what_is_kept(model_dir, tmp_path):
    """Law: a turn in the background that nobody listens to ends after ``background_seconds``, also a response; where
    nothing is kept it is refused."""
    settings = settings_for(model_dir, tmp_path / "s.sqlite", background_seconds=0.4)
    with ServerThread(settings) as server, httpx.Client(base_url=server.address, timeout=60) as http:
        session = new_session(http)
        body = {**ENDLESS, "background": True, "session_id": session}
        with http.stream("POST", CHAT, json=body) as left:
            next(line for line in left.iter_lines() if line.startswith("data: "))
        wait_until(lambda: gauge(server.address, "megacontext_turns_running") == 0)
        assert http.get(f"/v1/sessions/{session}").json()["tokens"] == 0
        long = {**RESPONSE, "stream": False, "background": True, "max_output_tokens": 10**6}
        id = http.post("/v1/responses", json=long).json()["id"]
        wait_until(lambda: http.get(f"/v1/responses/{id}").json()["status"] == "cancelled")
        unkept = [(CHAT, {**ASK, "store": False}), ("/v1/completions", TURNS["/v1/completions"])]
        for path, asked in unkept:
            refused = http.post(path, json={**asked, "background": True})
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, "background")


async def test_what_is_kept_of_a_turn_is_bounded(monkeypatch):
    """Law: of a turn that is kept the newest events stay; who reads on goes on, and who would need older ones is told
    that they are gone, while the turn itself is not touched."""
    monkeypatch.setattr(turn_stream, "MAX_KEPT", 50)
    stream = TurnStream()
    stream.keep(60)
    for number in range(200):
        stream.put(Delta(str(number), (number,)))
        assert sum(event is not None for event in stream._events) <= 50
    assert await stream.at(199) == Delta("199", (199,))
    with pytest.raises(ApiError, match="can't be gone on with"):
        await stream.at(149)
    with pytest.raises(ApiError, match="can't be gone on with"):
        stream.check_kept()
    assert stream.failure() is None
    stream.put(Failed(ValueError("over")))


def test_a_client_that_does_not_read_holds_no_memory(server, fresh, monkeypatch):
    """Law: a client that never reads costs the newest events of its reply; while it runs, who would need older ones is
    told that they are not kept; once it is stored, all of it can be had."""
    monkeypatch.setattr(turn_stream, "MAX_KEPT", 50)
    session, body = new_session(fresh), {**ASK, "max_tokens": 600}
    headers = new_key(session)
    with fresh.stream("POST", CHAT, json=body, headers=headers):
        (request,) = state_in(server).book._running.values()
        stream = request.stream
        wait_until(lambda: stream.generated > 60)
        refused = fresh.post(CHAT, json=body, headers=headers | {"Last-Event-ID": f"{stream.tag}-3"})
        assert code_of(refused) == (410, "stream_lost")
        wait_until(lambda: not state_in(server).book._running)
        assert sum(event is not None for event in stream._events) <= 51
    told = whole(fresh, CHAT, body, headers)
    assert len(told) > 100
    assert whole(fresh, CHAT, body, headers | {"Last-Event-ID": told[3].id}) == told[4:]


def test_what_was_acknowledged_goes_on_after_kill_nine_and_the_rest_is_lost(model_dir, tmp_path):
    """Law: after kill -9 a stream whose turn was stored goes on behind any of its events, to the same end; one whose
    turn was under way is told as lost, has left no trace, and can be asked for again."""
    store = tmp_path / "s.sqlite"
    stored, lost = new_key(), new_key()
    long = {**ASK, "max_tokens": 600}
    with ForkedServer(model_dir, store) as server, httpx.Client(base_url=server.address, timeout=60) as http:
        sessions = [new_session(http) for _ in range(2)]
        told = whole(http, CHAT, ASK, stored | {"X-Session-ID": sessions[0]})
        with http.stream("POST", CHAT, json=long, headers=lost | {"X-Session-ID": sessions[1]}) as stream:
            events = events_of(stream.iter_lines())
            seen = [next(events) for _ in range(5)]
            server.stop()
    with ForkedServer(model_dir, store) as server, httpx.Client(base_url=server.address, timeout=60) as http:
        for number in (0, 7, len(told) - 2, len(told) - 1):
            behind = stored | {"X-Session-ID": sessions[0], "Last-Event-ID": told[number].id}
            assert whole(http, CHAT, ASK, behind) == told[number + 1 :]
        assert len(http.get(f"/v1/sessions/{sessions[0]}/messages").json()["data"]) == 2
        named = lost | {"X-Session-ID": sessions[1]}
        behind = named | {"Last-Event-ID": seen[-1].id}
        assert code_of(http.post(CHAT, json=long, headers=behind)) == (410, "stream_lost")
        assert http.get(f"/v1/sessions/{sessions[1]}").json()["tokens"] == 0
        assert whole(http, CHAT, long, named)[-1].data == "[DONE]"
        assert code_of(http.post(CHAT, json=long, headers=behind)) == (410, "stream_lost")
