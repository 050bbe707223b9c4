"""Sessions that a store gives back: of any length, under other lenses, networks and settings."""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from engine_lab import FOCUS, Lab, random_ids
from lens_bundles import lens_bundle
from mc_core.bundle.bundle import Bundle, load_bundle
from mc_core.engine import vectors_job
from mc_core.engine.engine import Engine
from mc_core.engine.engine_config import EngineConfig
from mc_core.focus.focus_config import FocusConfig
from mc_core.focus.lens import LENSES
from mc_core.session.session import Session
from mc_core.store import SessionMismatchError, SessionStore
from mc_core.tree.tree import MegaContextTree
from redis_server import shared_redis
from server.stores import open_store

LENGTHS = (0, 1, 31, 32, 33, 1023, 1024, 1025)
"""No block, one, 32 and so a first LOD2 node; just before, at and after each border."""
TOKENS = 32 * 32 + 500
OpenLab = Callable[..., AbstractContextManager[Lab]]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    """The same base with other networks. By lens: with the LensNet that it needs."""
    folder = tmp_path_factory.mktemp("bundles")
    cross, joint = (lens_bundle(folder / kind, kind) for kind in ("cross", "transformer"))
    return {
        **{lens: joint if lens == "transformer" else cross for lens in LENSES},
        "retrained": lens_bundle(folder / "retrained", seed=1),
        "gistnet": lens_bundle(folder / "gistnet", gistnet_seed=1),
        "other gistnet": lens_bundle(folder / "other", gistnet_seed=2),
        "several": lens_bundle(folder / "several", gistnet_seed=1, vectors=4),
        "quantised": load_bundle(folder / "cross", dtype=torch.int8),
        "shown": load_bundle(folder / "gistnet", gists=True),
    }


@pytest.fixture(params=["sqlite", "redis"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'sessions.sqlite'}"
    return f"{shared_redis().url}?namespace=restore-{secrets.token_hex(6)}:"


@pytest.fixture
def open_lab(url: str, bundles: dict[str, Bundle]) -> OpenLab:
    """A server's engine over the test's own store: each with another bundle and lens, one after the other."""

    @contextmanager
    def opened(
        lens: str = "hybrid",
        bundle: str = "hybrid",
        focus: FocusConfig = FOCUS,
        config: EngineConfig = EngineConfig(max_sessions=2),  # noqa: B008 - frozen
    ) -> Iterator[Lab]:
        store = open_store(url)
        focus = replace(focus, lens=lens)
        lab = Lab(bundles[bundle], store, config, focus, "block")
        try:
            yield lab
        finally:
            lab.engine.stop()
            store.close()

    return opened


def assert_as_ingested(lab: Lab, session: Session, *, exactly: bool = False) -> Session:
    """Gists, keys and scores are those of a session that reads the same text today -> that session. exactly: bit for
    bit, where vectors were made of as many blocks at a time as that one's."""
    tolerance = {"rtol": 0.0, "atol": 0.0} if exactly else {}
    fresh = lab.session(f"fresh-{secrets.token_hex(4)}")
    lab.engine.ingest(fresh, session_ids(lab.store, session)).result()
    tree, other = session.tree, fresh.tree
    assert [tree.count(level) for level in range(4)] == [other.count(level) for level in range(4)]
    for level in range(1, tree.num_levels + 1):
        count = tree.count(level)
        torch.testing.assert_close(tree.gist_range(level, 0, count), other.gist_range(level, 0, count), **tolerance)
    if other.config.lens_keys:
        made, keys = (each.lens_keys(0, each.num_blocks) for each in (tree, other))
        torch.testing.assert_close(made, keys, **tolerance)
    question = random_ids(20, 9)
    fresh.wc = session.wc.copy()
    one, same = (each.propose(question).scores for each in (session, fresh))
    np.testing.assert_array_equal(one.targets, same.targets)
    np.testing.assert_allclose(one.target_scores, same.target_scores, atol=1e-3)
    return fresh


def session_ids(store: SessionStore, session: Session) -> np.ndarray:
    """The whole text, as the store has it."""
    spans = store.read_span_range(session.id, 0, session.tree.num_blocks).result()
    return np.concatenate([spans.ids.reshape(-1), store.record(session.id, session.tenant).result().tail])


@pytest.mark.parametrize("lens", LENSES)
def test_a_session_of_any_length_goes_on_as_if_it_had_stayed(open_lab: OpenLab, lens: str) -> None:
    """Whatever is of size zero (no block, no level, no open tail), a stored session goes on like a live one."""
    with open_lab(lens, lens) as lab:
        for tokens in LENGTHS:
            live, other = (lab.session(f"{name}-{tokens}", tokens, seed=tokens) for name in ("live", "other"))
            lab.engine.release(other).result()
            restored = lab.reopen(other.id)
            assert (restored.tokens, restored.committed_tokens) == (tokens, tokens)
            assert restored.wc.snapshot() == live.wc.snapshot()
            prompt = random_ids(40, 1)
            assert lab.ask(restored, prompt, 3).ids == lab.ask(live, prompt, 3).ids
            assert restored.focus(0) == live.focus(0)
            assert lab.reopen(other.id).tokens == live.tokens


@pytest.mark.parametrize("lens", ["lexical", "recency"])
def test_a_lens_that_reads_no_lens_keys_leaves_them(open_lab: OpenLab, lens: str) -> None:
    """A session that is used under another lens for a while has all vectors when the first one comes back, those of
    what was added meanwhile included: nothing is dropped, and nothing made anew."""
    with open_lab("hybrid") as lab:
        lab.session("a", TOKENS)
    for under in (lens, "hybrid"):
        with open_lab(under) as lab:
            before = lab.store.record("a", "tenant").result()
            session = lab.reopen("a", whole=False)
            assert session.tree.whole
            assert session.sequence == before.sequence, "a reshape, or a commit, of something that was made anew"
            lab.engine.ingest(session, random_ids(200, 3)).result()
            lab.engine.commit(session).result()
            assert_as_ingested(lab, session)


@pytest.mark.parametrize("tokens", [0, 20, TOKENS])
def test_one_stored_session_goes_through_all_lenses(open_lab: OpenLab, tokens: int) -> None:
    """Another lens makes the lens keys that it needs, once, and the session goes on under it."""
    with open_lab("lexical") as lab:
        lab.session("a", tokens)
    for lens in ("hybrid", "lexical", "cross", "transformer", "hybrid", "recency"):
        with open_lab(lens, lens) as lab:
            session = lab.reopen("a")
            sequence = session.sequence
            assert_as_ingested(lab, session)
            assert lab.ask(session, random_ids(40, 1), 3).error is None
            assert lab.reopen("a").sequence == sequence + 1, "made anew again, or not stored"


CHANGES: dict[str, dict[str, Any]] = {
    "plain": {},
    "lexical": {"lens": "lexical"},
    "another kind of LensNet": {"lens": "transformer", "bundle": "transformer"},
    "a retrained LensNet": {"bundle": "retrained"},
    "a GistNet": {"bundle": "gistnet"},
    "gists of several vectors": {"bundle": "several"},
    "quantised": {"bundle": "quantised"},
    "a smaller budget": {"focus": replace(FOCUS, budget=360)},
    "other segments": {"config": EngineConfig(max_sessions=2, segment_blocks=1)},
}


@pytest.mark.slow
@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("first", CHANGES)
def test_no_change_locks_a_session(open_lab: OpenLab, first: str) -> None:
    """Under whatever it was stored, a session comes back under everything else, and from there again: its history is
    the same, its vectors are those of the present networks, and it answers."""
    with open_lab(**CHANGES[first]) as lab:
        lab.session("a", TOKENS)
        told = session_ids(lab.store, lab.reopen("a"))
    for other in CHANGES:
        for name in (other, first):
            with open_lab(**CHANGES[name]) as lab:
                session = lab.reopen("a")
                np.testing.assert_array_equal(session_ids(lab.store, session), told)
                assert_as_ingested(lab, session)
                assert lab.ask(session, random_ids(9, 1), 2).error is None
                told = session_ids(lab.store, session)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("hybrid", "retrained"),
        ("hybrid", "gistnet"),
        ("gistnet", "other gistnet"),
        ("gistnet", "several"),
        ("several", "gistnet"),
    ],
)
def test_other_networks_make_their_own_vectors(open_lab: OpenLab, before: str, after: str) -> None:
    """Stored gists and keys are searched with the networks that made them only: with others, of the same shape even,
    they are made anew from ids, once."""
    with open_lab(bundle=before) as lab:
        old = lab.session("a", TOKENS)
        keys, gists = (each.clone() for each in (old.tree.lens_keys(0, 40), old.tree.gist_range(1, 0, 40)))
    with open_lab(bundle=after) as lab:
        session = lab.reopen("a")
        assert torch.equal(session.tree.lens_keys(0, 40), keys) == (after != "retrained")
        assert torch.equal(session.tree.gist_range(1, 0, 40), gists) == (after == "retrained")
        assert_as_ingested(lab, session)
        again = lab.reopen("a")
        assert again.sequence == session.sequence
        assert torch.equal(again.tree.lens_keys(0, 40), session.tree.lens_keys(0, 40))


def test_a_crash_while_vectors_are_replaced_is_mended(open_lab: OpenLab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever write is the last before a crash, and whichever networks come next, no vector of another is taken."""
    with open_lab() as lab:
        lab.session("a", TOKENS)
    present, other = "hybrid", "retrained"
    for writes in range(4):
        with open_lab(bundle=other) as lab:
            crash_after(lab.store, writes, monkeypatch)
            with pytest.raises(Crash):
                lab.reopen("a")
            monkeypatch.undo()
        if writes % 2:
            present, other = other, present
        with open_lab(bundle=present) as lab:
            assert_as_ingested(lab, lab.reopen("a"))


def test_vectors_are_the_same_whatever_interrupts_them(open_lab: OpenLab, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is killed after any number of writes leaves the vectors that it stored to the next one, which goes
    on behind them; in the end all are, bit for bit, those of a session that was ingested today, and so is what it
    shows."""
    monkeypatch.setattr(vectors_job, "STORED_BLOCKS", 8)
    config = EngineConfig(max_sessions=2, ingest_tokens=4 * 32)
    with open_lab(config=config) as lab:
        lab.session("a", TOKENS)
    made = [0]
    rng = np.random.default_rng()
    while made[-1] is not None:
        with open_lab(bundle="gistnet", config=config) as lab, monkeypatch.context() as patch:
            crash_after(lab.store, int(rng.integers(4 if len(made) == 1 else 0, 6)), patch)
            with suppress(Crash):
                lab.reopen("a")
            made.append(lab.store.record("a", "tenant").result().gist_blocks)
    assert made[1] > 0
    assert made[:-1] == sorted(made[:-1])
    with open_lab(bundle="gistnet", config=config) as lab:
        session = lab.reopen("a", whole=False)
        assert session.tree.whole
        fresh = assert_as_ingested(lab, session, exactly=True)
        prompt = random_ids(40, 1)
        assert lab.ask(session, prompt, 40).ids == lab.ask(fresh, prompt, 40).ids
        assert [entry.tolist() for entry in (session.wc.levels, session.wc.indices)] == [
            entry.tolist() for entry in (fresh.wc.levels, fresh.wc.indices)
        ]


def test_a_session_does_not_wait_for_its_vectors(open_lab: OpenLab) -> None:
    """While they are made, whatever is done to it is done: it shows no gists and is searched by its words, turns,
    ingests, cuts and pins are stored, a fork shares what is there, and afterwards all vectors are those of today."""
    with open_lab(bundle="hybrid") as lab:
        lab.session("a", TOKENS)
    with open_lab(bundle="shown") as lab:
        session = lab.reopen("a", whole=False)
        assert (session.tree.made, session.focus(0)["vectors"]) == (0, {"blocks": TOKENS // 32, "made": 0})
        told = lab.ask(session, session_ids(lab.store, session)[200:230], 4)
        assert told.finished is not None
        assert (told.finished.context.gisted, told.finished.context.hidden > 0) == (0, True)
        assert 6 in session.raw_blocks(), "found by its words"
        lab.engine.ingest(session, random_ids(700, 2)).result()
        lab.engine.commit(session).result()
        lab.engine.pin(session, [(320, 352)], []).result()
        lab.engine.rewind(session, session.tokens - 333).result()
        lab.store.fork("a", "tenant", replace(session.record(), session_id="fork")).result()
        made = lab.engine.make_vectors(session)
        again = lab.ask(session, random_ids(40, 1), 4)
        made.result()
        assert again.error is None
        assert_as_ingested(lab, session)
        shown = lab.ask(session, random_ids(40, 1), 4).finished
        assert shown is not None
        assert shown.context.gisted > 0
        for name in ("a", "fork"):
            assert_as_ingested(lab, lab.reopen(name))


def test_sessions_that_lack_vectors_share_what_turns_leave(open_lab: OpenLab, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many there are, a step of a turn waits for one slice at most, by a clock that goes on a second a step."""
    names = "abcd"
    with open_lab() as lab:
        for name in names:
            lab.session(name, TOKENS)
    monkeypatch.setattr(vectors_job, "SLICE_BLOCKS", 1)
    made = waited = clock = 0
    make, step = MegaContextTree.make, Engine._step

    def counted(tree: MegaContextTree, ids: np.ndarray) -> int:
        nonlocal made, clock
        made, clock = made + 1, clock + 1
        return make(tree, ids)

    def watched(engine: Engine) -> None:
        nonlocal waited, clock
        clock += 1
        before, busy = made, engine._turns
        step(engine)
        if busy and engine._turns:
            waited = max(waited, made - before)

    monkeypatch.setattr(vectors_job, "time", SimpleNamespace(monotonic=lambda: clock))
    monkeypatch.setattr(MegaContextTree, "make", counted)
    monkeypatch.setattr(Engine, "_step", watched)
    with open_lab(bundle="gistnet") as lab:
        sessions = [lab.reopen(name, whole=False) for name in names]
        reply, _ = lab.start(lab.session("asking"), random_ids(20), 200)
        jobs = [lab.engine.make_vectors(session) for session in sessions]
        assert reply.wait().error is None
        assert waited == 1
        for job in jobs:
            job.result()
        assert all(session.tree.whole for session in sessions)


def test_a_cut_that_fails_while_vectors_are_made_is_put_back(open_lab: OpenLab) -> None:
    """A turn that cuts the history, and then fails, leaves it and its vectors whole, however far they were."""
    with open_lab() as lab:
        lab.session("a", TOKENS)
    with open_lab(bundle="gistnet") as lab:
        session = lab.reopen("a", whole=False)
        before = session_ids(lab.store, session)

        def fail() -> None:
            raise Crash

        made = lab.engine.make_vectors(session)
        cut = lab.engine.append(session, random_ids(100, 3), 500, (), fail)
        with pytest.raises(Crash):
            cut.result()
        made.result()
        np.testing.assert_array_equal(lab.engine.read(session, 0, TOKENS).result(), before)
        assert_as_ingested(lab, session)
        lab.engine.commit(session).result()
        assert_as_ingested(lab, lab.reopen("a"))


class Crash(Exception):
    """Where the process would end."""


def crash_after(store: SessionStore, writes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let so many writes through, and no more."""
    done = 0
    for name in ("commit", "reshape", "write_gists"):
        real = getattr(store, name)

        def write(*args: object, real: Callable[..., object] = real, **named: object) -> object:
            nonlocal done
            done += 1
            if done > writes:
                raise Crash
            return real(*args, **named)

        monkeypatch.setattr(store, name, write)


def test_a_fork_keeps_its_vectors(open_lab: OpenLab) -> None:
    """What one session makes anew is its own: a fork of it that was not loaded yet finds what it had."""
    with open_lab() as lab:
        session = lab.session("a", TOKENS)
        record = replace(session.record(), session_id="fork")
        lab.store.fork("a", "tenant", record).result()
    with open_lab(bundle="retrained") as lab:
        assert_as_ingested(lab, lab.reopen("a"))
    with open_lab() as lab:
        fork = lab.reopen("fork")
        assert fork.sequence == 0, "made anew though it was whole"
        assert_as_ingested(lab, fork)
    with open_lab(bundle="retrained") as lab:
        for name in ("a", "fork"):
            assert_as_ingested(lab, lab.reopen(name))


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("bundle", ["hybrid", "gistnet", "several"])
def test_lost_gists_are_made_anew(open_lab: OpenLab, tmp_path: Path, bundle: str) -> None:
    """Missing and corrupt rows of any level come back from the ids of their blocks, and are stored again."""
    with open_lab(bundle=bundle) as lab:
        lab.session("a", TOKENS)
    damage(tmp_path / "sessions.sqlite", [(1, 0), (1, 7), (1, 8), (2, 0)], [(1, 20)])
    with open_lab(bundle=bundle) as lab:
        session = lab.reopen("a")
        assert_as_ingested(lab, session)
        assert lab.store.read_gist_range("a", 1, 0, 40).result().indices.tolist() == list(range(40))
        assert lab.reopen("a").sequence == session.sequence


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_nothing_is_invented_for_a_block_without_ids(open_lab: OpenLab, tmp_path: Path) -> None:
    """A gist whose span is lost too is zero, counts nothing in the gists above it, and the session goes on."""
    with open_lab(bundle="gistnet") as lab:
        lab.session("a", TOKENS)
    damage(tmp_path / "sessions.sqlite", [(0, 5)], [])
    with open_lab(bundle="other gistnet") as lab:
        session = lab.reopen("a")
        assert session.counters.spans_missing == 1
        gists = session.tree.gist_range(1, 0, 32).float()
        assert not gists[5].any()
        assert gists[[4, 6]].any(1).all()
        known = torch.arange(32) != 5
        expected = lab.bundle.gistnet(gists[None], known[None])[0]
        torch.testing.assert_close(session.tree.gist_range(2, 0, 1)[0].float(), expected, atol=1e-3, rtol=1e-2)
        assert lab.ask(session, random_ids(40, 1), 3).error is None


def damage(path: Path, lost: list[tuple[int, int]], corrupt: list[tuple[int, int]]) -> None:
    """Take rows (level, index) of the only session away, or flip a byte of them, behind the store's back."""
    with sqlite3.connect(path) as file:
        keys = {key & (1 << 36) - 1: key for (key,) in file.execute("SELECT key FROM rows")}
        for level, index in lost:
            file.execute("DELETE FROM rows WHERE key = ?", (keys[level << 32 | index],))
        for level, index in corrupt:
            key = keys[level << 32 | index]
            ((data,),) = file.execute("SELECT data FROM rows WHERE key = ?", (key,)).fetchall()
            file.execute("UPDATE rows SET data = ? WHERE key = ?", (data[:-9] + bytes([data[-9] ^ 1]) + data[-8:], key))
    file.close()


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_other_budgets_lock_no_session_out(open_lab: OpenLab) -> None:
    """A session stored under a larger or smaller budget, or another tail, is taken in within the present settings."""
    with open_lab(focus=FOCUS) as lab:
        session = lab.session("a", TOKENS)
        session.pin(TOKENS - 60, TOKENS)
        lab.engine.commit(session).result()
        lab.ask(session, random_ids(40, 1), 70)
    focuses = (
        replace(FOCUS, budget=360),
        replace(FOCUS, budget=800),
        replace(FOCUS, recent_tokens=160, budget=512),
        FOCUS,
    )
    for focus in focuses:
        with open_lab(focus=focus) as lab:
            session = lab.reopen("a")
            assert session.wc.budget <= focus.budget
            assert session.wc.recent_tokens == focus.recent_tokens
            session.wc.check()
            assert lab.ask(session, random_ids(40, 1), 70).error is None
            session.wc.check()


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_a_budget_that_nobody_asked_for_is_the_servers(open_lab: OpenLab) -> None:
    """A session comes back with the budget that it was made with if that was asked for, else with the server's."""
    with open_lab(focus=FOCUS) as lab:
        lab.session("a", 100)
        own = lab.factory.create("b", "tenant", model="tiny", budget=360)
        lab.store.create(own.record()).result()
    with open_lab(focus=replace(FOCUS, budget=800)) as lab:
        assert [lab.reopen(name).wc.budget for name in ("a", "b")] == [800, 360]


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_another_tokenizer_or_block_size_is_refused_in_words(open_lab: OpenLab) -> None:
    """What the stored ids cannot mean is refused, and the error says what would be needed."""
    with open_lab("lexical") as lab:
        lab.session("a", 100)
        lab.factory.focus = replace(lab.factory.focus, block_size=16, refocus_interval=0)
        with pytest.raises(SessionMismatchError, match=r"blocks of 32 tokens: it needs a server whose block_size is"):
            lab.reopen("a")
    with open_lab("lexical") as lab:
        record = lab.store.record("a", "tenant").result()
        other = replace(record, session_id="b", tokens=0, tail=np.empty(0, np.int32), tokenizer="other")
        lab.store.create(other).result()
        with pytest.raises(SessionMismatchError, match="in the tokens of another model"):
            lab.reopen("b")
