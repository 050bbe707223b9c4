"""WorkingContext against the laws of a working context and brute-force oracles."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mc_core.context.groups import make_room
from mc_core.context.growth import coarsest_cover
from mc_core.context.working_context import Edit, Plan, WorkingContext
from mc_core.errors import BudgetError, ConfigError, PlanError
from mc_core.lab.training.focus.contexts import open_blocks
from tests.core.context_oracle import assert_laws, least_nodes, merged, nodes


def random_edits(wc: WorkingContext, rng: np.random.Generator, count: int) -> list[Edit]:
    """Edits of nodes that stand or nearly stand; many of them are not allowed."""
    edits = []
    for _ in range(count):
        row = int(rng.integers(len(wc)))
        level, index = int(wc.levels[row]), int(wc.indices[row])
        if rng.random() < 0.5:
            edits.append(Edit("expand", level, index))
        else:
            edits.append(Edit("collapse", level + 1, index // wc.block_size if level else index))
    return edits


def edited_by_hand(wc: WorkingContext, edits: list[Edit]) -> list[tuple[int, int]] | None:
    """The nodes after the edits, or None if one of them is not allowed."""
    k, standing = wc.block_size, set(nodes(wc))
    for edit in edits:
        level, index = edit.level, edit.index
        if level < 1:
            return None
        children = {(0, index)} if level == 1 else {(level - 1, index * k + i) for i in range(k)}
        before, after = ({(level, index)}, children) if edit.kind == "expand" else (children, {(level, index)})
        start, end = index * k**level, (index + 1) * k**level
        blocked = end > wc.tail_start or any(start < -(-b // k) * k and a // k * k < end for a, b in wc.protection.pins)
        if not before <= standing or (edit.kind == "collapse" and (blocked or start == 0)):
            return None
        standing = (standing - before) | after
    gist = wc.gist_cost
    if sum(min(k, wc.num_tokens - index * k) if level == 0 else gist for level, index in standing) > wc.budget:
        return None
    if not gist:
        standing = merged(standing, k)
    return sorted(standing, key=lambda node: node[1] * k ** max(node[0], 1))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    block_size=st.sampled_from([2, 4, 16]),
    recent=st.sampled_from([0, 5, 16, 40]),
    pinned=st.booleans(),
    gist_cost=st.sampled_from([0, 1, 2, 4, 8]),
)
def test_any_history_of_changes_keeps_the_laws(
    seed: int, block_size: int, recent: int, pinned: bool, gist_cost: int
) -> None:
    """After any appends, cuts and edits the entries tile the history, fit the budget, and leave pins and tail raw."""
    rng = np.random.default_rng(seed)
    pins = [(37, 50), (500, 501)] if pinned else []
    gist_cost = min(gist_cost, block_size // 2)
    wc = WorkingContext(block_size, 320 * max(1, gist_cost), recent, pins, gist_cost)
    for _ in range(30):
        action = rng.integers(5)
        reserve = int(rng.integers(0, 33))
        if action <= 1:
            growth = int(rng.integers(1, [2, 2 * block_size, 5000][int(rng.integers(3))] + 1))
            wc.extend(wc.num_tokens + growth, reserve=reserve)
            assert_laws(wc, wc.budget - reserve)
        elif action == 2:
            wc.rewind(int(rng.integers(0, wc.num_tokens + 1)), reserve=reserve)
            assert_laws(wc, wc.budget - reserve)
        elif wc.num_tokens:
            edits = random_edits(wc, rng, int(rng.integers(1, 4)))
            expected, before = edited_by_hand(wc, edits), nodes(wc)
            try:
                wc.commit(Plan(tuple(edits), wc.num_tokens))
            except PlanError:
                assert expected is None
                assert nodes(wc) == before
            else:
                assert nodes(wc) == expected
            assert_laws(wc)


@settings(max_examples=200, deadline=None)
@given(start=st.integers(0, 300), length=st.integers(0, 400), block_size=st.sampled_from([2, 3, 4, 16]))
def test_coarsest_cover_is_the_smallest(start: int, length: int, block_size: int) -> None:
    """The cover tiles its blocks with as few complete nodes as dynamic programming finds."""
    levels, indices = coarsest_cover(start, start + length, block_size)
    spans = np.array([block_size ** (level - 1) for level in levels.tolist()], np.int64)
    borders = np.append(indices * spans, start + length)
    assert borders[0] == start
    np.testing.assert_array_equal((indices + 1) * spans, borders[1:])
    assert len(levels) == least_nodes(start, start + length, block_size)


def test_all_of_a_short_history_is_raw() -> None:
    """With room enough, nothing is gisted, however the history came."""
    wc = WorkingContext(32, 1024)
    for tokens in (1, 31, 32, 33, 500, 992):
        wc.extend(tokens, reserve=32)
        assert not wc.levels.any()
        assert wc.cost == tokens
        assert wc.open_length == tokens % 32


def test_growth_collapses_gists_first_and_then_the_oldest_raw_blocks() -> None:
    """Token by token or in bulk, what stands raw beside pins and tail is the newest history."""
    for step in (1, 7, 64, 5000):
        wc = WorkingContext(16, 512, recent_tokens=64)
        while wc.num_tokens < 20_000:
            wc.extend(wc.num_tokens + step, reserve=16)
            raw = wc.indices[wc.levels == 0]
            assert raw[0] == 0
            assert (np.diff(raw[1:]) == 1).all(), "the raw blocks are not one run at the end"
        assert_laws(wc, 512 - 16)
        assert wc.cost > 512 - 16 - 2 * 15, "room is left that raw history could use"


def test_growth_collapses_held_blocks_last() -> None:
    """A block that the focus opened outlives newer raw blocks that it does not care about."""
    wc = WorkingContext(16, 256, recent_tokens=32)
    wc.extend(240)
    wc.commit(Plan((), 240, hold=(3,)))
    for tokens in range(241, 2000):
        wc.extend(tokens)
        assert (0, 3) in nodes(wc)
    assert (0, 2) not in nodes(wc)


@pytest.mark.parametrize("block_size", [16, 32, 64])
def test_ten_million_tokens_fit(block_size: int) -> None:
    """10 M tokens fit W = 1,024 with the promised tail raw, and nodes anywhere can be opened down to LOD0."""
    wc = WorkingContext(block_size, 1024)
    wc.extend(10_000_000, reserve=block_size)
    assert_laws(wc, 1024 - block_size)
    target = 4_321_000 // block_size
    for _ in range(8):
        row = int(np.searchsorted(wc.starts(), target * block_size, side="right")) - 1
        level, index = int(wc.levels[row]), int(wc.indices[row])
        if not level:
            break
        raw = np.flatnonzero((wc.levels == 0) & ~wc.protected())[0]
        paired = Edit("collapse", 1, int(wc.indices[raw]))
        wc.commit(Plan((Edit("expand", level, index), paired), wc.num_tokens))
    assert (0, target) in nodes(wc)
    assert_laws(wc)


def test_a_plan_may_pass_over_the_budget_midway_only() -> None:
    """Expand first, collapse later: allowed. Ending over the budget: refused, and nothing is changed."""
    wc = WorkingContext(16, 256, recent_tokens=32)
    wc.extend(1000)
    gist = next(node for node in nodes(wc) if node[0] == 1)
    raw = next(node for node in nodes(wc)[1:] if node[0] == 0)
    before = nodes(wc)
    assert wc.cost + 15 > wc.budget
    with pytest.raises(PlanError, match="over the budget of 256"):
        wc.commit(Plan((Edit("expand", *gist),), 1000))
    assert nodes(wc) == before
    wc.commit(Plan((Edit("expand", *gist), Edit("collapse", 1, raw[1])), 1000))
    assert (0, gist[1]) in nodes(wc)


def test_refused_plans_change_nothing() -> None:
    """A plan with one impossible edit fails whole, even if the edits before it were fine."""
    wc = WorkingContext(16, 256, recent_tokens=32, pins=[(100, 101)])
    wc.extend(230)
    fine = Edit("collapse", 1, 3)
    bad = {
        "does not stand": Edit("expand", 1, 5),
        "never collapse": Edit("collapse", 1, 6),
        "not complete": Edit("collapse", 1, 14),
        "level >= 1": Edit("expand", 0, 2),
    }
    before = wc.snapshot()
    for message, edit in bad.items():
        with pytest.raises(PlanError, match=message):
            wc.commit(Plan((fine, edit), 230))
    with pytest.raises(PlanError, match="never collapse"):
        wc.commit(Plan((Edit("collapse", 1, 0),), 230))
    with pytest.raises(PlanError, match="229 tokens"):
        wc.commit(Plan((fine,), 229))
    assert wc.snapshot() == before
    wc.commit(Plan((fine,), 230))
    assert (1, 3) in nodes(wc)


def test_a_failed_extension_changes_nothing() -> None:
    """When pins, tail and cover do not fit, the error says the numbers and the context is as before."""
    wc = WorkingContext(16, 128, recent_tokens=64)
    wc.extend(100)
    before = wc.snapshot()
    with pytest.raises(BudgetError, match=r"20000 tokens of history cost at least \d+, 112 are left"):
        wc.extend(20_000, reserve=16)
    assert wc.snapshot() == before


def test_settings_that_cannot_work_are_refused_with_numbers() -> None:
    """Pins that fill the budget, and ranges that are none, are refused at once."""
    with pytest.raises(BudgetError, match=r"256 cannot hold 160 pinned tokens, 96 recent"):
        WorkingContext(16, 256, recent_tokens=96, pins=[(0, 150)])
    with pytest.raises(ConfigError, match="pin"):
        WorkingContext(16, 256, pins=[(5, 5)])
    with pytest.raises(ConfigError, match="recent_tokens"):
        WorkingContext(16, 256, recent_tokens=-1)
    wc = WorkingContext(16, 256)
    wc.extend(50)
    with pytest.raises(ConfigError, match="at least 50"):
        wc.extend(49)
    with pytest.raises(ConfigError, match=r"\[0, 50\]"):
        wc.rewind(51)


def test_rewind_tells_which_ids_it_takes() -> None:
    """Blocks that stand raw after a rewind stood raw before or were announced."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        wc = WorkingContext(16, 256, recent_tokens=40)
        wc.extend(int(rng.integers(1, 10_000)))
        raw = set(wc.indices[wc.levels == 0].tolist())
        position = int(rng.integers(0, wc.num_tokens + 1))
        announced = set(wc.blocks_to_rewind(position).tolist())
        wc.rewind(position)
        assert set(wc.indices[wc.levels == 0].tolist()) <= raw | announced


def test_rewind_leaves_what_it_does_not_touch() -> None:
    """What still stands at its level after a cut keeps its residency, before the new tail and in it."""
    wc = WorkingContext(16, 256, recent_tokens=40)
    wc.extend(5_000)
    raw_start = int(wc.starts()[wc.levels == 0][1])
    wanted = raw_start // 16 + 3
    for _ in range(3):
        wc.commit(Plan((), 5_000, hold=(wanted,)))
    before = dict(zip(nodes(wc), wc.residency.tolist(), strict=True))
    wc.rewind(raw_start + 70)
    after = dict(zip(nodes(wc), wc.residency.tolist(), strict=True))
    kept = before.keys() & after.keys()
    assert len([node for node in kept if node[0] == 0]) == 6
    assert all(after[node] == 3 for node in kept)
    assert not any(after[node] for node in after.keys() - kept)
    assert wc.indices[wc.entries.held > 0].tolist() == [wanted]


def test_residency_counts_refocuses_since_the_last_change() -> None:
    """A commit ages what stays by one and starts what it changed at 0; growth does not age."""
    wc = WorkingContext(16, 256, recent_tokens=32)
    wc.extend(200)
    for _ in range(3):
        wc.commit(Plan((), 200))
    wc.commit(Plan((Edit("collapse", 1, 4),), 200, cooldown=2))
    wc.extend(205)
    assert wc.residency[4] == 0
    assert wc.cooldown[4] == -2
    assert set(np.delete(wc.residency, 4).tolist()) == {4}
    wc.commit(Plan((), 205))
    assert (wc.residency[4], wc.cooldown[4]) == (1, -1)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_where_gists_cost_nothing_the_raw_blocks_tell_what_stands(seed: int) -> None:
    """Whatever was opened and closed on the way, two contexts of the same raw blocks have the same entries."""
    rng = np.random.default_rng(seed)
    tokens = int(rng.integers(3_000, 20_000))
    wc, other = (WorkingContext(4, 256, recent_tokens=16, gist_cost=0) for _ in range(2))
    wc.extend(tokens)
    for _ in range(20):
        edits = random_edits(wc, rng, 2)
        if edited_by_hand(wc, edits) is not None:
            wc.commit(Plan(tuple(edits), tokens))
    other.cover(tokens)
    open_blocks(other, rng.permutation(wc.indices[wc.levels == 0]).tolist(), 0)
    assert nodes(wc) == nodes(other)
    assert_laws(wc)


def test_gists_that_are_not_seen_leave_their_room_to_raw_tokens() -> None:
    """Where gists cost nothing, all of the budget stands raw and a far block costs its tokens; charged, all fits."""
    wc = WorkingContext(16, 512, recent_tokens=32, gist_cost=0)
    wc.extend(60_000)
    assert wc.cost == wc.budget
    wc.cover(60_000)
    before = wc.cost
    open_blocks(wc, [1000, 2000], 0)
    assert wc.cost == before + 2 * 16
    open_blocks(wc, range(2900, 3740, 20), 0)
    assert wc.cost == wc.budget
    assert_laws(wc)
    again = WorkingContext.restore(json.loads(json.dumps(wc.snapshot())))
    assert nodes(again) == nodes(wc)
    charged = again.under(512, 32, 1)
    assert charged.gist_cost == 1
    assert_laws(charged)
    assert_laws(charged.under(512, 32, 0))
    with pytest.raises(ConfigError, match="gist_cost"):
        WorkingContext(16, 256, gist_cost=16)
    with pytest.raises(ConfigError, match="gist_cost"):
        WorkingContext(16, 256, gist_cost=3)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), gist_cost=st.sampled_from([1, 2, 4, 8]))
def test_growth_puts_away_no_more_than_it_must(seed: int, gist_cost: int) -> None:
    """Room is made by as few collapses as it takes: one less would leave the context over its limit."""
    rng = np.random.default_rng(seed)
    wc = WorkingContext(16, 2048, recent_tokens=32, gist_cost=gist_cost)
    wc.extend(int(rng.integers(2_000, 60_000)))
    if rng.random() < 0.5:
        rows = np.flatnonzero(wc.levels == 1)
        open_blocks(wc, rng.permutation(wc.indices[rows])[:8].tolist(), 0)
    limit = wc.cost - int(rng.integers(1, 200))
    after = make_room(wc.entries, wc.protection, limit)
    assert limit - max(after.step(1), after.step(2)) < after.cost <= limit


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), gist_cost=st.sampled_from([0, 1, 4]))
def test_a_snapshot_brings_all_of_it_back(seed: int, gist_cost: int) -> None:
    """A snapshot survives JSON, and a damaged one is refused."""
    rng = np.random.default_rng(seed)
    wc = WorkingContext(16, 256 * max(1, gist_cost), recent_tokens=32, pins=[(70, 80)], gist_cost=gist_cost)
    wc.extend(int(rng.integers(200, 4000)))
    raw = wc.indices[(wc.levels == 0) & ~wc.protected()]
    wc.commit(Plan((Edit("collapse", 1, int(raw[0])),), wc.num_tokens, cooldown=2, hold=(int(raw[-1]),)))
    text = json.dumps(wc.snapshot())
    again = WorkingContext.restore(json.loads(text))
    assert json.dumps(again.snapshot()) == text
    assert_laws(again)
    for column in ("levels", "indices", "residency", "num_tokens", "pins"):
        broken = json.loads(text)
        broken[column] = broken[column][:-1] if isinstance(broken[column], list) and column != "pins" else "x"
        with pytest.raises(ConfigError, match="damaged"):
            WorkingContext.restore(broken)
    broken = json.loads(text)
    broken["indices"][1] += 1
    with pytest.raises(ConfigError, match="tile"):
        WorkingContext.restore(broken)


@pytest.mark.parametrize("gist_cost", [0, 1])
@pytest.mark.parametrize("tokens", [0, 5, 300, 60_000])
def test_other_settings_take_a_history_in(tokens: int, gist_cost: int) -> None:
    """Under any budget and tail that a server may have, a working context holds the same history within its laws."""
    wc = WorkingContext(16, 512, recent_tokens=32, pins=[(70, 80), (100, 300)], gist_cost=gist_cost)
    wc.extend(tokens)
    assert wc.under(512, 32, gist_cost).snapshot() == wc.snapshot()
    for budget, recent in ((512, 200), (1024, 300), (512, 0), (400, 64), (320, 32), (200, 40)):
        for cost in (0, 1):
            other = wc.under(budget, recent, cost)
            assert (other.num_tokens, other.budget, other.recent_tokens) == (tokens, budget, recent)
            assert_laws(other)
    assert wc.under(256, 32, gist_cost).protection.pins == ((70, 80),)
    with pytest.raises(BudgetError, match="cannot hold"):
        wc.under(40, 32, gist_cost)


def test_a_pin_holds_from_the_moment_it_is_set() -> None:
    """Tokens pinned while they are raw or still to come never collapse; gists and too much cannot be pinned."""
    wc = WorkingContext(16, 256, recent_tokens=32)
    wc.pin(20, 40)
    wc.extend(200)
    wc.pin(150, 151)
    wc.extend(50_000)
    assert {(0, 1), (0, 2), (0, 150 // 16)} <= set(nodes(wc))
    assert_laws(wc)
    before = wc.snapshot()
    with pytest.raises(ConfigError, match=r"\[4000, 4010\) cannot be pinned"):
        wc.pin(4000, 4010)
    with pytest.raises(BudgetError, match="cannot hold"):
        wc.pin(60_000, 61_000)
    assert wc.snapshot() == before
