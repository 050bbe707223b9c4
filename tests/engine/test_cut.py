"""Turns that write the end of a history anew: whole, or not at all, also in the store."""

from __future__ import annotations

from concurrent.futures import Future
from unittest import mock

import numpy as np
import pytest

from engine_lab import Lab, MakeLab, Reply, random_ids
from mc_core.engine import jobs
from mc_core.engine.engine_config import EngineConfig
from mc_core.engine.requests import Turn
from mc_core.errors import StoreError
from mc_core.models.sampler import SamplingParams
from mc_core.session.session import Session
from mc_core.store import SessionRecord

PROMPT = random_ids(40, 7)


def history(lab: Lab, session: Session) -> np.ndarray:
    return lab.engine.read(session, 0, session.tokens).result()


def pinned(lab: Lab, name: str) -> Session:
    """A session whose first 64 tokens are pinned."""
    session = lab.session(name)
    session.pin(0, 64)
    lab.engine.ingest(session, random_ids(2_000)).result()
    lab.engine.commit(session).result()
    return session


def ask(
    lab: Lab, session: Session, cut: int | None, fail: bool = False, pins: tuple[tuple[int, int], ...] = ()
) -> Reply:
    """A turn that cuts the history at ``cut``; it can fail when all of it is there but the store's word."""

    def note(*_: object) -> None:
        session.chat, session.prefixes = {"changed": True}, []
        if fail:
            raise ValueError("the state can't be noted")

    reply = Reply()
    sampling = SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=40)
    lab.engine.submit(Turn(session, PROMPT, sampling, reply, commit_state=note, cut=cut, pins=pins))
    return reply.wait()


@pytest.mark.parametrize("cut", [1_999, 1_984, 1_700, 500, 0])
def test_a_turn_goes_on_from_where_it_cuts(make_lab: MakeLab, cut: int) -> None:
    """What is behind the cut is replaced, in memory and in the store, also where it has left memory."""
    with make_lab(EngineConfig(max_sessions=2, hot_tokens=128)) as lab:
        session = lab.session("a", 2_000)
        reply = ask(lab, session, cut)
        assert reply.finished is not None
        assert reply.finished.usage.cached_tokens == cut
        told = np.concatenate([random_ids(2_000)[:cut], PROMPT, reply.ids])
        np.testing.assert_array_equal(history(lab, session), told)
        session.wc.check()
        lab.engine.release(session).result()
        np.testing.assert_array_equal(history(lab, lab.reopen("a")), told)


@pytest.mark.parametrize("cut", [None, 1_999, 1_984, 500, 0])
def test_a_failed_turn_takes_its_cut_back(make_lab: MakeLab, cut: int | None) -> None:
    """After a failure the history, the pins and what is kept of the conversation are as they were, in memory too."""
    with make_lab(EngineConfig(max_sessions=2, hot_tokens=128)) as lab:
        session, twin = pinned(lab, "a"), pinned(lab, "twin")
        session.chat, session.prefixes = {"told": 1}, [("h", 600), ("i", 2_000)]
        lab.engine.commit(session).result()
        ahead = 5 + (2_000 if cut is None else cut)
        reply = ask(lab, session, cut, fail=True, pins=((ahead, ahead + 30),))
        assert isinstance(reply.error, ValueError)
        assert (session.chat, session.prefixes) == ({"told": 1}, [("h", 600), ("i", 2_000)])
        assert session.wc.protection.pins == ((0, 64),)
        np.testing.assert_array_equal(history(lab, session), random_ids(2_000))
        session.wc.check()
        # It goes on as one that never failed, and the store takes it.
        assert ask(lab, session, 1_990).finished is not None
        assert ask(lab, twin, 1_990).finished is not None
        np.testing.assert_array_equal(history(lab, session), history(lab, twin))
        np.testing.assert_array_equal(history(lab, lab.reopen("a")), history(lab, twin))


def test_a_crash_between_the_cut_and_the_turn_loses_nothing(lab: Lab) -> None:
    """The session's next user finds it as it was before the turn: history, conversation and boundaries."""
    session = lab.session("a", 2_000)
    session.chat, session.prefixes = {"told": 1}, [("h", 600), ("i", 2_000)]
    lab.engine.commit(session).result()
    lab.engine.release(session).result()

    def begin() -> Future[int]:
        """The engine's steps up to the store's first answer, as if the machine had stopped there."""
        turn = Turn(session, PROMPT, SamplingParams(), Reply(), cut=1_990)
        assert list(jobs.begin(lab.engine.core, session, turn)) == []
        session.append(PROMPT)
        session.chat, session.prefixes = {"told": 2}, [("j", 2_030)]
        wait = next(jobs.commit(lab.engine.core, session))
        return wait.future  # type: ignore[union-attr]

    lab.engine.call(begin).result().result()
    found = lab.reopen("a")
    for _ in range(2):
        np.testing.assert_array_equal(history(lab, found), random_ids(2_000))
        assert (found.chat, found.prefixes) == ({"told": 1}, [("h", 600), ("i", 2_000)])
        found.wc.check()
        lab.engine.release(found).result()
        found = lab.reopen("a")
    assert lab.ask(found, PROMPT).finished is not None


@pytest.mark.parametrize("cut", [1_990, 1_000, 0])
def test_a_store_that_fails_between_the_cut_and_the_turn_loses_nothing(lab: Lab, cut: int) -> None:
    """Memory then says that it is worth nothing, and the store gives the session back as it was before the turn."""
    session = lab.session("a", 2_000)
    store, commits = lab.store, 0
    commit = store.commit

    def failing(record: SessionRecord, *notes: object) -> Future[int]:
        nonlocal commits
        commits += 1
        if commits == 2:
            future: Future[int] = Future()
            future.set_exception(StoreError("the disk is full"))
            return future
        return commit(record, *notes)

    with mock.patch.object(store, "commit", failing):
        reply = ask(lab, session, cut)
    assert isinstance(reply.error, StoreError)
    assert (commits, session.broken) == (2, True)
    lab.engine.release(session).result()
    found = lab.reopen("a")
    np.testing.assert_array_equal(history(lab, found), random_ids(2_000))
    assert not found.broken
    assert ask(lab, found, cut).finished is not None
    np.testing.assert_array_equal(history(lab, lab.reopen("a"))[:cut], random_ids(2_000)[:cut])


def test_pins_end_where_the_history_is_cut(lab: Lab) -> None:
    """A rewind unpins what is no longer there, so that other text in its place can collapse."""
    session = lab.session("a", 200)
    lab.engine.call(lambda: session.pin(0, 150)).result()
    lab.engine.rewind(session, 40).result()
    assert session.wc.protection.pins == ((0, 40),)
    lab.engine.rewind(session, 0).result()
    assert session.wc.protection.pins == ()
