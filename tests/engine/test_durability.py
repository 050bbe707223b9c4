"""Sessions that leave memory and come back; spans that leave memory and come back."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import numpy as np
import pytest

from engine_lab import Lab, MakeLab, random_ids
from mc_core.engine.engine_config import EngineConfig
from mc_core.errors import ConfigError, StoreError
from mc_core.session.session import Session

HOT = EngineConfig(max_sessions=2, hot_tokens=128)


def needle(seed: int) -> np.ndarray:
    """Tokens that stand nowhere else in a history of ``plain`` ids."""
    return np.random.default_rng(seed).integers(300, 380, 24).astype(np.int32)


def plain(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(3, 300, count).astype(np.int32)


def with_needle(lab: Lab, name: str, at: int, count: int = 20_000) -> Session:
    """A session whose history holds a needle at token ``at``."""
    ids = plain(count)
    ids[at : at + 24] = needle(1)
    session = lab.session(name)
    lab.engine.ingest(session, ids).result()
    lab.engine.commit(session).result()
    return session


def test_a_restored_session_goes_on_as_if_it_had_stayed(lab: Lab) -> None:
    """Working context, counters and the next reply of a session that was stored and loaded equal a live one's."""
    live, other = lab.session("a", 5_000), lab.session("b", 5_000)
    assert lab.ask(live, random_ids(40, 1), 70).ids == lab.ask(other, random_ids(40, 1), 70).ids
    lab.engine.release(other).result()
    restored = lab.reopen("b")
    assert restored.wc.snapshot() == live.wc.snapshot()
    assert restored.counters == live.counters
    assert restored.committed_tokens == live.committed_tokens == restored.tokens
    for seed in (2, 3):
        assert lab.ask(restored, random_ids(11, seed), 150).ids == lab.ask(live, random_ids(11, seed), 150).ids


def test_what_was_not_committed_is_gone_after_a_restart(lab: Lab) -> None:
    """Ingested tokens count only once they are committed."""
    session = lab.session("a", 1_000)
    lab.engine.ingest(session, random_ids(5_000, 1)).result()
    restored = lab.reopen("a")
    assert restored.tokens == 1_000
    restored.wc.check()


def test_a_rollback_takes_back_an_uncommitted_ingest(make_lab: MakeLab) -> None:
    """A rollback needs nothing from the store, even when everything old was evicted in between."""
    with make_lab(HOT) as lab:
        session = lab.session("a", 1_000)
        before = lab.ask(lab.session("twin", 1_000), random_ids(9), 20).ids
        lab.engine.ingest(session, random_ids(100_000, 1)).result()
        lab.engine.rollback(session).result()
        assert session.tokens == 1_000
        assert lab.ask(session, random_ids(9), 20).ids == before


def test_evicted_spans_come_back_when_the_focus_needs_them(make_lab: MakeLab) -> None:
    """A question about an evicted block brings its ids back from the store, and the block stands raw."""
    with make_lab(HOT) as lab:
        session = with_needle(lab, "a", 7_000)
        assert session.tree.hot_bytes()["ids"] < 20_000 * 4
        reply = lab.ask(session, needle(1), 1)
        assert reply.finished is not None
        assert reply.finished.context.spans_fetched > 0
        assert reply.finished.context.unavailable == 0
        assert {7_000 // 32, 7_023 // 32} <= set(session.raw_blocks().tolist())
        np.testing.assert_array_equal(session.tree.ids(7_000, 7_024), needle(1))


def test_a_corrupt_span_is_counted_and_its_gist_stays(make_lab: MakeLab, tmp_path: Path) -> None:
    """Nothing is invented for a span that the store can't give: it is reported unavailable, and the turn goes on."""
    with make_lab(HOT) as lab:
        session = with_needle(lab, "a", 7_008)
        damage(tmp_path / "lab.sqlite", needle(1)[:24])
        reply = lab.ask(session, needle(1), 1)
        assert reply.finished is not None
        assert reply.finished.context.unavailable >= 32
        assert session.counters.spans_corrupt + session.counters.spans_missing >= 1
        assert 7_008 // 32 not in session.raw_blocks().tolist()
        session.wc.check()


def damage(path: Path, ids: np.ndarray) -> None:
    """Flip a byte of the row that holds these ids, behind the store's back."""
    with sqlite3.connect(path) as file:
        for key, data in file.execute("SELECT key, data FROM rows").fetchall():
            if ids.tobytes() in data:
                file.execute("UPDATE rows SET data = ? WHERE key = ?", (data[:-1] + bytes([data[-1] ^ 1]), key))
                return
    raise AssertionError("no row holds these ids")


def test_rewind_cuts_the_history_for_good(lab: Lab) -> None:
    """After a rewind the history ends there, in memory and in the store, and the tail stands raw again."""
    session = lab.session("a", 5_000)
    assert lab.engine.rewind(session, 1_234).result() == 1_234
    session.wc.check()
    np.testing.assert_array_equal(session.tree.ids(0, 1_234), random_ids(5_000)[:1_234])
    assert lab.reopen("a").tokens == 1_234


def test_rewind_to_evicted_history_fetches_what_it_needs(make_lab: MakeLab) -> None:
    """A rewind far back restores the new tail's spans from the store."""
    with make_lab(HOT) as lab:
        session = lab.session("a", 10_000)
        lab.engine.rewind(session, 3_333).result()
        session.wc.check()
        np.testing.assert_array_equal(session.tree.ids(3_300, 3_333), random_ids(10_000)[3_300:3_333])
        assert lab.ask(session, random_ids(9), 20).finished is not None


def test_a_position_outside_the_history_is_refused(lab: Lab) -> None:
    """Rewind names the limit."""
    session = lab.session("a", 100)
    with pytest.raises(ConfigError, match=r"\[0, 100\]"):
        lab.engine.rewind(session, 101).result()


def test_a_failed_commit_rolls_the_turn_back(lab: Lab) -> None:
    """A turn that the store refuses fails, and its tokens are gone from memory too."""
    session = lab.session("a", 200)
    lab.store.open("a", "tenant", "lab").result()  # a newer lease fences the session in memory
    reply = lab.ask(session, random_ids(9), 5)
    assert isinstance(reply.error, StoreError)
    assert session.tokens == session.committed_tokens == 200
