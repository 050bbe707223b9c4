"""The oracle: a lens that is told which blocks an answer needs. It separates selecting from reading, and mends contexts
to train on."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mc_core.focus.targets import with_neighbours
from mc_core.focus.tuning import RECENCY_WORTH
from mc_core.focus.view import LensView, Scores, lift, recency, with_turn


class OracleLens:
    """Opens ``blocks`` and their neighbours; set them before each question."""

    def __init__(self, neighbours: int) -> None:
        self.neighbours = neighbours
        self.blocks: NDArray[np.int64] = np.empty(0, np.int64)

    def append(self, first_block: int, ids: NDArray[np.int32]) -> None:
        """It is told where to look, so there is nothing to index."""

    def rewind(self, num_blocks: int) -> None:
        """There is nothing to forget either."""

    def score(self, view: LensView) -> Scores:
        wc = view.wc
        end = view.turn_start // wc.block_size
        worth = np.ones(len(self.blocks), np.float32)
        targets, worth = with_neighbours(self.blocks, self.blocks, worth, self.neighbours, end, further=0)
        targets, worth = with_turn(view, targets, worth)
        wanted = lift(wc, targets, worth)
        harm = np.maximum(wanted, RECENCY_WORTH * recency(wc))
        return Scores(np.where(wc.levels > 0, wanted, np.float32(0)), harm, targets, worth)
