"""Word vectors: a question is compared with history word by word, and both ways of searching are joined by block."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mc_core.errors import ConfigError
from mc_core.focus import word_search
from mc_core.focus.tuning import BESIDE, CERTAIN, FIRM, KEY_BLOCKS, MEANING, STANDS_OUT, SURE_WORDS, UNSURE
from mc_core.focus.view import Finding
from mc_core.focus.word_fusion import Meant, in_places, join, with_keys
from mc_core.focus.word_search import WordSearch, best_in, summed
from mc_core.nets.lens_words import WordNet, likeness
from mc_core.nets.lensnet import LensNet, LensNetConfig

DIM, K, VOCABULARY = 24, 8, 60


def _net() -> WordNet:
    torch.manual_seed(0)
    net = WordNet(DIM, 32, 8).eval()
    net.learn_vocabulary(torch.randn(VOCABULARY, DIM), torch.arange(VOCABULARY) > 0)
    return net


def _ids(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, VOCABULARY, shape).astype(np.int32)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1_000), st.integers(1, 40), st.integers(1, 6))
def test_scores_are_those_of_the_nearest_words(seed: int, blocks: int, queries: int) -> None:
    """A block's score sums, over queries, weight times its best word, and a share of the best of it and neighbours."""
    draw = torch.Generator().manual_seed(seed)
    matches, weights = torch.rand(VOCABULARY, queries, generator=draw), torch.rand(queries, generator=draw)
    ids = torch.from_numpy(_ids(seed, blocks, K).astype(np.int64))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(word_search, "BLOCKS_AT_ONCE", 7)
        scores = summed(best_in(matches, ids), weights)
    for block in range(blocks):
        near = ids[max(0, block - 1) : block + 2].flatten()
        own = matches[ids[block]].amax(0)
        expected = ((own + BESIDE * matches[near].amax(0)) * weights).sum()
        torch.testing.assert_close(scores[block], expected)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1_000), st.lists(st.tuples(st.booleans(), st.integers(0, 30)), min_size=1, max_size=6))
def test_a_history_that_grew_and_was_cut_is_searched_like_one_that_came_whole(
    seed: int, steps: list[tuple[bool, int]]
) -> None:
    """Appends and rewinds leave the scores of what remains, and blocks from ``end`` on are never found."""
    net, grown, history = _net(), WordSearch(_net(), K), np.empty((0, K), np.int32)
    for number, (cut, amount) in enumerate(steps):
        if cut:
            history = history[: max(0, len(history) - amount)]
            grown.rewind(len(history))
        else:
            new = _ids(seed + number, amount, K)
            grown.append(len(history), new)
            history = np.concatenate([history, new])
    whole = WordSearch(net, K)
    whole.append(0, history)
    question, end = _ids(seed, 9), max(0, len(history) - 2)
    torch.testing.assert_close(grown.scores(question, len(history)), whole.scores(question, len(history)))
    found = grown.search(question, end, 5)
    assert len(found.nodes) == min(5, end)
    assert (found.nodes < end).all()
    with pytest.raises(ConfigError, match="first_block"):
        whole.append(len(history) + 1, history)


def test_a_question_asks_for_its_own_words() -> None:
    """Each word of a tail is as heavy as the square of its rarity, and like itself; what is no word weighs nothing."""
    net = _net()
    assert net.table is not None
    ids = torch.from_numpy(_ids(2, 6).astype(np.int64))
    queries, weights = net.question(ids)
    torch.testing.assert_close(weights, net.table[ids, -1].square())
    real = ids > 0
    assert likeness(queries, net.table[:, :-1])[range(6), ids][real].min() > 0.99
    assert not net.table[0].any()


def test_a_search_without_the_vocabulary_is_refused() -> None:
    """The vocabulary's table must be made before anything is asked."""
    with pytest.raises(ConfigError, match="learn_vocabulary"):
        WordNet(DIM, 32, 8).question(torch.arange(3))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 40), unique=True, max_size=30), st.integers(1, 6), st.integers(1, 24))
def test_places_are_runs_of_neighbours(blocks: list[int], places: int, most: int) -> None:
    """What is taken lies in at most so many runs; a block is passed over only if it would have begun one too many."""
    kept = in_places(np.array(blocks, np.int64), places, most)
    assert (np.diff(kept) > 0).all()
    taken: set[int] = set()
    for i, block in enumerate(blocks):
        more = {*taken, block}
        if i in kept:
            taken = more
        elif len(taken) < most:
            assert _runs(more) > places
    assert len(taken) == len(kept) <= most
    assert _runs(taken) <= places


def _runs(blocks: set[int]) -> int:
    return sum(block - 1 not in blocks for block in blocks)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 1_000), st.integers(1, 30), st.integers(0, 8), st.integers(0, 12), st.integers(1, 24))
def test_both_ways_of_searching_count(seed: int, end: int, said: int, meant: int, most: int) -> None:
    """What is joined are distinct blocks of history, best first, worth at most what words are sure of, or ``UNSURE``;
    the block with the most evidence of both is among them, and what words are sure of keeps its worth."""
    rng = np.random.default_rng(seed)
    words, blocks = (rng.permutation(end)[:count].astype(np.int64) for count in (said, meant))
    worth = np.sort(rng.random(len(words)).astype(np.float32) + np.float32(0.01))[::-1].clip(0, 1)
    above = np.sort(rng.random(len(blocks)).astype(np.float32) * 12)[::-1]
    in_words = Finding(words, worth, float(worth.max(initial=0)))
    targets, value = join(Meant(blocks, above), in_words, end, 8, most)
    sure = worth >= SURE_WORDS
    assert len(targets) == len(set(targets.tolist())) <= most + sure.sum()
    kept = dict(zip(targets.tolist(), value.tolist(), strict=True))
    assert all(kept[block] >= given for block, given in zip(words[sure].tolist(), worth[sure].tolist(), strict=True))
    assert ((targets >= 0) & (targets < end)).all()
    assert (np.diff(value) <= 0).all()
    assert (value <= max(in_words.certainty, np.float32(UNSURE))).all()
    evidence = dict(zip(words.tolist(), worth.tolist(), strict=True))
    for block, deviations in zip(blocks.tolist(), above.tolist(), strict=True):
        evidence[block] = evidence.get(block, 0.0) + MEANING * deviations / max(CERTAIN, float(above[0]))
    if max(evidence.values(), default=0.0) > 0:
        assert max(evidence.get(block, 0.0) for block in kept) == pytest.approx(max(evidence.values()), rel=1e-4)


def test_hits_of_the_keys_are_taken_if_they_stand_out() -> None:
    """What stands out of all history comes before what is worth less; all else, and too much of it, changes nothing."""
    joined = np.array([3, 4], np.int64), np.array([0.59, 0.4], np.float32)
    keys = Finding(np.array([9, 10, 20], np.int64), np.array([0.8, 0.64, STANDS_OUT - 0.01], np.float32), 0.0)
    targets, worth = with_keys(keys, joined)
    assert targets.tolist() == [9, 3, 10, 4]
    assert worth[0] == pytest.approx(FIRM * 0.8)
    crowd = Finding(np.arange(50, 90, dtype=np.int64), np.ones(40, np.float32), 1.0)
    assert len(with_keys(crowd, joined)[0]) == KEY_BLOCKS + 2


def test_a_net_has_the_parts_of_its_ways_of_searching() -> None:
    """By lens keys, by word vectors, or by both; by neither is refused."""
    net = LensNet(LensNetConfig(DIM, width=16, heads=2, keys=0, words=8))
    assert (net.key_net, net.query_net) == (None, None)
    assert LensNet(LensNetConfig(DIM, width=16, heads=2)).word_net is None
    both = LensNet(LensNetConfig(DIM, width=16, heads=2, words=8))
    assert both.key_net is not None
    assert both.word_net is not None
    for wrong in ({"keys": 0}, {"keys": -1, "words": 8}):
        with pytest.raises(ConfigError, match="keys and words"):
            LensNetConfig(DIM, **wrong)  # type: ignore[arg-type]
