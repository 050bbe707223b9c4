"""Pins that users choose: what they keep in full view, and what room there is for it."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mc_core.context.protection import merged, widened, without
from mc_core.context.working_context import WorkingContext
from mc_core.errors import BudgetError, ConfigError, PinRoomError
from mc_core.focus.focus_config import FocusConfig
from mc_core.session.pins import chosen, chosen_after, room_for_good, room_left
from tests.core.context_oracle import assert_laws, nodes

K = 16
ranges = st.lists(st.tuples(st.integers(0, 300), st.integers(1, 60)).map(lambda r: (r[0], r[0] + r[1])), max_size=6)


@dataclass
class Holder:
    """Of a session, what its pins depend on."""

    wc: WorkingContext
    focus_config: FocusConfig

    @property
    def tokens(self) -> int:
        return self.wc.num_tokens

    @property
    def block_size(self) -> int:
        return self.wc.block_size


def holder(tokens: int, gist_cost: int, budget: int = 1024, pins: tuple[tuple[int, int], ...] = ()) -> Holder:
    focus = FocusConfig(budget=budget, block_size=K, recent_tokens=32)
    wc = WorkingContext(K, budget, 32, pins, gist_cost)
    wc.extend(tokens, reserve=focus.refocus_interval)
    return Holder(wc, focus)


def raw_blocks(wc: WorkingContext) -> set[int]:
    return {index for level, index in nodes(wc) if level == 0}


@settings(max_examples=60, deadline=None)
@given(a=ranges, b=ranges)
def test_ranges_are_sets_of_tokens(a: list[tuple[int, int]], b: list[tuple[int, int]]) -> None:
    """Merging, widening and taking away ranges say of each token what sets say, in as few ranges as can be."""

    def tokens(of: object) -> set[int]:
        return {at for start, end in of for at in range(start, end)}  # type: ignore[attr-defined]

    assert tokens(merged(a)) == tokens(a)
    assert all(one[1] < two[0] for one, two in zip(merged(a), merged(a)[1:], strict=False))
    assert tokens(without(a, b)) == tokens(a) - tokens(b)
    assert {at // K for at in tokens(widened(a, K))} == {at // K for at in tokens(a)}
    assert all(start % K == end % K == 0 for start, end in widened(a, K))


@settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), gist_cost=st.sampled_from([0, 1, 4]))
def test_what_is_chosen_stands_raw_until_it_is_let_go(seed: int, gist_cost: int) -> None:
    """Whatever is chosen, wherever it stood, the laws hold at once and after growth, a cut, a copy and a snapshot; and
    what is let go may fold again."""
    rng = np.random.default_rng(seed)
    budget = 1024 * max(1, gist_cost)
    wc = WorkingContext(K, budget, 32, [(0, 40)], gist_cost)
    wc.extend(int(rng.integers(1, 60_000)), reserve=K)
    for _ in range(4):
        starts = rng.integers(0, wc.num_tokens, rng.integers(0, 5))
        wanted = [(int(at), min(wc.num_tokens, int(at + rng.integers(1, 50)))) for at in starts]
        before, needed = raw_blocks(wc), set(wc.blocks_to_choose(wanted).tolist())
        wc.choose(wanted, reserve=K)
        assert_laws(wc, budget - K)
        assert raw_blocks(wc) <= before | needed
        assert {at // K for start, end in wanted for at in range(start, end)} <= raw_blocks(wc)
        wc.extend(wc.num_tokens + int(rng.integers(0, 30_000)), reserve=K)
        assert_laws(wc, budget - K)
        again = WorkingContext.restore(json.loads(json.dumps(wc.snapshot())))
        assert again.snapshot() == wc.snapshot() == wc.copy().snapshot()
        again.rewind(int(rng.integers(0, wc.num_tokens + 1)))
        assert_laws(again)
    wc.choose([], reserve=K)
    wc.extend(wc.num_tokens + 200_000, reserve=K)
    assert_laws(wc, budget - K)
    assert raw_blocks(wc) & set(range(3, 3_000)) == set()


def test_what_does_not_fit_changes_nothing() -> None:
    """Too much is refused whole, and the context is as it was."""
    wc = WorkingContext(K, 512, 32, gist_cost=0)
    wc.extend(20_000, reserve=K)
    wc.choose([(4_000, 4_100)], reserve=K)
    before = wc.snapshot()
    with pytest.raises(BudgetError, match="cannot hold"):
        wc.choose([(4_000, 5_000)], reserve=K)
    assert wc.snapshot() == before


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), gist_cost=st.sampled_from([0, 1, 4]))
def test_an_accepted_wish_fits_whatever_comes(seed: int, gist_cost: int) -> None:
    """Pins that there was room for never keep a history from growing, up to the ten million tokens promised."""
    rng = np.random.default_rng(seed)
    budget = 1024 * max(1, gist_cost)
    held = holder(int(rng.integers(200, 400_000)), gist_cost, budget, pins=((0, 70),))
    for _ in range(5):
        at = int(rng.integers(0, held.tokens - 20))
        with suppress(PinRoomError):
            wanted = chosen_after(held, [(at, at + int(rng.integers(1, 20)))], [])  # type: ignore[arg-type]
            held.wc.choose(wanted, reserve=K)
    for tokens in sorted(rng.integers(held.tokens, 10_000_000, 12).tolist()):
        held.wc.extend(tokens, reserve=K)
        assert_laws(held.wc, budget - K)


def test_room_is_told_and_kept() -> None:
    """Pins take whole blocks of one room, which the system message shares; letting go gives it back."""
    held = holder(50_000, 0, budget=512, pins=((0, 40),))
    room = room_left(held)  # type: ignore[arg-type]
    assert room == 512 - 32 - 2 * K - K - 3 * K
    wanted = chosen_after(held, [(8_000, 8_001), (8_031, 8_033)], [])  # type: ignore[arg-type]
    assert wanted == ((8_000, 8_048),)
    held.wc.choose(wanted)
    assert room_left(held) == room - 3 * K  # type: ignore[arg-type]
    assert room_for_good(held) == room_left(held) + 3 * K  # type: ignore[arg-type]
    assert chosen(held) == [(8_000, 8_048)]  # type: ignore[arg-type]
    with pytest.raises(PinRoomError, match=f"there is room for {room - 3 * K}") as refused:
        chosen_after(held, [(9_000, 9_000 + room)], [])  # type: ignore[arg-type]
    assert refused.value.left == room - 3 * K
    # What is let go makes room first; and a part may go.
    assert chosen_after(held, [(8_048, 8_050)], [(8_016, 8_020)]) == (  # type: ignore[arg-type]
        (8_000, 8_016),
        (8_032, 8_064),
    )
    held.wc.choose(chosen_after(held, [], [(8_000, 8_048)]))  # type: ignore[arg-type]
    assert room_left(held) == room  # type: ignore[arg-type]


def test_what_stands_for_good_is_not_let_go() -> None:
    """Neither block 0 nor the system message can be let go, nor are they chosen a second time."""
    held = holder(50_000, 0, pins=((100, 140),))
    for start, end in ((0, 5), (3, 900), (111, 112)):
        with pytest.raises(ConfigError, match="always stay"):
            chosen_after(held, [], [(start, end)])  # type: ignore[arg-type]
    assert chosen_after(held, [(0, 200)], []) == ((16, 96), (144, 208))  # type: ignore[arg-type]
    for start, end in ((5, 5), (7, 6), (-1, 4), (49_999, 50_001)):
        with pytest.raises(ConfigError, match="50000"):
            chosen_after(held, [(start, end)], [])  # type: ignore[arg-type]


def test_a_smaller_budget_gives_up_what_was_chosen_first() -> None:
    """Under a budget that can't hold all pins, those that were chosen go before those that hold for good."""
    wc = WorkingContext(K, 512, 32, [(70, 80)], gist_cost=0)
    wc.extend(9_000, reserve=K)
    wc.choose([(1_000, 1_040), (5_000, 5_100)], reserve=K)
    other = wc.under(224, 32, 0)
    assert_laws(other)
    assert (other.protection.pins, other.protection.chosen) == (((70, 80),), ((992, 1_040),))
    least = wc.under(120, 32, 0).protection
    assert (least.pins, least.chosen) == (((70, 80),), ())
