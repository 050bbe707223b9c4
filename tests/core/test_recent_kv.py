"""Keys and values of places that left a working context: what comes back from host memory is what was computed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from kv_lab import POLICIES, K, W, edit_at_random, embed, make_model, repair
from kv_oracle import fresh_forward
from mc_core.context.working_context import Edit, Plan, WorkingContext
from mc_core.kv.layout import layout_of
from mc_core.kv.recent import Kept, RecentKV, Shelf
from mc_core.kv.session_kv import KVModel, SessionKV


def shelved(limit: int = 1 << 30, **options: Any) -> tuple[KVModel, RecentKV, Shelf]:
    cache = RecentKV(limit)
    return make_model("block", rows=2, **options), cache, Shelf(cache)


def blocks_of(tokens: int) -> WorkingContext:
    wc = WorkingContext(K, W, recent_tokens=2 * K)
    wc.extend(tokens, reserve=K)
    return wc


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("segment_blocks", [1, 4])
def test_what_comes_back_from_host_memory_is_what_was_computed(policy: str, segment_blocks: int) -> None:
    """Random edits, with a cache and without: the same hidden states, and the shelf spares work."""
    rng = np.random.default_rng(1)
    model, cache, shelf = shelved(policy=policy)
    kv, plain = SessionKV(model, model.pool.acquire(), shelf), SessionKV(model, model.pool.acquire())
    wc, spared = blocks_of(12 * K), 0
    for _ in range(24):
        layout = layout_of(wc, hidden_gists=False, segment_blocks=segment_blocks)
        hidden, computed = repair(kv, layout)
        expected, without = repair(plain, layout)
        torch.testing.assert_close(hidden, expected, atol=1e-5, rtol=1e-5)
        spared += without - computed
        edit_at_random(wc, rng)
        for session in (kv, plain):
            session.rewind(wc.num_tokens)
        shelf.rewind(wc.num_tokens)
    assert spared > 0
    assert cache.bytes == sum(kept.bytes for kept in shelf.kept.values())


def test_to_go_back_to_a_place_computes_the_tail_alone() -> None:
    """A block that was folded away and is opened again is not computed again, wherever it now stands."""
    model, _, shelf = shelved()
    kv = SessionKV(model, model.pool.acquire(), shelf)
    wc = blocks_of(9 * K)
    tail = wc.num_tokens - wc.tail_start
    repair(kv, layout_of(wc, hidden_gists=True, segment_blocks=1))
    for edit in (Edit("collapse", 1, 2), Edit("collapse", 1, 1), Edit("expand", 1, 2), Edit("expand", 1, 1)):
        wc.commit(Plan((edit,), wc.num_tokens))
        layout = layout_of(wc, hidden_gists=True, segment_blocks=1)
        hidden, computed = repair(kv, layout)
        assert computed == tail
        torch.testing.assert_close(hidden, fresh_forward(model, layout, embed(layout))[-1], atol=1e-4, rtol=1e-4)


def test_a_session_that_gets_another_slab_computes_the_tail_alone() -> None:
    """What a slab held of history is at hand for the next slab; what was dropped, or cut by a rewind, is not."""
    model, cache, shelf = shelved()
    wc = blocks_of(9 * K)
    layout = layout_of(wc, hidden_gists=True, segment_blocks=1)
    kv = SessionKV(model, model.pool.acquire(), shelf)
    repair(kv, layout)
    kv.release(keep=True)
    assert cache.bytes > 0
    kv = SessionKV(model, model.pool.acquire(), shelf)
    hidden, computed = repair(kv, layout)
    assert computed == wc.num_tokens - wc.tail_start
    torch.testing.assert_close(hidden, fresh_forward(model, layout, embed(layout))[-1], atol=1e-4, rtol=1e-4)
    kv.release(keep=True)
    shelf.rewind(3 * K - 1)
    assert sorted(kept.end for kept in shelf.kept.values()) == [K, 2 * K]
    shelf.clear()
    assert cache.bytes == 0
    assert repair(SessionKV(model, model.pool.acquire(), shelf), layout)[1] == len(layout)


def test_host_memory_is_bounded_and_forgets_the_oldest() -> None:
    """The cache never holds more than its limit, over all sessions; a segment larger than that is not kept at all."""
    cache = RecentKV(100)
    shelves = [Shelf(cache), Shelf(cache)]
    for number in range(20):
        shelves[number % 2].put(number, kept_of(5))
        assert cache.bytes <= cache.limit
    assert [sorted(shelf.kept) for shelf in shelves] == [[18], [19]]
    shelves[0].put(0, kept_of(50))
    assert cache.bytes == 80


def test_of_a_segment_the_longest_beginning_is_kept() -> None:
    """A shorter one does not take its place, and what is in the slab as a whole is no longer on the shelf."""
    shelf = Shelf(RecentKV(1 << 20))
    for units in (3, 5, 2):
        shelf.put(7, kept_of(units))
    assert shelf.kept[7].units == 5
    assert shelf.take(7, 4).units == 5
    assert shelf.take(7, 9).units == 5
    assert not shelf.kept
    assert shelf.cache.bytes == 0


def kept_of(units: int) -> Kept:
    return Kept(torch.zeros(1, 1, units, 1), torch.zeros(1, 1, units, 1), units)


def test_a_segment_that_grows_or_was_cut_computes_what_is_missing() -> None:
    """Units of a segment see those that were computed before them, as after a rewind and what is then written."""
    model = make_model("block")
    kv = SessionKV(model, model.pool.acquire())
    wc = blocks_of(12 * K)
    for position, tokens in ((12 * K, 12 * K), (5 * K + 3, 12 * K), (12 * K, 13 * K)):
        kv.rewind(position)
        if position < wc.num_tokens:
            wc.rewind(position, reserve=K)
        wc.extend(tokens, reserve=K)
        layout = layout_of(wc, hidden_gists=True, segment_blocks=8)
        hidden, computed = repair(kv, layout)
        torch.testing.assert_close(hidden, fresh_forward(model, layout, embed(layout))[-1], atol=1e-4, rtol=1e-4)
    assert computed == K + wc.num_tokens - wc.tail_start
