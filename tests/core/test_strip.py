"""The strip: what stands where, in few runs, from the first token to the last."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mc_core.context.working_context import WorkingContext
from mc_core.focus import strip as strips
from mc_core.focus.reasons import GIST
from mc_core.focus.strip import MOST_RUNS, RUN_BYTES, Strip, moves, strip_of

K = 16


def context(tokens: int, blocks: np.ndarray, gist_cost: int = 0, budget: int = 1 << 17) -> WorkingContext:
    """A working context in which these blocks stand raw."""
    wc = WorkingContext(K, budget, 32, gist_cost=gist_cost)
    wc.cover(tokens)
    wc.choose([(block * K, block * K + K) for block in blocks.tolist()])
    return wc


def states_of(wc: WorkingContext, rng: np.random.Generator) -> np.ndarray:
    return np.where(wc.levels > 0, GIST, rng.integers(1, 4, len(wc))).astype(np.int8)


def assert_tiles(strip: Strip, tokens: int) -> None:
    assert strip.starts[0] == 0
    assert strip.ends[-1] == tokens
    np.testing.assert_array_equal(strip.starts[1:], strip.ends[:-1])
    assert (strip.ends > strip.starts).all()


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), gist_cost=st.sampled_from([0, 1, 4]))
def test_a_strip_says_of_each_token_what_its_entry_does(seed: int, gist_cost: int) -> None:
    """While there is room, a strip is the entries, with neighbours that are alike as one."""
    rng = np.random.default_rng(seed)
    tokens = int(rng.integers(1, 20_000))
    wc = context(tokens, rng.integers(0, max(1, tokens // K), 5), gist_cost)
    states = states_of(wc, rng)
    strip = strip_of(wc.entries, states)
    assert_tiles(strip, tokens)
    at = np.searchsorted(strip.starts, wc.starts(), side="right") - 1
    np.testing.assert_array_equal(strip.levels[at], wc.levels)
    np.testing.assert_array_equal(strip.states[at], states)
    alike = (strip.levels[1:] == strip.levels[:-1]) & (strip.states[1:] == strip.states[:-1])
    assert not alike.any()


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), limit=st.integers(8, 60))
def test_a_strip_that_is_coarsened_hides_nothing_raw(seed: int, limit: int) -> None:
    """However few runs are allowed, they tile the history, and every raw token is in a raw run of a state that is
    there."""
    rng = np.random.default_rng(seed)
    tokens = int(rng.integers(5_000, 300_000))
    wc = context(tokens, rng.integers(0, tokens // K, 80))
    states = states_of(wc, rng)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(strips, "MOST_RUNS", limit)
        strip = strip_of(wc.entries, states)
    assert len(strip) <= limit
    assert_tiles(strip, tokens)
    raw = np.flatnonzero(wc.levels == 0)
    for at in (wc.starts()[raw], wc.ends()[raw] - 1):
        rows = np.searchsorted(strip.starts, at, side="right") - 1
        assert not strip.levels[rows].any()
    assert set(strip.states[strip.levels == 0].tolist()) <= set(states[raw].tolist())
    assert (strip.states[strip.levels > 0] == GIST).all()
    # No raw run without something raw in it.
    first = np.searchsorted(wc.ends()[raw], strip.starts[strip.levels == 0], side="right")
    assert (wc.starts()[raw][first] < strip.ends[strip.levels == 0]).all()


@pytest.mark.parametrize("places", [100, 3_500])
def test_ten_million_tokens_take_few_bytes(places: int) -> None:
    """At 10 M tokens, with places opened all over it, a strip keeps its bounds."""
    rng = np.random.default_rng(0)
    wc = context(10_000_000, rng.integers(0, 10_000_000 // K, places))
    assert len(wc) > 4_000
    strip = strip_of(wc.entries, states_of(wc, rng))
    assert_tiles(strip, 10_000_000)
    assert len(strip) <= MOST_RUNS
    assert len(json.dumps(strip.rows(), separators=(",", ":"))) <= RUN_BYTES


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_moves_are_the_difference_of_two_looks(seed: int) -> None:
    """Opened is what stands raw now and did not, closed the other way round, of the history that both know."""
    rng = np.random.default_rng(seed)
    tokens, later = rng.integers(2_000, 9_000, 2).tolist()
    before, now = (context(n, rng.integers(0, n // K, 8)) for n in (tokens, later))
    blocks = min(tokens, later) // K
    was, raw = ({b for b in wc.indices[wc.levels == 0].tolist() if b < blocks} for wc in (before, now))
    states, scores = states_of(now, rng), rng.uniform(-1, 1, len(now)).astype(np.float32)
    moved = moves(before.entries, now.entries, states, scores, most=1_000)
    opened = [block for first, last, _, _ in moved.opened for block in range(first, last)]
    assert opened == sorted(raw - was)
    assert [block for first, last in moved.closed for block in range(first, last)] == sorted(was - raw)
    by_block = {
        index: (state, abs(score))
        for index, level, state, score in zip(
            now.indices.tolist(), now.levels.tolist(), states.tolist(), scores.tolist(), strict=True
        )
        if level == 0
    }
    for first, last, state, score in moved.opened:
        assert {by_block[block][0] for block in range(first, last)} == {state}
        assert score == pytest.approx(max(by_block[block][1] for block in range(first, last)), abs=1e-4)
    few = moves(before.entries, now.entries, states, scores, most=2)
    assert few.opened == sorted(sorted(moved.opened, key=lambda one: -one[3])[:2]) or len(few.opened) == 2
    assert few.closed == moved.closed[-2:]


def test_an_empty_history_is_an_empty_strip() -> None:
    """Without tokens there are no runs, and nothing moves."""
    wc = WorkingContext(K, 512, 32)
    none = np.zeros(0, np.int8)
    assert strip_of(wc.entries, none).rows() == []
    moved = moves(wc.entries, wc.entries, none, np.zeros(0, np.float32), most=5)
    assert (moved.opened, moved.closed) == ([], [])
