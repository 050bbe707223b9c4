"""Servers that share a store: one of them writes a session, and another takes over in time, whatever became of it."""

import contextlib
import json
import os
import signal
import threading

import httpx
import pytest

from mc_core.errors import StoreError
from redis_server import shared_redis
from server.stores import open_store
from support import ServerProcess, ServerThread, free_port, running, settings_for, state_in, wait_until

ASK = {"model": "tiny", "messages": [{"role": "user", "content": "Tell me of the lighthouse"}], "max_tokens": 4}
LONG = {"ignore_eos": True, "stream": True}


@pytest.fixture
def place():
    """The URL of a Redis, in a namespace of its own."""
    return f"{shared_redis().url}?namespace=one-writer-{free_port()}:"


def new_session(address: str) -> str:
    return httpx.post(f"{address}/v1/sessions", json={}).json()["id"]


def turn(address: str, session: str, **others: object) -> httpx.Response:
    body = {**ASK, "session_id": session, **others}
    return httpx.post(f"{address}/v1/chat/completions", json=body, timeout=60)


def questions(address: str, session: str) -> list[str]:
    found = httpx.get(f"{address}/v1/sessions/{session}/messages", timeout=60).json()
    assert found["complete"]
    return [message["content"] for message in found["data"] if message["role"] == "user"]


class Streamed(threading.Thread):
    """A turn that is streamed; how it ended: ``done``, the code of its error, or ``short``."""

    def __init__(self, address: str, session: str, tokens: int) -> None:
        super().__init__()
        self._address, self._body = address, {**ASK, **LONG, "session_id": session, "max_tokens": tokens}
        self._body["messages"] = [{"role": "user", "content": "Where do the ships go?"}]
        self.begun, self.end = threading.Event(), "short"
        self.start()
        assert self.begun.wait(20)

    def run(self) -> None:
        url, failed = f"{self._address}/v1/chat/completions", False
        with httpx.stream("POST", url, json=self._body, timeout=60) as answer:
            for line in answer.iter_lines():
                if line.startswith("data: "):
                    self.begun.set()
                    self.end = "done" if line == "data: [DONE]" else self.end
                if failed and line.startswith("data: "):
                    self.end = json.loads(line[6:])["error"]["code"]
                failed = failed or line == "event: error"

    def ended(self) -> str:
        self.join(60)
        return self.end


def wrote_meanwhile(paused: ServerProcess, address: str, session: str, before: list[str]) -> None:
    """Another server has written while this one stood still in the middle of a turn: its turn leaves no trace."""
    late = paused_turn(paused, session)
    wait_until(lambda: turn(address, session).status_code == 200)
    paused.process.send_signal(signal.SIGCONT)
    assert late.ended() == "session_taken_over"
    asked = [*before, ASK["messages"][0]["content"]]
    assert questions(address, session) == asked
    assert turn(address, session).status_code == 200
    assert questions(address, session) == [*asked, asked[-1]]


def paused_turn(server: ServerProcess, session: str) -> Streamed:
    late = Streamed(server.address, session, 400)
    server.process.send_signal(signal.SIGSTOP)
    return late


def test_a_paused_server_never_writes_again_once_another_one_wrote(model_dir, place):
    """Law (Redis): a server that stood still past its lease finds itself fenced: one history, that of the server which
    took over within seconds, and the late turn's stream ends in an error event."""
    with (
        ServerProcess(model_dir, place, server_name="one", lease_seconds=1) as first,
        running(settings_for(model_dir, place, server_name="two", lease_seconds=1)) as second,
    ):
        session = new_session(first.address)
        assert turn(first.address, session).status_code == 200
        busy = turn(second, session)
        assert (busy.status_code, busy.json()["error"]["code"]) == (503, "session_busy")
        wrote_meanwhile(first, second, session, questions(second, session))


@pytest.mark.slow
def test_a_paused_owner_of_a_file_keeps_it_and_never_writes_beside_another_one(model_dir, tmp_path):
    """Law (SQLite): while the owner stands still nobody opens its file; where the lock does not hold, as on some
    network file systems, the fence does: one history, and the late turn's stream ends in an error event."""
    file = tmp_path / "s.sqlite"
    with ServerProcess(model_dir, file) as first:
        session = new_session(first.address)
        late = paused_turn(first, session)
        with pytest.raises(StoreError, match="in use by another server"):
            open_store(f"sqlite:///{file}")
        first.process.send_signal(signal.SIGCONT)
        httpx.post(f"{first.address}/v1/sessions/{session}/cancel")
        assert late.ended() == "turn_cancelled"
        os.unlink(f"{file}.lock")
        with running(settings_for(model_dir, file)) as second:
            wrote_meanwhile(first, second, session, [])


def test_a_lease_of_the_same_name_is_taken_over_at_once(model_dir, place):
    """Law: what a dead server's lease kept is open to a server of its name at once, and to no other one."""
    with ServerThread(settings_for(model_dir, place, server_name="one")) as first:
        session, tenant = new_session(first.address), state_in(first).keys.tenant(None, None)
    left_behind = open_store(place, lease_seconds=600)
    left_behind.open(session, tenant, "one").result()
    left_behind.close()
    with running(settings_for(model_dir, place, server_name="two")) as other:
        assert turn(other, session).json()["error"]["code"] == "session_busy"
    with running(settings_for(model_dir, place, server_name="one")) as again:
        assert turn(again, session).status_code == 200


@pytest.mark.slow
def test_a_server_that_comes_back_has_its_sessions_at_once(model_dir, place):
    """Law: after kill -9 a server of the same name goes on at once, though the lease has long to live, and a server of
    another name does not."""
    with ServerProcess(model_dir, place, server_name="one", lease_seconds=600) as first:
        session = new_session(first.address)
        assert turn(first.address, session).status_code == 200
        first.stop(signal.SIGKILL)
    with running(settings_for(model_dir, place, server_name="two")) as other:
        busy = turn(other, session)
        assert (busy.status_code, busy.json()["error"]["code"]) == (503, "session_busy")
        with running(settings_for(model_dir, place, server_name="one")) as again:
            assert turn(again, session).status_code == 200


def test_two_servers_of_one_name_part(model_dir, place):
    """Law: where two servers that run have one name by mistake, each soon holds its own sessions against the other."""
    twin = settings_for(model_dir, place, server_name="twin", lease_seconds=1)
    with running(twin) as first:
        session = new_session(first)
        with running(twin) as second:

            def answers(asked: str) -> list[int]:
                return [turn(server, asked).status_code for server in (first, second)]

            # Whoever had it when they parted keeps it; until then each takes it from the other.
            wait_until(lambda: sorted(answers(session)) == [200, 503])
            kept = answers(session)
            assert sorted(kept) == [200, 503]
            assert kept == answers(session)
            for owner in (first, second):
                own = new_session(owner)
                assert turn(owner, own).status_code == 200
                assert sorted(answers(own)) == [200, 503]
                assert turn(owner, own).status_code == 200


def test_a_stop_hands_over_at_once(model_dir, place):
    """Law: at SIGTERM idle sessions go to other servers at once, though a turn of another one still runs; that one's
    session follows when its turn ended."""
    chosen = {"lease_seconds": 600, "drain_seconds": 60}
    with running(settings_for(model_dir, place, server_name="two")) as second, contextlib.ExitStack() as stack:
        first = stack.enter_context(ServerThread(settings_for(model_dir, place, server_name="one", **chosen)))
        idle, busy = new_session(first.address), new_session(first.address)
        assert turn(first.address, idle).status_code == 200
        assert turn(second, idle).status_code == 503
        late = Streamed(first.address, busy, 4000)
        first.sigterm()
        wait_until(lambda: turn(second, idle).status_code == 200)
        assert late.is_alive()
        assert turn(second, busy).status_code == 503
        httpx.post(f"{first.address}/v1/sessions/{busy}/cancel")
        assert late.ended() == "turn_cancelled"
        wait_until(lambda: turn(second, busy).status_code == 200)
