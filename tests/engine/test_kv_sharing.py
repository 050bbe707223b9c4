"""Sessions that begin alike share keys and values: replies are those of a server where each computes its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from engine_lab import FOCUS, Lab, MakeLab, Reply, random_ids
from mc_core.engine.engine_config import EngineConfig
from mc_core.engine.kv_sharing import shared_tokens
from mc_core.engine.requests import ContextReport
from mc_core.kv.session_kv import SessionKV
from mc_core.session.session import Session
from mc_core.session.trail import SEED, Trail, _factors, row_hashes

K = FOCUS.block_size


def config_of(slabs: int = 3, **options: object) -> EngineConfig:
    return EngineConfig(max_sessions=slabs, recent_kv_bytes=0, **options)  # type: ignore[arg-type]


def report(reply: Reply) -> ContextReport:
    assert reply.error is None, reply.error
    assert reply.finished is not None
    return reply.finished.context


def branch(lab: Lab, name: str, session: Session, tokens: int, more: int = 0, seed: int = 0) -> Session:
    """Another session of the same first tokens, and of some more."""
    ids = np.concatenate([lab.engine.read(session, 0, tokens).result(), random_ids(more, seed)])
    other = lab.session(name)
    lab.engine.ingest(other, ids).result()
    lab.engine.commit(other).result()
    return other


@pytest.mark.parametrize("slabs", [1, 3])
@pytest.mark.parametrize("repair", ["exact", "block", "incremental"])
def test_a_branch_replies_as_if_it_had_read_all_of_it(make_lab: MakeLab, repair: str, slabs: int) -> None:
    """What fits is read as ever, with and without another one's keys and values, and also in that one's own slab; only
    what is not common, and the rest of its block, is computed."""
    found = []
    for share in (False, True):
        with make_lab(config_of(slabs, share_kv=share), repair=repair) as lab:
            session = lab.session(f"session-{share}", 250)
            replies = [lab.ask(session, random_ids(20), 8)]
            for at, tokens in enumerate((250, 130, 7)):
                one = branch(lab, f"{at}-{share}", session, tokens, 40, at + 1)
                replies.append(lab.ask(one, random_ids(20, at), 8))
            found.append(replies)
    (alone, shared), size = found, FOCUS.block_size
    assert [reply.ids for reply in alone] == [reply.ids for reply in shared]
    assert all(report(reply).kv_shared == 0 for reply in [*alone, shared[0], shared[3]])
    for tokens, one, other in zip((250, 130), alone[1:3], shared[1:3], strict=True):
        # What is left in a slab that was given away is known block by block.
        assert report(other).kv_shared == (tokens if slabs > 1 else tokens // size * size)
        assert report(other).kv_recomputed <= report(one).kv_recomputed - tokens + size * 9


@pytest.mark.parametrize("repair", ["exact", "block", "incremental"])
def test_a_question_that_is_asked_anew_is_read_once(make_lab: MakeLab, repair: str) -> None:
    """However long the history is: the branch opens the same places, takes them from the slab that has them, though
    another one holds more, and gives the same reply."""
    with make_lab(config_of(), repair=repair) as lab:
        session = lab.session("session", 2000)
        other, again = (branch(lab, name, session, 2000) for name in ("other", "again"))
        first = lab.ask(session, random_ids(20), 8)
        lab.ask(other, random_ids(20, 1), 60)
        second = lab.ask(again, random_ids(20), 8)
        assert first.ids == second.ids
        assert report(first).kv_shared == 0
        assert report(second).kv_recomputed == 1
        assert report(first).kv_recomputed > 300


def test_a_new_chat_finds_its_beginning_in_the_slab_that_it_is_given(make_lab: MakeLab) -> None:
    """Also one whose first turn brings all of it, as no store knows what it begins with; what was written over it is
    not there any more."""
    prompt = random_ids(100)
    with make_lab(config_of(1)) as lab:
        first, second, third = (lab.session(name) for name in ("first", "second", "third"))
        lab.ask(first, prompt, 8)
        shared = report(lab.ask(second, np.concatenate([prompt[:80], random_ids(20, 1)]), 8))
        assert shared.kv_shared == 64
        lab.ask(first, random_ids(250, 2), 8)
        assert report(lab.ask(third, random_ids(100, 3), 8)).kv_shared == 0


def test_a_slab_is_given_away_whatever_can_be_told_of_it(make_lab: MakeLab, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error in what a slab leaves to the next session costs a prefill: nobody waits for it, and no turn fails."""
    with make_lab(config_of(1)) as lab:
        session = lab.session("session", 200)
        lab.ask(session, random_ids(20), 8)

        def failing(kv: SessionKV) -> None:
            raise MemoryError

        monkeypatch.setattr(SessionKV, "computed_units", failing)
        assert report(lab.ask(lab.session("other", 200), random_ids(20), 8)).kv_shared == 0
        assert session.kv is None


def test_a_broken_session_is_nobodys_source(make_lab: MakeLab) -> None:
    """What can't be taken back is not asked for anything: others reply without it."""
    for slabs in (1, 3):
        with make_lab(config_of(slabs)) as lab:
            session = lab.session(f"session-{slabs}", 200)
            lab.ask(session, random_ids(20), 8)
            session.broken = True
            session.trail.rewind(1)
            assert report(lab.ask(lab.session(f"other-{slabs}", 200), random_ids(20), 8)).kv_shared == 0


def test_equal_numbers_cannot_be_made_without_the_seed() -> None:
    """Two blocks that are made to have one number by one seed's factors have different ones by those of another."""
    factors = _factors(K, bytes(len(SEED)))
    one = np.arange(K, dtype=np.int64)[None]
    other = one.copy()
    other[0, :2] += (factors[1], -factors[0])
    assert row_hashes(one, bytes(len(SEED))) == row_hashes(other, bytes(len(SEED)))
    assert row_hashes(one, SEED) != row_hashes(other, SEED)
    assert Trail().seed == SEED != Trail(bytes(len(SEED))).seed


def test_nothing_is_shared_between_tenants_nor_where_replies_stand_alone(make_lab: MakeLab) -> None:
    """Another tenant's slab is never looked at, and with ``deterministic`` no other one's."""
    for deterministic, tenant, shares in ((False, "tenant", True), (False, "other", False), (True, "tenant", False)):
        with make_lab(config_of(deterministic=deterministic)) as lab:
            lab.ask(lab.session(f"{deterministic}-{tenant}", 200), random_ids(20), 4)
            name = f"second-{deterministic}-{tenant}"
            other = lab.factory.create(name, tenant, model="tiny", durable=False)
            lab.engine.ingest(other, random_ids(200)).result()
            assert (report(lab.ask(other, random_ids(20), 4)).kv_shared > 0) == shares


def test_a_slab_that_a_file_is_filling_is_nobodys_source(make_lab: MakeLab) -> None:
    """While another thread writes into a slab, its units are not yet those of its session."""
    with make_lab(config_of()) as lab:
        session = lab.session("session", 200)
        lab.ask(session, random_ids(20), 4)
        assert session.kv is not None
        session.kv.filling = True
        assert report(lab.ask(lab.session("other", 200), random_ids(20), 4)).kv_shared == 0
        session.kv.filling = False
        assert report(lab.ask(lab.session("third", 200), random_ids(20), 4)).kv_shared > 0


def test_a_session_with_a_file_of_its_own_goes_on_with_that(make_lab: MakeLab, tmp_path: Path) -> None:
    """Who takes an idle session's slab brings what it knows itself: there is more of it than what both have in
    common."""
    with make_lab(config_of(1, kv_folder=tmp_path / "kv"), repair="exact") as lab:
        session = lab.session("session", 200)
        other = branch(lab, "other", session, 100, 40, 1)
        for one in (session, other):
            lab.ask(one, random_ids(20), 8)
            lab.engine.release(one).result()
        lab.ask(lab.reopen("session"), random_ids(20), 8)
        again = report(lab.ask(lab.reopen("other"), random_ids(20), 8))
        assert again.kv_loaded == other.tokens - 1
        assert again.kv_shared == 0


def test_shared_tokens_are_the_longest_common_beginning(make_lab: MakeLab) -> None:
    """Told token by token, whichever of the two is longer, and by whole blocks where ids have left memory."""
    with make_lab(config_of(hot_tokens=0)) as lab:
        size = lab.bundle.block_size
        one = lab.factory.create("one", "tenant", model="tiny", durable=False)
        lab.engine.ingest(one, random_ids(5 * size + 3)).result()
        for tokens in (0, 1, size - 1, size, 3 * size + 5, 5 * size, 5 * size + 2, 5 * size + 3):
            other = lab.factory.create(f"other-{tokens}", "tenant", model="tiny", durable=False)
            ids = np.concatenate([random_ids(5 * size + 3)[:tokens], 380 + np.arange(2 * size) % 2]).astype(np.int32)
            lab.engine.ingest(other, ids).result()
            assert shared_tokens(one, other) == shared_tokens(other, one) == tokens
        stored = lab.session("stored", 5 * size)
        evicted = lab.engine.call(lambda: stored.tree.evict(0, np.empty(0, np.int64))).result()
        assert len(evicted)
        assert shared_tokens(one, stored) == 5 * size
        parted = branch(lab, "parted", stored, 3 * size + 5, 40, 1)
        lab.engine.call(lambda: stored.tree.evict(0, np.empty(0, np.int64))).result()
        assert shared_tokens(parted, stored) == 3 * size
