"""Streams: alive from the first moment, honest about how they end, and gone at once when nobody listens."""

import asyncio
import concurrent.futures
import contextlib
import json
import threading
import time

import httpx
import pytest

from mc_core.engine.requests import ContextReport, Delta, Failed, Finished, Usage
from mc_core.errors import StoreError
from server.apis.chat.format import ChatFormat
from server.streaming.choice import Choice
from server.streaming.pieces import PlainReader
from server.streaming.response import TurnResponse
from server.streaming.turn_stream import TurnStream
from support import gauge, running, settings_for, wait_until

MODEL = "tiny"
ASK = [{"role": "user", "content": "Tell me of the lighthouse"}]
ENDLESS = {"model": MODEL, "messages": ASK, "stream": True, "max_tokens": 10**6, "ignore_eos": True}


@pytest.fixture
def server(model_dir, tmp_path):
    """One slab and one place in the queue."""
    with running(settings_for(model_dir, tmp_path / "s.sqlite", max_sessions=1, max_queue=1)) as address:
        yield address


@contextlib.contextmanager
def endless(address):
    """A stream that runs until the block ends -> its lines."""
    with httpx.stream("POST", f"{address}/v1/chat/completions", json=ENDLESS, timeout=60) as stream:
        lines = stream.iter_lines()
        assert stream.status_code == 200
        while not next(lines).startswith("data: "):
            pass
        next(lines), next(lines)
        yield lines


def idle(address):
    return gauge(address, "megacontext_slabs_free") == 1 and gauge(address, "megacontext_turns_running") == 0


def test_a_disconnect_frees_the_slab(server):
    """When the client of a stream goes away, the next turn has the slab at once."""
    with endless(server):
        assert gauge(server, "megacontext_turns_running") == 1
        assert gauge(server, "megacontext_slabs_free") == 0
    began = time.monotonic()
    wait_until(lambda: idle(server), 5)
    assert time.monotonic() - began < 2
    # Nothing of the broken turn is history.
    wait_until(lambda: httpx.get(f"{server}/v1/sessions").json()["data"] == [])


def test_a_disconnect_of_a_plain_request_frees_the_slab(server):
    """A client that gives up waiting for a whole reply frees the slab too."""
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{server}/v1/chat/completions", json={**ENDLESS, "stream": False}, timeout=0.5)
    wait_until(lambda: idle(server), 5)


def test_keep_alive_while_queued_and_429_when_full(server):
    """A queued stream has headers and comments at once; one more is answered 429 with Retry-After; then it runs."""
    short = {**ENDLESS, "max_tokens": 4}
    with contextlib.ExitStack() as stack:
        running_stream = contextlib.ExitStack()
        running_stream.enter_context(endless(server))
        began = time.monotonic()
        queued = stack.enter_context(httpx.stream("POST", f"{server}/v1/chat/completions", json=short, timeout=60))
        lines = queued.iter_lines()
        comments = 0
        while comments < 4:
            comments += next(lines) == ": keep-alive"
        assert time.monotonic() - began < 5
        wait_until(lambda: gauge(server, "megacontext_turns_waiting") == 1)
        full = httpx.post(f"{server}/v1/chat/completions", json=short)
        assert full.status_code == 429
        assert int(full.headers["retry-after"]) >= 1
        assert full.json()["error"]["code"] == "queue_full"
        running_stream.close()
        rest = [line for line in lines if line.startswith("data: ")]
        assert rest[-1] == "data: [DONE]"


def test_a_queued_client_that_leaves_makes_room(server):
    """A disconnect in the queue, also of a turn that waits for its session, frees its place at once."""
    session = httpx.post(f"{server}/v1/sessions", json={}).json()["id"]
    held = {**ENDLESS, "session_id": session}
    with httpx.stream("POST", f"{server}/v1/chat/completions", json=held, timeout=60) as stream:
        lines = stream.iter_lines()  # Kept: when the iterator goes, httpx closes the connection.
        next(lines)
        for _ in range(3):
            # Waits for the session, which the first one holds.
            with httpx.stream("POST", f"{server}/v1/chat/completions", json=held, timeout=60) as waiting:
                assert waiting.status_code == 200
                assert httpx.post(f"{server}/v1/chat/completions", json=held).status_code == 429
            time.sleep(0.2)
    wait_until(lambda: idle(server), 5)


def test_deleting_a_session_stops_its_stream(server):
    """A deleted session's stream ends with an error event that says so, and the session is gone."""
    session = httpx.post(f"{server}/v1/sessions", json={}).json()["id"]
    with httpx.stream("POST", f"{server}/v1/chat/completions", json={**ENDLESS, "session_id": session}) as stream:
        lines = stream.iter_lines()
        next(line for line in lines if line.startswith("data: "))
        assert httpx.delete(f"{server}/v1/sessions/{session}").status_code == 200
        rest = [line for line in lines if line]
    assert rest[-2] == "event: error"
    assert json.loads(rest[-1].removeprefix("data: "))["error"]["code"] == "session_not_found"
    assert httpx.get(f"{server}/v1/sessions/{session}").status_code == 404
    wait_until(lambda: idle(server), 5)


def test_focus_can_be_watched_while_a_stream_runs(server):
    """/focus answers during a turn, and tiles the history of that moment."""
    with endless(server):
        session = httpx.get(f"{server}/v1/sessions").json()["data"][0]["id"]
        for _ in range(5):
            focus = httpx.get(f"{server}/v1/sessions/{session}/focus").json()
            assert sum(entry["end"] - entry["start"] for entry in focus["entries"]) == focus["tokens"]
            assert focus["cost"] <= focus["budget"]


def test_many_streams_and_disconnects_leak_nothing(model_dir, tmp_path):
    """Streams that end in every way, many at once, leave all slabs free and the server working."""
    settings = settings_for(model_dir, tmp_path / "s.sqlite", max_sessions=3, max_queue=40)
    with running(settings) as address:

        def one(i):
            body = {**ENDLESS, "max_tokens": 10 + i}
            with httpx.stream("POST", f"{address}/v1/chat/completions", json=body, timeout=60) as stream:
                for count, _ in enumerate(stream.iter_lines()):
                    if i % 3 == 0 and count > i:
                        return "left"
            return "done"

        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            ends = list(pool.map(one, range(40)))
        assert set(ends) == {"left", "done"}
        wait_until(lambda: gauge(address, "megacontext_slabs_free") == 3, 10)
        assert gauge(address, "megacontext_turns_running") == gauge(address, "megacontext_turns_waiting") == 0


# -- the response by itself --------------------------------------------------------------------------------------------


class Client:
    """An ASGI client: collects what is sent, and can go away."""

    def __init__(self):
        self.sent, self.gone = [], asyncio.Event()

    async def receive(self):
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message):
        self.sent.append(message)

    def lines(self):
        return b"".join(message.get("body", b"") for message in self.sent).decode().splitlines()


def response_of(stream, keep_alive=10.0):
    form = ChatFormat("chatcmpl-1", 1, MODEL, tokenizer=None, include_usage=True)
    return TurnResponse([Choice(stream, form, PlainReader())], keep_alive=keep_alive)


async def test_a_failed_stream_ends_with_an_error_event():
    """A turn that fails midway ends with one error event: no finish reason, no usage, no [DONE]."""
    seen = []
    stream, client = TurnStream(observe=lambda event, when: seen.append(event)), Client()
    stream.put(Delta("Once", (5,)))
    stream.put(Failed(StoreError("disk full at /secret/path")))
    await response_of(stream)({}, client.receive, client.send)
    lines = [line for line in client.lines() if line]
    assert lines[-2] == "event: error"
    error = json.loads(lines[-1].removeprefix("data: "))["error"]
    assert (error["code"], "secret" in error["message"]) == ("store_error", False)
    assert not any('"finish_reason":"' in line or "[DONE]" in line for line in lines)
    assert [type(event) for event in seen] == [Delta, Failed]


async def test_a_stream_that_cannot_be_written_ends_with_an_error_event():
    """What fails while a stream is written is told to its client, who never gets a short stream; what fails while it is
    measured is told to nobody."""

    def unmeasured(event, when):
        raise RuntimeError("a metric")

    class Unwritten(ChatFormat):
        def piece(self, piece, logprobs):
            raise RuntimeError("a piece")

    for kind, last in ((ChatFormat, "data: [DONE]"), (Unwritten, "error")):
        stream, client = TurnStream(observe=unmeasured), Client()
        stream.put(Delta("Once", (5,)))
        stream.put(Finished("stop", Usage(3, 1, 0), ContextReport()))
        form = kind("chatcmpl-1", 1, MODEL, tokenizer=None, include_usage=True)
        await TurnResponse([Choice(stream, form, PlainReader())], keep_alive=10.0)({}, client.receive, client.send)
        lines = [line for line in client.lines() if line]
        assert lines[-1] == last or (lines[-2] == "event: error" and "internal_error" in lines[-1])
        assert client.sent[-1] == {"type": "http.response.body", "body": b"", "more_body": False}


async def test_done_comes_after_finished_alone():
    """[DONE] is written when the turn is Finished, which is after the store's acknowledgement, and not before."""
    stream, client = TurnStream(), Client()
    task = asyncio.create_task(response_of(stream)({}, client.receive, client.send))
    stream.put(Delta("Once", (5,)))
    await asyncio.sleep(0.05)
    assert "data: [DONE]" not in client.lines()
    stream.put(Finished("stop", Usage(3, 1, 0), ContextReport()))
    await task
    assert client.lines()[-2] == "data: [DONE]"
    assert client.sent[-1] == {"type": "http.response.body", "body": b"", "more_body": False}


async def test_keep_alive_fills_silence():
    """A comment is there at once, and again whenever nothing came for the set time."""
    stream, client = TurnStream(), Client()
    task = asyncio.create_task(response_of(stream, keep_alive=0.02)({}, client.receive, client.send))
    await asyncio.sleep(0.2)
    assert client.lines().count(": keep-alive") >= 4
    client.gone.set()
    await asyncio.wait_for(task, 1)


async def test_a_response_that_never_begins_cancels_its_turn():
    """A client that is gone before the first byte, or whose connection breaks, still stops the turn."""

    class Broken(Client):
        async def send(self, message):
            raise OSError("broken pipe")

    for client in (Client(), Broken()):
        stream, stopped = TurnStream(), threading.Event()
        stream.stops_with(stopped.set)
        client.gone.set()
        await asyncio.wait_for(response_of(stream)({}, client.receive, client.send), 1)
        assert stopped.is_set()


async def test_a_reader_that_never_reads_loses_its_turn():
    """Events that nobody reads are bounded in number: the turn is stopped."""
    stream, stopped = TurnStream(), threading.Event()
    stream.stops_with(stopped.set)
    for _ in range(20_000):
        stream.put(Delta("x", (1,)))
    assert stopped.is_set()
