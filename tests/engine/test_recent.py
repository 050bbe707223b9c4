"""What left the slabs lately, through the engine: sessions that take each other's slab, rewinds, and the end of one."""

from __future__ import annotations

from engine_lab import Lab, MakeLab, Reply, random_ids
from mc_core.engine.engine_config import EngineConfig
from mc_core.engine.observer import RefocusTrace, SilentObserver

TURNS = 4


def one_slab(recent_kv_bytes: int) -> EngineConfig:
    return EngineConfig(max_sessions=1, recent_kv_bytes=recent_kv_bytes)


def in_turn(lab: Lab, name: str) -> list[Reply]:
    """Two sessions with one slab between them, asked in turn."""
    sessions = [lab.session(f"{name}-{seed}", 900, seed) for seed in range(2)]
    return [lab.ask(sessions[turn % 2], random_ids(20, turn), 40) for turn in range(2 * TURNS)]


class Traces(SilentObserver):
    def __init__(self) -> None:
        self.of: list[RefocusTrace] = []

    def refocused(self, trace: RefocusTrace) -> None:
        self.of.append(trace)


def test_replies_are_the_same_and_woken_sessions_compute_less(make_lab: MakeLab) -> None:
    """With the cache on, the tokens are those without it, and what a woken session held is not computed again."""
    without, kept = Traces(), Traces()
    with make_lab(one_slab(0), observer=without) as lab:
        plain = in_turn(lab, "without")
        assert lab.engine.stats().kv_recent_bytes == 0
    with make_lab(one_slab(1 << 30), observer=kept) as lab:
        replies = in_turn(lab, "with")
        assert lab.engine.stats().kv_recent_bytes > 0
    assert [reply.ids for reply in replies] == [reply.ids for reply in plain]
    assert not any(trace.kv_restored for trace in without.of)
    for here, there in zip(kept.of, without.of, strict=True):
        assert here.kv_recomputed + here.kv_restored == there.kv_recomputed
        assert here.kv_sought == there.kv_sought >= here.kv_restored
    woken = [trace for trace in kept.of if trace.reason == "turn"][2:]
    assert all(trace.kv_restored >= lab.bundle.block_size for trace in woken)


def test_other_ways_of_repair_keep_nothing(make_lab: MakeLab) -> None:
    """Where keys and values depend on what stood before them, none are kept for another place."""
    for repair in ("exact", "incremental"):
        with make_lab(one_slab(1 << 30), repair=repair) as lab:
            in_turn(lab, repair)
            assert lab.engine.stats().kv_recent_bytes == 0


def test_it_is_dropped_with_its_session_and_with_what_a_rewind_cuts(make_lab: MakeLab) -> None:
    """A session that leaves memory takes its part along; a rewind leaves nothing of what it cut off."""
    with make_lab(one_slab(1 << 30)) as lab:
        a, b = lab.session("a", 900), lab.session("b", 900, 1)
        for session in (a, b, a):
            lab.ask(session, random_ids(9), 8)
        assert b.shelf is not None
        assert b.shelf.kept
        lab.engine.rewind(b, 40).result()
        assert all(kept.end <= 40 for kept in b.shelf.kept.values())
        lab.ask(b, random_ids(9), 8)
        lab.engine.release(a).result()
        lab.engine.release(b).result()
        assert lab.engine.stats().kv_recent_bytes == 0
