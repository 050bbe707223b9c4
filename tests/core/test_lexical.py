"""The lexical index: equal to a brute-force BM25, true to any history of appends and cuts, and good at its job."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mc_core.errors import ConfigError
from mc_core.focus import lexical, tuning
from mc_core.focus.lexical import Evidence, LexicalIndex
from mc_core.focus.postings import build, merge
from mc_core.focus.targets import apart
from mc_core.focus.tuning import CELL
from mc_core.models.words import Words

Ids = NDArray[np.int32]
BLOCK = 4


def _ids(seed: int, blocks: int, vocabulary: int = 40, block: int = BLOCK) -> Ids:
    """Tokens with a long-tailed distribution."""
    draw = np.random.default_rng(seed)
    return np.minimum(draw.zipf(1.3, blocks * block) - 1, vocabulary - 1).astype(np.int32).reshape(blocks, block)


DIGITS = frozenset({0, 2, 5, 7})
"""Token ids that are digits where a test has such; 0 and 2 are common."""


def _words(vocabulary: int = 5_000) -> Words:
    """A vocabulary in which each id is a word, and some are digits."""
    ids = np.arange(vocabulary, dtype=np.int32)
    return Words(
        ids, np.zeros(vocabulary, bool), np.zeros(vocabulary, bool), np.isin(ids, [*DIGITS]), np.zeros(vocabulary, bool)
    )


def _indexed(ids: Ids, words: Words | None = None, **settings: int) -> LexicalIndex:
    index = LexicalIndex(ids.shape[1], words, **settings)
    index.append(0, ids)
    return index


def _query(index: LexicalIndex, tail: list[int] | Ids, k: int) -> tuple[list[int], list[float]]:
    """The k best blocks for a question and their scores, best first."""
    found = index.evidence(np.array(tail, np.int32))
    order = found.ranked(k)
    return found.blocks[order].tolist(), found.best[order].tolist()


def _numbers(row: list[int]) -> list[tuple[int, tuple[object, ...]]]:
    """(where it begins, term) of the whole numbers of a row: runs of digits, alone and with the token before."""
    found: list[tuple[int, tuple[object, ...]]] = []
    for digit, places in itertools.groupby(range(len(row)), key=lambda i: row[i] in DIGITS):
        run = [*places]
        if digit and len(run) > 1:
            number = tuple(row[i] for i in run)
            found.append((run[0], ("number", number)))
            if run[0]:
                found.append((run[0], ("number", row[run[0] - 1], number)))
    return found


def _terms_of_blocks(ids: Ids, digits: bool) -> list[set[tuple[object, ...]]]:
    flat, size = ids.reshape(-1).tolist(), ids.shape[1]
    terms: list[set[tuple[object, ...]]] = [set() for _ in range(len(ids))]
    for i, token in enumerate(flat):
        terms[i // size].add((token,))
        if i:
            terms[i // size].add((flat[i - 1], token))
    for block, row in enumerate(ids.tolist() if digits else []):
        terms[block].update(term for _, term in _numbers(row))
    return terms


def _oracle(ids: Ids, tail: list[int], end: int, digits: bool) -> dict[int, tuple[float, float, float]]:
    """block -> (own, ahead, behind), term by term in plain Python."""
    documents = _terms_of_blocks(ids, digits)
    count = len(documents)

    def idf(term: tuple[object, ...]) -> float:
        df = sum(term in document for document in documents)
        return math.log(1 + (count - df + 0.5) / (df + 0.5))

    def weight(term: tuple[object, ...]) -> float:
        parts = idf(term) if term[0] == "number" else min(idf((part,)) for part in term)
        return idf(term) * parts / math.log(1 + (count - 0.5) / 1.5)

    cells: dict[int, set[tuple[object, ...]]] = {}
    for i, token in enumerate(tail):
        cell = cells.setdefault((len(tail) - 1 - i) // CELL, set())
        cell.add((token,))
        if i:
            cell.add((tail[i - 1], token))
    for i, term in _numbers(tail) if digits else []:
        cells[(len(tail) - 1 - i) // CELL].add(term)

    def score(blocks: list[int]) -> float:
        held = set().union(*(documents[b] for b in blocks if 0 <= b < end))
        sums = [sum(weight(term) for term in cells[c] & held) for c in range(len(cells))]
        return max([a + b for a, b in itertools.pairwise(sums)] or sums)

    return {b: (score([b]), score([b, b + 1]), score([b - 1, b])) for b in range(end)}


def _assert_same(found: Evidence, other: Evidence) -> None:
    np.testing.assert_array_equal(found.blocks, other.blocks)
    for name in ("own", "ahead", "behind"):
        np.testing.assert_allclose(getattr(found, name), getattr(other, name), rtol=1e-5)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 30), st.integers(1, 60), st.integers(0, 30), st.booleans())
def test_evidence_equals_brute_force(seed: int, blocks: int, asked: int, end: int, digits: bool) -> None:
    """Scores of blocks and of pairs of neighbours are the squared-idf BM25 of the best passage, computed plainly."""
    ids = _ids(seed, blocks)
    tail = _ids(seed + 1, asked, block=1)[:, 0]
    end = min(end, blocks)
    found = _indexed(ids, _words() if digits else None).evidence(tail, end)
    expected = _oracle(ids, tail.tolist(), end, digits)
    got = dict(zip(found.blocks.tolist(), zip(found.own, found.ahead, found.behind, strict=True), strict=True))
    for block, scores in expected.items():
        if block in got:
            np.testing.assert_allclose(got[block], scores, rtol=1e-4, atol=1e-5)
        else:
            assert scores[:2] == (0.0, 0.0)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.booleans(), st.integers(1, 90)), min_size=1, max_size=14),
    st.integers(0, 1000),
    st.sampled_from([None, _words()]),
)
def test_any_history_equals_a_rebuild(steps: list[tuple[bool, int]], seed: int, words: Words | None) -> None:
    """After any appends and rewinds the index answers as one built from the same ids at once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lexical, "HEAD_BLOCKS", 8)
        patch.setattr(lexical, "SEGMENT_BLOCKS", 64)
        index, ids = LexicalIndex(BLOCK, words), np.empty((0, BLOCK), np.int32)
        for i, (cut, amount) in enumerate(steps):
            if cut:
                ids = ids[: max(0, len(ids) - amount)]
                index.rewind(len(ids))
            else:
                new = _ids(seed + i, amount)
                index.append(len(ids), new)
                ids = np.concatenate([ids, new])
            assert index.num_blocks == len(ids)
    tail = _ids(seed - 1 if seed else 7, 24, block=1)[:, 0]
    _assert_same(index.evidence(tail), _indexed(ids, words).evidence(tail))


def test_a_code_is_found_among_codes_of_the_same_digits() -> None:
    """A code whose digits and letters stand everywhere is rare as a whole, and outweighs a word of the question."""
    rng = np.random.default_rng(0)
    ids = rng.integers(100, 400, (2_000, 16)).astype(np.int32)
    digits, letters = [0, 2, 5, 7], [10, 11, 12, 13]
    for block in range(0, 2_000, 3):
        ids[block, 4:8] = [rng.choice(letters), *rng.choice(digits, 3)]
    code = [14, 5, 5, 7]
    ids[777, 4:8] = [code[0], *code[1:]]
    ids[900:906, 4] = 14
    ids[1_500, 9] = 500  # the question's other word, which stands once
    found, scores = _query(_indexed(ids, _words()), [101, 500, 102, *code], 4)
    assert found[0] in (776, 777)
    assert scores[0] > 1.5 * max(
        (s for block, s in zip(found, scores, strict=True) if block in (1_499, 1_500)), default=0
    )


def test_merge_equals_build() -> None:
    """Two neighbouring segments, merged, hold what one built over both holds, the pair across their border included."""
    ids = _ids(3, 50)
    merged = merge(build(0, ids[:20], -1), build(20, ids[20:], int(ids[19, -1])))
    whole = build(0, ids, -1)
    for name in ("terms", "offsets", "blocks"):
        np.testing.assert_array_equal(getattr(merged, name), getattr(whole, name))


def test_segments_stay_few_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks that come one by one end in logarithmically many segments, none above the limit."""
    monkeypatch.setattr(lexical, "HEAD_BLOCKS", 8)
    monkeypatch.setattr(lexical, "SEGMENT_BLOCKS", 256)
    index, ids = LexicalIndex(BLOCK), _ids(5, 1_000)
    for i in range(len(ids)):
        index.append(i, ids[i : i + 1])
    sizes = [segment.num_blocks for segment in index._segments]
    assert max(sizes) <= 256
    assert len(sizes) <= 1_000 / 256 + 7


def test_a_query_reads_a_bounded_number_of_postings() -> None:
    """However common the words, a query touches at most twice its postings; the rarest words are read first."""
    ids = _ids(1, 5_000)
    ids[1_234, 1] = 777
    index = _indexed(ids, postings=100)
    found = index.evidence(np.array([0, 1, 2, 777, 3, 4], np.int32))
    assert len(found.blocks) <= 200
    assert _query(index, [0, 1, 777, 2], 1)[0] == [1_234]


def test_fold_joins_spellings_and_drops_control_tokens() -> None:
    """Ids folded to one are found for each other; ids folded below zero are never evidence."""
    ids = np.full((64, BLOCK), 9, np.int32)
    ids[20, 2], ids[40, 1] = 5, 3
    fold = np.arange(10, dtype=np.int32)
    fold[6], fold[3] = 5, -1
    index = LexicalIndex(BLOCK, Words(fold, *(np.zeros(10, bool) for _ in range(4))))
    index.append(0, ids)
    assert _query(index, [6], 1)[0] == [20]
    assert not len(index.evidence(np.array([3], np.int32)).blocks)


def test_bad_blocks_are_refused() -> None:
    """A gap in the block numbers or a wrong block size is an error that names the expected value."""
    index = LexicalIndex(BLOCK)
    with pytest.raises(ConfigError, match="first_block must be 0"):
        index.append(2, _ids(0, 1))
    with pytest.raises(ConfigError, match=r"ids must be \[n, 4\]"):
        index.append(0, _ids(0, 1, block=8))
    with pytest.raises(ConfigError, match="num_blocks"):
        index.rewind(-1)


def test_nothing_asked_and_nothing_held_find_nothing() -> None:
    """An empty question, an empty index and unknown words give empty evidence, not errors."""
    nothing = np.empty(0, np.int32)
    for index, tail in ((LexicalIndex(BLOCK), np.array([1, 2], np.int32)), (_indexed(_ids(0, 9)), nothing)):
        assert not len(index.evidence(tail).blocks)
        assert not len(index.evidence(tail).targets(8, 1, 9)[0])
    assert not len(_indexed(_ids(0, 9)).evidence(np.array([39_999], np.int32)).blocks)


class _Novel:
    """A million tokens of Zipf-distributed words in pieces, with 100 facts of one template planted at any offset."""

    TEMPLATE = np.array([900, 12, 4, 1_500, 2_600, 3_100, 8], np.int32)
    QUESTION = np.array([700, 5, 4, 1_500, 2_600, 3_101, 8], np.int32)

    def __init__(self, tokens: int, facts: int, block: int, seed: int) -> None:
        draw = np.random.default_rng(seed)
        ranks = np.arange(1, 8_001)
        text = draw.choice(8_000, tokens, p=1 / ranks / (1 / ranks).sum()).astype(np.int32)
        self.keys = draw.integers(300, 6_000, (facts, 4)).astype(np.int32)
        self.starts = np.arange(facts) * (tokens // facts) + draw.integers(0, tokens // facts - 64, facts)
        self.length = len(self.TEMPLATE) + 4 + 2 + 7
        for start, key in zip(self.starts, self.keys, strict=True):
            value = draw.integers(20, 30, 7)
            text[start : start + self.length] = np.concatenate([self.TEMPLATE, key, [6, 13], value])
        self.block = block
        self.index = _indexed(text[: tokens // block * block].reshape(-1, block))

    def recalled(self, fact: int, before: Ids, after: Ids) -> bool:
        question = np.concatenate([before, self.QUESTION, self.keys[fact], [17], after]).astype(np.int32)
        found = self.index.evidence(question)
        targets, scores = found.targets(8, 1, self.index.num_blocks)
        assert (np.diff(scores) <= 0).all()
        assert len(np.unique(targets)) == len(targets)
        first, last = self.starts[fact], self.starts[fact] + self.length - 1
        return set(range(first // self.block, last // self.block + 1)) <= set(targets.tolist())


@pytest.mark.parametrize("block", [16, 32, 64])
def test_recall_of_planted_facts(block: int) -> None:
    """All blocks of a fact are among 8 targets and their neighbours for 99 of 100 facts in a million tokens."""
    novel, nothing = _Novel(1_000_000, 100, block, seed=block), np.empty(0, np.int32)
    assert sum(novel.recalled(i, nothing, nothing) for i in range(100)) >= 99


def test_recall_amid_small_talk() -> None:
    """A question between 100 tokens of chat and the reply so far still finds its fact: the best passage counts."""
    novel, draw = _Novel(1_000_000, 100, 32, seed=1), np.random.default_rng(2)
    ranks = np.arange(1, 8_001)
    talk = draw.choice(8_000, (100, 160), p=1 / ranks / (1 / ranks).sum()).astype(np.int32)
    assert sum(novel.recalled(i, talk[i, :100], talk[i, 100:]) for i in range(100)) >= 95


def test_one_rare_word_beats_many_common_ones() -> None:
    """A block with the question's one rare word comes before blocks that share all of its common words."""
    ids = np.random.default_rng(0).integers(0, 50, (2_000, 32)).astype(np.int32)
    common = np.arange(12, dtype=np.int32)
    for block in range(100, 2_000, 100):
        ids[block, ::2][:12] = common
    ids[1_111, 7] = 4_000
    assert _query(_indexed(ids), np.concatenate([common, [4_000]]), 1)[0][0] in (1_110, 1_111)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), blocks=st.integers(30, 400), asked=st.integers(2, 10))
@example(seed=83, blocks=30, asked=9)
def test_only_outdone_places_are_left_out(seed: int, blocks: int, asked: int) -> None:
    """A place is left out if and only if a kept, surely better one that is no echo holds what speaks for it and a rare
    word besides; the best always stays."""
    ids = _ids(seed, blocks, 4_000)
    question = np.random.default_rng([seed, 1]).choice(ids.reshape(-1), asked).astype(np.int32)
    found = _indexed(ids).evidence(question)
    order = found.ranked(64)
    order = order[apart(found.blocks[order], 8, 1)]
    block, best = found.blocks[order], found.best[order]
    echoes = block[np.random.default_rng([seed, 2]).random(len(block)) < 0.2]
    kept = replace(found, echoes=echoes)._not_outdone(block, block, best)
    terms = [{int(t) for t in found.postings.terms[found.postings.blocks == b]} for b in block]
    weight = found.postings.weights
    for i, stays in enumerate(kept):
        own = sum(weight[t] for t in terms[i])
        outdone = any(
            kept[j]
            and block[j] not in echoes
            and best[j] >= tuning.FULL_EVIDENCE * found.unit
            and best[i] <= tuning.OUTDONE * best[j]
            and sum(weight[t] for t in terms[i] - terms[j]) <= tuning.NEW * own
            and any(weight[t] >= tuning.TELLING * found.unit for t in terms[j] - terms[i])
            for j in range(i)
        )
        assert bool(stays) is not outdone
    assert not len(kept) or kept[0]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), blocks=st.integers(4, 60), asked=st.integers(2, 10), share=st.floats(0.0, 1.0))
def test_echoes_lend_nothing_to_what_stands_beside_them(seed: int, blocks: int, asked: int, share: float) -> None:
    """What holds something beside an echo is worth what it is where the echo holds nothing; an echo, what it holds."""
    ids = _ids(seed, blocks, 400)
    draw = np.random.default_rng([seed, 3])
    question = draw.choice(ids.reshape(-1), asked).astype(np.int32)
    echoes = np.flatnonzero(draw.random(blocks) < share)
    index = _indexed(ids)
    told, plain = index.evidence(question).with_echoes(echoes), index.evidence(question)
    without = index.evidence_of(index.folded(question), without=echoes)
    for block, own, best in zip(told.blocks.tolist(), told.own, told.best, strict=True):
        assert own == plain.own_of(np.array([block]))[0]
        if block in echoes:
            assert best == own
        elif own:
            assert best == pytest.approx(without.best[without.blocks == block][0], abs=1e-5)


def test_look_alikes_are_left_out_and_facts_asked_for_together_are_not() -> None:
    """A fact that shares one half of the key asked for is not opened; all facts of the key, or of two keys, are."""
    ids = np.random.default_rng(0).integers(0, 50, (600, 8)).astype(np.int32)
    right, twin, alike, other = 100, 200, 300, 400
    for block, key in ((right, (900, 901)), (twin, (900, 901)), (alike, (900, 777)), (other, (950, 951))):
        ids[block, 2:6] = (800, *key, 60)
    index = _indexed(ids)

    def opened(*question: int) -> set[int]:
        return set(index.evidence(np.array(question, np.int32)).targets(8, 0, 600, 0)[0].tolist())

    assert opened(800, 900, 901) & {right, twin, alike} == {right, twin}
    assert {right, twin, other} <= opened(800, 900, 901, 70, 950, 951)
    assert alike not in opened(800, 900, 901, 70, 950, 951)
