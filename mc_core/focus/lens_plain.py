"""Lenses that look at no content: recency, the baseline to beat, and random, the floor."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mc_core.focus.lens import LensParts
from mc_core.focus.view import LensView, Scores, recency


def make_recency(parts: LensParts) -> RecencyLens:
    return RecencyLens()


def make_random(parts: LensParts) -> RandomLens:
    return RandomLens(parts.seed, parts.look_ahead)


class RecencyLens:
    """The newest is worth most; nothing is looked up."""

    def append(self, first_block: int, ids: NDArray[np.int32]) -> None:
        """Recency needs no index."""

    def rewind(self, num_blocks: int) -> None:
        """Recency needs no index."""

    def score(self, view: LensView) -> Scores:
        worth = recency(view.wc)
        return Scores(gain=np.where(view.wc.levels > 0, worth, np.float32(0)), harm=worth)


class RandomLens:
    """Random scores and random targets. They depend on the seed and the cursor alone, so a replay repeats them."""

    def __init__(self, seed: int, targets: int) -> None:
        self.seed, self.targets = seed, targets

    def append(self, first_block: int, ids: NDArray[np.int32]) -> None:
        """Chance needs no index."""

    def rewind(self, num_blocks: int) -> None:
        """Chance needs no index."""

    def score(self, view: LensView) -> Scores:
        draw = np.random.default_rng([self.seed, view.cursor])
        entries, blocks = len(view.wc.levels), view.wc.tail_start // view.wc.block_size
        targets = np.unique(draw.integers(0, blocks, self.targets)) if blocks else np.empty(0, np.int64)
        worth = draw.random(len(targets), dtype=np.float32)
        order = np.argsort(-worth)
        gain, harm = draw.random((2, entries), dtype=np.float32)
        return Scores(np.where(view.wc.levels > 0, gain, np.float32(0)), harm, targets[order], worth[order])
