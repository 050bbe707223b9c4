"""KV slabs and repair, against a fresh dense forward."""

from __future__ import annotations

import os
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kv_lab import CONFIG, FRAMES, POLICIES, K, W, edit_at_random, embed, make_model, repair
from kv_oracle import fresh_forward
from mc_core.context.excerpts import Excerpt, Frame, Moved
from mc_core.context.working_context import Edit, Plan, WorkingContext
from mc_core.kv.layout import Layout, layout_of
from mc_core.kv.session_kv import SessionKV, decode_step
from mc_core.kv.slab import SlabPool


def random_excerpt(wc: WorkingContext, rng: np.random.Generator) -> Excerpt:
    """Frames of a few random tokens before some of the raw entries, some of these without their first tokens, and one
    of them read before a later one."""
    starts = wc.starts()[wc.levels == 0]
    chosen = starts[rng.random(len(starts)) < 0.4][: FRAMES // 4].tolist()
    cut = {at: at + int(rng.integers(1, 4)) for at in chosen if rng.random() < 0.5 and at + 4 < wc.num_tokens}
    frames = [Frame(cut.get(at, at), rng.integers(0, 64, int(rng.integers(1, 5))).astype(np.int32)) for at in chosen]
    moved, rows = None, np.flatnonzero(wc.levels == 0)
    if len(rows) > 1 and rng.random() < 0.7:
        row, to = np.sort(rng.choice(rows, 2, replace=False)).tolist()
        moved = Moved(int(wc.starts()[row]), int(wc.ends()[row]), int(wc.starts()[to]))
    return Excerpt(tuple(frames), tuple(cut.items()), moved)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("mode", ["exact", "block"])
@settings(max_examples=8, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    vectors=st.sampled_from([0, 1, 2, 4]),
    segment_blocks=st.sampled_from([1, 4, 8]),
)
def test_repair_equals_a_fresh_forward(mode: str, policy: str, seed: int, vectors: int, segment_blocks: int) -> None:
    """After any sequence of edits, ``exact`` and ``block`` repair hold what a fresh forward over the WC computes."""
    rng = np.random.default_rng(seed)
    model = make_model(mode, policy)
    kv = SessionKV(model, model.pool.acquire())
    # Hidden gists may cost their places all the same.
    hidden_gists = not vectors
    wc = WorkingContext(K, W, recent_tokens=2 * K, gist_cost=max(1, vectors))
    wc.extend(int(rng.integers(1, 40 * K)), reserve=K)
    segments = segment_blocks if mode == "block" else None
    for _ in range(6):
        framed = segments is None and policy == "compact" and hidden_gists
        excerpt = random_excerpt(wc, rng) if framed else None
        layout = layout_of(wc, hidden_gists=hidden_gists, segment_blocks=segments, excerpt=excerpt)
        hidden, _ = repair(kv, layout)
        expected = fresh_forward(model, layout, embed(layout))
        torch.testing.assert_close(hidden, expected[-1], atol=1e-4, rtol=1e-4)
        before = wc.num_tokens
        edit_at_random(wc, rng)
        if wc.num_tokens < before:
            kv.rewind(wc.num_tokens)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_a_rewind_forgets_all_that_may_come_back_different(seed: int) -> None:
    """What covers tokens from the cut on goes, and what has seen them; what was read before them stays."""
    rng = np.random.default_rng(seed)
    model = make_model("exact")
    kv = SessionKV(model, model.pool.acquire())
    wc = WorkingContext(K, W, recent_tokens=2 * K)
    wc.extend(int(rng.integers(4 * K, 12 * K)), reserve=K)
    layout = layout_of(wc, hidden_gists=True, segment_blocks=None, excerpt=random_excerpt(wc, rng))
    repair(kv, layout)
    position = int(rng.integers(1, wc.num_tokens + 1))
    kv.rewind(position)
    seen = np.logical_and.accumulate(layout.ends <= position)
    np.testing.assert_array_equal(kv.cached().identity, layout.identity[seen])


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("mode", ["exact", "block", "incremental"])
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), vectors=st.sampled_from([0, 2]))
def test_a_slab_that_begins_as_another_is_that_one_cut(mode: str, policy: str, seed: int, vectors: int) -> None:
    """What one slab takes over of another is what a rewind would leave of that, as far as it is computed: units, keys
    and values bit for bit, and so all later repairs; the other one stays as it is."""
    rng = np.random.default_rng(seed)
    model = make_model(mode, policy, rows=3)
    kv, beginning, cut = (SessionKV(model, model.pool.acquire()) for _ in range(3))
    wc = WorkingContext(K, W, recent_tokens=2 * K, gist_cost=max(1, vectors))
    wc.extend(int(rng.integers(2 * K, 12 * K)), reserve=K)
    segments = 2 if mode == "block" else None

    def layout() -> Layout:
        return layout_of(wc, hidden_gists=not vectors, segment_blocks=segments)

    for _ in range(3):
        edit_at_random(wc, rng)
        kv.rewind(wc.num_tokens)
        repair(kv, layout())
    before = content(kv)
    position = int(rng.integers(0, wc.num_tokens + 1))
    cut.share(kv.computed_units(), kv.row)
    assert len(cut) == len(kv)
    cut.rewind(position)
    beginning.share(kv.computed_units().before(position), kv.row)
    assert all(map(np.array_equal, content(beginning), content(cut)))
    assert all(map(np.array_equal, content(kv), before))
    wc.rewind(max(1, position), reserve=K)
    wc.extend(wc.num_tokens + 2 * K, reserve=K)
    plan = beginning.begin(layout(), need_last=True)
    for chunk in plan.chunks[: len(plan.chunks) // 2]:
        beginning.run(chunk, embed(layout())[torch.from_numpy(chunk.ranks)])
    computed = beginning.cached().computed
    taken = beginning.computed_units()
    assert len(taken.slots) == (len(computed) if computed.all() else np.argmin(computed))
    if mode != "incremental":
        kv.release()
        again = SessionKV(model, model.pool.acquire())
        again.share(taken, beginning.row)
        expected = fresh_forward(model, layout(), embed(layout()))[-1]
        for one in (cut, again):
            torch.testing.assert_close(repair(one, layout())[0], expected, atol=1e-4, rtol=1e-4)


def content(kv: SessionKV) -> list[np.ndarray]:
    """All that a slab knows and holds of its units."""
    pool, units = kv.model.pool, kv.units()
    assert units is not None
    slots = torch.from_numpy(units.slots)
    held = [pool.keys[:, kv.row], pool.values[:, kv.row], pool.bias[None, None, kv.row, :, None]]
    if pool.unrotated is not None:
        held.append(pool.unrotated[:, kv.row])
    kept = [each.index_select(2, slots).numpy().copy() for each in held]
    if kv.model.policy.has_bias:
        kept.append(pool.positions[kv.row, slots].numpy().copy())
    return [*(getattr(units, each.name) for each in fields(units)), *kept]


@pytest.mark.parametrize("static", [False, True], ids=["", "static"])
@pytest.mark.parametrize("mode", ["exact", "block", "incremental"])
def test_decode_equals_a_fresh_forward(mode: str, static: bool) -> None:
    """Tokens decoded one by one in a batch of sessions, each with its own history, equal a fresh forward of each."""
    model = make_model(mode, rows=3, static=static)
    sessions, layouts = [], []
    for tokens in (5, 90, 700):
        wc = WorkingContext(K, W, recent_tokens=2 * K)
        wc.extend(tokens, reserve=K)
        kv = SessionKV(model, model.pool.acquire())
        segments = 1 if mode == "block" else None
        layouts.append(layout_of(wc, hidden_gists=True, segment_blocks=segments))
        repair(kv, layouts[-1])
        sessions.append((kv, wc))
    ids = torch.tensor([[3, 1, 4], [1, 5, 9], [2, 6, 5]])
    order = [2, 0, 1]
    for step in range(3):
        indices = [sessions[i][1].num_tokens + step for i in order]
        hidden = decode_step(model, [sessions[i][0] for i in order], indices, ids[step][torch.tensor(order)])
        for place, i in enumerate(order):
            kv, wc = sessions[i]
            grown = WorkingContext(K, W, recent_tokens=2 * K)
            grown.extend(wc.num_tokens, reserve=K)
            vectors = torch.cat([embed(layouts[i]), model.decoder.embed(ids[: step + 1, i])])
            expected = fresh_forward(model, _with_tokens(layouts[i], wc.num_tokens, step + 1), vectors)
            torch.testing.assert_close(hidden[place], expected[-1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("mode", ["exact", "block"])
def test_tokens_that_are_read_at_once_are_those_read_one_by_one(mode: str, policy: str) -> None:
    """Hidden states, and all that the slab holds afterwards, are those of as many decode steps, up to its last slot."""
    model = make_model(mode, policy, rows=2)
    wc = WorkingContext(K, W, recent_tokens=2 * K)
    wc.extend(6 * K + 3, reserve=K)
    together, single = (SessionKV(model, model.pool.acquire()) for _ in range(2))
    for kv in (together, single):
        repair(kv, layout_of(wc, hidden_gists=True, segment_blocks=1 if mode == "block" else None))
    ids = torch.arange(7) % 5 + 3
    for first in (0, 7):
        index = wc.num_tokens + first
        hidden = together.read_on(index, model.decoder.embed(ids))
        steps = [decode_step(model, [single], [index + i], ids[i : i + 1])[0] for i in range(7)]
        torch.testing.assert_close(hidden, torch.stack(steps), atol=1e-4, rtol=1e-4)
    for one, other in zip(content(together), content(single), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)
    room = together.room
    together.read_on(wc.num_tokens + 14, model.decoder.embed(torch.zeros(room, dtype=torch.int64)))
    assert together.room == 0
    with pytest.raises(ValueError, match="slots are full"):
        together.read_on(wc.num_tokens + 14 + room, model.decoder.embed(ids[:1]))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_a_step_of_fixed_shape_changes_the_slabs_of_those_that_decode_alone(seed: int) -> None:
    """Whatever rows decode, in whatever order: hidden states are those of a plain step, and other slabs stay as they
    are, bit for bit, also where nothing stands in them."""
    rng = np.random.default_rng(seed)
    plain, static = make_model("exact", rows=6), make_model("exact", rows=6, static=True)
    sessions: dict[bool, list[SessionKV]] = {False: [], True: []}
    lengths = rng.integers(1, 6 * K, 5).tolist()  # the sixth slab is free
    for model in (plain, static):
        for tokens in lengths:
            wc = WorkingContext(K, W, recent_tokens=2 * K)
            wc.extend(tokens, reserve=K)
            kv = SessionKV(model, model.pool.acquire())
            repair(kv, layout_of(wc, hidden_gists=True, segment_blocks=None))
            sessions[model is static].append(kv)
    for _ in range(3):
        chosen = rng.permutation(5)[: rng.integers(1, 6)].tolist()
        indices, ids = [len(sessions[True][i]) for i in chosen], torch.from_numpy(rng.integers(0, 64, len(chosen)))
        others = [row for row in range(6) if row not in {sessions[True][i].row for i in chosen}]
        before = [slab[:, others, :, : static.pool.slots].clone() for slab in (static.pool.keys, static.pool.values)]
        expected, got = (
            decode_step(model, [sessions[model is static][i] for i in chosen], indices, ids)
            for model in (plain, static)
        )
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
        after = [slab[:, others, :, : static.pool.slots] for slab in (static.pool.keys, static.pool.values)]
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@given(low=st.integers(0, 40), more=st.integers(1, 40))
@settings(deadline=None)
def test_ranges_of_fixed_shape_are_few_and_near_what_decodes(low: int, more: int) -> None:
    """A step holds all rows that decode and at most as many others; of 64 slabs there are 127 ranges at most."""
    model = make_model("exact", rows=64, static=True)
    assert model.static is not None
    step = model.static.covering(low, min(64, low + more))
    if step is not None:
        size = step.end - step.start
        assert step.start <= low < min(64, low + more) <= step.end
        assert size <= 2 * more
        assert size & (size - 1) == 0
        assert step.start % size == 0
    assert model.static.covering(0, 64) is not None


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), vectors=st.sampled_from([1, 2, 4]))
def test_the_vectors_of_a_gist_share_its_span_and_go_together(seed: int, vectors: int) -> None:
    """Units tile the history, one a vector, and name its node and place; a cut inside a gist forgets all of it."""
    rng = np.random.default_rng(seed)
    wc = WorkingContext(K, W, recent_tokens=2 * K, gist_cost=vectors)
    wc.extend(int(rng.integers(20 * K, 40 * K)), reserve=K)
    layout = layout_of(wc, hidden_gists=False, segment_blocks=None)
    assert len(layout) == wc.cost
    assert len(set(layout.identity.tolist())) == len(layout)
    np.testing.assert_array_equal(layout.starts[1:], layout.ends[:-1])
    ranks = np.flatnonzero(layout.levels > 0)
    nodes, parts = layout.gist_vectors(ranks, K)
    np.testing.assert_array_equal(nodes, wc.indices[layout.entry[ranks]])
    np.testing.assert_array_equal(parts, np.tile(np.arange(vectors), len(ranks) // vectors))
    model = make_model("exact")
    kv = SessionKV(model, model.pool.acquire())
    repair(kv, layout)
    position = int(rng.integers(1, wc.num_tokens + 1))
    kv.rewind(position)
    whole = np.where(layout.levels > 0, wc.ends()[layout.entry], layout.ends) <= position
    np.testing.assert_array_equal(kv.cached().identity, layout.identity[whole])


def _with_tokens(layout: Layout, start: int, count: int) -> Layout:
    """A layout with ``count`` decoded tokens at its end."""
    tokens = np.arange(start, start + count)
    return Layout(
        identity=np.concatenate([layout.identity, tokens]),
        levels=np.concatenate([layout.levels, np.zeros(count, np.int8)]),
        starts=np.concatenate([layout.starts, tokens]),
        ends=np.concatenate([layout.ends, tokens + 1]),
        entry=np.concatenate([layout.entry, np.full(count, layout.entry[-1] + 1)]),
        segment_start=np.concatenate([layout.segment_start, np.full(count, -1)]),
        local=np.concatenate([layout.local, np.zeros(count, np.int64)]),
    )


def test_block_repair_recomputes_the_edited_block_and_the_tail_alone() -> None:
    """Under the block mask an edit costs the edited block and the tail, whatever else stands in the context."""
    model = make_model("block")
    kv = SessionKV(model, model.pool.acquire())
    wc = WorkingContext(K, W, recent_tokens=2 * K)
    wc.extend(9 * K, reserve=K)
    repair(kv, layout_of(wc, hidden_gists=True, segment_blocks=1))
    wc.commit(Plan((Edit("collapse", 1, 2),), wc.num_tokens))
    _, collapsed = repair(kv, layout_of(wc, hidden_gists=True, segment_blocks=1))
    wc.commit(Plan((Edit("expand", 1, 2),), wc.num_tokens))
    _, expanded = repair(kv, layout_of(wc, hidden_gists=True, segment_blocks=1))
    tail = wc.num_tokens - wc.tail_start
    assert (collapsed, expanded) == (tail, tail + K)


def test_block_repair_of_a_stock_base_keeps_its_tail_until_a_refresh() -> None:
    """An edit costs its block alone, and what the tail keeps of an older view ends with a refresh."""
    model = make_model("block", config=replace(CONFIG, block_mask=False))
    kv = SessionKV(model, model.pool.acquire())
    wc = WorkingContext(K, W, recent_tokens=2 * K)
    wc.extend(9 * K, reserve=K)
    repair(kv, layout_of(wc, hidden_gists=True, segment_blocks=1), refresh=True)
    wc.commit(Plan((Edit("collapse", 1, 2), Edit("collapse", 1, 4)), wc.num_tokens))
    repair(kv, layout_of(wc, hidden_gists=True, segment_blocks=1), refresh=True)
    wc.commit(Plan((Edit("expand", 1, 2),), wc.num_tokens))
    layout = layout_of(wc, hidden_gists=True, segment_blocks=1)
    expected = fresh_forward(model, layout, embed(layout))[-1]
    approximate, few = repair(kv, layout)
    again, some = repair(kv, layout, refresh=True)
    assert few == K + 1
    assert some == wc.num_tokens - wc.tail_start
    assert not torch.allclose(approximate, expected, atol=1e-4)
    torch.testing.assert_close(again, expected, atol=1e-4, rtol=1e-4)


def test_an_unchanged_context_costs_nothing() -> None:
    """A refocus that edits nothing recomputes nothing, in every mode."""
    for mode in ("exact", "block", "incremental"):
        model = make_model(mode)
        kv = SessionKV(model, model.pool.acquire())
        wc = WorkingContext(K, W, recent_tokens=2 * K)
        wc.extend(30 * K, reserve=K)
        layout = layout_of(wc, hidden_gists=True, segment_blocks=1 if mode == "block" else None)
        repair(kv, layout)
        _, recomputed = repair(kv, layout, need_last=False)
        assert recomputed == 0


def test_incremental_repair_is_exact_again_after_a_refresh() -> None:
    """``incremental`` keeps values of an older view after an edit (so it differs), and a refresh makes it exact."""
    model = make_model("incremental")
    kv = SessionKV(model, model.pool.acquire())
    wc = WorkingContext(K, W, recent_tokens=2 * K)
    wc.extend(12 * K, reserve=K)
    repair(kv, layout_of(wc, hidden_gists=True, segment_blocks=None), refresh=True)
    wc.commit(Plan((Edit("collapse", 1, 3),), wc.num_tokens))
    layout = layout_of(wc, hidden_gists=True, segment_blocks=None)
    expected = fresh_forward(model, layout, embed(layout))[-1]
    approximate, few = repair(kv, layout)
    exact, many = repair(kv, layout, refresh=True)
    assert few == K + 1
    assert many == len(layout) - 3 * K
    assert not torch.allclose(approximate, expected, atol=1e-4)
    torch.testing.assert_close(exact, expected, atol=1e-4, rtol=1e-4)


def test_an_interrupted_repair_is_finished_by_the_next() -> None:
    """Units that were planned but not computed are not taken for cached."""
    model = make_model("block")
    kv = SessionKV(model, model.pool.acquire())
    wc = WorkingContext(K, W, recent_tokens=2 * K)
    wc.extend(12 * K, reserve=K)
    layout = layout_of(wc, hidden_gists=True, segment_blocks=1)
    plan = kv.begin(layout, need_last=True)
    kv.run(plan.chunks[0], embed(layout)[torch.from_numpy(plan.chunks[0].ranks)])
    hidden, recomputed = repair(kv, layout)
    assert recomputed == len(layout) - len(plan.chunks[0].ranks)
    torch.testing.assert_close(hidden, fresh_forward(model, layout, embed(layout))[-1], atol=1e-4, rtol=1e-4)


def test_slabs_are_bounded_and_come_back() -> None:
    """A pool hands out each row once, and a released row holds nothing that can be attended to."""
    pool = SlabPool(CONFIG, 2, 8)
    first, second = pool.acquire(), pool.acquire()
    assert {first, second} == {0, 1}
    assert pool.acquire() is None
    pool.bias[0] = 0.0
    pool.release(0)
    assert torch.isinf(pool.bias[0]).all()
    with pytest.raises(ValueError, match="not in use"):
        pool.release(0)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident memory is read from /proc")
def test_slabs_take_memory_as_they_are_written() -> None:
    """Law: slabs cost no memory when they are made, and none where they are only read."""

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    before = resident()
    pool = SlabPool(CONFIG, rows=8, slots=65_536)
    assert float(pool.keys.sum()) == 0.0
    assert resident() - before < 0.05 * pool.bytes()
