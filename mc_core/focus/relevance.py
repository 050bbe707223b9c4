"""From blocks to entries: scores of blocks lifted onto the working context, recency, and the current turn."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mc_core.context.entries import Entries
from mc_core.context.working_context import WorkingContext
from mc_core.focus.scores import Scores
from mc_core.focus.view import LensView

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

RECENCY_WORTH = 0.25
"""Harm of collapsing the newest entry of which nothing else is known: less than that of a block worth opening."""
TURN_WORTH = 0.95
"""Worth of the current turn's own blocks: the model must read what it was asked. Only the best find comes first."""


def lift(wc: WorkingContext, blocks: Ints, scores: Floats) -> Floats:
    """Best score among the blocks that each entry covers [n], 0 where there is none: a parent is its best child."""
    best = np.zeros(len(wc.levels), np.float32)
    covering = np.searchsorted(wc.starts(), blocks * wc.block_size, side="right") - 1
    inside = covering >= 0
    np.maximum.at(best, covering[inside], scores[inside])
    return best


def lifted(wc: WorkingContext, gain: Floats, harm: Floats, targets: Ints, scores: Floats) -> Scores:
    """Scores of entries: worth opening and keeping for their own sake [n], or for the targets that they cover."""
    wanted = lift(wc, targets, scores)
    opening = np.where(wc.levels > 0, np.maximum(gain, wanted), np.float32(0))
    return Scores(opening, np.maximum(harm, wanted), targets, scores)


def recency(wc: WorkingContext) -> Floats:
    """1 for an entry that ends now, halved every W / 2 tokens further back [n]."""
    distance = (wc.num_tokens - wc.ends()).astype(np.float32)
    return np.exp2(-distance / np.float32(max(1.0, wc.budget / 2)))


def carried(entries: Entries, scores: Scores, view: LensView) -> Scores:
    """Scores of ``entries`` at the time a lens was asked -> scores of the working context as it stands now.

    The same targets, but for the turn's own blocks, which have become more. Entries that stand as they stood keep
    their own scores; what is new has none yet, as its place in time and the targets beneath it say.
    """
    wc = view.wc
    inside = scores.targets < -(-wc.num_tokens // wc.block_size)
    targets, worth = with_turn(view, scores.targets[inside], scores.target_scores[inside])
    rows = np.searchsorted(entries.starts(), wc.starts(), side="right") - 1
    stands = (np.append(entries.levels, -1)[rows] == wc.levels) & (np.append(entries.indices, -1)[rows] == wc.indices)
    gain, harm = (np.where(stands, np.append(own, 0)[rows], 0).astype(np.float32) for own in (scores.gain, scores.harm))
    return lifted(wc, gain, np.maximum(harm, RECENCY_WORTH * recency(wc)), targets, worth)


def with_turn(view: LensView, targets: Ints, scores: Floats) -> tuple[Ints, Floats]:
    """Targets and the current turn's blocks that may have left the protected tail; best first, distinct."""
    size = view.wc.block_size
    first, end = view.turn_start // size, min(view.wc.tail_start // size, view.cursor // size)
    if first >= end:
        return targets, scores
    outside = targets < first
    own = np.arange(end - 1, first - 1, -1, dtype=np.int64)
    blocks = np.concatenate([targets[outside], own])
    worth = np.concatenate([scores[outside], np.full(len(own), TURN_WORTH, np.float32)]).astype(np.float32)
    order = np.argsort(-worth, kind="stable")
    return blocks[order], worth[order]
