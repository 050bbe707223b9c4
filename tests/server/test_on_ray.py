"""Servers on Ray Serve: a session stays at one of them, and outlives whatever becomes of it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from ray_cluster import RayCluster
from redis_server import RedisServer
from support import free_port, wait_until

pytest.importorskip("ray")
SESSIONS, ROUNDS = 24, 20
REPLY = 12
BODY = {"model": "tiny", "max_tokens": REPLY, "ignore_eos": True, "stream": True}


@pytest.fixture(scope="module")
def cluster(model_dir: Path) -> Iterator[RayCluster]:
    redis = RedisServer()
    with RayCluster(model_dir, redis.url, 3, max_sessions=8, max_queue=64, max_implicit_sessions=100) as cluster:
        yield cluster
    redis.stop()


@dataclass
class Talk:
    """One session, and what its client was told: acknowledged turns, and seconds until words came."""

    http: httpx.Client
    session: str
    turns: list[tuple[str, str]] = field(default_factory=list)
    delays: list[float] = field(default_factory=list)
    restored: int = 0
    failed: list[str] = field(default_factory=list)

    def ask(self, question: str) -> bool:
        """Until it is acknowledged, as often as that takes -> whether it began where the turn before it was."""
        silent, key = time.monotonic(), f"{self.session}-{question}".replace(" ", "-")
        while True:
            parts, done, restored = list[str](), False, False
            try:
                with self.http.stream(
                    "POST",
                    "/v1/chat/completions",
                    json={**BODY, "session_id": self.session, "messages": [{"role": "user", "content": question}]},
                    headers={"Idempotency-Key": key},
                ) as answer:
                    if answer.status_code != 200:
                        assert answer.status_code >= 500, answer.read()
                        self.failed.append(f"{answer.status_code} {answer.read()[:200]!r}")
                    for line in answer.iter_lines() if answer.status_code == 200 else ():
                        if line.startswith("data: {"):
                            data = json.loads(line[6:])
                            if "error" in data:
                                self.failed.append(data["error"]["code"])
                            for choice in data.get("choices", ()):
                                if choice["delta"].get("content"):
                                    if not parts:
                                        self.delays.append(time.monotonic() - silent)
                                    parts.append(choice["delta"]["content"])
                            restored = restored or data.get("x_megacontext", {}).get("source") == "restored"
                        done = done or line == "data: [DONE]"
            except httpx.TransportError as error:
                self.failed.append(type(error).__name__)
            if done:
                self.turns.append((question, "".join(parts)))
                self.restored += restored
                return not restored
            silent = time.monotonic()
            time.sleep(0.2)

    def history(self) -> list[tuple[str, str]]:
        found = self.http.get(f"/v1/sessions/{self.session}/messages", params={"limit": 1000}).json()
        assert found["complete"]
        said = [message["content"] for message in found["data"]]
        return list(zip(said[::2], said[1::2], strict=True))


def new_talks(address: str, count: int) -> list[Talk]:
    # One for all: to make one takes longer than a short turn.
    http = httpx.Client(base_url=address, timeout=60, limits=httpx.Limits(max_connections=count))
    return [Talk(http, http.post("/v1/sessions", json={}).json()["id"]) for _ in range(count)]


@pytest.mark.slow
def test_sessions_outlive_kills_and_moves(cluster: RayCluster) -> None:
    """Law: while replicas are killed, added and drained under streams, each session's history is what its client saw
    acknowledged, no client waits for long, and between changes a session stays at one replica."""
    talks = new_talks(cluster.address, SESSIONS)
    number, stayed, asked = 0, 0, 0
    with ThreadPoolExecutor(SESSIONS) as pool:

        def all_ask() -> list[bool]:
            nonlocal number
            number += 1
            return list(pool.map(lambda talk: talk.ask(f"Question {number}"), talks))

        def kill() -> None:
            cluster.kill_one()

        changes = [kill, lambda: cluster.scale(4, wait=False), lambda: cluster.scale(3, wait=False)]
        for done in range(ROUNDS):
            for change in changes:
                timer = threading.Timer(0.3, change)
                timer.start()
                all_ask()
                timer.join()
                cluster.settle()
                all_ask()  # those that moved arrive
                found = all_ask()
                stayed, asked = stayed + sum(found), asked + len(found)
            for talk in talks:
                assert talk.history() == talk.turns
            print(
                f"round {done + 1}: {stayed} of {asked} stayed, slowest {max(max(one.delays) for one in talks):.1f} s"
            )
    delays = sorted(delay for talk in talks for delay in talk.delays)
    failures = [code for talk in talks for code in talk.failed]
    told = {"turns": number * SESSIONS, "stayed": stayed / asked, "slowest": delays[-1], "failures": len(failures)}
    print(json.dumps(told), sorted(set(failures)))
    assert stayed >= 0.95 * asked
    assert delays[-1] <= 10


@pytest.mark.slow
def test_requests_of_one_session_go_to_one_replica(cluster: RayCluster) -> None:
    """Law: a session that is made, named in the body, in the header, in the path and as a conversation, and a chat that
    names none, are each at one replica: after the first turn there nothing is restored."""
    address = cluster.address
    with httpx.Client(base_url=address, timeout=60) as http:
        session = http.post("/v1/sessions", json={}).json()["id"]
        say = {"model": "tiny", "max_tokens": 4, "messages": [{"role": "user", "content": "Hello"}]}

        def source(answer: httpx.Response) -> str:
            assert answer.status_code == 200, answer.text
            return str(answer.json()["x_megacontext"]["source"])

        source(http.post("/v1/chat/completions", json={**say, "session_id": session}))
        for _ in range(4):
            again = http.post("/v1/chat/completions", json=say, headers={"X-Session-ID": session})
            assert source(again) != "restored"
            assert http.get(f"/v1/sessions/{session}/focus").status_code == 200
            assert source(http.post("/v1/chat/completions", json={**say, "session_id": session})) != "restored"
        messages = list(say["messages"])
        for turn in range(4):
            answer = http.post("/v1/chat/completions", json={**say, "messages": messages})
            assert not turn or source(answer) != "restored"
            messages += [answer.json()["choices"][0]["message"], {"role": "user", "content": f"And {turn}?"}]
        kept = {"model": "tiny", "max_output_tokens": 4}
        previous = http.post("/v1/responses", json={**kept, "input": "Hello there"}).json()["id"]
        for _ in range(4):
            answer = http.post("/v1/responses", json={**kept, "input": "And?", "previous_response_id": previous})
            assert source(answer) != "restored"
            previous = answer.json()["id"]
            assert http.get(f"/v1/responses/{previous}").status_code == 200


@pytest.mark.slow
def test_a_client_that_leaves_stops_its_turn(cluster: RayCluster) -> None:
    """Law: a turn whose client went away stops, through the proxy as without it: the next one need not wait for it."""
    talk = new_talks(cluster.address, 1)[0]
    body = {
        **BODY,
        "session_id": talk.session,
        "max_tokens": 100_000,
        "messages": [{"role": "user", "content": "Go on"}],
    }
    with httpx.stream("POST", f"{cluster.address}/v1/chat/completions", json=body, timeout=60) as answer:
        assert next(line for line in answer.iter_lines() if line.startswith("data: "))
    began = time.monotonic()
    talk.ask("Are you still there?")
    assert time.monotonic() - began < 10
    assert talk.history() == talk.turns


@pytest.mark.slow
def test_serve_with_replicas_on_one_machine(model_dir: Path) -> None:
    """Law: ``megacontext serve --ray N`` serves a chat behind one address, and ends at SIGTERM with sessions let go."""
    redis, port = RedisServer(), free_port()
    flags = ["--ray", "2", "--model", str(model_dir), "--store", redis.url, "--port", str(port)]
    server = subprocess.Popen([sys.executable, "-m", "server.cli", "serve", *flags])
    try:
        address = f"http://127.0.0.1:{port}"
        wait_until(lambda: server.poll() is not None or _ready(address), 120)
        assert server.poll() is None
        talk = new_talks(address, 1)[0]
        talk.ask("Hello")
        assert talk.history() == talk.turns
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 0
        left = list(redis.client().scan_iter("megacontext:*:session:*"))
        assert [redis.client().hget(key, "owner") for key in left] == [b""]
    finally:
        if server.poll() is None:
            server.kill()
        redis.stop()


def _ready(address: str) -> bool:
    try:
        return httpx.get(f"{address}/ready", timeout=5).status_code == 200
    except httpx.TransportError:
        return False
