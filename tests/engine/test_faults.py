"""What fails inside a turn ends that turn alone: the engine lives on, and the session is where it was."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from engine_lab import Lab, MakeLab, Reply, random_ids
from faulty import Fault, Faults
from mc_core.engine.engine_config import EngineConfig
from mc_core.engine.requests import Delta, Event, Turn
from mc_core.errors import CancelledTurnError
from mc_core.kv.slab import SlabPool
from mc_core.models.sampler import SamplingParams
from mc_core.session.session import Session
from server.sessions.host import SessionHost
from server.sessions.slots import Lease

SEAMS = [
    ("observer.queued", 1),
    ("observer.woke", 1),
    ("observer.refocused", 1),
    ("observer.refocused", 2),
    ("observer.decoded", 5),
    ("forward", 1),
    ("forward", 2),
    ("gistnet", 2),
    ("lens.append", 2),
    ("lens.score", 1),
    ("refocus.propose", 1),
    ("refocus.propose", 2),
    ("refocus.commit", 1),
    ("repair", 1),
    ("repair", 2),
    ("decode", 5),
    ("sampler", 5),
    ("sink", 1),
    ("sink", 30),
    ("commit_state", 1),
    ("store.write_spans", 1),
    ("store.write_spans.future", 1),
    ("store.write_gists", 1),
    ("store.write_gists.future", 1),
    ("store.commit", 1),
    ("store.commit.future", 1),
]
ODDS = {
    "decode": 0.1,
    "decode.batch": 0.1,
    "sampler": 0.1,
    "sampler.batch": 0.1,
    "sink": 0.02,
    "observer.decoded": 0.01,
    "lens.rewind": 0.2,
    "rollback": 0.1,
    "store.read_spans.future": 0.2,
    "evict": 0.1,
}
"""By seam, so that about half of all turns fail; other seams 0.05."""


@pytest.fixture
def faults() -> Faults:
    return Faults()


@pytest.fixture
def lab(make_lab: MakeLab, faults: Faults, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    with make_lab(EngineConfig(max_sessions=3, max_queue=5), observer=faults) as lab:
        faults.install(lab.engine.core, monkeypatch)
        yield lab


class FaultySink:
    """Takes all events, but may fail on a text; the last event is what a test looks at."""

    def __init__(self, faults: Faults) -> None:
        self.faults, self.reply = faults, Reply()

    def __call__(self, event: Event) -> None:
        if isinstance(event, Delta):
            self.faults.at("sink")
        self.reply(event)


def ask(lab: Lab, faults: Faults, session: Session, prompt: np.ndarray, count: int = 60, **options: Any) -> FaultySink:
    """Start a turn whose sink and state may fail too."""
    sink = FaultySink(faults)
    sampling = SamplingParams(**{"temperature": 0.0, "ignore_eos": True, "max_tokens": count, **options})
    lab.engine.submit(Turn(session, prompt, sampling, sink, commit_state=faults.commit_state))
    return sink


def all_free(lab: Lab) -> bool:
    """Whether every slab is free, or idle with its session."""
    stats = lab.engine.call(lab.engine.stats).result(30)
    return stats.free_slabs == stats.slabs and stats.tasks == 1  # this call itself


@pytest.mark.parametrize(("seam", "call"), SEAMS)
def test_a_fault_ends_its_turn_alone(lab: Lab, faults: Faults, seam: str, call: int) -> None:
    """One Failed, the session at its last acknowledged token, its slab free, its next turn as if nothing had been."""
    session, twin = lab.session("a", 700), lab.session("twin", 700)
    faults.once(seam, call)
    reply = ask(lab, faults, session, random_ids(300, 1)).reply.wait()
    assert isinstance(reply.error, Fault)
    assert (reply.lasts, faults.injected[seam]) == (1, 1)
    assert all_free(lab)
    assert lab.engine.alive
    assert not session.broken
    assert session.tokens == session.committed_tokens == 700
    assert session.wc.snapshot() == twin.wc.snapshot()
    np.testing.assert_array_equal(session.tree.ids(0, 700), random_ids(700))
    assert lab.ask(session, random_ids(40, 2), 40).ids == lab.ask(twin, random_ids(40, 2), 40).ids


@pytest.mark.parametrize(("seam", "call"), [("decode.batch", 3), ("sampler.batch", 3)])
def test_a_batch_that_fails_once_is_read_one_by_one(lab: Lab, faults: Faults, seam: str, call: int) -> None:
    """A fault that doesn't come again costs nobody the turn, and no random number."""
    prompts = [random_ids(9, n) for n in range(3)]
    options = {"temperature": 0.9, "seed": 5}
    alone = [lab.ask(lab.session(f"alone-{n}"), prompt, 30, **options).ids for n, prompt in enumerate(prompts)]
    sessions, together = [lab.session(f"a-{n}") for n in range(3)], threading.Event()
    faults.once(seam, call)
    lab.engine.call(together.wait)  # so that all three are one batch, however slow this thread is
    sinks = [
        ask(lab, faults, session, prompt, 30, **options) for session, prompt in zip(sessions, prompts, strict=True)
    ]
    together.set()
    assert [sink.reply.wait().ids for sink in sinks] == alone
    assert faults.injected[seam] == 1


def test_one_bad_row_fails_alone(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """A turn that the decoder can't read fails; those that decode beside it get the replies that they get alone."""
    bad, prompts = 7, [random_ids(9, n) for n in (1, 2)]
    never, always = {"logit_bias": {bad: -100.0}}, {"logit_bias": {bad: 100.0}}
    alone = [lab.ask(lab.session(f"alone-{n}"), prompt, 40, **never).ids for n, prompt in enumerate(prompts)]
    decoder, forward = lab.bundle.decoder, lab.bundle.decoder.forward
    marker = decoder.embed(torch.tensor(bad))

    def reads(embeddings: torch.Tensor, attention: Any) -> torch.Tensor:
        if embeddings.shape[1] == 1 and (embeddings[:, 0] == marker).all(-1).any():
            raise Fault("this token")
        return forward(embeddings, attention)

    monkeypatch.setattr(decoder, "forward", reads)
    running = [lab.start(lab.session(f"a-{n}"), prompt, 40, **never)[0] for n, prompt in enumerate(prompts)]
    failing = lab.start(lab.session("bad"), random_ids(9), 40, **always)[0]
    assert isinstance(failing.wait().error, Fault)
    assert [reply.wait().ids for reply in running] == alone


@pytest.mark.parametrize("wrong", ["lens.rewind", "rollback"])
def test_a_rollback_that_fails_leaves_a_session_to_be_loaded_anew(lab: Lab, faults: Faults, wrong: str) -> None:
    """The turn still gets its Failed; the session says that it is broken, and the store has what was acknowledged."""
    session = lab.session("a", 700)
    faults.chance = lambda seam: seam in ("store.commit", wrong)
    reply = ask(lab, faults, session, random_ids(300, 1)).reply.wait()
    assert (str(reply.error), reply.lasts) == ("store.commit", 1)
    assert session.broken
    assert all_free(lab)
    faults.chance = lambda seam: False
    lab.engine.release(session).result()
    again = lab.reopen("a")
    assert (again.tokens, again.broken) == (700, False)
    assert lab.ask(again, random_ids(9), 5).finished is not None


def test_a_server_loads_a_broken_session_anew(lab: Lab) -> None:
    """Who holds a session next after it broke gets what the store has of it."""
    host = SessionHost(lab.factory, lab.engine, lab.store, model="tiny", max_resident=4, max_implicit=4)

    async def breaks_and_returns() -> tuple[Session, Lease]:
        name = (await host.create("tenant", metadata={"who": "Ann"})).id
        async with host.use(name, "tenant") as lease:
            broken = lease.session
            broken.broken = True
        async with host.use(name, "tenant") as lease:
            return broken, lease

    broken, lease = asyncio.run(breaks_and_returns())
    assert lease.session is not broken
    assert (lease.source, lease.session.broken, lease.session.metadata) == ("restored", False, {"who": "Ann"})


def test_a_rewind_that_the_store_refuses_breaks_the_session(lab: Lab, faults: Faults) -> None:
    """What was cut is gone from memory but not from the store, so that memory must be loaded anew."""
    session = lab.session("a", 700)
    faults.once("store.commit")
    with pytest.raises(Fault):
        lab.engine.rewind(session, 300).result()
    assert session.broken
    assert lab.reopen("a").tokens == 700


@pytest.mark.parametrize("seam", ["store.write_spans", "store.write_spans.future", "gistnet", "lens.append"])
def test_an_ingest_that_fails_leaves_no_trace(lab: Lab, faults: Faults, seam: str) -> None:
    """The session goes back to its last acknowledged token, and what is ingested next is stored whole."""
    session = lab.session("a", 700)
    lab.engine.ingest(session, random_ids(100_000, 3)).result()
    faults.once(seam, 2)
    with pytest.raises(Fault):
        lab.engine.ingest(session, random_ids(100_000, 4)).result()
    assert session.tokens == session.committed_tokens == 700
    lab.engine.ingest(session, random_ids(5_000, 5)).result()
    lab.engine.commit(session).result()
    again = lab.reopen("a")
    np.testing.assert_array_equal(again.tree.ids(5_600, 5_700), random_ids(5_000, 5)[-100:])
    assert again.tokens == 5_700


def test_a_failed_turn_takes_its_pins_back(lab: Lab, faults: Faults) -> None:
    """What a turn pinned, counted or noted before it failed is undone with it."""
    session = lab.session("a", 200)

    def commit_state(text: str, finished: object) -> None:
        session.pin(64, 96)
        session.metadata["note"] = text
        session.prefixes.append(("digest", session.tokens))
        raise Fault("commit_state")

    reply = Reply()
    before = session.wc.snapshot()
    lab.engine.submit(Turn(session, random_ids(40, 1), SamplingParams(max_tokens=3), reply, commit_state=commit_state))
    assert isinstance(reply.wait().error, Fault)
    assert session.wc.snapshot() == before
    assert (session.metadata, session.prefixes, session.counters.turns) == ({}, [], 0)


def test_a_step_that_fails_outside_of_all_jobs_is_told_to_them(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault of the engine itself fails what was under way, and the thread goes on."""

    def fails(_: object) -> None:
        raise Fault("a slab")

    with monkeypatch.context() as patch:
        patch.setattr(SlabPool, "acquire", fails)
        reply = lab.start(lab.session("a"), random_ids(9))[0].wait()
    assert isinstance(reply.error, Fault)
    assert all_free(lab)
    assert lab.ask(lab.session("b"), random_ids(9)).finished is not None


def test_a_sink_that_always_fails_harms_nobody_else(lab: Lab) -> None:
    """A sink that can't even take its Failed ends its turn; others go on."""
    called = threading.Event()

    def sink(event: object) -> None:
        called.set()
        raise Fault("sink")

    lab.engine.submit(Turn(lab.session("a"), random_ids(9), SamplingParams(max_tokens=3), sink))
    assert called.wait(30)
    assert lab.ask(lab.session("b"), random_ids(9)).finished is not None
    assert all_free(lab)


def test_nothing_is_taken_in_by_an_engine_that_stopped(lab: Lab) -> None:
    """A job for a stopped engine fails at once instead of waiting for ever."""
    session = lab.session("a")
    lab.engine.stop()
    with pytest.raises(CancelledTurnError, match="stopped"):
        lab.engine.ingest(session, random_ids(9)).result(30)


@pytest.mark.parametrize("count", [150, pytest.param(500, marks=pytest.mark.slow)])
def test_many_faults_at_random(make_lab: MakeLab, faults: Faults, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Whatever fails in eight turns at a time, every turn ends once, slabs come back, and histories are what was
    acknowledged, from which they go on."""
    config = EngineConfig(max_sessions=3, max_queue=5, hot_tokens=64)
    with make_lab(config, observer=faults) as lab:
        faults.install(lab.engine.core, monkeypatch)
        many_faults(lab, faults, count)


def many_faults(lab: Lab, faults: Faults, count: int) -> None:
    names = [f"s{n}" for n in range(8)]
    sessions = {name: lab.session(name, 400, n) for n, name in enumerate(names)}
    expected = {name: random_ids(400, n) for n, name in enumerate(names)}
    rng = np.random.default_rng(0)
    odds = {seam: ODDS.get(seam, 0.04) for seam in [*ODDS, *(seam for seam, _ in SEAMS)]}
    failed = broken = finished = number = 0
    while faults.injected.total() < count or min(failed, broken, finished) < 6:
        number += 1
        faults.at_random(number, odds)
        prompts = {name: random_ids(int(rng.integers(1, 80)), number) for name in names}
        sinks = {name: ask(lab, faults, sessions[name], prompts[name], 8) for name in names}
        replies = {name: sink.reply.wait() for name, sink in sinks.items()}
        faults.chance = lambda seam: False
        assert all_free(lab)
        assert lab.engine.alive
        for name, reply in replies.items():
            session = sessions[name]
            assert reply.lasts == 1
            if reply.finished is not None:
                finished += 1
                expected[name] = np.concatenate([expected[name], prompts[name], reply.ids]).astype(np.int32)
            failed += reply.error is not None
            if session.broken:
                broken += 1
                lab.engine.release(session).result()
                session = sessions[name] = lab.reopen(name)
            assert session.tokens == session.committed_tokens == len(expected[name])
            assert (session.tree.ids(session.tokens - 64, session.tokens) == expected[name][-64:]).all()
            session.wc.check()
    for name, session in sessions.items():
        assert lab.ask(session, random_ids(9), 20).finished is not None
        blocks = np.arange(len(expected[name]) // 32)
        stored = lab.store.read_spans(name, blocks).result().ids
        np.testing.assert_array_equal(stored.reshape(-1), expected[name][: len(blocks) * 32])
        lab.engine.release(session).result()
    assert lab.engine.core.runner.pool.free_rows == 3
