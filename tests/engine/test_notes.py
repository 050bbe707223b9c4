"""Notes that turns leave: stored with the turn, or not at all."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np
import pytest

from engine_lab import FOCUS, Lab, Reply, random_ids
from mc_core.engine import jobs
from mc_core.engine.requests import Finished, Turn
from mc_core.errors import StoreError
from mc_core.models.sampler import SamplingParams
from mc_core.notes import Note
from mc_core.session.factory import SessionFactory
from mc_core.session.session import Session

PROMPT = random_ids(40, 7)


def stored(lab: Lab, name: str = "a") -> list[Note]:
    return list(lab.store.notes(name, "tenant").result().notes)


def ask(lab: Lab, session: Session, key: str, cut: int | None = None, fail: bool = False) -> Note:
    """A turn that leaves a note at its end; it can fail when all of it is there but the store's word."""
    left: list[Note] = []

    def leave(text: str, _: Finished) -> None:
        left.append(Note(key, session.tokens, text.encode()))
        session.note(left[0])
        if fail:
            raise ValueError("the state can't be noted")

    reply = Reply()
    sampling = SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=8)
    lab.engine.submit(Turn(session, PROMPT, sampling, reply, commit_state=leave, cut=cut))
    assert (reply.wait().error is not None) is fail
    return left[0]


def test_a_turn_stores_its_notes_and_a_failed_one_none(lab: Lab) -> None:
    """What a turn notes is stored with its reply; a failed turn's notes are not stored by a later one either."""
    session = lab.session("a", 100)
    first = ask(lab, session, "first")
    assert stored(lab) == [first]
    ask(lab, session, "failed", fail=True)
    third = ask(lab, session, "third")
    assert stored(lab) == [first, third]
    lab.engine.commit(session, [Note("beside", 100, b"")]).result()
    assert stored(lab) == [Note("beside", 100, b""), first, third]
    lab.engine.rewind(session, first.position - 1).result()
    assert stored(lab) == [Note("beside", 100, b"")]


@pytest.mark.parametrize("fail", [False, True])
def test_a_turn_that_cuts_replaces_the_notes_behind_the_cut(lab: Lab, fail: bool) -> None:
    """With the history's end its notes are replaced; if the turn fails, they are there as before."""
    session = lab.session("a", 1_000)
    before = [ask(lab, session, key) for key in ("one", "two", "three")]
    after = ask(lab, session, "two", cut=before[0].position + 2, fail=fail)
    expected = before if fail else [before[0], after]
    assert stored(lab) == expected
    lab.engine.release(session).result()
    assert lab.reopen("a").tokens == expected[-1].position
    assert stored(lab) == expected


@pytest.mark.parametrize("stale", [False, True])
def test_a_crash_between_the_cut_and_the_turn_loses_no_note(lab: Lab, stale: bool) -> None:
    """The session's next user finds the notes as they were before the turn, also if its gists are made anew first and
    the machine stops again after that."""
    session = lab.session("a", 1_000)
    before = [ask(lab, session, key) for key in ("one", "two")]
    history = lab.engine.read(session, 0, session.tokens).result()
    lab.engine.release(session).result()

    def begin() -> Future[int]:
        """The engine's steps up to the store's first answer, as if the machine had stopped there."""
        turn = Turn(session, PROMPT, SamplingParams(), Reply(), cut=before[0].position - 9)
        assert list(jobs.begin(lab.engine.core, session, turn)) == []
        session.append(PROMPT)
        session.note(Note("two", session.tokens, b"never"))
        wait = next(jobs.commit(lab.engine.core, session))
        return wait.future  # type: ignore[union-attr]

    lab.engine.call(begin).result().result()
    assert stored(lab) == []
    if stale:
        stop_after_mending(lab)
        assert stored(lab) == []
    found = lab.reopen("a")
    assert stored(lab) == before
    np.testing.assert_array_equal(lab.engine.read(found, 0, found.tokens).result(), history)


def stop_after_mending(lab: Lab) -> None:
    """Another server's networks make all gists anew; then it gets no further."""
    factory = SessionFactory(replace(lab.bundle, gist_fingerprint="other"), FOCUS)
    commit, commits = lab.store.commit, 0

    def failing(*arguments: Any, **options: Any) -> Future[int]:
        nonlocal commits
        commits += 1
        if commits == 2:
            raise StoreError("the machine stopped")
        return commit(*arguments, **options)

    opened = lab.store.open("a", "tenant", "lab").result()
    with mock.patch.object(lab.store, "commit", failing), pytest.raises(StoreError, match="stopped"):
        factory.load(opened, lab.store)
