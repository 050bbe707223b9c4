"""The refocus cycle on real trees and lenses: propose, restore or drop, commit, report."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mc_core.context.plan import Plan
from mc_core.context.working_context import WorkingContext
from mc_core.errors import PlanError, SpanMissingError
from mc_core.focus.allocator import make_allocator
from mc_core.focus.focus_config import ALLOCATORS, FocusConfig
from mc_core.focus.lens import make_lens
from mc_core.focus.metrics import Swaps
from mc_core.focus.refocuser import Proposal, Refocuser
from mc_core.focus.view import Lens, LensView, Scores, carried
from mc_core.nets.gistnet import GistNet
from mc_core.tree.tree import MegaContextTree, TreeConfig
from tests.core.context_oracle import assert_laws, nodes

K, W, DIM, VOCABULARY = 16, 512, 8, 500
CONFIG = FocusConfig(budget=W, block_size=K, recent_tokens=64)
RARE = np.array([490, 491, 492, 493], np.int32)


@dataclass
class _RandomTargets:
    """A lens that asks for anything anywhere."""

    seed: int
    calls: int = field(default=0)

    def append(self, first_block: int, ids: NDArray[np.int32]) -> None:
        """Nothing to index."""

    def rewind(self, num_blocks: int) -> None:
        """Nothing to index."""

    def score(self, view: LensView) -> Scores:
        self.calls += 1
        draw = np.random.default_rng([self.seed, self.calls])
        blocks = view.tree.num_blocks
        near = np.unique(draw.integers(0, blocks, 12) // 4 * 4 + draw.integers(0, 3, 12)) if blocks else np.empty(0)
        targets = draw.permutation(near[near < blocks]).astype(np.int64)
        gain, harm = draw.random((2, len(view.wc)), dtype=np.float32)
        return Scores(gain, harm, targets, np.linspace(1, 0.2, len(targets), dtype=np.float32))


class _Session:
    """History, tree, lens and working context, and the archive of ids that evicted blocks come back from."""

    def __init__(self, config: FocusConfig = CONFIG, lens: Lens | None = None, gist_cost: int = 1) -> None:
        table = torch.randn(VOCABULARY, DIM, generator=torch.Generator().manual_seed(5))
        self.tree = MegaContextTree(TreeConfig(block_size=K), GistNet(DIM, K, kind="mean"), lambda ids: table[ids])
        self.wc = WorkingContext(K, config.budget, config.recent_tokens, gist_cost=gist_cost)
        self.lens = lens or make_lens(config.lens, config)
        self.refocuser = Refocuser(config, self.lens, make_allocator(config))
        self.archive = np.empty(0, np.int32)

    def append(self, ids: NDArray[np.int32]) -> None:
        done = self.tree.append(ids)
        self.archive = np.concatenate([self.archive, ids])
        if done.new_blocks:
            blocks = np.arange(done.first_block, done.first_block + done.new_blocks)
            self.lens.append(done.first_block, self.tree.block_ids(blocks))
        self.wc.extend(self.tree.num_tokens, reserve=K)

    def propose(self, question: NDArray[np.int32] = RARE, *, fresh: bool = True) -> Proposal:
        return self.refocuser.propose(self.view(question), self.wc, K, fresh=fresh)

    def view(self, question: NDArray[np.int32] = RARE) -> LensView:
        tokens = torch.from_numpy(question.astype(np.int64))
        return LensView(
            self.wc,
            self.tree,
            question,
            self.tree.num_tokens,
            lambda: torch.zeros(len(self.wc), DIM),
            lambda: self.tree.embed(tokens),
        )

    def evict_all(self) -> None:
        raw = self.wc.indices[self.wc.levels == 0]
        self.tree.evict(0, raw[raw < self.tree.num_blocks])

    def restore(self, blocks: NDArray[np.int64]) -> None:
        self.tree.restore(blocks, self.archive[: self.tree.num_blocks * K].reshape(-1, K)[blocks])

    def raw_ids(self) -> NDArray[np.int32]:
        """Ids of all raw entries; SpanMissingError if any are not in memory."""
        rows = np.flatnonzero(self.wc.levels == 0)
        spans = zip(self.wc.starts()[rows].tolist(), self.wc.ends()[rows].tolist(), strict=True)
        return np.concatenate([self.tree.ids(start, end) for start, end in spans])


def prose(tokens: int, seed: int = 1) -> NDArray[np.int32]:
    return np.random.default_rng(seed).integers(0, 480, tokens).astype(np.int32)


@pytest.mark.parametrize("allocator", ALLOCATORS)
def test_a_fact_anywhere_stands_raw_after_one_refocus(allocator: str) -> None:
    """The lexical lens finds a planted fact, and whichever allocator it is opens its block at once."""
    for at in (700, 20_000, 55_555):
        session = _Session(replace(CONFIG, allocator=allocator))
        ids = prose(60_000)
        ids[at : at + len(RARE)] = RARE
        session.append(ids)
        proposal = session.propose()
        report = session.refocuser.commit(session.wc, proposal)
        raw = session.wc.indices[session.wc.levels == 0]
        assert np.isin(np.arange(at, at + len(RARE)) // K, raw).all()
        assert report.expands == proposal.plan.expands > 0


def test_blocks_out_of_memory_are_asked_for() -> None:
    """Needed blocks are those to be opened whose ids are gone; once restored, all raw entries can be read."""
    session = _Session()
    ids = prose(60_000)
    ids[20_000 : 20_000 + len(RARE)] = RARE
    session.append(ids)
    session.evict_all()
    proposal = session.propose()
    assert 20_000 // K in proposal.needed_blocks
    assert set(proposal.needed_blocks.tolist()) <= set(proposal.expanded_blocks.tolist())
    session.restore(proposal.needed_blocks)
    session.refocuser.commit(session.wc, proposal)
    raw = session.wc.starts()[session.wc.levels == 0]
    expected = np.concatenate([ids[start : start + K] for start in raw.tolist()])
    np.testing.assert_array_equal(session.raw_ids(), expected)


def test_blocks_that_do_not_come_back_stay_coarse() -> None:
    """Without its missing blocks a plan opens nothing that cannot be read, and keeps what it would have paid with."""
    session = _Session()
    ids = prose(60_000)
    ids[20_000 : 20_000 + len(RARE)] = RARE
    session.append(ids)
    before = nodes(session.wc)
    session.evict_all()
    proposal = session.propose()
    with pytest.raises(SpanMissingError):
        session.tree.block_ids(proposal.needed_blocks)
    narrowed = proposal.without(proposal.needed_blocks)
    assert not len(narrowed.needed_blocks)
    assert narrowed.report.rejections["missing"] == len(proposal.needed_blocks)
    session.refocuser.commit(session.wc, narrowed)
    assert nodes(session.wc) == before, "nothing was left to do, and yet something was changed"
    session.raw_ids()


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), allocator=st.sampled_from(ALLOCATORS), gist_cost=st.sampled_from([0, 1, 4]))
def test_any_part_of_any_plan_can_be_dropped(seed: int, allocator: str, gist_cost: int) -> None:
    """Whatever blocks fail to come back, the rest of the plan is valid, opens the others, and keeps the reserve."""
    rng = np.random.default_rng(seed)
    budget = W * max(1, gist_cost)
    session = _Session(replace(CONFIG, allocator=allocator, budget=budget), _RandomTargets(seed % 1000), gist_cost)
    session.append(prose(int(rng.integers(1, 80_000))))
    for _ in range(6):
        session.append(prose(int(rng.integers(1, 3 * K))))
        proposal = session.propose()
        lost = rng.permutation(proposal.expanded_blocks)[: int(rng.integers(0, 8))]
        narrowed = proposal.without(lost)
        assert not np.isin(lost, narrowed.expanded_blocks).any()
        others = np.setdiff1d(proposal.expanded_blocks, lost)
        np.testing.assert_array_equal(narrowed.expanded_blocks, others)
        assert set(narrowed.plan.edits) <= set(proposal.plan.edits)
        swaps = Swaps.of(session.wc.entries, session.wc.protection, narrowed.plan)
        report = session.refocuser.commit(session.wc, narrowed)
        assert (report.eligible, report.changed) == (swaps.eligible, swaps.changed)
        assert np.isin(others, session.wc.indices[session.wc.levels == 0]).all()
        assert_laws(session.wc, budget - K)


def test_a_report_tells_what_is() -> None:
    """Every figure of the report is that of the committed context, flat and JSON-able for telemetry."""
    session = _Session()
    session.append(prose(60_000))
    session.refocuser.commit(session.wc, session.propose(prose(40)))
    proposal = session.propose(prose(40, seed=2))
    scores = proposal.scores.signed
    report = session.refocuser.commit(session.wc, proposal)
    flat = json.loads(json.dumps(report.attributes()))
    wc = session.wc
    assert flat["cost"] == wc.cost
    assert flat["utilization"] == pytest.approx(wc.cost / W)
    assert sum(value for name, value in flat.items() if name.startswith("entries.")) == len(wc)
    assert flat["entries.lod0"] == int((wc.levels == 0).sum())
    assert flat["swap_rate"] == pytest.approx(report.changed / report.eligible)
    assert (flat["expands"], flat["collapses"]) == (proposal.plan.expands, proposal.plan.collapses)
    assert flat["residency_mean"] == pytest.approx(wc.residency.mean())
    assert flat["residency_p95"] in wc.residency
    assert flat["score_mean"] == pytest.approx(float(scores.mean()))
    assert flat["score_std"] == pytest.approx(float(scores.std()))
    assert (flat["score_min"], flat["score_max"]) == (float(scores.min()), float(scores.max()))
    assert set(report.seconds) == {"lens", "allocate"}
    assert set(flat) >= {"tokens", "budget", "eligible", "residency_p95", "score_std"}


def test_scores_are_shown_for_the_entries_that_stand_now() -> None:
    """Unchanged entries show their last score, new tokens none, and an opened target its worth as harm."""
    session = _Session()
    assert session.refocuser.scores_of(session.wc).shape == (0,)
    ids = prose(60_000)
    ids[20_000 : 20_000 + len(RARE)] = RARE
    session.append(ids)
    assert not session.refocuser.scores_of(session.wc).any()
    before = nodes(session.wc)
    proposal = session.propose()
    session.refocuser.commit(session.wc, proposal)
    session.append(prose(K))
    shown = session.refocuser.scores_of(session.wc)
    assert shown.shape == (len(session.wc),)
    assert shown.dtype == np.float32
    now = nodes(session.wc)
    for node, score in zip(before, proposal.scores.signed.tolist(), strict=True):
        if node in now:
            assert shown[now.index(node)] == pytest.approx(score)
    assert shown[now.index((0, 20_000 // K))] == pytest.approx(-float(proposal.scores.target_scores[0]))
    assert shown[-1] == 0


def test_an_empty_or_short_history_can_be_refocused() -> None:
    """No tokens, one token, or just the protected ones: a refocus does nothing and says so."""
    session = _Session()
    for tokens in (0, 1, K - 1, 2 * K):
        session.append(prose(tokens))
        proposal = session.propose(prose(3))
        report = session.refocuser.commit(session.wc, proposal)
        assert not proposal.plan.edits
        assert not len(proposal.needed_blocks)
        assert report.cost == session.wc.num_tokens
        assert report.swap_rate == 0
        report.attributes()


def test_a_proposal_does_not_outlive_the_context_it_was_made_for() -> None:
    """If the history grew since, the commit is refused and nothing changes."""
    session = _Session()
    session.append(prose(60_000))
    proposal = session.propose()
    session.append(prose(1))
    before = session.wc.snapshot()
    with pytest.raises(PlanError, match="60000 tokens"):
        session.refocuser.commit(session.wc, proposal)
    assert session.wc.snapshot() == before


def test_scores_that_are_no_numbers_break_nothing() -> None:
    """A lens that went astray counts as silent: the context keeps its laws."""

    class Astray(_RandomTargets):
        def score(self, view: LensView) -> Scores:
            scores = super().score(view)
            scores.gain[::2], scores.harm[::3], scores.target_scores[:1] = np.nan, np.inf, np.nan
            return scores

    session = _Session(lens=Astray(3))
    session.append(prose(60_000))
    proposal = session.propose()
    assert np.isfinite(proposal.scores.signed).all()
    session.refocuser.commit(session.wc, proposal)
    assert_laws(session.wc, W - K)


def test_a_restart_changes_nothing() -> None:
    """From snapshots of context and refocuser, a session's next plans are what they would have been."""
    config = replace(CONFIG, allocator="bandit", lens="random")
    session, twin = _Session(config), _Session(config)
    for part in (prose(60_000), prose(40), prose(50)):
        session.append(part)
        twin.append(part)
        session.refocuser.commit(session.wc, session.propose())
    twin.wc = WorkingContext.restore(json.loads(json.dumps(session.wc.snapshot())))
    twin.refocuser.restore(json.loads(json.dumps(session.refocuser.snapshot())))
    for _ in range(3):
        plans: list[Plan] = []
        for one in (session, twin):
            one.append(prose(20))
            proposal = one.propose()
            one.refocuser.commit(one.wc, proposal)
            plans.append(proposal.plan)
        assert plans[0] == plans[1]
        assert plans[0].edits


def test_between_two_askings_the_focus_goes_on_from_what_the_lens_said() -> None:
    """A reply's refocuses ask the lens every so often only, and what it found stays open in between."""
    lens = _RandomTargets(3)
    session = _Session(replace(CONFIG, lens_interval=4), lens)
    session.append(prose(20_000))
    session.refocuser.commit(session.wc, session.propose())
    calls, asked = [lens.calls], list[bool]()
    for number in range(8):
        before, opened = session.refocuser.targets, set(session.wc.indices[session.wc.levels == 0].tolist())
        session.append(prose(K, number))
        proposal = session.propose(fresh=False)
        session.refocuser.commit(session.wc, proposal)
        assert_laws(session.wc, W - K)
        calls.append(lens.calls)
        asked.append(proposal.asked)
        if not proposal.asked:
            best = [block for block in before[:3].tolist() if block in opened]
            assert set(best) <= set(session.wc.indices[session.wc.levels == 0].tolist())
    assert asked == [False, False, False, True] * 2
    assert np.diff(calls).tolist() == [0, 0, 0, 1] * 2
    session.propose(fresh=True)
    assert lens.calls == calls[-1] + 1


def test_scores_are_carried_on_unchanged_where_nothing_changed() -> None:
    """What a lens said of a working context is what is carried on while that stands as it stood."""
    session = _Session(replace(CONFIG, lens="lexical"))
    session.append(np.concatenate([prose(4_000), RARE, prose(8_000, 2)]))
    proposal = session.propose()
    kept = carried(proposal.entries, proposal.scores, session.view())
    for name in ("gain", "harm", "targets", "target_scores"):
        np.testing.assert_array_equal(getattr(kept, name), getattr(proposal.scores, name))


def test_scores_of_what_a_cut_took_are_not_carried_on() -> None:
    """Targets beyond the end of a history that was cut since are dropped; the plan stays possible."""
    session = _Session(CONFIG, _RandomTargets(1))
    session.append(prose(20_000))
    session.refocuser.commit(session.wc, session.propose())
    session.tree.rewind(6_000)
    session.wc.rewind(6_000, reserve=K)
    proposal = session.propose(fresh=False)
    assert not proposal.asked
    assert (proposal.scores.targets < -(-6_000 // K)).all()
    session.refocuser.commit(session.wc, proposal)
    assert_laws(session.wc, W - K)


def test_the_best_find_is_the_same_while_a_turn_lasts() -> None:
    """It is the raw block that is worth the most of what was asked for; storing a session keeps it, a reply goes on
    with it, the next turn has its own, and a cut that takes it leaves none."""
    session = _Session(replace(CONFIG, lens_interval=1, best_last=True))
    ids, at, other = prose(60_000), 20_000, np.array([480, 481, 482, 483], np.int32)
    ids[at : at + len(RARE)] = RARE
    ids[2 * at : 2 * at + len(other)] = other
    session.append(ids)
    for question, fresh, best in ((RARE, True, at), (np.append(RARE[:3], other), False, at), (other, True, 2 * at)):
        session.refocuser.commit(session.wc, session.propose(question, fresh=fresh))
        assert session.refocuser.best == best // K
        stored = Refocuser(session.refocuser.config, session.lens, make_allocator(session.refocuser.config))
        stored.restore(json.loads(json.dumps(session.refocuser.snapshot())))
        assert stored.best == session.refocuser.best
    session.refocuser.rewind(2 * at // K)
    assert session.refocuser.best is None


@pytest.mark.parametrize("config", [CONFIG, replace(CONFIG, best_last=True, sure=1.0)])
def test_there_is_no_best_find_unless_the_lens_is_sure(config: FocusConfig) -> None:
    """Nor where all is read in order of time."""
    session = _Session(config)
    ids = prose(60_000)
    ids[[10_000, 20_000, 30_000, 40_000]] = RARE
    session.append(ids)
    session.refocuser.commit(session.wc, session.propose())
    assert session.refocuser.best is None
