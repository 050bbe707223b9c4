"""The lexical lens: opens the blocks that share the question's rare words. No training, exact words only."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mc_core.focus.lexical import FULL_EVIDENCE, Evidence, LexicalIndex
from mc_core.focus.relevance import RECENCY_WORTH, lift, recency, with_turn
from mc_core.focus.scores import Scores
from mc_core.focus.view import LensView

LONG_VALUE = 64
"""The best places are opened this many tokens ahead: the value of a key may be long, a UUID for example."""


class LexicalLens:
    """BM25 of the question against every block of the history, lifted onto the entries that cover the best ones."""

    def __init__(
        self, block_size: int, look_ahead: int, neighbours: int, fold: NDArray[np.int32] | None = None
    ) -> None:
        """look_ahead: places to open at most; neighbours: blocks around each; fold: see LexicalIndex."""
        self.index = LexicalIndex(block_size, fold)
        self.look_ahead, self.neighbours = look_ahead, neighbours

    def append(self, first_block: int, ids: NDArray[np.int32]) -> None:
        self.index.append(first_block, ids)

    def rewind(self, num_blocks: int) -> None:
        self.index.rewind(num_blocks)

    def score(self, view: LensView) -> Scores:
        wc = view.wc
        # The turn's own words stand in the turn's own blocks: they must not find themselves.
        end = view.turn_start // wc.block_size
        found = self.index.evidence(view.tail_ids, end)
        full = max(FULL_EVIDENCE * found.unit, float(found.best.max(initial=0.0)))
        targets, worth = found.targets(self.look_ahead, self.neighbours, end, max(1, LONG_VALUE // wc.block_size - 1))
        targets, worth = with_turn(view, targets, worth / np.float32(full))
        wanted = lift(wc, targets, worth)
        harm = np.maximum(wanted, RECENCY_WORTH * recency(wc))
        self._keep_relevant(view, found, full, harm)
        return Scores(np.where(wc.levels > 0, wanted, np.float32(0)), harm, targets, worth)

    def _keep_relevant(self, view: LensView, found: Evidence, full: float, harm: NDArray[np.float32]) -> None:
        """Raw blocks that share terms with the question, though not among the targets, are not free to collapse."""
        if not len(found.blocks):
            return
        raw = np.flatnonzero(view.wc.levels == 0)
        blocks = view.wc.indices[raw]
        at = np.minimum(np.searchsorted(found.blocks, blocks), len(found.blocks) - 1)
        own = np.where(found.blocks[at] == blocks, found.own[at], np.float32(0))
        harm[raw] = np.maximum(harm[raw], own / np.float32(full))
