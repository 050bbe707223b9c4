"""Allocators: plans keep the budget, open the best first, pay with the least harmful, and do not churn."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mc_core.context.plan import Edit, Plan
from mc_core.context.working_context import WorkingContext
from mc_core.errors import BudgetError, ConfigError
from mc_core.focus.allocator import make_allocator
from mc_core.focus.focus_config import ALLOCATORS, FocusConfig
from mc_core.focus.metrics import Spread, Swaps
from mc_core.focus.view import Scores, lift
from tests.core.context_oracle import assert_laws, nodes

K, W = 16, 512
CONFIG = FocusConfig(budget=W, block_size=K, recent_tokens=64)


def context(tokens: int, reserve: int = K) -> WorkingContext:
    wc = WorkingContext(K, W, 64)
    wc.extend(tokens, reserve=reserve)
    return wc


def scores_for(wc: WorkingContext, targets: list[int] = [], worth: list[float] = [], **columns: Any) -> Scores:  # noqa: B006
    """Scores of 0 unless given; entries that cover targets gain what these are worth, as from a lens."""
    blocks, values = np.array(targets, np.int64), np.array(worth, np.float32)
    gain = columns.get("gain", np.where(wc.levels > 0, lift(wc, blocks, values), np.float32(0)))
    harm = columns.get("harm", np.zeros(len(wc), np.float32))
    return Scores(np.asarray(gain, np.float32), np.asarray(harm, np.float32), blocks, values)


def random_scores(wc: WorkingContext, rng: np.random.Generator) -> Scores:
    end = -(-wc.num_tokens // K)
    targets = rng.choice(end, size=min(end, int(rng.integers(0, 20))), replace=False) if end else np.empty(0, np.int64)
    worth = np.sort(rng.random(len(targets), dtype=np.float32))[::-1]
    gain, harm = rng.random((2, len(wc)), dtype=np.float32)
    return Scores(gain, harm, targets.astype(np.int64), worth)


def raw_blocks(wc: WorkingContext) -> list[int]:
    return wc.indices[wc.levels == 0].tolist()


@pytest.mark.parametrize("kind", ALLOCATORS)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), price=st.sampled_from([0.0, 0.3]), gist_cost=st.sampled_from([0, 1, 4, 8]))
def test_any_plan_keeps_the_laws(kind: str, seed: int, price: float, gist_cost: int) -> None:
    """Through any growth, cuts and scores, every plan commits whole, leaves its reserve free, and is repeatable."""
    rng = np.random.default_rng(seed)
    config = replace(CONFIG, allocator=kind, repair_price=price, seed=seed % 1000)
    allocator, twin = make_allocator(config), make_allocator(config)
    budget = W * max(1, gist_cost)
    wc = WorkingContext(K, budget, 64, gist_cost=gist_cost)
    wc.extend(int(rng.integers(0, 4)) and int(rng.integers(1, 300_000)), reserve=K)
    for _ in range(12):
        if rng.random() < 0.5:
            wc.extend(wc.num_tokens + int(rng.integers(1, 200)), reserve=K)
        elif rng.random() < 0.2:
            wc.rewind(int(rng.integers(0, wc.num_tokens + 1)), reserve=K)
        scores, reserve = random_scores(wc, rng), int(rng.integers(0, 2 * K))
        before = set(nodes(wc))
        plan, report = allocator.plan(wc, scores, reserve)
        assert twin.plan(wc, scores, reserve)[0] == plan
        wc.commit(plan)
        assert_laws(wc, budget - reserve)
        assert (report.expands, report.collapses) == (plan.expands, plan.collapses)
        assert report.changed <= report.eligible
        assert report.swap_rate == (report.changed / report.eligible if report.eligible else 0)
        assert len(set(nodes(wc)) - before) <= len(plan.edits) * K


@pytest.mark.parametrize("tokens", [3_000, 100_000, 10_000_000])
def test_the_best_target_stands_raw_after_one_refocus(tokens: int) -> None:
    """However deep it lies and however full the budget is, the best target is opened in one refocus."""
    rng = np.random.default_rng(tokens)
    wc, allocator = context(tokens), make_allocator(CONFIG)
    for _ in range(10):
        hits = rng.choice(wc.tail_start // K, size=12, replace=False).tolist()
        plan, _ = allocator.plan(wc, scores_for(wc, hits, np.linspace(1, 0.5, 12).tolist()), K)
        wc.commit(plan)
        assert_laws(wc, W - K)
        assert hits[0] in raw_blocks(wc)
        wc.extend(wc.num_tokens + K, reserve=K)
        assert hits[0] in raw_blocks(wc), "growth collapsed what the focus holds"


def test_targets_side_by_side_are_one_place() -> None:
    """A run of neighbouring targets takes one of the N_diff places, and all of it is opened."""
    config = replace(CONFIG, edits_per_iteration=1, iterations=1)
    wc = context(3_000)
    far = [40, 41, 42, 60]
    plan, report = make_allocator(config).plan(wc, scores_for(wc, far, [1.0, 0.9, 0.8, 0.7]), K)
    wc.commit(plan)
    assert {40, 41, 42} <= set(raw_blocks(wc))
    assert 60 not in raw_blocks(wc)
    assert report.rejections["limit"] == 1


def test_a_full_budget_is_swapped_in_pairs_with_the_least_harmful() -> None:
    """Each expand is paid with one collapse, and together these are the raw blocks of least harm."""
    wc = context(3_000)
    harm = np.random.default_rng(3).random(len(wc)).astype(np.float32) * 0.5
    harm[wc.levels > 0] = 0.9
    free = np.flatnonzero((wc.levels == 0) & ~wc.protected())
    lod1 = wc.indices[wc.levels == 1][:3].tolist()
    plan, report = make_allocator(CONFIG).plan(wc, scores_for(wc, lod1, [1.0, 0.95, 0.9], harm=harm), K)
    needed = -(-(wc.cost + 3 * (K - 1) - (W - K)) // (K - 1))
    cheapest = wc.indices[free[np.argsort(harm[free])]][:needed]
    assert report.expands == 3
    assert {edit.index for edit in plan.edits if edit.kind == "collapse"} == set(cheapest.tolist())


@pytest.mark.parametrize(("harm", "swapped"), [(0.55, True), (0.65, False)])
def test_swaps_need_a_gain_above_the_harm_by_the_threshold(harm: float, swapped: bool) -> None:
    """A gain of 0.7 is not worth a harm of 0.65 when the threshold is 0.1."""
    for target in (True, False):
        wc = context(3_000)
        while wc.cost + K - 1 <= W - K:
            wc.commit(Plan((Edit("expand", 1, int(wc.indices[wc.levels == 1][-1])),), wc.num_tokens))
        row = int(np.flatnonzero(wc.levels == 1)[0])
        worth = np.full(len(wc), harm, np.float32)
        if target:
            scores = scores_for(wc, [int(wc.indices[row])], [0.7], harm=worth)
        else:
            scores = scores_for(wc, gain=np.where(np.arange(len(wc)) == row, 0.7, 0.0), harm=worth)
        plan, report = make_allocator(CONFIG).plan(wc, scores, K)
        assert (plan.expands, plan.collapses) == ((1, 1) if swapped else (0, 0))
        assert report.rejections.get("harm", 0) == (0 if swapped else 1)


def test_a_target_yields_only_to_a_clearly_better_one() -> None:
    """With raw targets all over the budget, a better one takes the place of the worst; one hardly better does not."""
    for better, opened in ((0.95, True), (0.55, False)):
        wc = context(3_000)
        while wc.cost + K - 1 <= W - K:
            wc.commit(Plan((Edit("expand", 1, int(wc.indices[wc.levels == 1][-1])),), wc.num_tokens))
        free = wc.indices[(wc.levels == 0) & ~wc.protected()].tolist()
        new = int(wc.indices[wc.levels == 1][0])
        harm = np.where(wc.levels > 0, 0.99, 0.0)
        worth = np.linspace(0.9, 0.5, len(free)).tolist()
        order = sorted([(better, new), *zip(worth, free, strict=True)], reverse=True)
        scores = scores_for(wc, [block for _, block in order], [value for value, _ in order], harm=harm)
        wc.commit(make_allocator(CONFIG).plan(wc, scores, K)[0])
        assert (new in raw_blocks(wc)) is opened
        assert (free[-1] in raw_blocks(wc)) is not opened
        assert set(free[:-1]) <= set(raw_blocks(wc))


def _difference(raw: list[int], hits: list[int], wc: WorkingContext) -> tuple[list[int], list[int]]:
    """Hits that no longer stand raw, and those that came to."""
    now = [hit for hit in hits if hit in raw_blocks(wc)]
    return [hit for hit in raw if hit not in now], [hit for hit in now if hit not in raw]


def test_an_unchanged_question_settles() -> None:
    """Asked the same again and again, the focus settles within three refocuses; growth then takes the worst target."""
    rng = np.random.default_rng(5)
    wc, allocator = context(100_000), make_allocator(CONFIG)
    hits = rng.choice(wc.tail_start // K, size=20, replace=False).tolist()
    worth = np.linspace(1, 0.3, 20).tolist()
    for step in range(12):
        plan, _ = allocator.plan(wc, scores_for(wc, hits, worth), K)
        wc.commit(plan)
        assert step < 3 or not plan.edits
    edits = 0
    for _ in range(30):
        raw = [hit for hit in hits if hit in raw_blocks(wc)]
        wc.extend(wc.num_tokens + K, reserve=K)
        assert set(raw[:-1]) <= set(raw_blocks(wc))
        plan, _ = allocator.plan(wc, scores_for(wc, hits, worth), K)
        wc.commit(plan)
        lost, won = ([worth[hits.index(hit)] for hit in side] for side in _difference(raw, hits, wc))
        assert not (lost and won) or max(lost) + 0.1 < min(won)
        edits += len(plan.edits)
    assert edits <= 30


def test_nothing_is_reversed_during_its_cooldown() -> None:
    """Gains and harms that turn round each time do not make an entry go back within two refocuses."""
    config = replace(CONFIG, cooldown=2, fill=0.0, edits_per_iteration=16)
    wc, allocator = context(3_000), make_allocator(config)
    changed: dict[tuple[int, int], tuple[str, int]] = {}
    reversals, refused = [], 0
    for step in range(20):
        raw = wc.levels == 0
        # What stands raw is worth nothing, what is gisted everything: without a cooldown all would swap every time.
        scores = scores_for(wc, gain=np.where(raw, 0.0, 1.0), harm=np.where(raw, 0.0, 0.95))
        plan, report = allocator.plan(wc, scores, K)
        refused += report.rejections.get("cooldown", 0)
        for edit in plan.edits:
            kind, when = changed.get(edit.node, (edit.kind, step))
            if kind != edit.kind:
                reversals.append(step - when)
            changed[edit.node] = (edit.kind, step)
        wc.commit(plan)
    assert reversals, "nothing was ever reversed, so the test shows nothing"
    assert min(reversals) > 2
    assert refused, "there was always something else to collapse, so the test shows nothing"


def test_what_was_collapsed_stays_so_during_its_cooldown() -> None:
    """A block that a plan collapsed is expanded again for its own gain only after two more refocuses."""
    wc, allocator = context(3_000), make_allocator(replace(CONFIG, fill=0.0))
    block = int(wc.indices[(wc.levels == 0) & ~wc.protected()][0])
    wc.commit(Plan((Edit("collapse", 1, block),), wc.num_tokens, cooldown=2))
    opened = []
    for _ in range(3):
        gain = np.where((wc.levels == 1) & (wc.indices == block), 1.0, 0.0)
        plan, _ = allocator.plan(wc, scores_for(wc, gain=gain), K)
        wc.commit(plan)
        opened.append(plan.expanded_blocks.tolist())
    assert opened == [[], [], [block]]


def test_room_for_the_reserve_overrules_the_cooldown() -> None:
    """Entries that were opened a refocus ago collapse if the reserve needs their room, whatever the harm."""
    wc, allocator = context(3_000), make_allocator(CONFIG)
    plan, _ = allocator.plan(wc, scores_for(wc, [50, 51], [1.0, 0.9]), K)
    wc.commit(plan)
    reserve = W - 220
    scores = scores_for(wc, harm=np.ones(len(wc)))
    plan, _ = allocator.plan(wc, scores, reserve)
    wc.commit(plan)
    assert_laws(wc, W - reserve)
    with pytest.raises(BudgetError, match=r"\d+ are left of the budget of 512"):
        allocator.plan(wc, scores_for(wc), W - 100)


def test_a_new_question_does_not_wait_for_the_old_one() -> None:
    """A target takes the room of blocks still in their cooldown, once nothing else is left to collapse."""
    wc, allocator = context(100_000), make_allocator(CONFIG)
    for first in (1_000, 3_000):
        hits = [first + 300 * i for i in range(8)]
        plan, _ = allocator.plan(wc, scores_for(wc, hits, np.linspace(1, 0.9, 8).tolist()), K)
        wc.commit(plan)
        opened = [hit in raw_blocks(wc) for hit in hits]
        assert opened[0]
        assert sum(opened) >= 4


def test_what_came_just_now_yields_before_what_is_worth_more() -> None:
    """A target displaces worthless blocks still in their cooldown, where all that stands longer is worth more."""
    wc, allocator = context(100_000), make_allocator(CONFIG)
    plan, _ = allocator.plan(wc, scores_for(wc, [1_000 + 300 * i for i in range(8)], [0.9] * 8), K)
    wc.commit(plan)
    came = set(wc.indices[(wc.levels == 0) & (wc.cooldown > 0)].tolist())
    harm = np.where(wc.cooldown > 0, np.float32(0), np.float32(1))
    plan, report = allocator.plan(wc, scores_for(wc, [5_000], [0.9], harm=harm), K)
    wc.commit(plan)
    assert 5_000 in raw_blocks(wc), report.rejections
    assert came - set(raw_blocks(wc))


def test_spare_room_goes_to_the_newest_history() -> None:
    """After a cut the room is filled with the newest blocks, in one run, up to ``fill`` and no further."""
    wc = WorkingContext(K, W, 64)
    wc.cover(100_000, reserve=K)
    wc.commit(make_allocator(CONFIG).plan(wc, scores_for(wc), K)[0])
    assert 0.95 * W - 2 * (K - 1) < wc.cost <= 0.95 * W
    assert (np.diff(raw_blocks(wc)[1:]) == 1).all()
    coarse = WorkingContext(K, W, 64)
    coarse.cover(100_000, reserve=K)
    cost = coarse.cost
    coarse.commit(make_allocator(replace(CONFIG, fill=0.0)).plan(coarse, scores_for(coarse), K)[0])
    assert coarse.cost == cost


def test_the_price_of_repair_favours_late_edits() -> None:
    """Of two equal gains the later entry is expanded, for less of the context has to be recomputed behind it."""
    for price, expected in ((0.0, 0), (0.3, -1)):
        wc = context(3_000)
        lod1 = np.flatnonzero(wc.levels == 1)
        gain = np.isin(np.arange(len(wc)), lod1[[0, -1]]) * 0.8
        config = replace(CONFIG, repair_price=price, edits_per_iteration=1, iterations=1)
        plan, _ = make_allocator(config).plan(wc, scores_for(wc, gain=gain), K)
        assert plan.expanded_blocks.tolist() == [wc.indices[lod1[expected]]]


def test_stochastic_greedy_draws_from_the_softmax_of_the_best() -> None:
    """First picks follow softmax(utility / temperature) over the top k, and nothing below the top k is picked first."""
    wc = context(3_000)
    lod1 = np.flatnonzero(wc.levels == 1)[:6]
    utility = np.array([0.9, 0.85, 0.8, 0.75, 0.7, 0.65])
    gain = np.zeros(len(wc))
    gain[lod1] = utility
    base = replace(CONFIG, allocator="stochastic_greedy", top_k=4, temperature=0.1)
    base = replace(base, edits_per_iteration=1, iterations=1)
    trials, picks = 1_500, np.zeros(6)
    scores = scores_for(wc, gain=gain)
    for seed in range(trials):
        plan, _ = make_allocator(replace(base, seed=seed)).plan(wc, scores, K)
        picks[np.flatnonzero(wc.indices[lod1] == plan.expanded_blocks[0])[0]] += 1
    expected = np.exp(utility[:4] / 0.1)
    expected /= expected.sum()
    assert not picks[4:].any()
    np.testing.assert_allclose(picks[:4] / trials, expected, atol=4 * 0.5 / np.sqrt(trials))


@pytest.mark.parametrize("precious", ["entry", "target"])
def test_the_bandit_learns_which_wishes_pay(precious: str) -> None:
    """Of two kinds of wishes that seem equal, the bandit comes to prefer the one that turns out to be worth it."""
    config = replace(CONFIG, allocator="bandit", edits_per_iteration=1, iterations=1, cooldown=0)
    allocator = make_allocator(config)
    preferred = []
    for step in range(120):
        wc = context(3_000)
        lod1 = wc.indices[wc.levels == 1]
        target, entry = int(lod1[2 * (step % 15)]), int(lod1[2 * (step % 15) + 1])
        gain = np.where((wc.levels == 1) & (wc.indices == entry), 0.6, 0.0)
        plan, _ = allocator.plan(wc, scores_for(wc, [target], [0.6], gain=gain), K)
        better = entry if precious == "entry" else target
        preferred.append(plan.expanded_blocks[0] == better)
        wc.commit(plan)
        paid = (wc.levels == 0) & (wc.indices == better)
        # The next refocus shows what the opened block was worth.
        allocator.plan(wc, scores_for(wc, harm=np.where(paid, 1.0, 0.0)), K)
    assert np.mean(preferred[-40:]) > 0.8


@pytest.mark.parametrize("kind", ALLOCATORS)
def test_an_allocator_goes_on_from_its_snapshot(kind: str) -> None:
    """After a restart plans are what they would have been; another kind's snapshot is left alone."""
    rng = np.random.default_rng(11)
    config = replace(CONFIG, allocator=kind)
    allocator, wc = make_allocator(config), context(100_000)
    for _ in range(5):
        wc.commit(allocator.plan(wc, random_scores(wc, rng), K)[0])
    again = make_allocator(config)
    assert again.restore(json.loads(json.dumps(allocator.snapshot())))
    for _ in range(5):
        scores = random_scores(wc, rng)
        plan = allocator.plan(wc, scores, K)[0]
        assert again.plan(wc, scores, K)[0] == plan
        wc.commit(plan)
    other = make_allocator(replace(CONFIG, allocator=ALLOCATORS[ALLOCATORS.index(kind) - 1]))
    fresh = other.snapshot()
    assert not other.restore(allocator.snapshot())
    assert other.snapshot() == fresh


def test_swap_rate_counts_blocks_of_siblings() -> None:
    """Eligible: gists, and whole unprotected siblings. Changed: those of them that the plan edited, a descent once."""
    wc = WorkingContext(K, W, 64)
    wc.cover(10_000, reserve=K)
    levels = wc.levels.tolist()
    tops = [index for level, index in nodes(wc) if level == 2]
    gists = sum(level > 0 for level in levels)  # no K siblings stand together in a coarsest cover
    block = tops[3] * K + 5
    plan = Plan((Edit("expand", 2, tops[3]), Edit("expand", 1, block)), wc.num_tokens)
    swaps = Swaps.of(wc.entries, wc.protection, plan)
    assert (swaps.eligible, swaps.changed) == (gists, 1)
    wc.commit(plan)
    back = Plan((Edit("collapse", 1, block), Edit("collapse", 2, tops[3])), wc.num_tokens)
    swaps = Swaps.of(wc.entries, wc.protection, back)
    # K - 2 more gists, one raw block that may collapse; the second collapse was not possible at the start.
    assert (swaps.eligible, swaps.changed) == (gists + K - 2 + 1, 1)


def test_spread_of_figures() -> None:
    """Mean, deviation, 95th percentile by nearest rank, and range, also of nothing."""
    values = np.arange(1, 101, dtype=np.float32)
    spread = Spread.of(values)
    assert (spread.mean, spread.p95, spread.min, spread.max) == (50.5, 95.0, 1.0, 100.0)
    assert spread.std == pytest.approx(values.std())
    assert Spread.of(np.array([7])).p95 == 7
    assert Spread.of(np.empty(0)) == Spread()


def test_scores_of_another_context_are_refused() -> None:
    """Scores must fit the entries, and targets the history."""
    wc, allocator = context(3_000), make_allocator(CONFIG)
    good = scores_for(wc)
    short: NDArray[np.float32] = good.gain[:-1]
    for bad in (
        Scores(short, good.harm),
        Scores(good.gain, short),
        Scores(good.gain, good.harm, np.array([3]), np.empty(0, np.float32)),
        Scores(good.gain, good.harm, np.array([10_000]), np.ones(1, np.float32)),
        Scores(good.gain, good.harm, np.array([-1]), np.ones(1, np.float32)),
    ):
        with pytest.raises(ConfigError):
            allocator.plan(wc, bad, K)
