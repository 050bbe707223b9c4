"""A primary and its replica behind one address: the service goes on after a failover, and what was lost is told."""

import threading
import time
from collections.abc import Iterator

import httpx
import pytest

from redis_pair import Pair
from support import running, settings_for, wait_until

ASK = {"model": "tiny", "messages": [{"role": "user", "content": "Tell me of the lighthouse"}], "max_tokens": 4}
BACK = 5.0
"""Seconds after which the service is back at the latest, once there is a new primary."""


@pytest.fixture
def pair() -> Iterator[Pair]:
    servers = Pair()
    yield servers
    servers.stop()


def turn(address: str, session: str, **others: object) -> httpx.Response:
    body = {**ASK, "session_id": session, **others}
    return httpx.post(f"{address}/v1/chat/completions", json=body, timeout=60)


def new_session(address: str) -> str:
    return httpx.post(f"{address}/v1/sessions", json={}).json()["id"]


def tokens_of(address: str, session: str) -> int:
    return httpx.get(f"{address}/v1/sessions/{session}").json()["tokens"]


def questions(address: str, session: str) -> int:
    found = httpx.get(f"{address}/v1/sessions/{session}/messages?limit=1000").json()
    assert found["complete"]
    return sum(message["role"] == "user" for message in found["data"])


class Talker(threading.Thread):
    """Streams turns until told to stop: how many ended in [DONE], and how many in neither that nor an error."""

    def __init__(self, address: str, session: str) -> None:
        super().__init__()
        self._address, self.session = address, session
        self.over, self.done, self.short = threading.Event(), 0, 0

    def run(self) -> None:
        url = f"{self._address}/v1/chat/completions"
        body = {**ASK, "session_id": self.session, "stream": True, "max_tokens": 24, "ignore_eos": True}
        while not self.over.is_set():
            with httpx.stream("POST", url, json=body, timeout=60) as answer:
                lines = list(answer.iter_lines())
            done = "data: [DONE]" in lines
            self.done += done
            self.short += not done and answer.status_code == 200 and "event: error" not in lines


@pytest.mark.parametrize("killed", [False, True], ids=["demoted", "killed"])
def test_the_service_is_back_soon_after_a_failover(model_dir, pair, killed):
    """Law: a demoted Redis, which keeps its connections, or a dead one is left at once for the new primary: turns end
    within seconds, no stream ends short, and every acknowledged turn that was replicated is there once."""
    with running(settings_for(model_dir, pair.url)) as address:
        session, other = new_session(address), new_session(address)
        talker = Talker(address, session)
        talker.start()
        wait_until(lambda: talker.done >= 2)
        assert turn(address, other).status_code == 200
        pair.die() if killed else pair.fail_over()
        pair.address.target = pair.new.port
        began, before = time.monotonic(), talker.done
        wait_until(lambda: turn(address, other).status_code == 200)
        wait_until(lambda: talker.done > before + 1)
        assert time.monotonic() - began < BACK
        talker.over.set()
        talker.join()
        assert talker.short == 0
        assert questions(address, session) >= talker.done
        assert httpx.get(f"{address}/ready").json()["status"] == "ready"


@pytest.mark.slow
@pytest.mark.parametrize(("streams", "failovers"), [(8, 10)])
def test_streams_survive_failovers_again_and_again(model_dir, pair, streams, failovers):
    """Law: through ten failovers under eight streams, of a primary that is demoted or killed by turns, no stream ends
    short, every acknowledged turn is there once, and the service is back within seconds each time."""
    with running(settings_for(model_dir, pair.url, max_sessions=streams)) as address:
        talkers = [Talker(address, new_session(address)) for _ in range(streams)]
        other, back = new_session(address), []
        for talker in talkers:
            talker.start()
        for number in range(failovers):
            before = [talker.done for talker in talkers]
            wait_until(lambda before=before: all(t.done > was for t, was in zip(talkers, before, strict=True)), 60)
            pair.die() if number % 2 else pair.fail_over()
            pair.address.target = pair.new.port
            began = time.monotonic()
            wait_until(lambda: turn(address, other).status_code == 200)
            back.append(time.monotonic() - began)
            pair.turn_round()
        for talker in talkers:
            talker.over.set()
        for talker in talkers:
            talker.join()
        print(f"{failovers} failovers, back after at most {max(back):.2f} s, {sum(t.done for t in talkers)} turns")
        assert max(back) < BACK
        for talker in talkers:
            assert talker.short == 0
            assert questions(address, talker.session) >= talker.done


def test_turns_that_were_not_replicated_are_told_once(model_dir, pair):
    """Law: where the new primary lacks acknowledged turns, the next request of their session is told so, once, whether
    it ran into it or the server saw it before; then the session goes on as the store has it. A session of which
    nothing was replicated is not found."""
    with running(settings_for(model_dir, pair.url, lease_seconds=1)) as address:
        sessions = [new_session(address) for _ in range(3)]
        before = [turn(address, session).json()["x_megacontext"]["tokens"] for session in sessions]
        pair.replicated()
        pair.promote()
        lost = new_session(address)
        for session in (*sessions[:2], lost):
            assert turn(address, session).status_code == 200
        pair.switch()
        wait_until(lambda: tokens_of(address, sessions[1]) == before[1])  # the server saw it by itself
        for session, tokens in zip(sessions[:2], before, strict=False):
            told = turn(address, session)
            assert (told.status_code, told.json()["error"]["code"]) == (410, "turns_lost")
            assert (tokens_of(address, session), questions(address, session)) == (tokens, 1)
        for session in sessions:
            assert turn(address, session).status_code == 200
            assert questions(address, session) == 2
        wait_until(lambda: turn(address, lost).status_code == 404)
