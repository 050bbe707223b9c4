"""Reasons: why an entry stands raw is what the plans did, refocus after refocus."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mc_core.focus.leads import Lead
from mc_core.focus.reasons import Reason, Reasons, of_targets
from mc_core.focus.view import Scores
from tests.core.test_refocus import CONFIG, RARE, K, _Session, prose

BLOCKS = 12
blocks = st.sets(st.integers(0, BLOCKS - 1))
reasons = st.sampled_from(["turn", "asked", "neighbour", "lead"])


def array(numbers: set[int]) -> np.ndarray:
    return np.array(sorted(numbers), np.int64)


class _Context:
    """A working context in which these blocks stand raw, without pins or a tail."""

    def __init__(self, raw: set[int]) -> None:
        self.indices = np.arange(BLOCKS)
        self.levels = (~np.isin(self.indices, array(raw))).astype(np.int8)
        self.num_tokens = BLOCKS
        self.protection = self

    def tail_start(self, num_tokens: int) -> int:
        return num_tokens

    def starts(self) -> np.ndarray:
        return self.indices

    def pinned(self, indices: np.ndarray) -> np.ndarray:
        return np.zeros(len(indices), bool)


@settings(deadline=None)
@given(st.lists(st.tuples(blocks, st.dictionaries(st.integers(0, BLOCKS - 1), reasons), blocks, blocks, st.booleans())))
def test_each_raw_block_has_the_newest_reason_of_its_stay(
    steps: list[tuple[set[int], dict[int, Reason], set[int], set[int], bool]],
) -> None:
    """Within a refocus the first reason counts, over refocuses the last one, and nothing outlives a fold; storing
    and reading a session changes none of it."""
    kept, oracle, now = Reasons(), dict[int, Reason](), set[int]()
    for raw, targets, opened, filled, further in steps:
        kept.note(array(raw), targets, array(opened), filled & opened, further=further)
        now = now if further else set()
        told: dict[int, Reason] = {}
        for block in raw:
            opens: Reason = "newest" if block in filled else "asked"
            new = targets.get(block, opens if block in opened else None)
            if new is not None and block not in now:
                told[block] = new
                now = now | {block}
            else:
                old = oracle.get(block, "newest")
                told[block] = "newest" if old == "turn" and block not in now else old
        oracle = told
        assert kept.of(_Context(raw)) == [told.get(block) for block in range(BLOCKS)]  # type: ignore[arg-type]
        if not further:
            now = set(told) & (set(targets) | opened)
            stored = Reasons()
            stored.restore(json.loads(json.dumps(kept.snapshot())))
            assert stored.of(_Context(raw)) == kept.of(_Context(raw))  # type: ignore[arg-type]


def test_what_was_stored_without_reasons_has_none() -> None:
    """Of an older server's session nothing is made up: what a plan says from now on counts, and what is new."""
    kept = Reasons()
    kept.restore(None)
    assert kept.of(_Context({1, 2})) == [None] * BLOCKS  # type: ignore[arg-type]
    kept.note(array({1, 2}), {2: "asked"}, array(set()), ())
    kept.restore(json.loads(json.dumps(kept.snapshot())))
    assert kept.of(_Context({1, 2, 3}))[1:4] == [None, "asked", "newest"]  # type: ignore[arg-type]


def test_a_target_is_what_the_lens_said_it_is() -> None:
    """Hits, what leads name, the turn's own, and what stands beside; what is worth too little is no target."""
    scores = Scores(np.zeros(0), np.zeros(0), np.arange(6), np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.1], np.float32))
    lead = Lead(*([np.empty(0, np.int32)] * 3), hop=0, rest=np.empty(0, np.int64), targets=np.array([0, 2]))
    told = of_targets(replace(scores, hits=np.array([0, 4])), [lead], scores.targets >= 4, least=0.1)
    assert told == {0: "asked", 1: "neighbour", 2: "lead", 3: "neighbour", 4: "turn"}
    assert set(of_targets(scores, [], scores.targets > 9, least=0.1).values()) == {"asked"}


def test_a_fact_is_asked_for_and_what_stands_beside_it_is_its_neighbour() -> None:
    """On a real history: the fact's block, the blocks around it, the protected, and what was new."""
    session = _Session()
    ids, at = prose(60_000), 20_000
    ids[at : at + len(RARE)] = RARE
    session.append(ids)
    session.refocuser.commit(session.wc, session.propose())
    wc = session.wc
    why = dict(
        zip(zip(wc.levels.tolist(), wc.indices.tolist(), strict=True), session.refocuser.reasons_of(wc), strict=True)
    )
    fact = at // K
    assert (why[0, 0], why[0, fact], why[0, fact - 1], why[0, fact + 1]) == (
        "pinned",
        "asked",
        "neighbour",
        "neighbour",
    )
    tail = wc.tail_start // K
    for (level, index), reason in why.items():
        assert (reason is None) == (level > 0)
        assert (reason == "tail") == (level == 0 and index >= tail)
    assert CONFIG.recent_tokens // K <= sum(reason == "tail" for reason in why.values())
    session.append(prose(K * 3, 7))
    assert "newest" in session.refocuser.reasons_of(session.wc)
