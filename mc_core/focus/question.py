"""A question as the terms to look up: which tokens and pairs, and in which part of the question they stand."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mc_core.focus.postings import Terms, number_terms, pair_terms

CELL = 16
"""Tokens in a cell. A passage is two neighbouring cells; evidence is summed within a passage, not across them."""

LONGEST = 512
"""Newest tokens of a question that are looked up: it bounds the time of a query."""


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
        flat = ids.reshape(-1)[-LONGEST:]
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
