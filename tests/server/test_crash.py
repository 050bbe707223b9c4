"""kill -9 at any moment: what was acknowledged is there after the restart, and the sessions go on."""

import json
import random
import threading

import httpx
import pytest

from support import ForkedServer

SESSIONS = 3
# Letters alone: what random weights write is often no UTF-8, and is put right with the next turn, in other tokens.
LETTERS = {"67": 100, "68": 100, "69": 100}
FIELDS = {"model": "tiny", "stream": True, "max_tokens": 12, "ignore_eos": True, "logit_bias": LETTERS}
ASK = [{"role": "user", "content": "Tell me of the lighthouse"}]


class Talker(threading.Thread):
    """Turns on one session, one after the other, until the server is gone; remembers what was acknowledged."""

    def __init__(self, address, session, tokens):
        super().__init__()
        self.address, self.session, self.tokens, self.turns = address, session, tokens, 0

    def run(self):
        with httpx.Client(base_url=self.address, timeout=30) as http:
            try:
                while True:
                    self.tokens = self.turn(http)
                    self.turns += 1
            except httpx.TransportError:
                return

    def turn(self, http):
        """Tokens of the history when the stream's last event had come."""
        body = {**FIELDS, "messages": ASK, "session_id": self.session}
        with http.stream("POST", "/v1/chat/completions", json=body) as stream:
            assert stream.status_code == 200
            data = [line.removeprefix("data: ") for line in stream.iter_lines() if line.startswith("data: ")]
        if data[-1:] != ["[DONE]"]:
            raise httpx.ReadError("the stream broke off")
        return json.loads(data[-2])["x_megacontext"]["tokens"]


def turn_size(address):
    """Tokens that each turn after the first adds to a history."""
    session = httpx.post(f"{address}/v1/sessions", json={}).json()["id"]
    talker = Talker(address, session, 0)
    with httpx.Client(base_url=address, timeout=30) as http:
        sizes = [talker.turn(http) for _ in range(3)]
    first, second, third = sizes
    assert third - second == second - first
    return third - second, first


def crashes(model_dir, folder, rounds):
    """Kill the server ``rounds`` times under streams; check each restart -> acknowledged turns."""
    rng = random.Random(5)
    known, acknowledged, size, first = {}, 0, 0, 0
    for number in range(rounds + 1):
        with ForkedServer(model_dir, folder / "s.sqlite", max_sessions=SESSIONS, hot_tokens=256) as server:
            if not number:
                size, first = turn_size(server.address)
                names = [httpx.post(f"{server.address}/v1/sessions", json={}).json()["id"] for _ in range(SESSIONS)]
                known = dict.fromkeys(names, 0)
            for name, tokens in known.items():
                restored = httpx.get(f"{server.address}/v1/sessions/{name}").json()["tokens"]
                # The turn under way may have been stored and not yet told; it is there whole or not at all.
                assert restored in (tokens, tokens + (size if tokens else first))
                focus = httpx.get(f"{server.address}/v1/sessions/{name}/focus").json()
                assert sum(entry["end"] - entry["start"] for entry in focus["entries"]) == restored
                known[name] = restored
            talkers = [Talker(server.address, name, tokens) for name, tokens in known.items()]
            for talker in talkers:
                talker.start()
            threading.Event().wait(rng.uniform(0.05, 1.0))
            server.stop()
            for talker in talkers:
                talker.join()
                known[talker.session] = talker.tokens
                acknowledged += talker.turns
    return acknowledged


def test_kill_nine_loses_no_acknowledged_turn(model_dir, tmp_path):
    """Every turn whose last event was sent is there after kill -9, none is half there, and the next turn works."""
    assert crashes(model_dir, tmp_path, 3) > 0


@pytest.mark.slow
def test_kill_nine_twenty_times(model_dir, tmp_path):
    """The same law, twenty times at random moments."""
    assert crashes(model_dir, tmp_path, 20) > 20
