"""Sorted postings of a stretch of blocks: for each term, the blocks that hold it.

A term is a token id, a pair of neighbouring ids hashed into the upper half of the uint32 range, or a whole number
hashed into the quarter below that. Blocks are so short (K tokens) that how often a term stands in one says little, so a
posting is a block number alone (4 bytes). A question is taken apart into the same terms.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mc_core.focus.tuning import CELL, LONGEST_QUESTION

Ids = NDArray[np.int32]
Terms = NDArray[np.uint32]
Blocks = NDArray[np.int32]
Bools = NDArray[np.bool_]

PAIR, NUMBER = np.uint32(1 << 31), np.uint32(1 << 30)
_MIX_LEFT, _MIX_RIGHT = np.uint32(0x9E3779B1), np.uint32(0x85EBCA77)


def pair_terms(left: NDArray[Any], right: NDArray[Any]) -> Terms:
    """Terms of neighbouring tokens, any shape; two pairs share a term by chance once in 2^31."""
    mixed = (left.astype(np.uint32) * _MIX_LEFT) ^ ((right.astype(np.uint32) + np.uint32(1)) * _MIX_RIGHT)
    mixed ^= mixed >> np.uint32(15)
    return (mixed * _MIX_RIGHT) | PAIR


def number_terms(ids: Ids, digits: Bools) -> tuple[Terms, NDArray[np.int64]]:
    """Terms of the whole numbers in rows of folded ids, and where each begins in the flattened ids.

    ids [n, K]; digits [vocabulary]: which ids are digits. A number is a run of two digit tokens or more within a row:
    one term for itself and one with the token before it, for "T353" is rare where T, 3 and 53 are not.
    """
    flat, size = ids.reshape(-1), ids.shape[1]
    digit = (flat >= 0) & digits[flat]
    begins = digit.copy()
    begins[1:] &= ~digit[:-1] | (np.arange(1, len(flat)) % size == 0)
    starts = np.flatnonzero(begins)
    if not len(starts):
        return np.empty(0, np.uint32), starts
    counts = np.bincount(np.cumsum(begins)[digit] - 1)
    first = np.cumsum(counts) - counts
    powers = np.multiply.accumulate(np.append(np.uint32(1), np.full(size - 1, _MIX_LEFT, np.uint32)))
    mixed = (flat[digit].astype(np.uint32) + np.uint32(1)) * powers[np.arange(counts.sum()) - np.repeat(first, counts)]
    whole = counts >= 2
    number, starts = np.add.reduceat(mixed, first)[whole], starts[whole]
    before = flat[np.maximum(starts - 1, 0)]
    named = (starts % size > 0) & (before >= 0)
    terms = np.concatenate([pair_terms(number, number), pair_terms(before[named], number[named])])
    return terms & ~PAIR | NUMBER, np.concatenate([starts, starts[named]])


@dataclass(frozen=True, eq=False)
class Segment:
    """Postings of blocks [first, end): ``blocks[offsets[i] : offsets[i + 1]]`` hold ``terms[i]``, both ascending."""

    first: int
    end: int
    terms: Terms
    offsets: NDArray[np.int32]
    blocks: Blocks

    @property
    def num_blocks(self) -> int:
        return self.end - self.first

    @property
    def nbytes(self) -> int:
        return self.terms.nbytes + self.offsets.nbytes + self.blocks.nbytes

    def find(self, terms: Terms) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(start, count) of the postings of each term, count 0 where it does not occur."""
        if not len(self.terms):
            return np.zeros(len(terms), np.int64), np.zeros(len(terms), np.int64)
        at = np.minimum(np.searchsorted(self.terms, terms), len(self.terms) - 1)
        start = self.offsets[at].astype(np.int64)
        return start, np.where(self.terms[at] == terms, self.offsets[at + 1] - start, 0)

    def truncated(self, end: int) -> Segment:
        """The same postings without blocks from ``end`` on."""
        keep = self.blocks < end
        before = np.concatenate([[0], np.cumsum(keep)]).astype(np.int32)
        offsets = before[self.offsets]
        used = offsets[1:] > offsets[:-1]
        bounds = np.concatenate([offsets[:-1][used], offsets[-1:]])
        return Segment(self.first, end, self.terms[used], bounds, self.blocks[keep])


def build(first: int, ids: Ids, previous: int, digits: Bools | None = None) -> Segment:
    """Postings of blocks ``ids`` [n, K], the first of them number ``first``; ``previous`` is the id before them.

    Negative ids are no terms. A pair belongs to the block of its second token. digits [vocabulary]: which ids are
    digits; without it there are no terms of whole numbers.
    """
    count, size = ids.shape
    flat = ids.reshape(-1)
    numbers = np.repeat(np.arange(first, first + count, dtype=np.uint64), size)
    left = np.concatenate([np.array([previous], np.int32), flat[:-1]])
    single, paired = flat >= 0, (flat >= 0) & (left >= 0)
    terms = [flat[single].astype(np.uint32), pair_terms(left[paired], flat[paired])]
    blocks = [numbers[single], numbers[paired]]
    if digits is not None:
        whole, places = number_terms(ids, digits)
        terms.append(whole)
        blocks.append(numbers[places])
    postings = (np.concatenate(terms).astype(np.uint64) << np.uint64(32)) | np.concatenate(blocks)
    postings.sort()
    fresh = np.ones(len(postings), bool)
    np.not_equal(postings[1:], postings[:-1], out=fresh[1:])
    postings = postings[fresh]
    return _packed(first, first + count, postings)


def _packed(first: int, end: int, postings: NDArray[np.uint64]) -> Segment:
    terms = (postings >> np.uint64(32)).astype(np.uint32)
    starts = np.flatnonzero(np.concatenate([[True], terms[1:] != terms[:-1]])) if len(terms) else np.empty(0, np.int64)
    blocks = postings.astype(np.uint32).view(np.int32)
    return Segment(first, end, terms[starts], np.append(starts, len(blocks)).astype(np.int32), blocks)


def merge(old: Segment, new: Segment) -> Segment:
    """Join two neighbouring segments. Sorting again beats scattering runs: numpy's sort is vectorised."""
    postings = np.concatenate([_unpacked(old), _unpacked(new)])
    postings.sort()
    return _packed(old.first, new.end, postings)


def _unpacked(segment: Segment) -> NDArray[np.uint64]:
    terms = np.repeat(segment.terms, np.diff(segment.offsets)).astype(np.uint64)
    return (terms << np.uint64(32)) | segment.blocks.view(np.uint32)


def runs(starts: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """[starts[0], starts[0] + 1, ..(counts[0] of them).., starts[1], ..]."""
    ends = np.cumsum(counts)
    return np.repeat(starts - ends + counts, counts) + np.arange(ends[-1] if len(ends) else 0)


@dataclass(frozen=True, eq=False)
class Question:
    """Distinct (term, cell) of a question, terms ascending: its tokens, pairs of neighbours among them, whole numbers.

    cells: 0 is the newest [terms]; left, right: rows of the two tokens of a pair, else the row itself.
    """

    terms: Terms
    cells: NDArray[np.int64]
    left: NDArray[np.int64]
    right: NDArray[np.int64]

    @property
    def num_cells(self) -> int:
        return int(self.cells.max()) + 1 if len(self.cells) else 1

    @classmethod
    def of(cls, ids: NDArray[np.int32], digits: NDArray[np.bool_] | None = None) -> Question:
        """From ids in order, newest last; negative ids are no terms. digits as in ``number_terms``."""
        flat = ids.reshape(-1)[-LONGEST_QUESTION:]
        cell = (len(flat) - 1 - np.arange(len(flat))) // CELL
        single, whole = flat >= 0, (flat[:-1] >= 0) & (flat[1:] >= 0)
        left, right = flat[:-1][whole], flat[1:][whole]
        number, places = np.empty(0, np.uint32), np.empty(0, np.int64)
        if digits is not None and len(flat):
            number, places = number_terms(flat[None], digits)
        terms = np.concatenate([flat[single].astype(np.uint32), pair_terms(left, right), number])
        cells = np.concatenate([cell[single], cell[1:][whole], cell[places]])
        rows = np.unique((terms.astype(np.uint64) << np.uint64(32)) | cells.astype(np.uint64), return_index=True)[1]
        terms, cells = terms[rows], cells[rows]
        alone = flat[single].astype(np.uint32)
        parts = (np.concatenate([alone, part.astype(np.uint32), number])[rows] for part in (left, right))
        left_row, right_row = (np.searchsorted(terms, part) for part in parts)
        return cls(terms, cells, left_row, right_row)
