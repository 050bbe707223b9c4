"""Exceptions anywhere under many streams: each stream ends and says how, and nothing but its own turn suffers."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest

from faulty import METHODS, WRITES, Faults
from server.streaming.turn_stream import TurnStream
from server.telemetry.metrics import TurnWatch
from support import ServerThread, gauge, running, settings_for, state_in, wait_until

STREAMS, SLABS = 8, 3
STORE_CALLS = ("open", "notes", "read_spans")
OBSERVED = ("queued", "decoded", "refocused")
ODDS = {
    **dict.fromkeys((seam for *_, seam in METHODS), 0.02),
    **dict.fromkeys((f"store.{name}{end}" for name in WRITES for end in ("", ".future")), 0.02),
    **dict.fromkeys((f"store.{name}.future" for name in STORE_CALLS), 0.05),
    **dict.fromkeys((f"observer.{name}" for name in OBSERVED), 0.01),
    **dict.fromkeys(("forward", "gistnet"), 0.02),
    **dict.fromkeys(("decode", "sampler", "watch"), 0.005),
    **dict.fromkeys(("decode.batch", "sampler.batch"), 0.05),
    "lens.rewind": 0.1,
}
"""By seam, so that about half of all turns fail."""


class Talker(threading.Thread):
    """Streams turns in a session of its own until told to stop: what it was told is stored, and how turns ended."""

    def __init__(self, address: str, session: str, over: threading.Event) -> None:
        super().__init__(daemon=True)
        self.address, self.session, self.over = address, session, over
        self.stored: list[str] = []
        self.ends: list[str] = []
        self.failure: Exception | None = None

    def run(self) -> None:
        try:
            while not self.over.is_set():
                self.ends.append(self.turn())
        except Exception as error:
            self.failure = error

    def turn(self) -> str:
        """How it ended: done, the code of its error, or short."""
        question = f"Turn {len(self.ends)}: who lit the lighthouse?"
        messages = [{"role": "user", "content": question}]
        body = {"model": "tiny", "messages": messages, "session_id": self.session, "stream": True, "max_tokens": 40}
        url = f"{self.address}/v1/chat/completions"
        with httpx.stream("POST", url, json={**body, "ignore_eos": True}, timeout=60) as answer:
            if answer.status_code != 200:
                answer.read()
                return str(answer.json()["error"]["code"])
            lines = [line for line in answer.iter_lines() if line and not line.startswith(":")]
        if lines[-1] == "data: [DONE]":
            self.stored.append(question)
            return "done"
        return str(json.loads(lines[-1][6:])["error"]["code"]) if lines[-2:-1] == ["event: error"] else "short"


def install(faults: Faults, server: ServerThread, patch: pytest.MonkeyPatch) -> None:
    state = state_in(server)
    faults.install(state.engine.core, patch)
    for name in STORE_CALLS:
        patch.setattr(state.store, name, faults.refused(f"store.{name}.future", getattr(state.store, name)))
    for name in OBSERVED:
        patch.setattr(state.metrics, name, faults.before(f"observer.{name}", getattr(state.metrics, name)))
    patch.setattr(TurnWatch, "__call__", faults.before("watch", TurnWatch.__call__))


@pytest.mark.parametrize("count", [20, pytest.param(500, marks=pytest.mark.slow)])
def test_every_stream_ends_whatever_fails(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """Law: exceptions at random in forward, decode, observers, rollback, refocus, sinks and the store under eight
    streams end each stream with [DONE] or one error; then every slab is free, the engine lives, and each session holds
    exactly the turns that were acknowledged and goes on, here and in the next server."""
    faults, over = Faults(), threading.Event()
    chosen = {"max_sessions": SLABS, "max_queue": STREAMS, "hot_tokens": 64}
    with ServerThread(settings_for(model_dir, tmp_path / "s.sqlite", **chosen)) as server:
        install(faults, server, monkeypatch)
        with httpx.Client(base_url=server.address, timeout=60) as http:
            sessions = [http.post("/v1/sessions", json={}).json()["id"] for _ in range(STREAMS)]
        talkers = [Talker(server.address, session, over) for session in sessions]
        faults.at_random(1, ODDS)
        for talker in talkers:
            talker.start()
        wait_until(lambda: faults.injected.total() >= count or any(t.failure for t in talkers), 600)
        faults.chance = lambda seam: False
        over.set()
        for talker in talkers:
            talker.join(60)
            assert not talker.is_alive()
            assert talker.failure is None, talker.failure
        wait_until(lambda: gauge(server.address, "megacontext_slabs_free") == SLABS)
        assert httpx.get(f"{server.address}/health").json() == {"status": "ok"}
        ends = {end for talker in talkers for end in talker.ends}
        assert "short" not in ends
        assert "done" in ends
        for talker in talkers:
            assert talker.turn() == "done"
            check(server.address, talker)
        turns = sum(len(talker.ends) for talker in talkers)
        print(f"{faults.injected.total()} faults at {len(faults.injected)} seams in {turns} turns: {sorted(ends)}")
    with running(settings_for(model_dir, tmp_path / "s.sqlite", **chosen)) as address:
        for talker in talkers:
            check(address, talker)
            talker.address = address
            assert talker.turn() == "done"


def check(address: str, talker: Talker) -> None:
    """The server has the turns that were acknowledged, in their order, and none besides."""
    found: dict[str, Any] = httpx.get(f"{address}/v1/sessions/{talker.session}/messages?limit=1000").json()
    assert [one["content"] for one in found["data"] if one["role"] == "user"] == talker.stored


async def test_who_watches_a_turn_keeps_no_event_from_its_reader() -> None:
    """Law: where the measuring of a turn fails, its reader still gets the event, the last one too."""

    def fails(event: object) -> None:
        raise RuntimeError("a metric")

    from mc_core.engine.requests import Failed

    stream = TurnStream(fails)
    with pytest.raises(RuntimeError):
        stream.sink(Failed(ValueError("the turn")))
    assert isinstance(await stream.over(), Failed)
