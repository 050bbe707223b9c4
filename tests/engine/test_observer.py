"""What the engine tells its observer."""

from __future__ import annotations

import time

import pytest

from engine_lab import Lab, random_ids
from mc_core.engine.observer import RefocusTrace, SilentObserver


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> tuple[list[RefocusTrace], list[float]]:
    traces: list[RefocusTrace] = []
    waits: list[float] = []
    monkeypatch.setattr(SilentObserver, "refocused", lambda _, trace: traces.append(trace))
    monkeypatch.setattr(SilentObserver, "queued", lambda _, request_id, seconds: waits.append(seconds))
    return traces, waits


def test_the_parts_of_a_refocus_follow_each_other(lab: Lab, told: tuple[list[RefocusTrace], list[float]]) -> None:
    """Plan (lens, then allocator), restore, hops of a turn, repair, evict: one after the other, without a gap."""
    began = time.time()
    lab.ask(lab.session("a", 2_000), random_ids(40), 70)
    traces, waits = told
    assert len(waits) == 1
    assert [trace.reason for trace in traces] == ["turn", "interval", "interval"]
    for trace in traces:
        parts = trace.parts
        ends = {name: part.start + part.seconds for name, part in parts.items()}
        order = ["plan", "restore", *(["follow"] if trace.reason == "turn" else []), "kv_repair", "evict"]
        starts = [parts[name].start for name in order]
        assert starts == pytest.approx([0.0, *(ends[name] for name in order[:-1])], abs=1e-9)
        assert 0 <= parts["lens"].start <= ends["lens"] <= parts["allocate"].start + 1e-9
        assert ends["allocate"] <= ends["plan"]
        assert trace.seconds == ends["evict"]
        assert began <= trace.started <= time.time()


def test_gist_calls_are_counted_once(lab: Lab, told: tuple[list[RefocusTrace], list[float]]) -> None:
    """Each refocus tells the GistNet calls since the one before: those of the ingest, of the prompt, of each block."""
    session = lab.session("a", 64 * 32)
    lab.ask(session, random_ids(64), 70)
    calls = [trace.gist_calls for trace in told[0]]
    assert calls[0] >= 3
    assert calls[1:] == [1, 1]
    assert session.gist_calls >= 0
