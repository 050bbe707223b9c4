"""What is appended without a turn: all of it, with the cut and the pins in front of it, or nothing."""

from __future__ import annotations

from concurrent.futures import Future
from unittest import mock

import numpy as np
import pytest

from engine_lab import Lab, MakeLab, random_ids
from mc_core.engine.engine_config import EngineConfig
from mc_core.errors import StoreError
from mc_core.session.session import Session
from mc_core.store import SessionRecord
from test_cut import history, pinned

NEW = random_ids(5_000, 7)
CUTS = [None, 1_990, 500, 0]


def append(lab: Lab, session: Session, cut: int | None, fail: bool = False) -> Future[int]:
    def then() -> None:
        session.chat = {"changed": True}
        if fail:
            raise ValueError("the state can't be noted")

    end = session.tokens if cut is None else cut
    return lab.engine.append(session, NEW, cut, ((end + 5, end + 30),), then)


@pytest.mark.parametrize("cut", CUTS)
def test_what_is_appended_is_there_and_stored(make_lab: MakeLab, cut: int | None) -> None:
    """It stands behind the cut, pinned where that was asked for, with what was noted; a turn goes on behind it."""
    with make_lab(EngineConfig(max_sessions=2, hot_tokens=128)) as lab:
        session = pinned(lab, "a")
        told = np.concatenate([random_ids(2_000)[:cut], NEW])
        assert append(lab, session, cut).result() == len(told)
        session.wc.check()
        end = len(told) - len(NEW)
        lab.engine.release(session).result()
        found = lab.reopen("a")
        for one in (session, found):
            np.testing.assert_array_equal(history(lab, one), told)
            assert one.chat == {"changed": True}
            assert one.wc.protection.pins[-1] == (end + 5, end + 30)
        assert lab.ask(found, random_ids(9)).finished is not None


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("stage", ["then", "first commit", "last commit"])
def test_what_cannot_be_appended_leaves_no_trace(lab: Lab, cut: int | None, stage: str) -> None:
    """Wherever it fails, history, pins and conversation are as they were: in memory, or where that is worth nothing, in
    the store; and the same goes well afterwards."""
    session, commits = pinned(lab, "a"), 0
    lab.engine.pin(session, ((600, 610), (1_900, 1_950)), ()).result()
    kept = session.wc.protection
    commit = lab.store.commit
    at = {"then": 0, "first commit": 1, "last commit": 1 if cut is None else 2}[stage]

    def failing(record: SessionRecord, *notes: object) -> Future[int]:
        nonlocal commits
        commits += 1
        if commits == at:
            future: Future[int] = Future()
            future.set_exception(StoreError("the disk is full"))
            return future
        return commit(record, *notes)  # type: ignore[arg-type]

    with mock.patch.object(lab.store, "commit", failing), pytest.raises((ValueError, StoreError)):
        append(lab, session, cut, fail=stage == "then").result()
    assert session.broken == (stage == "last commit" and cut is not None)
    if session.broken:
        lab.engine.release(session).result()
        session = lab.reopen("a")
    np.testing.assert_array_equal(history(lab, session), random_ids(2_000))
    found = session.wc.protection
    assert (session.chat, found.pins, found.chosen) == ({}, ((0, 64),), kept.chosen)
    session.wc.check()
    assert append(lab, session, cut).result() == 5_000 + (2_000 if cut is None else cut)
    np.testing.assert_array_equal(history(lab, lab.reopen("a"))[-5_000:], NEW)
