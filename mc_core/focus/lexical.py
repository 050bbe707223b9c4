"""LexicalIndex: BM25 over token ids, blocks as documents, for histories that grow and are cut at their end.

Robertson & Zaragoza 2009, with k1 = 0 and b = 0: documents are K tokens short and equally long. Changed so that
facts in prose are found: terms are weighted by the *square* of their idf, or a dozen common words outweigh one rare
name; pairs of neighbouring tokens count too (sequential dependence, Metzler & Croft 2005), for byte-pair pieces and
digits say little alone, and so do whole numbers, for most vocabularies write them digit by digit; two neighbouring
blocks are judged together, for facts straddle borders; and a long question is judged by its best passage, or its small
talk outweighs its point.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from mc_core.errors import ConfigError
from mc_core.focus.postings import PAIR, Question, Segment, Terms, build, merge, runs
from mc_core.focus.targets import apart, with_neighbours
from mc_core.focus.tuning import FULL_EVIDENCE, NEIGHBOUR_ADDS, NEW, OUTDONE, TELLING, WORTHWHILE
from mc_core.models.words import Words

Floats = NDArray[np.float32]
Ids = NDArray[np.int32]
Ints = NDArray[np.int64]

HEAD_BLOCKS = 128
"""Newest blocks that are kept as ids and indexed anew when asked: one small sort instead of many tiny segments."""
SEGMENT_BLOCKS = 65_536
"""Segments are not merged beyond this: it bounds the longest pause that an append can cause (tens of ms)."""

PLACES_A_HIT = 16
"""Blocks ranked for each hit asked for: those next to a better hit are passed over."""


@dataclass(frozen=True, eq=False)
class Postings:
    """Which terms of a question stand where: blocks [p], terms [p] as indices of ``weights``."""

    blocks: Ints
    terms: Ints
    weights: Floats

    def held(self, first: Ints, last: Ints) -> NDArray[np.bool_]:
        """Which terms stand in blocks first[i] to last[i] [n, terms]."""
        found = np.zeros((len(first), len(self.weights)), bool)
        for i, (low, high) in enumerate(zip(first.tolist(), last.tolist(), strict=True)):
            found[i, self.terms[(self.blocks >= low) & (self.blocks <= high)]] = True
        return found


@dataclass(frozen=True, eq=False)
class Evidence:
    """Blocks near what a query found, ascending and distinct, and how much they share with its best passage.

    own: score of each block [n] (0 if just its successor holds terms); ahead: score of the block and its successor
    taken as one document [n]; behind: the same with its predecessor [n]. ``unit`` is the score of one term that
    stands in a single block of all. postings: of the terms that were read. echoes: blocks that say less than they hold
    terms [n].
    """

    blocks: Ints
    own: Floats
    ahead: Floats
    behind: Floats
    unit: float
    postings: Postings
    echoes: Ints = field(default_factory=lambda: np.empty(0, np.int64))

    @property
    def best(self) -> Floats:
        """Score of the better of the two pairs that a block belongs to [n]."""
        return np.maximum(self.ahead, self.behind)

    def own_of(self, blocks: Ints) -> Floats:
        """Score of some blocks alone, 0 where nothing was found [blocks]."""
        if not len(self.blocks):
            return np.zeros(len(blocks), np.float32)
        at = np.minimum(np.searchsorted(self.blocks, blocks), len(self.blocks) - 1)
        return np.where(self.blocks[at] == blocks, self.own[at], np.float32(0))

    def with_share(self, other: Evidence, share: float) -> Evidence:
        """The same blocks, with that share of what speaks for them in ``other`` added."""
        if not len(other.blocks):
            return self
        at = np.minimum(np.searchsorted(other.blocks, self.blocks), len(other.blocks) - 1)
        part = share * (other.blocks[at] == self.blocks).astype(np.float32)
        columns = ("own", "ahead", "behind")
        return replace(self, **{name: getattr(self, name) + part * getattr(other, name)[at] for name in columns})

    def with_echoes(self, echoes: Ints) -> Evidence:
        """The same where some blocks say less than they hold: no block is judged together with one of them."""
        if not len(echoes):
            return self
        alone, after, before = (np.isin(self.blocks + step, echoes) for step in (0, 1, -1))
        ahead = np.where(alone | after, self.own, self.ahead)
        behind = np.where(alone | before, self.own, self.behind)
        return replace(self, ahead=ahead, behind=behind, echoes=echoes)

    def ranked(self, k: int) -> Ints:
        """Indices of the k best blocks, best first; among equals the one that holds more itself, then the newest."""
        best = self.best
        rows = np.flatnonzero(best >= np.partition(best, -k)[-k]) if 0 < k < len(best) else np.arange(len(best))
        return rows[np.lexsort((-self.blocks[rows], -self.own[rows], -best[rows]))][:k]

    def targets(self, hits: int, neighbours: int, end: int, further: int = 1) -> tuple[Ints, Floats]:
        """Blocks to open for at most ``hits`` places in history, neighbours included, and their scores; best first.

        A place is one block, or two where the neighbour adds words of its own to the evidence. The best ones reach
        ``further`` blocks beyond their neighbours.
        """
        return with_neighbours(*self.places(hits), neighbours, end, further)

    def hits(self, places: int) -> Ints:
        """Blocks of at most so many places themselves."""
        first, last, _ = self.places(places)
        return np.union1d(first, last)

    def places(self, hits: int) -> tuple[Ints, Ints, Floats]:
        """At most ``hits`` places, as their first and last blocks, and their scores; best first."""
        order = self.ranked(PLACES_A_HIT * hits)
        order = order[apart(self.blocks[order], hits, 1)]
        order = order[self.best[order] >= WORTHWHILE * self.best[order].max(initial=0.0)]
        block, own, best = self.blocks[order], self.own[order], self.best[order]
        backward = self.behind[order] > self.ahead[order]
        shared = best - own > NEIGHBOUR_ADDS * own
        first = block - (shared & backward)
        last = block + (shared & ~backward)
        kept = self._not_outdone(first, last, best)
        return first[kept], last[kept], best[kept]

    def _not_outdone(self, first: Ints, last: Ints, best: Floats) -> NDArray[np.bool_]:
        """Places first..last (best first) of which no better one says the same and more [n]. Echoes say nothing."""
        kept = np.ones(len(best), bool)
        sure = best >= FULL_EVIDENCE * self.unit
        if not sure.any():
            return kept
        held = self.postings.held(first, last)
        weights = self.postings.weights
        says = ~(np.isin(first, self.echoes) | np.isin(last, self.echoes))
        telling = weights >= TELLING * self.unit
        for i in range(1, len(best)):
            betters = kept[:i] & sure[:i] & says[:i] & (best[i] <= OUTDONE * best[:i])
            new = (held[i] & ~held[:i][betters]) @ weights
            lacks = (held[:i][betters] & ~held[i] & telling).any(1)
            kept[i] = not (lacks & (new <= NEW * (held[i] @ weights))).any()
        return kept


class LexicalIndex:
    """Which blocks hold the rare words of a question? About 8 bytes a token; a query's time hardly grows."""

    def __init__(self, block_size: int, words: Words | None = None, postings: int = 16_384) -> None:
        """words: how token ids make words, so that "The" can match "the"; without it each id is a word.

        postings: how many a query reads at most; terms are read from the rarest on.
        """
        if block_size < 1:
            raise ConfigError(f"block_size must be at least 1, got {block_size}")
        if postings < 1:
            raise ConfigError(f"postings must be at least 1, got {postings}")
        self.block_size, self.words, self.postings = block_size, words, postings
        self._segments: list[Segment] = []
        self._head = np.empty((HEAD_BLOCKS, block_size), np.int32)
        self._head_count = 0
        self._head_segment: Segment | None = None
        self._rank = np.empty(0, np.int32)  # scratch by block: its column among the blocks that a query touches
        self._last = np.empty(0, np.int32)  # last id of each block: the left half of the next block's first pair

    @property
    def num_blocks(self) -> int:
        return self._sealed + self._head_count

    @property
    def nbytes(self) -> int:
        """Host memory in bytes."""
        by_block = self._head.nbytes + self._last.nbytes + self._rank.nbytes
        return sum(segment.nbytes for segment in self._segments) + by_block

    @property
    def _sealed(self) -> int:
        return self._segments[-1].end if self._segments else 0

    def append(self, first_block: int, ids: Ids) -> None:
        """Index complete blocks ``ids`` [n, K]; ``first_block`` must be the number of blocks indexed so far."""
        if first_block != self.num_blocks:
            raise ConfigError(f"first_block must be {self.num_blocks}, the next block of the index, got {first_block}")
        if ids.ndim != 2 or ids.shape[1] != self.block_size:
            raise ConfigError(f"ids must be [n, {self.block_size}], got {list(ids.shape)}")
        folded = self.folded(ids)
        self._reserve(first_block + len(ids))
        self._last[first_block : first_block + len(ids)] = folded[:, -1]
        at = 0
        while at < len(folded):
            whole = not self._head_count and len(folded) - at >= HEAD_BLOCKS
            part = folded[at : at + (SEGMENT_BLOCKS if whole else HEAD_BLOCKS - self._head_count)]
            if whole:
                self._seal(part)
            else:
                self._fill_head(part)
            at += len(part)

    def rewind(self, num_blocks: int) -> None:
        """Forget all blocks from ``num_blocks`` on."""
        if num_blocks < 0:
            raise ConfigError(f"num_blocks must not be negative, got {num_blocks}")
        if num_blocks >= self.num_blocks:
            return
        self._head_segment = None
        self._head_count = max(0, num_blocks - self._sealed)
        while self._segments and self._segments[-1].first >= num_blocks:
            self._segments.pop()
        if self._sealed > num_blocks:
            self._segments[-1] = self._segments[-1].truncated(num_blocks)

    def folded(self, ids: Ids) -> Ids:
        """What token ids are indexed as; -1: not at all."""
        return ids.astype(np.int32, copy=False) if self.words is None else self.words.fold[ids]

    def question(self, folded: Ids) -> Question:
        """The terms of folded ids."""
        return Question.of(folded, self.digits)

    @property
    def digits(self) -> NDArray[np.bool_] | None:
        return None if self.words is None else self.words.digits

    def weigh(self, folded: Ids) -> tuple[Terms, Floats, float]:
        """Distinct terms of folded ids, tokens and pairs, and their weights [terms]; the weight of a unique term."""
        question = self.question(folded)
        df = np.zeros(len(question.terms), np.int64)
        for segment in self._all_segments():
            df += segment.find(question.terms)[1]
        weights, unit = self._weights(question, df)
        # A question has a term once a cell.
        terms, first = np.unique(question.terms, return_index=True)
        return terms, weights[first].astype(np.float32), unit

    def evidence(self, question: Ids, end: int | None = None) -> Evidence:
        """The blocks below ``end`` that hold terms of the question, as far as these were rare enough to be read."""
        return self.evidence_of(self.folded(question), end)

    def evidence_of(self, folded: Ids, end: int | None = None, without: Ints | None = None) -> Evidence:
        """The same for ids that are folded; ``without``: blocks that do not count."""
        question = self.question(folded)
        segments = self._all_segments()
        found = [segment.find(question.terms) for segment in segments]
        counts = np.array([count for _, count in found], np.int64).reshape(len(segments), len(question.terms))
        read, weights, unit = self._choose(question, counts.sum(0))
        blocks, of_term = _gather(segments, [start[read] for start, _ in found], counts[:, read])
        if end is not None and end < self.num_blocks:
            keep = blocks < end
            blocks, of_term = blocks[keep], of_term[keep]
        if without is not None:
            keep = ~np.isin(blocks, without)
            blocks, of_term = blocks[keep], of_term[keep]
        return self._accumulate(blocks, of_term, weights, question.cells[read], question.num_cells, unit)

    def _choose(self, question: Question, df: Ints) -> tuple[Ints, Floats, float]:
        """Terms to read, rarest first until the postings are spent -> (their rows, weights, weight of a unique one)."""
        order = np.argsort(df, kind="stable")
        affordable = np.cumsum(df[order]) <= self.postings
        read = np.sort(order[affordable & (df[order] > 0)])
        weights, unit = self._weights(question, df)
        return read, weights[read].astype(np.float32), unit

    def _weights(self, question: Question, df: Ints) -> tuple[NDArray[np.float64], float]:
        """What each term is worth [terms], and what one in a single block of all is."""
        idf = _idf(df, self.num_blocks)
        unit = float(_idf(np.ones(1), self.num_blocks)[0])
        # A pair of common words may be rare without meaning anything, so a pair is worth what its parts are.
        parts = np.minimum(idf[question.left], idf[question.right])
        paired = question.terms >= PAIR
        return np.where(paired, parts, idf) * idf / unit, unit

    def _accumulate(
        self, blocks: Ints, of_term: Ints, weights: Floats, cells: Ints, num_cells: int, unit: float
    ) -> Evidence:
        """Sum the weights of the terms of a block, and of it with its successor, by cell of the question."""
        # A term counts once for two neighbouring blocks: what block b + 1 adds to b are the terms that b lacks.
        adds = np.ones(len(blocks), bool)
        adds[1:] = (blocks[1:] != blocks[:-1] + 1) | (of_term[1:] != of_term[:-1])
        adds &= blocks > 0
        before = blocks[adds] - 1
        touched = _distinct(np.concatenate([blocks, before]))
        self._rank[touched] = np.arange(len(touched))
        weight, cell = weights[of_term], cells[of_term]
        own = np.zeros((num_cells, len(touched)), np.float32)
        np.add.at(own.reshape(-1), cell * len(touched) + self._rank[blocks], weight)
        both = own.copy()
        np.add.at(both.reshape(-1), cell[adds] * len(touched) + self._rank[before], weight[adds])
        alone, ahead = _best_passage(own), _best_passage(both)
        behind = alone.copy()
        follows = np.flatnonzero(np.diff(touched) == 1)
        behind[follows + 1] = ahead[follows]
        return Evidence(touched, alone, ahead, behind, unit, Postings(blocks, of_term, weights))

    def _reserve(self, blocks: int) -> None:
        if blocks <= len(self._last):
            return
        extra = max(blocks, 2 * len(self._last), 1024) - len(self._last)
        self._last = np.concatenate([self._last, np.empty(extra, np.int32)])
        self._rank = np.empty(len(self._last), np.int32)

    def _fill_head(self, ids: Ids) -> None:
        self._head[self._head_count : self._head_count + len(ids)] = ids
        self._head_count += len(ids)
        self._head_segment = None
        if self._head_count == HEAD_BLOCKS:
            self._head_count = 0
            self._seal(self._head)

    def _seal(self, ids: Ids) -> None:
        self._segments.append(self._build(ids))
        while len(self._segments) > 1:
            old, new = self._segments[-2:]
            if old.num_blocks >= 2 * new.num_blocks or old.num_blocks + new.num_blocks > SEGMENT_BLOCKS:
                break
            self._segments[-2:] = [merge(old, new)]

    def _build(self, ids: Ids) -> Segment:
        previous = int(self._last[self._sealed - 1]) if self._sealed else -1
        return build(self._sealed, ids, previous, self.digits)

    def _all_segments(self) -> list[Segment]:
        if not self._head_count:
            return self._segments
        if self._head_segment is None:
            self._head_segment = self._build(self._head[: self._head_count])
        return [*self._segments, self._head_segment]


def _best_passage(by_cell: Floats) -> Floats:
    """Best sum over two neighbouring cells of the question [cells, n] -> [n]."""
    passages = by_cell[:-1] + by_cell[1:] if len(by_cell) > 1 else by_cell
    return passages.max(0)


def _distinct(values: Ints) -> Ints:
    """Sorted distinct values; much faster than np.unique, which hashes."""
    values = np.sort(values)
    return values[np.append(True, values[1:] != values[:-1])] if len(values) else values


def _idf(df: NDArray[np.number], blocks: int) -> NDArray[np.float64]:
    return np.log1p((blocks - df + 0.5) / (df + 0.5))


def _gather(segments: list[Segment], starts: list[Ints], counts: Ints) -> tuple[Ints, Ints]:
    """Postings of the chosen terms, term by term, blocks ascending -> (block numbers, indices of terms)."""
    by_term = counts.T.reshape(-1)
    places = (np.cumsum(by_term) - by_term).reshape(counts.T.shape)
    blocks = np.empty(int(by_term.sum()), np.int64)
    for i, segment in enumerate(segments):
        blocks[runs(places[:, i], counts[i])] = segment.blocks[runs(starts[i], counts[i])]
    return blocks, np.repeat(np.arange(counts.shape[1]), counts.sum(0))
