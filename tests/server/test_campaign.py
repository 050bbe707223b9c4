"""kill -9 at any moment of anything, again and again, against a plain record of what was acknowledged."""

from __future__ import annotations

import json
import os
import random
import secrets
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from redis_server import RedisServer
from support import ForkedServer, free_port

ACTORS, KILLS = 3, int(os.environ.get("KILLS", "100"))
# Letters alone: what random weights write is often no UTF-8.
LETTERS = {"67": 100, "68": 100, "69": 100}
FIELDS = {"model": "tiny", "max_tokens": 24, "ignore_eos": True, "logit_bias": LETTERS}
TEXT = "It was the best of times it was the worst of times and the keeper of the lighthouse told nobody"
Told = tuple[str, str]
"""Role and content of a message, or ``document`` and the text."""


class StoppedError(Exception):
    """The campaign is over."""


@dataclass
class Actor(threading.Thread):
    """Does whatever a client may do to sessions of its own, one thing after the other; repeats each until it is
    answered, and writes down what was. ``forked``: attempts to fork, each of which may have left a session."""

    port: int
    seed: int
    over: threading.Event
    record: dict[str, list[Told]] = field(default_factory=dict)
    done: dict[str, int] = field(default_factory=dict)
    forked: int = 0
    failure: Exception | None = None

    def __post_init__(self) -> None:
        super().__init__(daemon=True)
        self.rng = random.Random(self.seed)
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=60)

    __hash__ = threading.Thread.__hash__

    def run(self) -> None:
        try:
            while not self.over.is_set():
                name = self.rng.choices(
                    ["ask", "ingest", "rewind", "fork", "copy", "move", "delete", "create", "check"],
                    [40, 20, 12, 8, 4, 4, 5, 5, 10],
                )[0]
                if self.record or name == "create":
                    getattr(self, name)(*([self.rng.choice(list(self.record))] if name != "create" else []))
                    self.done[name] = self.done.get(name, 0) + 1
        except StoppedError:
            pass
        except Exception as error:
            self.failure = error

    def send(self, method: str, path: str, **what: Any) -> httpx.Response:
        """Until there is an answer."""
        while True:
            try:
                answer = self.http.request(method, path, **what)
            except httpx.TransportError:
                answer = None
            if answer is not None and answer.status_code not in (429, 503):
                return answer
            if self.over.is_set() and answer is None:
                raise StoppedError
            time.sleep(0.02)

    def create(self) -> None:
        answer = self.send("POST", "/v1/sessions", json={})
        if len(self.record) < 6:
            self.record[answer.json()["id"]] = []

    def ask(self, session: str) -> None:
        question = f"{self.rng.choice(TEXT.split())} {secrets.token_hex(4)}"
        stream = self.rng.random() < 0.5
        body = {**FIELDS, "session_id": session, "messages": [{"role": "user", "content": question}], "stream": stream}
        key = {"Idempotency-Key": question.replace(" ", "-")}
        while True:
            answer = self.send("POST", "/v1/chat/completions", json=body, headers=key)
            assert answer.status_code == 200, answer.text
            if not stream:
                break
            if "data: [DONE]" in answer.text:
                answer = self.send("POST", "/v1/chat/completions", json=body, headers=key)
                assert answer.headers["Idempotent-Replayed"] == "true"
                break
        told = [("user", question), ("assistant", _reply(answer, stream))]
        self.record[session] += told

    def ingest(self, session: str) -> None:
        text = " ".join(self.rng.choices(TEXT.split(), k=self.rng.randint(20, 600)))
        key = {"Idempotency-Key": secrets.token_hex(8), "Content-Type": "text/plain"}
        answer = self.send("POST", f"/v1/sessions/{session}/ingest", content=text, headers=key)
        assert answer.status_code == 200, answer.text
        self.record[session].append(("document", text))

    def rewind(self, session: str) -> None:
        listed = self.listed(session)
        if not listed:
            return
        keep = self.rng.randint(max(1, len(listed) - 4), len(listed))
        body = {"message_id": listed[keep - 1]["id"]}
        answer = self.send("POST", f"/v1/sessions/{session}/rewind", json=body)
        assert answer.status_code == 200, answer.text
        del self.record[session][keep:]

    def fork(self, session: str) -> None:
        if len(self.record) >= 6:
            return
        listed = self.listed(session)
        keep = self.rng.randint(0, len(listed))
        body = {"message_id": listed[keep - 1]["id"]} if keep else {"position": 0}
        self.forked += 1
        answer = self.send("POST", f"/v1/sessions/{session}/fork", json=body)
        assert answer.status_code == 201, answer.text
        self.record[answer.json()["id"]] = self.record[session][:keep]

    def copy(self, session: str) -> None:
        """An export becomes a second session; an attempt that was not answered may leave one too."""
        if len(self.record) < 6:
            answer = self.put(self.export(session))
            assert answer.status_code == 201, answer.text
            self.record[answer.json()["id"]] = list(self.record[session])

    def move(self, session: str) -> None:
        """A session is exported, deleted, and comes back under its id."""
        file = self.export(session)
        assert self.send("DELETE", f"/v1/sessions/{session}").status_code in (200, 404)
        answer = self.put(file, keep_id=True)
        # Where an attempt before was not answered, it may be there already.
        assert answer.status_code == 201 or answer.json()["error"]["code"] == "session_exists", answer.text
        self.check(session)

    def export(self, session: str) -> bytes:
        answer = self.send("GET", f"/v1/sessions/{session}/export")
        assert answer.status_code == 200, answer.text
        return answer.content

    def put(self, file: bytes, **params: Any) -> httpx.Response:
        kind = {"Content-Type": "application/x-ndjson"}
        return self.send("POST", "/v1/sessions/import", content=file, params=params, headers=kind)

    def delete(self, session: str) -> None:
        if len(self.record) > 1:
            assert self.send("DELETE", f"/v1/sessions/{session}").status_code in (200, 404)
            del self.record[session]
            assert self.send("GET", f"/v1/sessions/{session}").status_code == 404

    def listed(self, session: str) -> list[dict[str, Any]]:
        found = self.send("GET", f"/v1/sessions/{session}/messages", params={"limit": 1000})
        assert found.status_code == 200, found.text
        return list(found.json()["data"])

    def check(self, session: str) -> None:
        """What the server has is what was acknowledged, message by message, and the texts token by token."""
        listed, expected = self.listed(session), self.record[session]
        assert [message["role"] for message in listed] == [role for role, _ in expected], session
        assert not listed or listed[-1]["end"] == self.send("GET", f"/v1/sessions/{session}").json()["tokens"]
        for message, (role, content) in zip(listed, expected, strict=True):
            if role == "document":
                place = {"start": message["start"], "end": message["end"]}
                text = self.send("GET", f"/v1/sessions/{session}/text", params=place).json()["text"]
                assert text == content
            else:
                assert message["content"] == content


def _reply(answer: httpx.Response, stream: bool) -> str:
    if not stream:
        return str(answer.json()["choices"][0]["message"]["content"])
    chunks = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
    return "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks if chunk["choices"])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sqlite", "redis"])
def test_a_hundred_kills_at_any_moment(model_dir: Path, tmp_path: Path, kind: str) -> None:
    """Law: through a hundred kill -9 (KILLS in the environment: as many) in the middle of turns, ingests, evictions,
    forks, rewinds, imports and deletions the server has what was acknowledged, each once and in its order, text by
    text."""
    rng, over, port = random.Random(7), threading.Event(), free_port()
    redis = RedisServer(fsync="always") if kind == "redis" else None
    store = str(tmp_path / "s.sqlite") if redis is None else redis.url
    actors = [Actor(port, seed, over) for seed in range(ACTORS)]
    few = {"hot_tokens": 64, "max_resident_sessions": 2, "server_name": "one", "max_queue": 8}
    served: list[float] = []
    try:
        for number in range(KILLS + 1):
            with ForkedServer(model_dir, store, use_port=port, **few) as server:
                for actor in actors:
                    if not number:
                        actor.start()
                    assert actor.failure is None, actor.failure
                if number % 10 == 9:
                    served.append(_seconds_to_serve_all(server.address, actors))
                if number == KILLS:
                    over.set()
                    for actor in actors:
                        actor.join()
                    _check_all(server.address, actors)
                else:
                    threading.Event().wait(rng.uniform(0.02, 1.2))
                    server.stop()
    finally:
        over.set()
        if redis is not None:
            redis.stop()
    done = {name: sum(actor.done.get(name, 0) for actor in actors) for name in actors[0].done}
    print(f"{kind}: {KILLS} kills, {done}, all sessions served within {max(served, default=0):.2f} s of readiness")
    assert min(done.values()) > 0


def _seconds_to_serve_all(address: str, actors: list[Actor]) -> float:
    """Until a server that has just come back has told the messages of every session, while all actors go on."""
    began = time.monotonic()
    with httpx.Client(base_url=address, timeout=60) as http:
        for session in [session for actor in actors for session in list(actor.record)]:
            found = http.get(f"/v1/sessions/{session}/messages", params={"limit": 1000})
            assert found.status_code in (200, 404), found.text  # its actor may just have deleted it
    return time.monotonic() - began


def _check_all(address: str, actors: list[Actor]) -> None:
    known: set[str] = set()
    for actor in actors:
        assert actor.failure is None, actor.failure
        known |= set(actor.record)
        for session in actor.record:
            actor.check(session)
    listed = {one["id"] for one in httpx.get(f"{address}/v1/sessions?limit=1000").json()["data"]}
    assert known <= listed
