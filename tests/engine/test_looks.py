"""What the engine lets others see of a session while it works, and what they may ask it to keep in view."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from engine_lab import FOCUS, Lab, MakeLab, random_ids
from mc_core.engine.engine_config import EngineConfig
from mc_core.engine.observer import Moment, SilentObserver
from mc_core.errors import ConfigError, PinRoomError, StoreError
from mc_core.focus.focus_config import FocusConfig
from mc_core.focus.reasons import STATES
from mc_core.session.look import Look
from mc_core.session.pins import chosen, room_left
from mc_core.session.session import Session
from tests.engine.test_durability import damage

FAR = (4_000, 4_070)
BLOCKS = range(4_000 // 32, 4_070 // 32 + 1)
COLD = EngineConfig(max_sessions=3, max_queue=2, hot_tokens=0)
"""No ids stay in memory but those that stand raw."""


class Watch(SilentObserver):
    """Takes a look whenever there is one."""

    def __init__(self) -> None:
        self.looks: list[tuple[str, Moment, Look]] = []

    def moved(self, session_id: str, moment: Moment, look: Callable[[], Look]) -> None:
        self.looks.append((session_id, moment, look()))


def raw_blocks(session: Session) -> set[int]:
    return set(session.wc.indices[session.wc.levels == 0].tolist())


def pin(lab: Lab, session: Session, *ranges: tuple[int, int]) -> None:
    lab.engine.pin(session, ranges, []).result()


def test_every_change_is_shown_as_it_stands(make_lab: MakeLab) -> None:
    """A look after each part of an ingest, each refocus and each commit, in order; what it holds never changes, and
    its reasons and scores are those that a look at the whole session tells."""
    watch = Watch()
    with make_lab(EngineConfig(max_sessions=2, ingest_tokens=512), observer=watch) as lab:
        session = lab.session("a", 1_500)
        reply = lab.ask(session, random_ids(40, 1), 70)
        assert reply.finished is not None
        told = session.focus(lab.engine.core.room(session))
    assert {name for name, _, _ in watch.looks} == {"a"}
    moments = Counter(moment for _, moment, _ in watch.looks)
    assert moments == {"ingest": 3, "commit": 2, "turn": 1, "interval": reply.finished.context.refocuses - 1}
    tokens = [look.tokens for _, _, look in watch.looks]
    assert tokens == sorted(tokens)
    assert tokens[:4] == [512, 1_024, 1_500, 1_500]
    last = watch.looks[-1][2]
    assert [STATES[code] for code in last.reasons().tolist()] == [
        entry["reason"] or "gist" for entry in told["entries"]
    ]
    np.testing.assert_array_equal(last.scores(), np.array([e["score"] for e in told["entries"]], np.float32))
    assert (last.framed, last.swap_rate, last.entries.cost) == (told["framed"], told["swap_rate"], told["cost"])


def test_what_is_taken_back_is_shown(make_lab: MakeLab) -> None:
    """After a turn that was cancelled, and an ingest that was dropped, the last look is the acknowledged one."""
    watch = Watch()
    with make_lab(observer=watch) as lab:
        session = lab.session("a", 700)
        reply, handle = lab.start(session, random_ids(40, 1), 5_000)
        assert reply.first.wait(60)
        handle.cancel()
        assert reply.wait().error is not None
        lab.engine.call(lambda: None).result()
        assert (watch.looks[-1][1], watch.looks[-1][2].tokens) == ("rollback", 700)
        lab.engine.ingest(session, random_ids(100, 2)).result()
        lab.engine.rollback(session).result()
        assert (watch.looks[-1][1], watch.looks[-1][2].tokens) == ("rollback", 700)


def test_a_pinned_place_stands_raw_from_then_on(make_lab: MakeLab) -> None:
    """A far place whose ids are in the store alone is opened at once, stays through growth, turns and a restart, and
    what the model then reads of it are its very ids."""
    with make_lab(COLD) as lab:
        session = lab.session("a", 9_000)
        assert not raw_blocks(session) & set(BLOCKS)
        pin(lab, session, FAR)
        for again in (session, lab.reopen("a")):
            assert chosen(again) == [(4_000, 4_096)]
            assert raw_blocks(again) >= set(BLOCKS)
            for seed in range(3):
                lab.ask(again, random_ids(200, seed), 40)
                assert raw_blocks(again) >= set(BLOCKS)
            np.testing.assert_array_equal(again.tree.ids(4_000, 4_096), random_ids(9_000)[4_000:4_096])
            lab.engine.release(again).result()
        lab.engine.pin(again, [], [FAR]).result()
        lab.ask(again, random_ids(200, 9), 40)
        assert chosen(lab.reopen("a")) == []


def test_a_pin_reads_as_if_it_had_always_been(make_lab: MakeLab) -> None:
    """A slab that was warm when a place was opened is repaired: the next reply is that of a session that comes back."""
    with make_lab(COLD, repair="exact") as lab:
        warm, cold = lab.session("warm", 6_000), lab.session("cold", 6_000)
        for session in (warm, cold):
            lab.ask(session, random_ids(30, 1), 20)
            pin(lab, session, FAR)
        assert warm.kv is not None
        back = lab.reopen("cold")
        assert lab.ask(warm, random_ids(30, 2), 40).ids == lab.ask(back, random_ids(30, 2), 40).ids


def test_a_wish_that_fails_leaves_all_as_it_was(make_lab: MakeLab, monkeypatch: pytest.MonkeyPatch) -> None:
    """No room, no such tokens, a store that loses the spans or refuses the commit: pins and entries stay."""
    with make_lab(COLD) as lab:
        session = lab.session("a", 9_000)
        pin(lab, session, FAR)
        before = session.wc.snapshot()
        left = room_left(session)
        with pytest.raises(PinRoomError, match=f"room for {left}"):
            pin(lab, session, (5_000, 5_000 + left + 1))
        with pytest.raises(ConfigError, match="9000"):
            pin(lab, session, (9_000, 9_001))
        with monkeypatch.context() as patch:
            patch.setattr(lab.store, "commit", lambda *_: (_ for _ in ()).throw(StoreError("no")))
            with pytest.raises(StoreError):
                pin(lab, session, (7_000, 7_010))
        assert session.wc.snapshot() == before
        lab.ask(session, random_ids(20, 3), 4)
        assert chosen(session) == [(4_000, 4_096)]


def test_a_turn_that_fails_and_a_cut_keep_what_they_leave(make_lab: MakeLab) -> None:
    """A failed turn changes no pin; a rewind takes those with it that lie behind it."""
    with make_lab(COLD) as lab:
        session = lab.session("a", 9_000)
        pin(lab, session, FAR, (8_000, 8_010))
        reply, handle = lab.start(session, random_ids(40, 1), 5_000)
        assert reply.first.wait(60)
        handle.cancel()
        reply.wait()
        assert chosen(session) == [(4_000, 4_096), (8_000, 8_032)]
        lab.engine.rewind(session, 4_050).result()
        assert chosen(session) == [(4_000, 4_050)]
        assert chosen(lab.reopen("a")) == [(4_000, 4_050)]


def test_a_lost_span_that_was_pinned_is_let_go(make_lab: MakeLab, tmp_path: Path) -> None:
    """A store that lost a pinned block gives the session back all the same, without that pin."""
    with make_lab(COLD) as lab:
        session = lab.session("a", 9_000)
        pin(lab, session, FAR)
        lab.engine.release(session).result()
        damage(tmp_path / "lab.sqlite", random_ids(9_000)[4_032:4_064])
        assert chosen(lab.reopen("a")) == [(4_000, 4_032), (4_064, 4_096)]


@pytest.mark.parametrize("hot", [0, None])
def test_a_peek_reads_any_ids_and_changes_nothing(make_lab: MakeLab, hot: int | None) -> None:
    """Ids from memory, from the store, of the open block and across them are those that went in; none stay."""
    with make_lab(EngineConfig(max_sessions=2, hot_tokens=hot)) as lab:
        session, ids = lab.session("a", 5_010), random_ids(5_010)
        missing = session.tree.missing(np.arange(156))
        for start, end in ((0, 1), (0, 5_010), (31, 33), (2_000, 2_064), (4_990, 5_010), (5_000, 5_001), (64, 96)):
            np.testing.assert_array_equal(lab.engine.peek(session, start, end).result(), ids[start:end])
        assert len(lab.engine.peek(session, 5_005, 9_999).result()) == 5
        np.testing.assert_array_equal(session.tree.missing(np.arange(156)), missing)


@pytest.mark.parametrize(("asked", "comes_back"), [(384, 384), (None, 512), (360, 360)])
def test_a_budget_that_was_asked_for_stays(make_lab: MakeLab, asked: int | None, comes_back: int) -> None:
    """Also one that equals the server's: a larger default later does not change it. Without one the session follows."""
    with make_lab() as lab:
        session = lab.factory.create("a", "tenant", model="tiny", budget=asked)
        lab.store.create(session.record()).result()
    with make_lab(focus=FocusConfig(budget=512, recent_tokens=FOCUS.recent_tokens)) as lab:
        assert lab.reopen("a").wc.budget == comes_back
