"""Servers that share a store: one of them writes a session, and another takes over in time, whatever became of it."""

import contextlib
import json
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from mc_core.errors import StoreError
from redis_server import shared_redis
from server.stores import open_store
from support import ForkedServer, ServerThread, free_port, running, settings_for, state_in, wait_until

ASK = {"model": "tiny", "messages": [{"role": "user", "content": "Tell me of the lighthouse"}], "max_tokens": 4}
LONG = {"ignore_eos": True, "stream": True}


@pytest.fixture
def place():
    """The URL of a Redis, in a namespace of its own."""
    return f"{shared_redis().url}?namespace=one-writer-{free_port()}:"


def new_session(address: str) -> str:
    return httpx.post(f"{address}/v1/sessions", json={}).json()["id"]


def turn(address: str, session: str, asks: str = ASK["messages"][0]["content"], **headers: str) -> httpx.Response:
    body = {**ASK, "session_id": session, "messages": [{"role": "user", "content": asks}]}
    return httpx.post(f"{address}/v1/chat/completions", json=body, headers=headers, timeout=60)


def refused(address: str, session: str) -> bool:
    """Whether another server keeps the session, told to a request that does not wait for long."""
    answer = turn(address, session, **{"X-If-Busy": "reject"})
    assert answer.status_code in (200, 409)
    return answer.status_code == 409 and answer.json()["error"]["code"] == "session_in_use"


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


def wrote_meanwhile(paused: ForkedServer, address: str, session: str, before: list[str]) -> None:
    """Another server has written while this one stood still in the middle of a turn: its turn leaves no trace."""
    late = paused_turn(paused, session)
    wait_until(lambda: turn(address, session).status_code == 200)
    paused.send_signal(signal.SIGCONT)
    assert late.ended() == "session_taken_over"
    asked = [*before, ASK["messages"][0]["content"]]
    assert questions(address, session) == asked
    assert turn(address, session).status_code == 200
    assert questions(address, session) == [*asked, asked[-1]]


def paused_turn(server: ForkedServer, session: str) -> Streamed:
    late = Streamed(server.address, session, 400)
    server.send_signal(signal.SIGSTOP)
    return late


def test_a_paused_server_never_writes_again_once_another_one_wrote(model_dir, place):
    """Law (Redis): a server that stood still past its lease finds itself fenced: one history, that of the server which
    took over within seconds, and the late turn's stream ends in an error event."""
    with (
        ForkedServer(model_dir, place, server_name="one", lease_seconds=1) as first,
        running(settings_for(model_dir, place, server_name="two", lease_seconds=1)) as second,
    ):
        session = new_session(first.address)
        assert turn(first.address, session).status_code == 200
        wrote_meanwhile(first, second, session, questions(second, session))


@pytest.mark.slow
def test_a_paused_owner_of_a_file_keeps_it_and_never_writes_beside_another_one(model_dir, tmp_path):
    """Law (SQLite): while the owner stands still nobody opens its file; where the lock does not hold, as on some
    network file systems, the fence does: one history, and the late turn's stream ends in an error event."""
    file = tmp_path / "s.sqlite"
    with ForkedServer(model_dir, file) as first:
        session = new_session(first.address)
        late = paused_turn(first, session)
        with pytest.raises(StoreError, match="in use by another server"):
            open_store(f"sqlite:///{file}")
        first.send_signal(signal.SIGCONT)
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
        assert refused(other, session)
    with running(settings_for(model_dir, place, server_name="one")) as again:
        assert turn(again, session).status_code == 200


@pytest.mark.slow
def test_a_server_that_comes_back_has_its_sessions_at_once(model_dir, place):
    """Law: after kill -9 a server of the same name goes on at once, though the lease has long to live, and a server of
    another name does not."""
    with ForkedServer(model_dir, place, server_name="one", lease_seconds=600) as first:
        session = new_session(first.address)
        assert turn(first.address, session).status_code == 200
        first.stop()
    with running(settings_for(model_dir, place, server_name="two")) as other:
        assert refused(other, session)
        with running(settings_for(model_dir, place, server_name="one")) as again:
            assert turn(again, session).status_code == 200


def test_two_servers_of_one_name_part(model_dir, place):
    """Law: where two servers that run have one name by mistake, one of them soon has another, and no turn is lost."""
    twin = settings_for(model_dir, place, server_name="twin", lease_seconds=1)
    with ServerThread(twin) as first:
        session = new_session(first.address)
        with ServerThread(twin) as second:
            wait_until(lambda: len({state_in(server).host.name for server in (first, second)}) == 2)
            asked = [f"Question {n}" for n in range(6)]
            for n, question in enumerate(asked):
                assert turn((first, second)[n % 2].address, session, question).status_code == 200
            assert questions(first.address, session) == asked


@pytest.fixture
def two_servers(model_dir, place):
    """Addresses of two servers whose leases last for long: nothing below waits for one to lapse."""
    with contextlib.ExitStack() as stack:
        names = [
            settings_for(model_dir, place, server_name=name, lease_seconds=600, max_queue=8) for name in ("one", "two")
        ]
        yield [stack.enter_context(running(settings)) for settings in names]


def test_an_idle_session_goes_to_the_server_that_is_asked(two_servers):
    """Law: a session that nobody uses goes to whichever server is asked for it, at once, with all of its history."""
    session, asked = new_session(two_servers[0]), []
    for n in range(6):
        asked.append(f"Question {n}")
        assert turn(two_servers[n % 2], session, asked[-1]).status_code == 200
    for address in two_servers:
        assert questions(address, session) == asked


def test_a_session_that_was_made_anew_elsewhere_is_no_loss(two_servers):
    """Law: a session that another server deleted, and made anew under its name from an older export, is taken as it
    is: nothing that the first server knew of the old one is missed."""
    first, second = two_servers
    session = new_session(first)
    assert turn(first, session, "Before").status_code == 200
    file = httpx.get(f"{first}/v1/sessions/{session}/export").content
    for n in range(4):
        assert turn(first, session, f"Question {n}").status_code == 200
    assert turn(second, session).status_code == 200
    assert httpx.delete(f"{second}/v1/sessions/{session}").status_code == 200
    assert httpx.post(f"{second}/v1/sessions/import?keep_id=true", content=file).status_code == 201
    assert turn(first, session, "After").status_code == 200
    assert questions(first, session) == ["Before", "After"]


def test_a_session_in_use_goes_to_another_server_afterwards(two_servers):
    """Law: a turn that runs at one server is waited for at the other one, or refused if the request does not wait."""
    first, second = two_servers
    session = new_session(first)
    long = Streamed(first, session, 4000)
    assert refused(second, session)
    answers: list[int] = []
    waiting = threading.Thread(target=lambda: answers.append(turn(second, session, "And now?").status_code))
    waiting.start()
    assert refused(second, session)
    assert not answers
    httpx.post(f"{first}/v1/sessions/{session}/cancel")
    waiting.join(60)
    assert (long.ended(), answers) == ("turn_cancelled", [200])
    assert questions(second, session)[-1] == "And now?"


def test_servers_that_want_one_session_all_get_it(two_servers):
    """Law: however many requests for one session come to both servers at a time, each is answered, and is in the
    history once."""
    session, asked = new_session(two_servers[0]), [f"Question {n}" for n in range(12)]
    with ThreadPoolExecutor(6) as pool:
        answers = pool.map(lambda n: turn(two_servers[n % 2], session, asked[n]).status_code, range(12))
        assert list(answers) == [200] * 12
    assert sorted(questions(two_servers[0], session)) == sorted(asked)


def test_a_stop_hands_over_at_once(model_dir, place):
    """Law: at SIGTERM idle sessions go to other servers at once, though a turn of another one still runs; that one's
    session follows when its turn ended."""
    chosen = {"lease_seconds": 600, "drain_seconds": 60}
    with running(settings_for(model_dir, place, server_name="two")) as second, contextlib.ExitStack() as stack:
        first = stack.enter_context(ServerThread(settings_for(model_dir, place, server_name="one", **chosen)))
        idle, busy = new_session(first.address), new_session(first.address)
        assert turn(first.address, idle).status_code == 200
        late = Streamed(first.address, busy, 4000)
        first.sigterm()
        assert turn(second, idle).status_code == 200
        assert late.is_alive()
        assert refused(second, busy)
        httpx.post(f"{first.address}/v1/sessions/{busy}/cancel")
        assert late.ended() == "turn_cancelled"
        assert turn(second, busy).status_code == 200
