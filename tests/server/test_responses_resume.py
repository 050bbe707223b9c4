"""Streams of responses that break off anywhere, and go on; responses that outlive their server."""

from __future__ import annotations

import random
from contextlib import suppress
from pathlib import Path
from typing import Any

import openai
import pytest

from support import ForkedServer, running, settings_for, wait_until

LETTERS = {"67": 100, "68": 100, "69": 100}
"""Letters alone: their text is their tokens."""
GREEDY: dict[str, Any] = {
    "model": "tiny",
    "temperature": 0,
    "extra_body": {"ignore_eos": True, "logit_bias": LETTERS},
}


def client_of(address: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=5, timeout=120)


def taken(stream: Any, count: int) -> list[dict[str, Any]]:
    """At most so many events; then the client leaves."""
    told: list[dict[str, Any]] = []
    with stream:
        for event in stream:
            told.append(event.to_dict())
            if len(told) == count:
                break
    return told


def told_in_parts(client: openai.OpenAI, rng: random.Random, first: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """All events of a response whose stream breaks off at random places, each time gone on with where it did."""
    told, id = first, first[0]["response"]["id"]
    while told[-1]["type"] not in ("response.completed", "response.incomplete", "response.failed"):
        after = told[-1]["sequence_number"]
        told += taken(client.responses.retrieve(id, stream=True, starting_after=after), rng.randint(1, 12))
    return told


def interrupted(client: openai.OpenAI, rounds: int) -> None:
    """So many responses in the background, each streamed in parts, are those that were never interrupted."""
    rng, wholes = random.Random(3), {}
    for number in range(rounds):
        asked, limit = f"Tell me of tower {number % 5}", rng.choice((4, 17, 30))
        key = (asked, limit)
        if key not in wholes:
            wholes[key] = client.responses.create(input=asked, max_output_tokens=limit, **GREEDY).output_text
        stream = client.responses.create(input=asked, max_output_tokens=limit, background=True, stream=True, **GREEDY)
        told = told_in_parts(client, rng, taken(stream, rng.randint(1, 12)))
        assert [event["sequence_number"] for event in told] == list(range(len(told)))
        text = "".join(event["delta"] for event in told if event["type"] == "response.output_text.delta")
        assert text == wholes[key]
        assert told[-1]["response"] == client.responses.retrieve(told[0]["response"]["id"]).to_dict()


def test_interrupted_streams_tell_the_same_text(model_dir: Path, tmp_path: Path) -> None:
    """A stream that breaks off at random places and goes on behind its last event is the uninterrupted one."""
    with running(settings_for(model_dir, tmp_path / "s.sqlite", max_queue=8)) as address, client_of(address) as client:
        interrupted(client, 12)


def test_a_response_whose_session_cannot_be_read_is_not_told_as_queued(model_dir: Path, tmp_path: Path) -> None:
    """Who waits for one that was under way, as its server ended, is told by one of another block size that it will not
    go on there; it can be forgotten."""
    store = tmp_path / "s.sqlite"
    with running(settings_for(model_dir, store, drain_seconds=0.01)) as address, client_of(address) as client:
        id = client.responses.create(input="Go on", max_output_tokens=900, background=True, **GREEDY).id
    with running(settings_for(model_dir, store, block_size=16)) as address, client_of(address) as client:
        once = client.with_options(max_retries=0)
        for ask in (once.responses.retrieve, once.responses.cancel):
            with pytest.raises(openai.ConflictError) as refused:
                ask(id)
            assert refused.value.code == "session_mismatch"
        client.responses.delete(id)
        with pytest.raises(openai.NotFoundError):
            once.responses.retrieve(id)


@pytest.mark.slow
def test_two_hundred_interrupted_streams_tell_the_same_text(model_dir: Path, tmp_path: Path) -> None:
    """The same law, two hundred times."""
    with running(settings_for(model_dir, tmp_path / "s.sqlite", max_queue=8)) as address, client_of(address) as client:
        interrupted(client, 200)


class Lives:
    """A server that is killed with -9 now and then, while it streams, and started again on what it left."""

    def __init__(self, model: Path, store: Path) -> None:
        self._model, self._store, self.kills, self.under_way = model, store, 0, 0
        self._begin()

    def _begin(self) -> None:
        self._server = ForkedServer(self._model, self._store, max_queue=8).__enter__()
        self.client = client_of(self._server.address)

    def broken_off(self, stream: Any, count: int, kill: bool) -> list[dict[str, Any]]:
        """What a client has of a stream that breaks off behind some events, as it leaves or as the server is killed."""
        if not kill:
            return taken(stream, count)
        told: list[dict[str, Any]] = []
        with suppress(Exception), stream:  # the client's own words for a connection that broke
            for event in stream:
                told.append(event.to_dict())
                if len(told) == count:
                    self._server.stop()
        if len(told) < count:
            self._server.stop()
        self.end()
        self._begin()
        self.kills += 1
        return told

    def end(self) -> None:
        self.client.close()
        self._server.__exit__()


@pytest.mark.slow
def test_two_hundred_interruptions_with_kills_among_them_tell_the_same_text(model_dir: Path, tmp_path: Path) -> None:
    """Streams that break off two hundred times, each tenth time by kill -9 of the server, and go on behind the last
    event that came, tell the text of an uninterrupted response, byte for byte, and each event once."""
    rng, wholes, interruptions, responses = random.Random(5), dict[str, str](), 0, 0
    lives = Lives(model_dir, tmp_path / "s.sqlite")
    long: dict[str, Any] = {**GREEDY, "max_output_tokens": 120}
    try:
        while interruptions < 200:
            asked = f"Tell me of tower {responses % 5}"
            if asked not in wholes:
                wholes[asked] = lives.client.responses.create(input=asked, **long).output_text
            stream = lives.client.responses.create(input=asked, background=True, stream=True, **long)
            told, id = list[dict[str, Any]](), ""
            while not told or told[-1]["type"] != "response.incomplete":
                if told:
                    after = told[-1]["sequence_number"]
                    stream = lives.client.responses.retrieve(id, stream=True, starting_after=after)
                interruptions += 1
                kill = interruptions % 10 == 0
                told += lives.broken_off(stream, rng.randint(1, 25), kill)
                id = told[0]["response"]["id"]
                if kill:
                    lives.under_way += lives.client.responses.retrieve(id).status != "incomplete"
            responses += 1
            assert [event["sequence_number"] for event in told] == list(range(len(told)))
            text = "".join(event["delta"] for event in told if event["type"] == "response.output_text.delta")
            assert text.encode() == wholes[asked].encode()
            assert told[-1]["response"] == lives.client.responses.retrieve(id).to_dict()
        print(
            f"{interruptions} interruptions of {responses} responses, {lives.kills} kills, {lives.under_way} under way"
        )
        assert lives.kills >= 20
        assert lives.under_way >= 5
    finally:
        lives.end()


def test_responses_outlive_kill_nine(model_dir: Path, tmp_path: Path) -> None:
    """After kill -9 every acknowledged id goes on: an ended one is as it was and is followed, one under way is begun
    anew, and its stream goes on behind the last event that had been told before; a conversation has its items."""
    store = tmp_path / "s.sqlite"
    long: dict[str, Any] = {**GREEDY, "max_output_tokens": 300}
    with ForkedServer(model_dir, store) as server, client_of(server.address) as client:
        ended = client.responses.create(input="Hello", max_output_tokens=5, **GREEDY)
        talk = client.conversations.create(items=[{"role": "user", "content": "Hi"}]).id
        client.responses.create(conversation=talk, input="Hello", max_output_tokens=5, **GREEDY)
        items = client.conversations.items.list(talk).data
        assert len(items) == 3
        plain = client.responses.create(input="Go on", previous_response_id=ended.id, store=False, **long)
        stream = client.responses.create(
            input="Go on", previous_response_id=ended.id, background=True, stream=True, **long
        )
        told = taken(stream, 9)
        server.stop()
    with ForkedServer(model_dir, store) as server, client_of(server.address) as client:
        assert client.responses.retrieve(ended.id).to_dict() == ended.to_dict()
        assert client.conversations.items.list(talk).data == items
        whole = told_in_parts(client, random.Random(4), told)
        assert [event["sequence_number"] for event in whole] == list(range(len(whole)))
        text = "".join(event["delta"] for event in whole if event["type"] == "response.output_text.delta")
        assert text == plain.output_text
        id = told[0]["response"]["id"]
        wait_until(lambda: client.responses.retrieve(id).status == "incomplete")
        for before in (ended.id, id):
            after = client.responses.create(input="And?", previous_response_id=before, max_output_tokens=3, **GREEDY)
            assert after.output_text
