"""Lenses on real trees and working contexts: what they find, what they keep, and that the question decides."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mc_core.context.working_context import WorkingContext
from mc_core.errors import ConfigError
from mc_core.focus.focus_config import FocusConfig
from mc_core.focus.lens import LENSES, make_lens
from mc_core.focus.lens_learned import fuse
from mc_core.focus.lens_lexical import in_words
from mc_core.focus.tuning import ENTRY_WORTH, FIRM, LEAST_DISTINCT, TURN_WORTH
from mc_core.focus.view import Finding, Lens, LensView, Scores
from mc_core.nets.gistnet import GistNet
from mc_core.nets.lensnet import LensNet, LensNetConfig
from mc_core.tree.tree import MegaContextTree, TreeConfig

K, DIM, VOCABULARY = 16, 24, 500
RARE = np.array([490, 491, 492], np.int32)
Ids = NDArray[np.int32]


@dataclass
class _World:
    """A history with its tree and working context, and the lens that follows it."""

    lens: Lens
    tree: MegaContextTree
    wc: WorkingContext

    def append(self, ids: Ids) -> None:
        done = self.tree.append(ids)
        if done.new_blocks:
            blocks = np.arange(done.first_block, done.first_block + done.new_blocks)
            self.lens.append(done.first_block, self.tree.block_ids(blocks))
        self.wc.extend(self.tree.num_tokens)

    def view(self, tail: Ids) -> LensView:
        tokens = torch.from_numpy(tail.astype(np.int64))

        def entry_vectors() -> torch.Tensor:
            draw = torch.Generator().manual_seed(0)
            return torch.randn(len(self.wc.levels), DIM, generator=draw) * 0.02

        return LensView(self.wc, self.tree, tail, self.tree.num_tokens, entry_vectors, lambda: self.tree.embed(tokens))

    def score(self, tail: Ids) -> Scores:
        return self.lens.score(self.view(tail))


def _net(kind: str = "cross") -> LensNet:
    torch.manual_seed(0)
    return LensNet(LensNetConfig(DIM, kind=kind, width=32, keys=2, key_dim=16)).eval()  # type: ignore[arg-type]


def _world(kind: str, tokens: int = 6_000, fact_at: int | None = 3_000, budget: int = 400) -> _World:
    net = _net("transformer" if kind == "transformer" else "cross")
    config = FocusConfig(budget=budget, block_size=K, recent_tokens=64, lens=kind)
    table = torch.randn(VOCABULARY, DIM, generator=torch.Generator().manual_seed(5)) * 0.02
    tree = MegaContextTree(
        TreeConfig(block_size=K, lens_keys=2, lens_key_dim=16),
        GistNet(DIM, K, kind="mean"),
        lambda ids: table[ids],
        net.key_net,
    )
    world = _World(make_lens(kind, config, net), tree, WorkingContext(K, budget, 64))
    ids = np.random.default_rng(1).integers(0, 480, tokens).astype(np.int32)
    if fact_at is not None:
        ids[fact_at : fact_at + 3] = RARE
    world.append(ids)
    return world


@pytest.mark.parametrize("kind", LENSES)
def test_scores_fit_the_working_context(kind: str) -> None:
    """Every lens gives finite gain and harm within [0, 1] for each entry, and distinct targets in order of worth."""
    world = _world(kind)
    scores = world.score(RARE)
    for column in (scores.gain, scores.harm):
        assert column.shape == world.wc.levels.shape
        assert column.dtype == np.float32
        assert (column >= 0).all()
        assert (column <= 1).all()
    assert (scores.gain[world.wc.levels == 0] == 0).all()
    assert scores.targets.dtype == np.int64
    assert len(np.unique(scores.targets)) == len(scores.targets) == len(scores.target_scores)
    assert (np.diff(scores.target_scores) <= 0).all()
    assert ((scores.targets >= 0) & (scores.targets < world.tree.num_blocks)).all()


@pytest.mark.parametrize("kind", LENSES)
def test_same_question_same_scores(kind: str) -> None:
    """Asking twice gives the same answer: a replay of a session repeats its refocuses."""
    one, other = (_world(kind).score(RARE) for _ in range(2))
    np.testing.assert_array_equal(one.gain, other.gain)
    np.testing.assert_array_equal(one.targets, other.targets)


@pytest.mark.parametrize("kind", ["cross", "transformer", "lexical", "hybrid"])
def test_scores_change_when_only_the_tail_changes(kind: str) -> None:
    """The question decides: another tail over the same history gives other scores."""
    world = _world(kind)
    one, other = world.score(RARE), world.score(world.tree.ids(1_000, 1_003))
    assert not np.array_equal(one.gain, other.gain)


@pytest.mark.parametrize("kind", ["lexical", "hybrid"])
@pytest.mark.parametrize("fact_at", [160, 1_599, 3_000, 5_400])
def test_lexical_finds_the_fact_and_lifts_its_ancestor(kind: str, fact_at: int) -> None:
    """The blocks of the fact are targets, and the entry that covers them has the highest gain of all gists."""
    world = _world(kind, fact_at=fact_at)
    scores = world.score(np.concatenate([[5, 6], RARE]).astype(np.int32))
    blocks = {fact_at // K, (fact_at + 2) // K}
    assert blocks <= set(scores.targets.tolist())
    covering = np.searchsorted(world.wc.starts(), min(blocks) * K, side="right") - 1
    assert world.wc.levels[covering] > 0
    assert scores.gain[covering] >= 0.5
    if kind == "lexical":
        assert scores.gain[covering] == scores.gain.max()
        assert scores.targets[0] in blocks


def test_relevant_raw_blocks_are_dearer_to_collapse_than_recent_ones() -> None:
    """A raw block that holds the question's words outranks, in harm, raw blocks that are merely recent."""
    world = _world("lexical", tokens=K, fact_at=None)
    ids = np.random.default_rng(2).integers(0, 480, 350).astype(np.int32)
    ids[100 - K : 103 - K] = RARE
    for at in range(0, len(ids), K):  # piece by piece, as when decoding, so that all of it stays raw
        world.append(ids[at : at + K])
    harm = world.score(RARE).harm
    assert (world.wc.levels == 0).all()
    entry = 100 // K
    others = np.flatnonzero(world.wc.ends() <= 300)
    others = others[np.abs(others - entry) > 64 // K]
    assert (harm[entry] > harm[others] + 0.3).all()
    assert (np.diff(harm[others]) >= 0).all()


def test_the_turn_does_not_find_itself_but_stays_open() -> None:
    """Words of the current turn stand in its own blocks: these are kept as targets, yet the fact comes first."""
    world = _world("lexical")
    turn = np.random.default_rng(3).integers(0, 480, 150).astype(np.int32)
    turn[100:103] = RARE
    world.append(turn)
    scores = world.score(turn)
    assert scores.targets[0] == 3_000 // K
    own = np.arange((world.tree.num_tokens - 150) // K, world.wc.tail_start // K)
    assert len(own)
    assert set(own.tolist()) <= set(scores.targets.tolist())


def test_small_talk_asks_for_nothing() -> None:
    """A question of common words alone is weak evidence: its targets are worth much less than those of rare words."""
    ids = np.random.default_rng(1).integers(0, 20, 6_000).astype(np.int32)
    ids[3_000:3_003] = RARE
    world = _world("lexical", tokens=1, fact_at=None)
    world.append(ids)
    talk, rare = world.score(np.array([1, 2], np.int32)), world.score(RARE)
    assert talk.target_scores.max(initial=0) < 0.3 < 0.9 < rare.target_scores.max()


@pytest.mark.parametrize("kind", ["lexical", "cross", "hybrid"])
def test_a_rewind_forgets(kind: str) -> None:
    """After the history is cut, targets lie in what is left, and scores equal those of a lens that saw only that."""
    world, fresh = _world(kind, tokens=6_000), _world(kind, tokens=2_400, fact_at=None)
    world.tree.rewind(2_400)
    world.lens.rewind(world.tree.num_blocks)
    world.wc.rewind(2_400)
    one, other = world.score(RARE), fresh.score(RARE)
    assert (one.targets < 2_400 // K).all()
    if kind == "lexical":
        assert not (set(one.targets.tolist()) ^ set(other.targets.tolist()))


def test_learned_look_ahead_finds_the_nearest_key() -> None:
    """With queries set to a block's own key, that block is the first target."""
    world = _world("cross")
    keys = world.tree.lens_keys(0, world.tree.num_blocks)
    wanted = keys[123, 1].float()
    lens = world.lens
    lens.net.query_net.forward = lambda tail, mask=None: wanted[None, None]  # type: ignore[attr-defined]
    assert lens.score(world.view(RARE)).targets[0] == 123


def words(targets: list[int], worth: list[float], end: int = 10_000) -> Finding:
    """What the lexical lens found."""
    return in_words(np.array(targets, np.int64), np.array(worth, np.float32), end)


def asked(
    distinct: float, targets: tuple[int, ...] = (7, 90, 130), worth: tuple[float, ...] = (0.6, 0.5, 0.4)
) -> Finding:
    """What a learned lens found, whose best target stands out that far."""
    return Finding(np.array(targets, np.int64), np.array(worth, np.float32), distinct)


def test_fusion_takes_nothing_from_a_crowd() -> None:
    """Where the best learned hit is one of many alike, words choose alone; so they do where nothing was learned."""
    found = words([50, 3], [0.4, 0.3])
    for learned in (asked(0.9 * LEAST_DISTINCT), asked(0.0, (), ())):
        targets, worth = fuse(learned, found, 10_000)
        np.testing.assert_array_equal(targets, found.targets)
        np.testing.assert_array_equal(worth, found.worth)


def test_fusion_gives_way_where_words_are_sure() -> None:
    """A distinct hit leads where words know little; where they are sure it follows, and other learned hits go."""
    for best, order in ((0.4, [7, 90, 130]), (1.0, [50, 7, 3])):
        targets, worth = fuse(asked(1.0), words([50, 3], [best, 0.3]), 10_000)
        assert targets[worth > 0.1].tolist() == order
        assert (np.diff(worth) <= 0).all()
    # However sure words are, the best hit is worth as much as it is distinct, and they lose nothing.
    for distinct in (0.5, 1.0):
        targets, worth = fuse(asked(distinct), words([50], [1.0]), 10_000)
        assert targets.tolist() == [50, 7]
        assert worth == pytest.approx([1.0, FIRM * distinct])
    # The more distinct, the less are words worth that say little.
    weak, strong = (
        float(dict(zip(*fuse(asked(distinct), words([50], [0.5]), 10_000), strict=True))[50])
        for distinct in (0.5, 0.95)
    )
    assert strong < weak / 2
    # The turn's own blocks, which every question has, say nothing of what was found.
    targets, worth = fuse(asked(1.0), words([10_020], [0.95]), 10_000)
    assert targets[:2].tolist() == [10_020, 7]
    assert worth[:2] == pytest.approx([0.95, FIRM])


def test_neighbours_of_the_best_hit_keep_their_share() -> None:
    """The blocks around a distinct hit stand by it: facts straddle borders."""
    learned = asked(1.0, (7, 8, 6, 90), (0.5, 0.4, 0.35, 0.3))
    targets, worth = fuse(learned, words([50], [1.0]), 10_000)
    assert targets.tolist() == [50, 7, 8, 6]
    assert worth[1:] == pytest.approx([FIRM, FIRM * 0.8, FIRM * 0.7])


def test_entries_never_outweigh_what_was_asked_for() -> None:
    """However loud the network is about its entries, none of their own scores exceeds ``ENTRY_WORTH``."""
    world = _world("cross")
    for head in world.lens.net.parameters():
        head.data.mul_(50)
    said = world.lens.ask(world.view(RARE))
    assert max(said.gain.max(), said.harm.max()) <= ENTRY_WORTH
    assert max(said.gain.max(), said.harm.max()) > ENTRY_WORTH / 2


def test_recency_prefers_the_newest() -> None:
    """Gain and harm grow towards the cursor, and nothing is looked up."""
    scores = _world("recency").score(RARE)
    assert (np.diff(scores.harm) >= 0).all()
    assert not len(scores.targets)


def test_lenses_that_cannot_be_made_are_refused() -> None:
    """An unknown kind, a learned lens without its network, or with that of another kind: each names the field lens."""
    config = FocusConfig(block_size=K)
    with pytest.raises(ConfigError, match="lens must be one of"):
        make_lens("psychic", config)
    with pytest.raises(ConfigError, match="without a trained LensNet"):
        make_lens("hybrid", config)
    with pytest.raises(ConfigError, match="trained as"):
        make_lens("transformer", config, _net("cross"))


@pytest.mark.parametrize("kind", ["lexical", "hybrid", "cross"])
@pytest.mark.parametrize("fact_at", [None, 3_000])
def test_lines_in_front_of_a_text_do_not_find_themselves(kind: str, fact_at: int | None) -> None:
    """Law: lines of the question that stand before the text stay raw as the turn's own; what is found is elsewhere, and
    sure of itself only if there is something to find."""
    world = _world(kind, fact_at=fact_at)
    turn = np.random.default_rng(2).integers(0, 480, 2_000).astype(np.int32)
    turn[5:8] = RARE
    start = world.tree.num_tokens
    world.append(turn)
    plain = world.view(RARE)
    view = replace(plain, own_from=world.tree.num_tokens, lines=((start + 5, start + 8),))
    scores, own = world.lens.score(view), (start + 5) // K
    assert own in scores.targets[:2]
    assert float(scores.target_scores[scores.targets == own][0]) == np.float32(TURN_WORTH)
    assert view.own(np.array([own])).all()
    found = scores.target_scores[~view.own(scores.targets)].max(initial=0.0)
    if kind != "cross":
        assert (found > 0.9) == (fact_at is not None)
    if fact_at is not None and kind == "lexical":
        assert scores.targets[0] == fact_at // K
