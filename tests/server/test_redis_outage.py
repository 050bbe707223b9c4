"""A server whose Redis dies and comes back."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from redis_server import RedisServer
from server.settings import Settings
from support import running, small, wait_until

STREAMS = 8
BACK = 5.0
"""Seconds after which the service is back at the latest, once Redis is."""


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    # Redis must have on disk what it acknowledged: a kill -9 keeps the kernel's cache, but this is the law's own mode.
    server = RedisServer(fsync="always")
    yield server
    server.stop()


def settings_at(model: Path, tmp_path: Path, url: str, **others: object) -> Settings:
    chosen = {**small(model, tmp_path / "unused"), "store": url, "max_sessions": STREAMS, **others}
    return Settings(**chosen)


def stream_turn(http: httpx.Client, session: str, text: str) -> tuple[str, int]:
    """One streamed turn -> ("done", tokens of history and turn) | ("error", 0) | ("short", 0) | ("refused", status)."""
    body = {"model": "tiny", "messages": [{"role": "user", "content": text}], "stream": True, "max_tokens": 24}
    body |= {"session_id": session, "ignore_eos": True, "stream_options": {"include_usage": True}}
    tokens = 0
    with http.stream("POST", "/v1/chat/completions", json=body) as answer:
        if answer.status_code != 200:
            answer.read()
            return "refused", answer.status_code
        for line in answer.iter_lines():
            if line == "data: [DONE]":
                return "done", tokens
            if line == "event: error":
                return "error", 0
            if line.startswith("data: ") and (usage := json.loads(line[6:]).get("usage")):
                tokens = usage["total_tokens"]
    return "short", 0


class Talker(threading.Thread):
    """Talks in one session until told to stop; remembers how each turn ended."""

    def __init__(self, address: str, session: str, stop: threading.Event) -> None:
        super().__init__()
        self.address, self.session, self.stop_event = address, session, stop
        self.outcomes: list[tuple[str, int]] = []
        self.acknowledged: list[int] = []
        self.failure: Exception | None = None

    def run(self) -> None:
        try:
            with httpx.Client(base_url=self.address, timeout=120) as http:
                while not self.stop_event.is_set():
                    outcome = stream_turn(http, self.session, f"turn {len(self.outcomes)} of {self.session}")
                    self.outcomes.append(outcome)
                    if outcome[0] == "done":
                        self.acknowledged.append(http.get(f"/v1/sessions/{self.session}").json()["tokens"])
        except Exception as error:
            self.failure = error


@pytest.mark.slow
@pytest.mark.parametrize("kills", [20])
def test_streams_survive_a_redis_that_is_killed_again_and_again(model_dir, tmp_path, redis_server, kills):
    """Law: through twenty kill -9 of Redis under eight streams no acknowledged turn is lost, no stream ends without
    [DONE] or an error event, and the service is back within seconds of Redis."""
    stop, back = threading.Event(), []
    with running(settings_at(model_dir, tmp_path, redis_server.url)) as address:
        with httpx.Client(base_url=address, timeout=60) as http:
            sessions = [http.post("/v1/sessions", json={}).json()["id"] for _ in range(STREAMS)]
        talkers = [Talker(address, session, stop) for session in sessions]
        for talker in talkers:
            talker.start()
        for _ in range(kills):
            count = sum(len(talker.acknowledged) for talker in talkers)
            wait_until(lambda count=count: sum(len(t.acknowledged) for t in talkers) >= count + STREAMS, 120)
            redis_server.kill()
            time.sleep(1.0)
            redis_server.start()
            began, count = time.monotonic(), sum(len(talker.acknowledged) for talker in talkers)
            wait_until(lambda count=count: sum(len(t.acknowledged) for t in talkers) > count)
            back.append(time.monotonic() - began)
        stop.set()
        for talker in talkers:
            talker.join()
    print(f"{kills} kills, back after at most {max(back):.2f} s, {sum(len(t.acknowledged) for t in talkers)} turns")
    assert max(back) < BACK
    for talker in talkers:
        assert talker.failure is None, talker.failure
        assert {kind for kind, _ in talker.outcomes} <= {"done", "error", "refused"}
        assert talker.acknowledged == sorted(talker.acknowledged)
        assert {status for kind, status in talker.outcomes if kind == "refused"} <= {503}
    assert sum(len(talker.acknowledged) for talker in talkers) > kills * STREAMS
    # Another server, with nothing in memory, must find every acknowledged turn.
    with running(settings_at(model_dir, tmp_path, redis_server.url)) as address, httpx.Client(base_url=address) as http:
        for talker in talkers:
            assert http.get(f"/v1/sessions/{talker.session}").json()["tokens"] >= talker.acknowledged[-1]
            kind, _ = stream_turn(http, talker.session, "and then?")
            assert kind == "done"


def test_an_outage_shows_and_ends_in_an_error_and_a_whole_session(model_dir, tmp_path, redis_server):
    """Law: while Redis is away /ready is degraded and a hot session's turn streams on; past the deadline it ends in an
    error event, its session is as it was, a cold one gets 503, and all goes on when Redis is back."""
    url = f"{redis_server.url}?deadline=2&patience=0.5"
    with running(settings_at(model_dir, tmp_path, url)) as address, httpx.Client(base_url=address, timeout=60) as http:
        session = http.post("/v1/sessions", json={}).json()["id"]
        assert stream_turn(http, session, "one")[0] == "done"
        before = http.get(f"/v1/sessions/{session}").json()["tokens"]
        redis_server.kill()
        outcome: list[tuple[str, int]] = []
        talker = threading.Thread(target=lambda: outcome.append(stream_turn(http, session, "two")))
        talker.start()
        wait_until(lambda: http.get("/ready").json()["status"] == "degraded")
        ready = http.get("/ready")
        assert ready.status_code == 200
        assert "can't be reached" in ready.json()["reasons"][0]
        cold = http.post("/v1/sessions", json={})
        assert cold.status_code == 503
        assert cold.json()["error"]["code"] == "store_down"
        assert int(cold.headers["retry-after"]) >= 1
        talker.join()
        assert outcome[0][0] == "error"
        redis_server.start()
        wait_until(lambda: http.get("/ready").json()["status"] == "ready")
        assert http.get(f"/v1/sessions/{session}").json()["tokens"] == before
        assert stream_turn(http, session, "three")[0] == "done"


def test_a_short_outage_is_not_noticed_by_a_stream(model_dir, tmp_path, redis_server):
    """Law: a turn whose commit waits for Redis ends in [DONE] once it is stored, not before."""
    with (
        running(settings_at(model_dir, tmp_path, redis_server.url)) as address,
        httpx.Client(base_url=address, timeout=60) as http,
    ):
        session = http.post("/v1/sessions", json={}).json()["id"]
        assert stream_turn(http, session, "one")[0] == "done"
        redis_server.kill()
        outcome: list[tuple[str, int]] = []
        talker = threading.Thread(target=lambda: outcome.append(stream_turn(http, session, "two")))
        talker.start()
        wait_until(lambda: http.get("/ready").json()["status"] == "degraded")
        time.sleep(1.5)
        assert not outcome
        redis_server.start()
        talker.join()
        assert outcome[0][0] == "done"


def test_a_full_buffer_turns_new_work_away(model_dir, tmp_path, redis_server):
    """Law: when no more may wait for Redis, new input gets 503 with Retry-After and /ready is 503, until it is back."""
    settings = settings_at(model_dir, tmp_path, f"{redis_server.url}?deadline=60", store_buffer_bytes=400_000)
    text = "It was the best of times, it was the worst of times. " * 1000
    with running(settings) as address, httpx.Client(base_url=address, timeout=60) as http:
        sessions = [http.post("/v1/sessions", json={}).json()["id"] for _ in range(16)]
        redis_server.kill()
        answers: dict[str, httpx.Response] = {}
        threads = []
        for session in sessions:
            threads.append(threading.Thread(target=ingest, args=(address, session, text, answers)))
            threads[-1].start()
            with suppress(AssertionError):
                wait_until(lambda: http.get("/ready").status_code == 503, 0.2)
                break
        assert http.get("/ready").json()["status"] == "not ready"
        assert "wait to be written" in http.get("/ready").json()["reasons"][0]
        refused = http.post("/v1/sessions", json={})
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "store_down"
        assert int(refused.headers["retry-after"]) >= 1
        assert not answers
        redis_server.start()
        for thread in threads:
            thread.join()
        assert {answer.status_code for answer in answers.values()} == {200}
        for session, answer in answers.items():
            assert http.get(f"/v1/sessions/{session}").json()["tokens"] == answer.json()["tokens"]
        assert http.get("/ready").json()["status"] == "ready"
        assert http.post("/v1/sessions", json={}).status_code == 201


def test_two_servers_share_redis(model_dir, tmp_path, redis_server):
    """Law: a session that one server holds goes to the other one when that is asked, and stays when the first one is
    gone; a chat without a session id is answered by either."""
    chat = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
    with running(settings_at(model_dir, tmp_path, redis_server.url)) as second, httpx.Client(timeout=60) as http:
        with running(settings_at(model_dir, tmp_path, redis_server.url)) as first:
            session = http.post(f"{first}/v1/sessions", json={}).json()["id"]
            named = {**chat, "session_id": session}
            assert http.post(f"{first}/v1/chat/completions", json=named).status_code == 200
            tokens = http.get(f"{second}/v1/sessions/{session}").json()["tokens"]
            assert http.post(f"{second}/v1/chat/completions", json=named).status_code == 200
            reply = http.post(f"{first}/v1/chat/completions", json=chat).json()["choices"][0]["message"]["content"]
            more = {
                **chat,
                "messages": [
                    *chat["messages"],
                    {"role": "assistant", "content": reply},
                    {"role": "user", "content": "and?"},
                ],
            }
            assert http.post(f"{second}/v1/chat/completions", json=more).status_code == 200
        assert http.post(f"{second}/v1/chat/completions", json=named).status_code == 200
        assert http.get(f"{second}/v1/sessions/{session}").json()["tokens"] > tokens


def ingest(address: str, session: str, text: str, answers: dict[str, httpx.Response]) -> None:
    with httpx.Client(base_url=address, timeout=120) as http:
        answers[session] = http.post(f"/v1/sessions/{session}/ingest", content=text, headers=PLAIN)


PLAIN = {"content-type": "text/plain"}
